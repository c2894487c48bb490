"""Stages: a release into an environment, and back out of it: rollback and recovery.

Each holds the environment's lock from its first read to its last write. The order of the writes makes recovery
possible: the record is in the cluster before the first object is written (I2). If anything fails after that, the same
process goes back; if the process is killed or cancelled, the next one finds the record (I4): recovery, or the next
release, which repairs before it looks at anything else.

The way back needs the cluster and nothing else: no repository, no gate, and not Prefect's server. It is a function of
the core (`environment/recovery.py`); here are the pages that show it, and the gates after it.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from typing_extensions import ParamSpec

from prefect_cd.environment import recovery
from prefect_cd.environment.changes import HOLDS_DATA
from prefect_cd.environment.eligibility import EnvironmentState, frozen_problem, withdrawn_problem
from prefect_cd.environment.fence import fence
from prefect_cd.environment.lease import TAKEOVER_WAIT, Lock
from prefect_cd.environment.record import NOTHING, Decision, Record, State, baseline
from prefect_cd.environment.recovery import RecoveryAction, RecoveryDecision, WentBack
from prefect_cd.errors import (
    DeliveryError,
    EnvironmentBusy,
    Errored,
    LockLost,
    RollbackFailed,
    RolledBack,
    RolloutFailed,
)
from prefect_cd.gates.evidence import Evidence
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import Release, Result
from prefect_cd.rollout.watch.report import report_of
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.changes import Plan, plan, refuse_blocked
from prefect_cd.tasks.gate import run_gate
from prefect_cd.tasks.lock import hold_lock
from prefect_cd.tasks.objects import Applied, apply, prune
from prefect_cd.tasks.record import (
    Started,
    find_record,
    own_record,
    read_state,
    record_applying,
    record_outcome,
    record_start,
    record_verifying,
    recorded_evidence,
)
from prefect_cd.tasks.rollout import Display, watch_rollout, watch_soak
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.summary import listed
from prefect_cd.tasks.target import Target, id_of
from prefect_cd.tasks.traffic import measure, probe
from prefect_cd.tasks.veto import refuse_vetoed

_P = ParamSpec("_P")
_R = TypeVar("_R")
_run_gate_once = run_gate.with_options(
    retries=0, task_run_name="{gate.name} on {applied.target.name}, after the rollback"
)
"""After a rollback: the environment is whole, and others wait for its lock."""


class Deployed(Result):
    """A release that is the known-good of an environment."""

    environment: str
    release_id: str
    record: int
    evidence: tuple[Evidence, ...]


_NO_WRITES = (RecoveryAction.NOTHING, RecoveryAction.STAY_FROZEN)


@task(name="deploy", task_run_name="deploy to {target.name}", cache_policy=NO_CACHE)
def deploy(
    pipeline: Pipeline, target: Target, release: Release, decision: Decision | None = None, *, again: bool = False
) -> Deployed:
    """Bring a release into an environment; when it fails there, restore the known-good.

    Holds the lock, repairs what an interrupted rollout left, refuses a frozen environment and an older commit, writes
    the record, rolls out, runs the gates, and records the outcome, so that a flow that calls it has the invariants I2
    to I6. That every gate before has passed (I1) is for the flow to ensure: nothing here looks at other environments.

    Args:
        pipeline: its repository contains the suites and commands of the gates.
        target: the environment.
        release: the candidate; everything before this environment has passed.
        decision: the approval, where the environment wants one.
        again: whether a user wants the release though it was rolled back or withdrawn here.

    Raises:
        Superseded, Vetoed, EnvironmentFrozen, RequirementMissing, NoWayBack: nothing was written.
        ContentChanged: nothing was written; ask for the approval again.
        RolledBack: it failed, and the environment is whole again.
        RollbackFailed: it failed, and so did the rollback.
        DeliveryError: any other. It failed before the first write; or the pipeline file says `rollback: never`; or the
            lock or the cluster was lost, and recovery does the rest.
    """
    with hold_lock(target) as lock:
        _repair_first(pipeline, target, lock)
        planned = plan(target, release)
        if planned.already_runs and planned.running:
            log().info("%s runs %s already", target.name, release.id)
            return _deployed(planned.running, recorded_evidence(planned.running))
        refuse_withdrawn(target, release)
        refuse_vetoed(target, release, again=again)
        refuse_blocked(pipeline, release, planned)
        started = record_start(planned, lock, decision)
        evidence = _roll_out_or_restore(pipeline, planned, started, lock)
    return _deployed(started.record, evidence)


def deployed_by_this_run(target: Target, release: Release) -> Deployed | None:
    """What `deploy` returned earlier in this run, by the environment's records; None when there was nothing yet.

    A run that was resumed after an approval starts from the top: the records decide what became of its release.

    Raises:
        Superseded: a rollback has withdrawn it since.
    """
    own = refuse_withdrawn(target, release)
    return _deployed(own, recorded_evidence(own)) if own else None


def refuse_withdrawn(target: Target, release: Release) -> Record | None:
    """The record with which this run brought the release in before, if there is one.

    Raises:
        Superseded: a rollback has withdrawn it since; the run must not bring it in again.
    """
    own = own_record(target, release)
    if error := withdrawn_problem(target.name, release, own):
        raise error
    return own


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
        started = record_start(planned, lock)
        evidence = _roll_out_or_restore(pipeline, planned, started, lock)
    return _deployed(started.record, evidence)


def recover(pipeline: Pipeline, target: Target) -> DeliveryError | None:
    """Restore the known-good where a rollout was interrupted.

    Returns:
        What is wrong with the environment now, whatever it is, so that the others are recovered as well; None when
        nothing is, or another process is at work there.
    """
    try:
        decision = _decide(target)
        if decision.action in _NO_WRITES:
            return _frozen_problem(decision)
        with hold_lock(target, wait=TAKEOVER_WAIT) as lock:
            return _repair(pipeline, target, lock)
    except EnvironmentBusy as busy:
        log().info("%s; nothing to recover", busy.reason)
        return None
    except Exception as error:  # noqa: BLE001  one environment's oddity ends no other one's recovery
        return _as_delivery_error(error)


def repair(pipeline: Pipeline, target: Target) -> None:
    """Restore the known-good where a rollout was interrupted, before a user is asked about the environment.

    Raises:
        DeliveryError: the environment is not whole, and `deploy` would refuse it.
    """
    if error := recover(pipeline, target):
        _refuse_unrepaired(target, error)


def _repair_first(pipeline: Pipeline, target: Target, lock: Lock) -> None:
    if error := _repair(pipeline, target, lock):
        _refuse_unrepaired(target, error)


def _refuse_unrepaired(target: Target, error: DeliveryError) -> None:
    """Raise the error of a repair if the environment is still half or frozen after it."""
    state = read_state(target)
    if state.interrupted or state.frozen:
        raise error


def _repair(pipeline: Pipeline, target: Target, lock: Lock) -> DeliveryError | None:
    decision = _decide(target)
    record, base = decision.record, decision.base
    if record is None or base is None or decision.action in _NO_WRITES:
        return _frozen_problem(decision)
    if decision.action is not RecoveryAction.GO_BACK:
        _settle_in_place(target, decision, lock)
        # a record that is given up may have been started over another one without an outcome
        return _repair(pipeline, target, lock) if decision.action is RecoveryAction.ABANDON else None
    _fence(target, record, base, lock)
    return restore_known_good(pipeline, target, record, base, lock, recovery.interrupted(record))


def _decide(target: Target) -> RecoveryDecision:
    """What recovery would do. Its requests are not repeated for long: the schedule starts the next recovery anyway."""

    async def run(cluster: Cluster) -> RecoveryDecision:
        return await recovery.look_and_decide(cluster, target.ownership, target.environment.rollout)

    return target.run(run)


def _frozen_problem(decision: RecoveryDecision) -> DeliveryError | None:
    frozen = decision.record if decision.action is RecoveryAction.STAY_FROZEN else None
    return frozen_problem(EnvironmentState(newest=frozen, known_good=decision.base))


def _fence(target: Target, record: Record, base: Record, lock: Lock) -> None:
    async def run(cluster: Cluster) -> None:
        await fence(cluster, target.ownership, record, base, lock)

    target.run(run)


def _settle_in_place(target: Target, decision: RecoveryDecision, lock: Lock) -> None:
    async def run(cluster: Cluster) -> Record:
        return await recovery.settle_in_place(cluster, target.ownership, decision, lock)

    record = target.run(run)
    artifacts.outcome(record)
    log().warning("%s is whole; %s is %s", target.name, record.release_id, record.state.value)


def _deployed(record: Record, evidence: Sequence[Evidence]) -> Deployed:
    return Deployed(
        environment=record.environment,
        release_id=record.release_id,
        record=record.number,
        evidence=tuple(evidence),
    )


def _roll_out_or_restore(pipeline: Pipeline, planned: Plan, started: Started, lock: Lock) -> list[Evidence]:
    """Roll a version out and record it as known-good; whatever fails leads back.

    A cancelled run (a BaseException) has no time to go back: its record stays open, and a recovery is started.
    """
    target, record = planned.target, started.record
    try:
        evidence = roll_out(pipeline, planned, record, lock)
        make_whole(target, started, lock)
    except Exception as error:
        cause = _as_delivery_error(error)
        raise restore_known_good(pipeline, target, record, started.base, lock, cause) from error
    try:
        record_outcome(target, record, State.KNOWN_GOOD, lock, evidence=evidence)
    except Exception as error:
        cause = _as_delivery_error(error)
        if not _is_known_good(target, record, cause):
            raise restore_known_good(pipeline, target, record, started.base, lock, cause) from error
    return evidence


def _is_known_good(target: Target, record: Record, error: DeliveryError) -> bool:
    """Whether a record has this outcome in the cluster although writing it ended with `error`.

    Going back from a record that says known-good would leave a half that no recovery finds, if it were interrupted.
    """
    try:
        known_good = _stage(read_state, target).known_good
    except Exception:  # noqa: BLE001
        raise error from None  # either it is known-good and whole, or it is open and recovery finds it
    return known_good is not None and known_good.number == record.number


def roll_out(pipeline: Pipeline, planned: Plan, record: Record, lock: Lock) -> list[Evidence]:
    """Apply a plan, watch the rollout to its end, prune, run the gates, and watch that it stays up.

    Gates run within the settle time; only the rest of it is waited for. Where the pipeline file has a probe, requests
    are sent during the rollout, and one that loses too many of them has failed. The record says how far it has come.
    """
    record_applying(planned.target, record, lock)
    with probe(planned) as evidence:
        applied = apply(planned, lock)
        report = watch_rollout(applied)
        prune(applied, lock)
    record_verifying(planned.target, record, lock)
    if not applied.commit:  # objects that were taken over: no commit has gates for them
        return evidence
    gates = planned.target.environment.gates
    evidence = evidence + [run_gate(pipeline, applied, report, gate) for gate in gates]
    watch_soak(applied)
    return evidence


def make_whole(target: Target, started: Started, lock: Lock) -> None:
    """Look whether the environment is exactly the version that was rolled out, and repair what is not.

    Raises:
        Errored: somebody else changes it as often as it is written.
        DeliveryError: the repair failed.
    """

    async def run(cluster: Cluster) -> None:
        display = Display(artifacts.Progress(target.application, target.name))
        async with display.updated():
            await recovery.make_whole(
                cluster,
                target.ownership,
                started.record,
                started.base,
                lock,
                target.environment.rollout,
                on_change=display.show,
            )

    target.run(run)


def restore_known_good(
    pipeline: Pipeline, target: Target, record: Record, known_good: Record | None, lock: Lock, error: DeliveryError
) -> DeliveryError:
    """Go back to the known-good after `error`, record the outcome, and return the error that the run ends with.

    First the environment is made whole, which needs neither repository nor gates. Then its gates are run: what they
    find is evidence, and changes the outcome no more.

    Args:
        pipeline: its repository contains the suites and commands of the gates.
        target: the environment.
        record: of the rollout that failed or was interrupted.
        known_good: what to go back to; None, as older versions of prefect-cd left it: to an empty environment.
        lock: held by the caller.
        error: why.
    """
    if isinstance(error, LockLost):
        return error  # recovery or the next release finds our record
    if target.environment.rollback == "never":
        why = f"{target.name} stays as it is: the pipeline file says never to roll back"
        error.hint = f"{error.hint}; {why}" if error.hint else why
        _stage(record_outcome, target, record, State.FAILED, lock, reason=str(error))
        return error
    base = known_good or baseline(target.ownership, (), record.started_at)
    log().warning("%s failed in %s; rolling back to %s", record.release_id, target.name, base.release_id)
    try:
        back = _go_back_visibly(target, record, base, lock, error)
    except Exception as second:  # noqa: BLE001
        return _not_restored(target, error, _as_delivery_error(second))
    artifacts.outcome(back.record)
    log().info("%s: %s is %s", target.name, record.release_id, back.record.state.value)
    if back.problem:
        if isinstance(back.problem, RolloutFailed) and (report := report_of(back.problem)):
            artifacts.failure(target.application, target.name, report)
        return _frozen(target, back)
    return _restored(target, back, error, _failed_gates(pipeline, target, back))


def go_back(target: Target, record: Record, base: Record, lock: Lock, error: DeliveryError) -> WentBack:
    """The way back by the core, with the state of the workloads in an artifact."""

    async def run(cluster: Cluster) -> WentBack:
        display = Display(artifacts.Progress(target.application, target.name))
        async with display.updated():
            return await recovery.go_back(
                cluster,
                target.ownership,
                record,
                base,
                lock,
                target.environment.rollout,
                reason=str(error),
                on_change=display.show,
            )

    return target.run(run)


class _Kept:
    """Calls a function and keeps what became of it, whatever Prefect says about the task that shows it."""

    def __init__(self, function: Callable[[], WentBack]) -> None:
        self._function = function
        self.outcome: WentBack | None = None
        self.error: DeliveryError | None = None

    def run(self) -> WentBack:
        try:
            self.outcome = self._function()
        except DeliveryError as error:
            self.error = error
            raise
        return self.outcome


@task(name="restore", task_run_name="restore {base.release_id} in {target.name}", cache_policy=NO_CACHE)
@listed
def _restore(target: Target, base: Record, way_back: _Kept) -> None:
    with measure(target, base):
        way_back.run()


def _go_back_visibly(target: Target, record: Record, base: Record, lock: Lock, error: DeliveryError) -> WentBack:
    """Go back in a task that shows it, while requests are sent; and without both where one of them fails."""
    way_back = _Kept(lambda: go_back(target, record, base, lock, error))
    try:
        _restore(target, base, way_back)
    except Exception as failure:
        if way_back.error:
            raise way_back.error from failure
        log().warning("%s: %s", _restore.name, failure)
    return way_back.outcome or way_back.run()


def _stage(stage: "Task[_P, _R]", *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run a stage of the way back, without Prefect where its server is away; each of them can be repeated."""
    try:
        return stage(*args, **kwargs)
    except DeliveryError:
        raise
    except Exception as error:  # noqa: BLE001  whatever Prefect's client may raise
        log().warning("%s: %s; once more, without Prefect", stage.name, error)
        return stage.fn(*args, **kwargs)


