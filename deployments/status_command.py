"""`prefect-cd status pipeline.yaml`: what each environment runs, what is half done, vetoed or waiting, who works."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from prefect_cd.deployments import terminal
from prefect_cd.deployments.waiting_runs import WaitingRun, waiting_runs
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.status import Condition, EnvironmentStatus, Version, read_status
from prefect_cd.errors import DeliveryError
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import Access
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Environment, Pipeline

_ALL_WHOLE, _NEEDS_WORK, _UNKNOWN = 0, 1, 2
FIRST_PATIENCE = timedelta(seconds=5)
"""For an API server that does not answer: a person waits for the command."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_MAX_DEFECTS = 10
_SHOWN_RELEASES = 5
_ID_LENGTH = 12

Answer = EnvironmentStatus | DeliveryError
"""The status of an environment, or why it could not be read."""


def run(arguments: argparse.Namespace) -> int:
    """Show the status of the pipeline's environments.

    Returns:
        0 when every environment is whole; 1 when one is interrupted, failed, frozen, drifted or damaged; 2 when one
        could not be read.

    Raises:
        InvalidPipeline: the file has mistakes.
    """
    pipeline = load(arguments.file)
    answers, waiting = asyncio.run(_read_all(pipeline))
    if arguments.output == "json":
        terminal.write(f"{json.dumps(document(pipeline, answers, waiting), indent=2)}\n")
    else:
        terminal.write(text(pipeline, answers, datetime.now(timezone.utc), waiting or ()))
    return exit_code(answers)


def exit_code(answers: Sequence[Answer]) -> int:
    """0 where every environment is whole; 1 where one is not; 2 where nobody knows that of one."""
    statuses = [answer for answer in answers if isinstance(answer, EnvironmentStatus)]
    if not all(status.is_whole for status in statuses):
        return _NEEDS_WORK
    known = [status for status in statuses if not status.unchecked]
    return _ALL_WHOLE if len(known) == len(answers) else _UNKNOWN


async def _read_all(pipeline: Pipeline) -> tuple[list[Answer], list[WaitingRun] | None]:
    """What the clusters say, and what Prefect's server says, where there is one."""
    waiting = asyncio.create_task(asyncio.to_thread(waiting_runs, pipeline.application))
    answers = await asyncio.gather(*(_read(pipeline, environment) for environment in pipeline.environments))
    return list(answers), await waiting


async def _read(pipeline: Pipeline, environment: Environment) -> Answer:
    try:
        access = await asyncio.to_thread(access_to, pipeline, environment)
        async with connect(access, patience=FIRST_PATIENCE) as cluster:
            return await read_status(cluster, Ownership.of(pipeline.application, environment))
    except DeliveryError as error:  # the other environments may be on another cluster
        return error


def access_to(pipeline: Pipeline, environment: Environment) -> Access:
    """How the cluster of an environment is reached."""
    if environment.cluster.credentials is None:
        return environment.cluster
    # only a block needs Prefect, whose import takes longer than all the rest
    from prefect_cd.tasks.target import Target  # noqa: PLC0415

    return Target.of(pipeline, environment.name).access()


# --- for programs ----------------------------------------------------------------------------------------------------


def document(
    pipeline: Pipeline, answers: Sequence[Answer], waiting: Sequence[WaitingRun] | None = None
) -> dict[str, object]:
    """The JSON document: one entry for each environment, with `error` in the place of the status if there is none.

    `waiting` has the runs that wait for an approval; it is null where no Prefect server answered.
    """
    environments = [
        {
            **document_of(environment, answer),
            "waiting": None
            if waiting is None
            else [run.model_dump(mode="json") for run in waiting if run.environment == environment.name],
        }
        for environment, answer in zip(pipeline.environments, answers, strict=True)
    ]
    return {"application": pipeline.application, "environments": environments}


def document_of(environment: Environment, answer: Answer) -> dict[str, object]:
    """The entry of one environment."""
    if isinstance(answer, DeliveryError):
        return {"environment": environment.name, "namespace": environment.namespace, "error": str(answer)}
    return {**answer.model_dump(mode="json"), "records_signed": bool(environment.record_key), "error": None}


