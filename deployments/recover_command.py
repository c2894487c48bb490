"""`prefect-cd recover pipeline.yaml [ENVIRONMENT]`: bring environments back by hand, without Prefect's server.

It does what `recover/APPLICATION` does, under the same lock. Two at once do no harm: the second one waits for the first
and finds nothing left to do.
"""

import argparse
import asyncio
import json
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone

from prefect_cd.deployments import terminal
from prefect_cd.deployments.status_command import (
    FIRST_PATIENCE,
    Answer,
    access_to,
    document_of,
    exit_code,
    paragraph,
)
from prefect_cd.environment.lease import TAKEOVER_WAIT, Lock, hold
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.recovery import Recovered, RecoveryAction, look_and_decide, recover
from prefect_cd.environment.status import read_status
from prefect_cd.errors import DeliveryError, Invalid
from prefect_cd.kube.client import PATIENCE, Cluster, connect
from prefect_cd.kube.kubeconfig import Access
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Environment, Pipeline
from prefect_cd.rollout.watch.report import Report

_NO_WRITES = (RecoveryAction.NOTHING, RecoveryAction.STAY_FROZEN)


@dataclass(frozen=True)
class Result:
    """What became of one environment.

    Attributes:
        environment: which.
        answer: its status after the recovery, or why there is none.
        done: what was done; None where an error came first.
        signed: the records that were signed first, on request.
    """

    environment: Environment
    answer: Answer
    done: Recovered | None = None
    signed: tuple[Record, ...] = ()


def run(arguments: argparse.Namespace) -> int:
    """Recover the pipeline's environments, or one of them.

    Returns:
        0 when each of them is whole; 1 when one is not; 2 when nobody knows.

    Raises:
        InvalidPipeline: the file has mistakes.
        Invalid: it has no such environment, or none was named whose records could be signed.
    """
    pipeline = load(arguments.file)
    chosen = _chosen(pipeline, arguments)
    if arguments.sign_records:
        _refuse_to_sign(arguments, chosen)
    results = asyncio.run(_recover_all(pipeline, chosen, sign=arguments.sign_records))
    if arguments.output == "json":
        terminal.write(f"{json.dumps(document(pipeline, results), indent=2)}\n")
    else:
        terminal.write(text(pipeline, results, datetime.now(timezone.utc)))
    return exit_code([result.answer for result in results])


def _chosen(pipeline: Pipeline, arguments: argparse.Namespace) -> list[Environment]:
    wanted = arguments.environment
    chosen = [environment for environment in pipeline.environments if wanted in {None, environment.name}]
    if not chosen:
        names = ", ".join(environment.name for environment in pipeline.environments)
        raise Invalid(
            f"{pipeline.application} has no environment {wanted!r}",
            where=str(arguments.file),
            hint=f"choose one of: {names}",
        )
    return chosen


def _refuse_to_sign(arguments: argparse.Namespace, environments: Sequence[Environment]) -> None:
    """Return where records can be signed: for one environment, which a person has looked at, and with its key."""
    if arguments.environment is None:
        raise Invalid(
            "records are signed for one environment at a time",
            where=str(arguments.file),
            hint="look at `prefect-cd status`, then name the environment",
        )
    if missing := [environment.name for environment in environments if not environment.record_key]:
        raise Invalid(
            f"{missing[0]} has no record_key to sign with",
            where=str(arguments.file),
            hint="`openssl rand -hex 32 > FILE`, and write `record_key: FILE` into the pipeline file",
        )


async def _recover_all(pipeline: Pipeline, environments: Sequence[Environment], *, sign: bool) -> list[Result]:
    recoveries = (_recover(pipeline, environment, sign=sign) for environment in environments)
    return list(await asyncio.gather(*recoveries))


