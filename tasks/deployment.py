"""Stages: a release into an environment, and back out of it: rollback and recovery.

Each holds the environment's lock from its first read to its last write. The order of the writes makes recovery
possible: the record is in the cluster before the first object is written (I2). If something fails after that, the same
process rolls back; if the process is killed, the next one finds the record (I4).
"""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.environment.lease import TAKEOVER_WAIT, Lock
from prefect_cd.environment.records import Decision, Record, State
from prefect_cd.errors import (
    ClusterUnreachable,
    DeliveryError,
    EnvironmentBusy,
    Errored,
    LockLost,
    RollbackFailed,
    RolledBack,
)
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import Release, Result
from prefect_cd.tasks.changes import Plan, plan, refuse_blocked
from prefect_cd.tasks.gate import run_gate
from prefect_cd.tasks.lock import hold_lock
from prefect_cd.tasks.objects import apply, prune
from prefect_cd.tasks.record import (
    find_record,
    read_state,
    record_outcome,
    record_start,
    recorded_evidence,
    withdraw,
)
from prefect_cd.tasks.rollout import watch_rollout, watch_soak
from prefect_cd.tasks.stage import PERSISTED, log
from prefect_cd.tasks.target import Target, id_of
from prefect_cd.tasks.traffic import probe

_read_state_once = read_state.with_options(retries=0)
"""Without retries: the schedule starts the next recovery anyway, and retrying runs would pile up in an outage."""


class Deployed(Result):
    """A release that is the known-good of an environment."""

    environment: str
    release_id: str
    record: int
    evidence: tuple[Evidence, ...]


@task(name="deploy", task_run_name="deploy to {target.name}", **PERSISTED)
def deploy(pipeline: Pipeline, target: Target, release: Release, decision: Decision | None = None) -> Deployed:
    """Bring a release into an environment; when it fails there, restore the known-good.

    Holds the lock, refuses a frozen environment and an older commit, writes the record, rolls out, runs the gates, and
    records the outcome, so that a flow that calls it has the invariants I2 to I6. That every gate before has passed
    (I1) is for the flow to ensure: nothing here looks at other environments.

    Args:
        pipeline: its repository contains the suites and commands of the gates.
        target: the environment.
        release: the candidate; everything before this environment has passed.
        decision: the approval, where the environment wants one.

    Raises:
        Superseded, EnvironmentFrozen: nothing was written.
        ContentChanged: nothing was written; ask for the approval again.
        RolledBack: it failed, and the environment is whole again.
        RollbackFailed: it failed, and so did the rollback.
        DeliveryError: any other. It failed before the first write; or there was nothing to roll back to, or the
            pipeline file says `rollback: never`; or the lock or the cluster was lost, and recovery does the rest.
    """
    with hold_lock(target) as lock:
        planned = plan(target, release)
        if planned.already_runs and planned.running:
            log().info("%s runs %s already", target.name, release.id)
            return _deployed(planned.running, recorded_evidence(planned.running))
        refuse_blocked(pipeline, release, planned)
        record = record_start(planned, lock, decision)
        evidence = _roll_out_or_restore(pipeline, planned, record, lock)
        record_outcome(target, record, State.KNOWN_GOOD, lock, evidence=evidence)
    return _deployed(record, evidence)


@task(name="roll back", task_run_name="roll back {target.name}", cache_policy=NO_CACHE)
def rollback(pipeline: Pipeline, target: Target, to: str = "") -> Deployed:
    """Bring an environment back to a release that was good there; when that fails, restore the known-good.

    Args:
        pipeline: its repository contains the suites and commands of the gates.
        target: the environment.
        to: release id or record number; empty: the known-good before what runs now.

    Raises:
        Invalid: there is no such release; nothing was written.
        RolledBack, RollbackFailed, DeliveryError: as by `deploy`.
    """
    with hold_lock(target) as lock:
        chosen = find_record(target, to)
        planned = plan(target, chosen)
        record = record_start(planned, lock)
        evidence = _roll_out_or_restore(pipeline, planned, record, lock)
        record_outcome(target, record, State.KNOWN_GOOD, lock, evidence=evidence)
        withdraw(target, chosen, record, lock)
    return _deployed(record, evidence)