def _failed_gates(pipeline: Pipeline, target: Target, back: WentBack) -> list[str]:
    """What the gates say about the environment as it was restored, where they do not pass."""
    problems: list[str] = []
    report, base = back.report, back.base
    if report is None or not base.commit:
        return problems
    applied = Applied(
        target=target,
        release_id=base.release_id,
        commit=base.commit,
        objects=base.objects,
        changes=back.changes,
        since=back.since,
    )
    for gate in target.environment.gates:
        try:
            _run_gate_once(pipeline, applied, report, gate)
        except Exception as error:  # noqa: BLE001  no gate changes what was restored
            log().warning("after the rollback, %s did not pass: %s", gate.name, error)
            problems.append(str(_as_delivery_error(error)))
    return problems


def _restored(target: Target, back: WentBack, error: DeliveryError, gate_problems: Sequence[str]) -> RolledBack:
    record, base = back.record, back.base
    now = "is empty again" if base.release_id == NOTHING else f"runs {id_of(base)} again"
    hints = ["correct the cause, and push; nothing has to be repaired"]
    if gate_problems:
        hints = [f"correct the cause, and push; look at {target.name}, too: not all gates pass on what it runs again"]
    if data := _data_left(record, base):
        hints.append(f"{', '.join(data)} stayed, because removing it removes data")
    hints += back.changes.kept
    return RolledBack(
        f"{record.release_id} failed in {target.name}, which {now}: {error.reason}",
        detail="\n\n".join([str(error), *(f"after the rollback:\n\n{problem}" for problem in gate_problems)]),
        hint="; ".join(hints),
    )


