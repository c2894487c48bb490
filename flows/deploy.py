"""One environment, from the lock to known-good, or back.

The order is the promise: the record is in the cluster before the first write, and whatever fails after it is taken
back by the same process; what a killed process leaves, the next one finds in the record.
"""

from collections.abc import Sequence

from prefect import task

from prefect_cd import tasks
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.records import Decision, Record, State
from prefect_cd.errors import ClusterUnreachable, DeliveryError, LockLost, RollbackFailed, RolledBack
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import Release, Result
from prefect_cd.tasks.changes import Plan, refuse_blocked
from prefect_cd.tasks.record import recorded
from prefect_cd.tasks.stage import KEPT, log
from prefect_cd.tasks.target import Target, id_of


class Deployed(Result):
    """A release that is the known-good of an environment."""

    environment: str
    release_id: str
    record: int
    evidence: tuple[Evidence, ...]


@task(name="deploy", task_run_name="deploy to {target.name}", **KEPT)
def deploy(pipeline: Pipeline, target: Target, release: Release, decision: Decision | None = None) -> Deployed:
    """Bring a release into an environment; when it fails there, bring the known-good back.

    Args:
        pipeline: for gates' sources.
        target: the environment.
        release: the candidate, with everything before this environment passed.
        decision: the approval, where the environment wants one.

    Raises:
        Superseded, EnvironmentFrozen: nothing was written.
        ContentChanged: nothing was written; the approval has to be asked for again.
        RolledBack: it failed, and the environment is whole again.
        RollbackFailed: it failed, and so did going back.
        Failed, Errored: it failed, and there was nothing to go back to.
    """
    with tasks.hold_lock(target) as lock:
        planned = tasks.plan(target, release)
        if planned.is_there and planned.running:
            log().info("%s runs %s already", target.name, release.id)
            return _deployed(planned.running, recorded(planned.running))
        refuse_blocked(pipeline, release, planned)
        record = tasks.record_start(planned, lock, decision)
        try:
            evidence = roll_out(pipeline, planned, lock)
        except DeliveryError as error:
            raise restore_known_good(pipeline, target, record, planned.running, lock, error) from error
        tasks.record_outcome(target, record, State.KNOWN_GOOD, lock, evidence=evidence)
    return _deployed(record, evidence)


def _deployed(record: Record, evidence: Sequence[Evidence]) -> Deployed:
    return Deployed(
        environment=record.environment,
        release_id=record.release_id,
        record=record.number,
        evidence=tuple(evidence),
    )


def roll_out(pipeline: Pipeline, planned: Plan, lock: Lock) -> list[Evidence]:
    """Apply a plan, watch the rollout to its end, prune, run the gates, and see that it stays up.

    Gates run in the settle time, and only the rest of it is waited for. Requests are sent during the rollout where
    the pipeline file asks for it: one that loses too many has failed.
    """
    with tasks.probe(planned) as users:
        applied = tasks.apply(planned, lock)
        report = tasks.watch_rollout(applied)
        tasks.prune(applied, lock)
    if not applied.commit:  # on the way back nothing new is tried: what ran before has stood its time
        return users
    gates = planned.target.environment.gates
    evidence = users + [tasks.run_gate(pipeline.source, applied, report, gate) for gate in gates]
    tasks.watch_afterwards(applied)
    return evidence


def restore_known_good(
    pipeline: Pipeline, target: Target, record: Record, known_good: Record | None, lock: Lock, error: DeliveryError
) -> DeliveryError:
    """Bring the known-good back after `error`, settle the record, and return what the run ends with."""
    if isinstance(error, LockLost):
        return error  # somebody else writes here now, and finds our record
    if target.environment.rollback == "never" or known_good is None:
        why = "the pipeline file says never to roll back" if known_good else "there is nothing to go back to"
        error.hint = f"{error.hint}; {target.name} stays as it is: {why}" if error.hint else f"{target.name}: {why}"
        tasks.record_outcome(target, record, State.FAILED, lock, reason=str(error))
        return error
    log().warning("%s failed in %s; going back to %s", record.release_id, target.name, known_good.release_id)
    try:
        roll_out(pipeline, tasks.plan(target, known_good), lock)
    except LockLost as lost:
        return lost
    except ClusterUnreachable as away:  # nobody knows how it stands: the record still says that it was started
        return _interrupted(target, error, away)
    except DeliveryError as second:
        return _frozen(target, record, known_good, lock, error, second)
    tasks.record_outcome(target, record, State.ROLLED_BACK, lock, reason=str(error))
    return RolledBack(
        f"{record.release_id} failed in {target.name}, which runs {id_of(known_good)} again: {error.reason}",
        detail=str(error),
        hint="correct the cause, and push; nothing has to be repaired",
    )


def _interrupted(target: Target, error: DeliveryError, away: ClusterUnreachable) -> DeliveryError:
    away.detail = f"what failed before:\n\n{error}"
    away.hint = (
        f"{target.name} may be between two releases; when its API server answers, `recover/{target.application}` "
        "or the next release brings the known-good back"
    )
    return away


def _frozen(
    target: Target, record: Record, known_good: Record, lock: Lock, error: DeliveryError, second: DeliveryError
) -> DeliveryError:
    reason = f"{error}\n\nand going back to {known_good.release_id} failed:\n\n{second}"
    tasks.record_outcome(target, record, State.ROLLBACK_FAILED, lock, reason=reason)
    return RollbackFailed(
        f"{target.name} is neither on {record.release_id} nor back on {known_good.release_id}, and is frozen",
        detail=reason,
        hint=f"repair the cause, then `prefect deployment run 'rollback/{target.application}' "
        f"-p environment={target.name} -p to={known_good.release_id}`",
    )