async def _recover(pipeline: Pipeline, environment: Environment, *, sign: bool) -> Result:
    """Recover one environment; the others may be on another cluster, so an error is a result."""
    ownership = Ownership.of(pipeline.application, environment)
    done: Recovered | None = None
    signed: tuple[Record, ...] = ()
    try:
        access = await asyncio.to_thread(access_to, pipeline, environment)
        async with connect(access, patience=FIRST_PATIENCE) as cluster:
            if sign:
                signed = await _sign(access, cluster.with_patience(PATIENCE), ownership)
            decision = await look_and_decide(cluster, ownership, environment.rollout)
            done = Recovered(decision)
            if decision.action not in _NO_WRITES:
                done = await _recover_locked(access, cluster.with_patience(PATIENCE), ownership, environment)
            return Result(environment, await read_status(cluster, ownership), done, signed)
    except DeliveryError as error:
        return Result(environment, error, done, signed)


async def _sign(access: Access, cluster: Cluster, ownership: Ownership) -> tuple[Record, ...]:
    with ExitStack() as stack:
        lock = await asyncio.to_thread(stack.enter_context, _holding(access, ownership))
        return await RecordStore(cluster, ownership, lock.epoch).sign_unsigned(guard=lock.guard)


def _holding(access: Access, ownership: Ownership) -> AbstractContextManager[Lock]:
    return hold(access, ownership, f"recover/{socket.gethostname()}", wait=TAKEOVER_WAIT)


async def _recover_locked(
    access: Access, cluster: Cluster, ownership: Ownership, environment: Environment
) -> Recovered:
    with ExitStack() as stack:
        lock = await asyncio.to_thread(stack.enter_context, _holding(access, ownership))
        return await recover(
            cluster,
            ownership,
            lock,
            environment.rollout,
            never_back=environment.rollback == "never",
            on_change=_Progress(environment.name).show,
        )


class _Progress:
    """Writes the state of the workloads to stderr when it has changed."""

    def __init__(self, environment: str) -> None:
        self._environment = environment
        self._shown = ""

    def show(self, report: Report) -> None:
        if report.summary_without_seconds != self._shown:
            self._shown = report.summary_without_seconds
            terminal.write_error(terminal.joined([f"{self._environment}: {report.summary}"]))


# --- for programs and for people -------------------------------------------------------------------------------------


def document(pipeline: Pipeline, results: Sequence[Result]) -> dict[str, object]:
    """The JSON document: for each environment the entry of `prefect-cd status`, and what was done."""
    environments = [
        {
            **document_of(result.environment, result.answer),
            "action": result.done.decision.action.value if result.done else None,
            "done": described(result.done) if result.done else None,
            "signed": [record.number for record in result.signed],
        }
        for result in results
    ]
    return {"application": pipeline.application, "environments": environments}


def text(pipeline: Pipeline, results: Sequence[Result], now: datetime) -> str:
    """A paragraph for each environment: its condition, what was done, and as in `prefect-cd status`."""
    lines: list[str] = []
    for result in results:
        first, *others = paragraph(pipeline.application, result.environment, result.answer, now)
        signed = [f"  signed  {_signed(record)}" for record in result.signed]
        lines += [first, *signed, *([f"  done    {described(result.done)}"] if result.done else []), *others]
    return terminal.joined(lines)


def _signed(record: Record) -> str:
    return f"record {record.number}: {record.release_id}, {record.state.value}"


def described(done: Recovered) -> str:
    """What was done, in one sentence."""
    record, base = done.decision.record, done.decision.base
    if record is None or base is None:
        return "nothing: no rollout was interrupted"
    sentences = {
        RecoveryAction.STAY_FROZEN: f"nothing: the rollback from {record.release_id} failed, and a person is needed",
        RecoveryAction.UNFREEZE: f"no longer frozen: it is whole on {base.release_id}",
        RecoveryAction.ABANDON: f"gave {record.release_id} up, which had written nothing",
    }
    return sentences.get(done.decision.action) or _way_back(done, record.release_id, base.release_id)


def _way_back(done: Recovered, release: str, base: str) -> str:
    if done.kept:
        return f"recorded that {release} failed, and left it: the pipeline file says never to roll back"
    if done.went_back is None:
        return f"nothing yet: {release} was interrupted"
    return f"{'tried to go' if done.went_back.problem else 'went'} back from {release} to {base}"