def _data_left(record: Record, base: Record) -> list[str]:
    """What the record has beyond the base, and a rollback does not remove."""
    kept = {Ref.of(item) for item in base.objects}
    holding = (item for item in record.objects if item["kind"] in HOLDS_DATA)
    return [str(Ref.of(item)) for item in holding if Ref.of(item) not in kept]


def _as_delivery_error(error: Exception) -> DeliveryError:
    """The error as one of ours: we could not find out, whatever it is that nobody expected."""
    if isinstance(error, DeliveryError):
        return error
    log().error("unexpected error", exc_info=error)
    first_line = str(error).partition("\n")[0]
    return Errored(
        f"unexpected {type(error).__name__}: {first_line}",
        hint="the log has the traceback; is the disk full, does Prefect's server answer? Else report it as a bug",
    )


def _not_restored(target: Target, error: DeliveryError, second: DeliveryError) -> DeliveryError:
    """The error of a way back that ended with `second`: the record has no outcome, which recovery looks for."""
    return second if isinstance(second, LockLost) else _left_to_recovery(target, error, second)


def _left_to_recovery(target: Target, error: DeliveryError, second: DeliveryError) -> DeliveryError:
    second.detail = f"what failed before:\n\n{error}"
    what_next = (
        f"{target.name} may be between two releases; `recover/{target.application}`, which runs every 10 minutes, "
        "restores the known-good, and so does the next release before it begins"
    )
    second.hint = "; ".join(filter(None, [second.hint, what_next]))
    return second


def _frozen(target: Target, back: WentBack) -> DeliveryError:
    record, base = back.record, back.base
    return RollbackFailed(
        f"{target.name} is neither on {record.release_id} nor back on {base.release_id}, and is frozen",
        detail=record.reason,
        hint=f"repair the cause, then `prefect deployment run 'rollback/{target.application}' "
        f"-p environment={target.name} -p to={base.release_id}`",
    )