# --- for people ------------------------------------------------------------------------------------------------------


def text(pipeline: Pipeline, answers: Sequence[Answer], now: datetime, waiting: Sequence[WaitingRun] = ()) -> str:
    """A paragraph for each environment: its condition, what runs, what is under way, and the next command."""
    paragraphs = [
        [
            *paragraph(pipeline.application, environment, answer, now),
            *(f"  waiting {_waiting(run, now)}" for run in waiting if run.environment == environment.name),
        ]
        for environment, answer in zip(pipeline.environments, answers, strict=True)
    ]
    return terminal.joined(line for lines in paragraphs for line in lines)


def paragraph(application: str, environment: Environment, answer: Answer, now: datetime) -> list[str]:
    """The lines about one environment; the first one is its condition."""
    if isinstance(answer, DeliveryError):
        return [f"{environment.name}: unknown", *(f"  {line}" for line in str(answer).splitlines())]
    lines = [f"{answer.environment}: {answer.condition}"]
    lines += [f"  runs    {_described(answer.runs, now)}"] if answer.runs else []
    lines += [f"  newest  {_described(answer.newest, now)}, {answer.newest.state.value}"] if answer.newest else []
    if answer.newest and answer.newest.reason:
        lines.append(f"  why     {answer.newest.reason.splitlines()[0]}")
    lines += [f"  url     {environment.url}"] if environment.url else []
    lines += [f"  last    {_outcome(version, now)}" for version in answer.releases[:_SHOWN_RELEASES]]
    for damage in answer.damaged:
        lines += [f"  record  {damage.where}: {damage.problem}", f"  repair  {damage.hint}"]
    lines += [f"  defect  {defect}" for defect in answer.defects[:_MAX_DEFECTS]]
    if len(answer.defects) > _MAX_DEFECTS:
        lines.append(f"  defect  and {len(answer.defects) - _MAX_DEFECTS} more")
    if environment.approval and not environment.record_key and answer.runs:
        lines.append(f"  records are not signed: what may write Secrets in {environment.namespace} may forge one")
    if answer.unchecked:
        lines.append(f"  objects could not be compared with the known-good: {answer.unchecked}")
    if answer.holder:
        renewed = f"renewed {_ago(answer.holder.renewed, now)}" if answer.holder.renewed else "never renewed"
        lines.append(f"  lock    {answer.holder.name}, {renewed}")
    if answer.vetoed:
        vetoed = ", ".join(
            f"{entry.release_id} (record {entry.number}, {entry.state.value})" for entry in answer.vetoed
        )
        lines.append(f"  vetoed  {vetoed}")
    lines += [f"  next    {command}"] if (command := _next(application, answer.environment, answer.condition)) else []
    return lines


def _waiting(run: WaitingRun, now: datetime) -> str:
    return f"{run.name}, for an approval since {_ago(run.since, now)}" + (f": {run.url}" if run.url else "")


def _described(version: Version, now: datetime) -> str:
    commit = f"{version.commit.short} {version.commit.subject}" if version.commit else "no commit"
    approved = f", approved by {version.decision.name}" if version.decision else ""
    return f"{version.release_id} ({commit}), record {version.record}, started {_ago(version.since, now)}{approved}"


def _outcome(version: Version, now: datetime) -> str:
    commit = f"{version.commit.short} {version.commit.subject}" if version.commit else version.release_id
    return f"{commit}: {version.state.value}, started {_ago(version.since, now)}"


def _next(application: str, environment: str, condition: Condition) -> str:
    """The command that helps; empty when none is needed."""
    commands = {
        "interrupted": f"prefect-cd recover FILE {environment}",
        "drifted": f"prefect deployment run 'rollback/{application}' -p environment={environment} -p to=RELEASE, "
        "with the release that it runs; or release again",
        "frozen": f"repair the cause, then: prefect deployment run 'rollback/{application}' "
        f"-p environment={environment}",
        "failed": f"prefect deployment run 'rollback/{application}' -p environment={environment}, or release a fix",
    }
    return commands.get(condition, "")


def _ago(moment: datetime, now: datetime) -> str:
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
