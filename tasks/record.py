"""Stages: the record before the first write, how far its rollout came, and what became of it after the last."""

from collections.abc import Sequence
from datetime import datetime, timezone

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from prefect_cd.environment.change_set import Action
from prefect_cd.environment.eligibility import EnvironmentState, approval_problem
from prefect_cd.environment.journal import objects_to_restore
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.record import BASELINE, Decision, GateResult, Record, State, baseline, new_record
from prefect_cd.environment.records import RecordStore
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.release.model import Release, Result
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.changes import Plan, environment_state
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.target import Target


class Started(Result):
    """A rollout that may begin: both records are in the cluster."""

    record: Record = Field(description="of the version that is rolled out")
    base: Record = Field(description="what to go back to when it fails: the known-good, or the baseline")


@task(name="read state", task_run_name="read state of {target.name}", cache_policy=NO_CACHE, **RETRIES)
def read_state(target: Target) -> EnvironmentState:
    """What the environment's records say."""

    async def run(cluster: Cluster) -> EnvironmentState:
        return await environment_state(cluster, target)

    return target.run(run)


@task(
    name="find record",
    task_run_name="find the release to go back to in {target.name}",
    cache_policy=NO_CACHE,
    **RETRIES,
)
def find_record(target: Target, release: str) -> Record:
    """The record of a release that was good, by release id or record number; the previous one where `release` is empty.

    Its objects include the originals of others that the releases since took over: going back gives them back.

    Raises:
        Invalid: there is none; the message lists the available ones.
    """

    async def run(cluster: Cluster) -> Record:
        store = RecordStore(cluster, target.ownership)
        chosen = await store.find_rollback_target(release)
        objects = objects_to_restore(chosen, await store.since(chosen.number))
        return chosen.model_copy(update={"objects": objects})

    return target.run(run)


@task(name="record start", task_run_name="record start in {planned.target.name}", cache_policy=NO_CACHE, **RETRIES)
def record_start(planned: Plan, lock: Lock, decision: Decision | None = None) -> Started:
    """Write the record of a version before its first object is written.

    Before the first release, the baseline is written: the objects that the environment takes over, or nothing. An
    interrupted rollout, which `deploy` repairs before it comes here, gets its outcome once the new record exists: it
    failed, or was superseded before it wrote anything.

    Args:
        planned: what will be applied.
        lock: held by the caller.
        decision: the approval, where the environment wants one.

    Raises:
        ContentChanged: the approval is missing, or was given for other content.
    """
    required = bool(planned.target.environment.approval) and isinstance(planned.version, Release)
    if problem := approval_problem(planned.target.name, required=required, decision=decision, content=planned.content):
        raise problem

    async def run(cluster: Cluster) -> Started:
        return await _start(cluster, planned, lock, decision)

    started = planned.target.run(run)
    log().info("record %d of %s is in the cluster", started.record.number, planned.target.name)
    return started


async def _start(cluster: Cluster, planned: Plan, lock: Lock, decision: Decision | None) -> Started:
    store, now = RecordStore(cluster, planned.target.ownership, lock.epoch), datetime.now(timezone.utc)
    base = planned.state.known_good
    if base is None:
        base = baseline(planned.target.ownership, planned.unrecorded, now)
        base = await store.start_baseline(base, guard=lock.guard)
    ownership, state = planned.target.ownership, planned.state
    record = new_record(
        ownership,
        planned.version,
        # an original that goes back to its owner is applied, and is no part of what we run
        [item for item in planned.objects if ownership.owns(item)],
        now,
        known=state.known,
        replaced=_replaced(planned, base),
        pruned=[change.ref for change in planned.changes.changes if change.action == Action.PRUNED],
        decision=decision,
        run=flow_run.ui_url or "",
    )
    above = state.newest.number if state.newest else 0
    record = await store.start(record, above=above, guard=lock.guard, mark=lock.mark_open)
    if interrupted := state.interrupted:
        # the environment is half already: a record that is given up as unwritten would leave it so
        record = await store.move(record, State.APPLYING, guard=lock.guard)
        reason = f"interrupted: its process ended before the rollout did; {record.release_id} was started over it"
        outcome = State.SUPERSEDED if interrupted.state is State.PREPARED else State.FAILED
        await store.move(interrupted, outcome, reason=reason, now=now, guard=lock.guard)
    return Started(record=record, base=base)


def _replaced(planned: Plan, base: Record) -> list[Object]:
    """The originals of others that a rollback from the planned version has to give back.

    The older of two originals is the right one. What the baseline has, it restores itself.
    """
    originals = {Ref.of(item).identity: item for item in (*planned.unrecorded, *planned.state.replaced)}
    first = {Ref.of(item).identity for item in base.objects} if base.number == BASELINE else set()
    return [item for identity, item in originals.items() if identity not in first]


def record_applying(target: Target, record: Record, lock: Lock) -> Record:
    """Write, before the first object is written, that the rollout of a record begins to change the environment."""
    return _advance(target, record, State.APPLYING, lock)


def record_verifying(target: Target, record: Record, lock: Lock) -> Record:
    """Write that the objects of a record are all there and its pods run; its gates are still to come."""
    return _advance(target, record, State.VERIFYING, lock)


def _advance(target: Target, record: Record, state: State, lock: Lock) -> Record:
    async def run(cluster: Cluster) -> Record:
        return await RecordStore(cluster, target.ownership, lock.epoch).move(record, state, guard=lock.guard)

    return target.run(run)


@task(name="record outcome", task_run_name="record {state.value} in {target.name}", cache_policy=NO_CACHE, **RETRIES)
def record_outcome(
    target: Target, record: Record, state: State, lock: Lock, *, reason: str = "", evidence: Sequence[Evidence] = ()
) -> Record:
    """Write what became of a version; for a known-good this is what a later failure rolls back to."""
    gates = tuple(GateResult(name=e.gate, outcome=e.outcome.value, summary=e.summary) for e in evidence)

    async def run(cluster: Cluster) -> Record:
        store = RecordStore(cluster, target.ownership, lock.epoch)
        return await store.move(record, state, reason=reason, gates=gates, guard=lock.guard)

    outcome = target.run(run)
    lock.mark_settled()
    artifacts.outcome(outcome)
    log().info("%s: %s is %s", target.name, outcome.release_id, state.value)
    return outcome


def own_record(target: Target, release: Release) -> Record | None:
    """The record with which this run brought the release in and that was good; a rollback may have withdrawn it.

    A run that waited for an approval starts again from the top, and what it did before is in the records only.
    """

    async def run(cluster: Cluster) -> Record | None:
        if not await namespace_exists(cluster, target.environment.namespace):
            return None
        return await RecordStore(cluster, target.ownership).good_record_of_run(str(flow_run.id), release.id)

    return target.run(run) if flow_run.id else None


def recorded_evidence(record: Record) -> list[Evidence]:
    """What the gates of a record proved; pictures and test cases are not recorded."""
    return [
        Evidence(gate=gate.name, outcome=Outcome(gate.outcome), summary=gate.summary, seconds=0)
        for gate in record.gates
    ]