def recover(pipeline: Pipeline, target: Target) -> DeliveryError | None:
    """Restore the known-good where a rollout was interrupted.

    Returns:
        What is wrong with the environment now; None when nothing is, or another process is at work there.
    """
    try:
        if _read_state_once(target).interrupted is None:
            return None
        with hold_lock(target, wait=TAKEOVER_WAIT) as lock:
            state = read_state(target)
            if state.interrupted is None:
                return None
            cause = Errored(f"the rollout of {state.interrupted.release_id} was interrupted: its process ended")
            return restore_known_good(pipeline, target, state.interrupted, state.known_good, lock, cause)
    except EnvironmentBusy as busy:
        log().info("%s; nothing to recover", busy.reason)
        return None
    except ClusterUnreachable as error:  # returned: the other environments may be on another cluster
        return error


def _deployed(record: Record, evidence: Sequence[Evidence]) -> Deployed:
    return Deployed(
        environment=record.environment,
        release_id=record.release_id,
        record=record.number,
        evidence=tuple(evidence),
    )


def _roll_out_or_restore(pipeline: Pipeline, planned: Plan, record: Record, lock: Lock) -> list[Evidence]:
    try:
        return roll_out(pipeline, planned, lock)
    except DeliveryError as error:
        raise restore_known_good(pipeline, planned.target, record, planned.running, lock, error) from error


def roll_out(pipeline: Pipeline, planned: Plan, lock: Lock) -> list[Evidence]:
    """Apply a plan, watch the rollout to its end, prune, run the gates, and watch that it stays up.

    Gates run within the settle time; only the rest of it is waited for. Where the pipeline file has a probe, requests
    are sent during the rollout, and one that loses too many of them has failed.
    """
    with probe(planned) as evidence:
        applied = apply(planned, lock)
        report = watch_rollout(applied)
        prune(applied, lock)
    if not applied.commit:  # objects that were taken over: no commit has gates for them
        return evidence
    gates = planned.target.environment.gates
    evidence = evidence + [run_gate(pipeline, applied, report, gate) for gate in gates]
    watch_soak(applied)
    return evidence


def restore_known_good(
    pipeline: Pipeline, target: Target, record: Record, known_good: Record | None, lock: Lock, error: DeliveryError
) -> DeliveryError:
    """Roll back to the known-good after `error`, record the outcome, and return the error that the run ends with."""
    if isinstance(error, LockLost):
        return error  # recovery or the next release finds our record
    if target.environment.rollback == "never" or known_good is None:
        why = "the pipeline file says never to roll back" if known_good else "there is nothing to roll back to"
        error.hint = f"{error.hint}; {target.name} stays as it is: {why}" if error.hint else f"{target.name}: {why}"
        record_outcome(target, record, State.FAILED, lock, reason=str(error))
        return error
    log().warning("%s failed in %s; rolling back to %s", record.release_id, target.name, known_good.release_id)
    try:
        roll_out(pipeline, plan(target, known_good), lock)
    except LockLost as lost:
        return lost
    except ClusterUnreachable as unreachable:  # the record keeps the state `started`, which recovery looks for
        return _left_to_recovery(target, error, unreachable)
    except DeliveryError as second:
        return _frozen(target, record, known_good, lock, error, second)
    record_outcome(target, record, State.ROLLED_BACK, lock, reason=str(error))
    return RolledBack(
        f"{record.release_id} failed in {target.name}, which runs {id_of(known_good)} again: {error.reason}",
        detail=str(error),
        hint="correct the cause, and push; nothing has to be repaired",
    )


def _left_to_recovery(target: Target, error: DeliveryError, unreachable: ClusterUnreachable) -> DeliveryError:
    unreachable.detail = f"what failed before:\n\n{error}"
    unreachable.hint = (
        f"{target.name} may be between two releases; when its API server answers, `recover/{target.application}` "
        "restores the known-good; a release that comes first rolls its own version out instead"
    )
    return unreachable


def _frozen(
    target: Target, record: Record, known_good: Record, lock: Lock, error: DeliveryError, second: DeliveryError
) -> DeliveryError:
    reason = f"{error}\n\nand the rollback to {known_good.release_id} failed:\n\n{second}"
    record_outcome(target, record, State.ROLLBACK_FAILED, lock, reason=reason)
    return RollbackFailed(
        f"{target.name} is neither on {record.release_id} nor back on {known_good.release_id}, and is frozen",
        detail=reason,
        hint=f"repair the cause, then `prefect deployment run 'rollback/{target.application}' "
        f"-p environment={target.name} -p to={known_good.release_id}`",
    )
