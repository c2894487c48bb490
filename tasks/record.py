"""Stages: the record before the first write, and what became of it after the last."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timezone

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.records import Decision, GateResult, Record, RecordStore, State
from prefect_cd.errors import ContentChanged
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.kube.objects import Object
from prefect_cd.release.model import Release
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.changes import Plan, environment_state
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.target import Target, hash_of, id_of


@task(name="standing", task_run_name="look at {target.name}", cache_policy=NO_CACHE, **RETRIES)
def read_state(target: Target) -> EnvironmentState:
    """What the environment's records say."""

    async def run() -> EnvironmentState:
        async with target.connect() as cluster:
            return await environment_state(cluster, target)

    return asyncio.run(run())


@task(name="find record", task_run_name="find {to} in {target.name}", cache_policy=NO_CACHE, **RETRIES)
def find_record(target: Target, to: str) -> Record:
    """The record of a release that was good, by its id or number.

    Raises:
        Invalid: there is none; lists those that there are.
    """

    async def run() -> Record:
        async with target.connect() as cluster:
            return await RecordStore(cluster, target.ownership).find(to)

    return asyncio.run(run())


@task(name="begin record", task_run_name="record start in {planned.target.name}", cache_policy=NO_CACHE, **RETRIES)
def record_start(planned: Plan, lock: Lock, decision: Decision | None = None) -> Record:
    """Write the record of a version before its first object is written.

    A rollout that nobody ended is marked as failed first; what was there before us becomes a record to go back to.

    Args:
        planned: what will be applied.
        lock: held by the caller.
        decision: the approval, where the environment wants one.

    Raises:
        ContentChanged: what would be applied is no longer what was approved.
    """
    name = planned.target.name
    if decision is None and planned.target.environment.approval and isinstance(planned.version, Release):
        raise ContentChanged(f"{name} wants an approval, and nobody gave one", hint="ask with `approve` first")
    if decision and decision.content != planned.content:
        raise ContentChanged(
            f"what would be applied to {name} is no longer what {decision.name} approved",
            hint="look at the new form: it shows what would be applied now",
        )
    record = asyncio.run(_begin(planned, lock, decision))
    log().info("record %d of %s is in the cluster", record.number, name)
    return record


async def _begin(planned: Plan, lock: Lock, decision: Decision | None) -> Record:
    async with planned.target.connect() as cluster:
        history = RecordStore(cluster, planned.target.ownership)
        interrupted = planned.standing.interrupted
        if interrupted:
            reason = "interrupted: its process ended before the rollout did"
            await history.settle(_settled(interrupted, State.FAILED, reason), guard=lock.guard)
        if planned.taken_over:
            await history.begin(_before_us(planned.target, planned.taken_over), guard=lock.guard)
        return await history.begin(_record_of(planned, decision), guard=lock.guard)


def _record_of(planned: Plan, decision: Decision | None) -> Record:
    version = planned.version
    restores = version.number if isinstance(version, Record) else None
    return Record(
        number=0,
        application=planned.target.application,
        environment=planned.target.name,
        state=State.STARTED,
        release_id=id_of(version),
        release_hash=hash_of(version),
        commit=version.commit,
        image=version.image,
        objects=planned.objects,
        decision=decision,
        started_at=datetime.now(timezone.utc),
        run=flow_run.ui_url or "",
        restores=restores,
    )


@task(name="settle record", task_run_name="record {state.value} in {target.name}", cache_policy=NO_CACHE, **RETRIES)
def record_outcome(
    target: Target, record: Record, state: State, lock: Lock, *, reason: str = "", evidence: Sequence[Evidence] = ()
) -> Record:
    """Write what became of a version; for a known-good this moves the point that is gone back to."""
    gates = tuple(GateResult(name=e.gate, outcome=e.outcome.value, summary=e.summary) for e in evidence)
    settled = _settled(record, state, reason).model_copy(update={"gates": gates or record.gates})

    async def run() -> None:
        async with target.connect() as cluster:
            await RecordStore(cluster, target.ownership).settle(settled, guard=lock.guard)

    asyncio.run(run())
    artifacts.outcome(settled)
    log().info("%s: %s is %s", target.name, settled.release_id, state.value)
    return settled


@task(name="withdraw", task_run_name="withdraw newer records in {target.name}", cache_policy=NO_CACHE, **RETRIES)
def withdraw(target: Target, chosen: Record, record: Record, lock: Lock) -> None:
    """Mark what was gone back from: the releases after `chosen` and before `record`, which restores it."""

    async def run() -> None:
        async with target.connect() as cluster:
            await RecordStore(cluster, target.ownership).withdraw(chosen, record, guard=lock.guard)

    asyncio.run(run())


def recorded(record: Record) -> list[Evidence]:
    """What the gates of a record said, as evidence; pictures and cases are not recorded."""
    return [
        Evidence(gate=gate.name, outcome=Outcome(gate.outcome), summary=gate.summary, seconds=0)
        for gate in record.gates
    ]


def _settled(record: Record, state: State, reason: str) -> Record:
    return record.model_copy(update={"state": state, "reason": reason, "settled_at": datetime.now(timezone.utc)})


def _before_us(target: Target, objects: tuple[Object, ...]) -> Record:
    """What runs in an environment that is taken over, as something to go back to."""
    now = datetime.now(timezone.utc)
    return Record(
        number=0,
        application=target.application,
        environment=target.name,
        state=State.KNOWN_GOOD,
        release_id="before-prefect-cd",
        release_hash="",
        commit=None,
        image=None,
        objects=tuple(target.ownership.label(item) for item in objects),
        started_at=now,
        settled_at=now,
        reason="what was there when the environment was taken over",
    )
