"""Bring an environment back to its known-good, whatever was interrupted there; needs the cluster and nothing else.

What to do follows from the records, and for a frozen environment from its live objects (`decide`, which is pure).
How: apply, watch, prune, and look whether the environment is whole; where it is not, again (`go_back`). It has a
deadline of its own, the environment's rollout timeout: until then a cluster that does not answer is asked again. An
object that cannot go back keeps no other one from it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import TypeVar

from prefect_cd.environment.apply import apply, prune
from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.changes import compute_changes
from prefect_cd.environment.eligibility import EnvironmentState, damage_problem
from prefect_cd.environment.fence import fence
from prefect_cd.environment.journal import objects_to_restore
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import LOST, Record, State, baseline
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.state import read_state
from prefect_cd.environment.wholeness import Defect, defects, object_defects
from prefect_cd.errors import (
    ClusterUnreachable,
    DeliveryError,
    Errored,
    Failed,
    Forbidden,
    Invalid,
    InvalidManifest,
    RolloutFailed,
)
from prefect_cd.kube.client import PATIENCE, Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import FIELD_MANAGER
from prefect_cd.manifests.labels import RECORD
from prefect_cd.manifests.prepare import encode_string_data, waves
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.report import Report

ROUNDS = 3
"""How often what differs is written again before it is clear that somebody else writes it, too."""
_WATCH_PATIENCE = 4 * PATIENCE
"""A watch that starts again has forgotten how long the API server was unreachable."""
_RETRY_SECONDS = 1.0
_RUNNING_WITHIN = timedelta(seconds=10)
"""For the workloads of a frozen environment: they run by now, or a person is still needed."""
_USUAL_KINDS = (
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("batch/v1", "Job"),
    ("batch/v1", "CronJob"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
)
"""What a release may have brought in whose record is gone; others stay where they are."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def _ignore(_: Report) -> None:
    pass


# --- what to do ------------------------------------------------------------------------------------------------------


class RecoveryAction(str, Enum):
    """What recovery does. The values are a stable contract: they are in the JSON of `prefect-cd recover`."""

    NOTHING = "nothing"
    ABANDON = "abandon"
    """Of the newest release, nothing but its record was written."""
    GO_BACK = "go back"
    """To the known-good: a rollout was interrupted, or its record is gone."""
    UNFREEZE = "unfreeze"
    """Record the rollback that had failed as done: the environment is whole by now."""
    STAY_FROZEN = "stay frozen"


@dataclass(frozen=True)
class RecoveryDecision:
    """What recovery does with an environment.

    Attributes:
        action: what.
        record: that gets an outcome by it; None for nothing.
        base: what the environment is brought back to; None for nothing.
    """

    action: RecoveryAction
    record: Record | None = None
    base: Record | None = None


def decide(ownership: Ownership, state: EnvironmentState, *, whole: bool | None) -> RecoveryDecision:
    """What recovery does. Pure.

    Args:
        ownership: the environment.
        state: its records, under the lock or to find out whether the lock is needed.
        whole: whether a frozen environment is exactly its known-good, and that runs; None when nobody has looked.
    """
    record = state.interrupted or state.frozen
    if record is None:
        return RecoveryDecision(RecoveryAction.NOTHING)
    base = state.known_good or baseline(ownership, (), record.started_at)
    if record.state is State.PREPARED:
        return RecoveryDecision(RecoveryAction.ABANDON, record, base)
    if state.interrupted:
        return RecoveryDecision(RecoveryAction.GO_BACK, record, base)
    return RecoveryDecision(RecoveryAction.UNFREEZE if whole else RecoveryAction.STAY_FROZEN, record, base)


async def look_and_decide(cluster: Cluster, ownership: Ownership, settings: RolloutSettings) -> RecoveryDecision:
    """What recovery does with an environment as it is now; nothing is written.

    Raises:
        Invalid: a record that may decide cannot be read; nothing is guessed.
    """
    state = await read_state(cluster, ownership)
    if problem := damage_problem(state):
        raise problem
    whole = None
    if state.frozen:
        base = state.known_good or baseline(ownership, (), state.frozen.started_at)
        whole = not await look(cluster, ownership, base, state) and await _runs(cluster, base, settings)
    return decide(ownership, state, whole=whole)


async def look(
    cluster: Cluster, ownership: Ownership, chosen: Record, state: EnvironmentState, *, settling: int | None = None
) -> tuple[Defect, ...]:
    """What keeps the environment from being exactly the chosen record's version; nothing is written.

    It costs a dry run of all objects, at once, and a list of each of their kinds.

    Args:
        cluster: the API server.
        ownership: the environment.
        chosen: the version that it should be.
        state: the records of the environment.
        settling: the number of the record that is about to get its outcome.
    """
    objects = objects_of(chosen)
    changes = await compute_changes(cluster, ownership, objects, restoring=True, known=state.known, runs=objects)
    return defects(changes.changes, state, settling=settling)


def objects_of(record: Record) -> tuple[Object, ...]:
    """The objects of a record as they are applied; an older version of prefect-cd recorded `stringData`."""
    return tuple(map(encode_string_data, record.objects))


async def _runs(cluster: Cluster, base: Record, settings: RolloutSettings) -> bool:
    """Whether the workloads of a version are complete."""
    at_once = settings.model_copy(update={"settle": timedelta(), "timeout": _RUNNING_WITHIN})
    try:
        await watch(cluster, objects_of(base), at_once, since=_now())
    except RolloutFailed:
        return False
    return True


@dataclass(frozen=True)
class Recovered:
    """What recovery did.

    Attributes:
        decision: what it was to do.
        went_back: what became of it; None when there was no way back.
        kept: the record that failed and whose release stays, since the environment is never rolled back.
    """

    decision: RecoveryDecision
    went_back: "WentBack | None" = None
    kept: Record | None = None


async def recover(
    cluster: Cluster,
    ownership: Ownership,
    lock: Lock,
    settings: RolloutSettings,
    *,
    never_back: bool = False,
    on_change: Callable[[Report], None] = _ignore,
) -> Recovered:
    """Decide and do it.

    Args:
        cluster: the API server.
        ownership: the environment.
        lock: held by the caller, who knows by that that no rollout is under way.
        settings: of the environment's rollouts.
        never_back: whether an interrupted release stays as it is.
        on_change: called with the state of the workloads whenever it changes.

    Raises:
        LockLost, Errored, Invalid: as `go_back`; or the records cannot be read.
    """
    decision = await look_and_decide(cluster, ownership, settings)
    record, base = decision.record, decision.base
    if record is None or base is None or decision.action is RecoveryAction.STAY_FROZEN:
        return Recovered(decision)
    if decision.action is not RecoveryAction.GO_BACK:
        await settle_in_place(cluster, ownership, decision, lock)
        if decision.action is RecoveryAction.ABANDON:  # it may have been started over another one without an outcome
            more = await recover(cluster, ownership, lock, settings, never_back=never_back, on_change=on_change)
            return Recovered(decision) if more.decision.action is RecoveryAction.NOTHING else more
        return Recovered(decision)
    await fence(cluster, ownership, record, base, lock)
    reason = interrupted(record).reason
    if never_back:
        return Recovered(decision, kept=await _settle(cluster, ownership, record, State.FAILED, lock, reason))
    back = await go_back(cluster, ownership, record, base, lock, settings, reason=reason, on_change=on_change)
    return Recovered(decision, back)


def interrupted(record: Record) -> Errored:
    """Why the environment goes back from a record without an outcome."""
    if record.release_id == LOST:
        return Errored(f"record {record.number} was deleted before its rollout had an outcome")
    return Errored(f"the rollout of {record.release_id} was interrupted: its process ended")


# --- the way back ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WentBack:
    """What became of a way back.

    Attributes:
        record: with its outcome, which is in the cluster: rolled back, or rollback failed.
        base: what the environment was brought back to.
        problem: why the environment is not whole; None when it is.
        report: of the workloads; None when they were not watched to their end.
        changes: what was written at first.
        since: just before the first write.
    """

    record: Record
    base: Record
    problem: DeliveryError | None
    report: Report | None
    changes: ChangeSet
    since: datetime


async def go_back(
    cluster: Cluster,
    ownership: Ownership,
    record: Record,
    base: Record,
    lock: Lock,
    settings: RolloutSettings,
    *,
    reason: str,
    on_change: Callable[[Report], None] = _ignore,
) -> WentBack:
    """Bring the environment back to `base`, make sure that it is whole, and give `record` its outcome.

    It can be repeated at any point: what is right already is not written again.

    Args:
        cluster: the API server.
        ownership: the environment.
        record: of the rollout that failed or was interrupted.
        base: what to go back to: the known-good, or the baseline.
        lock: held by the caller.
        settings: of the environment's rollouts; its timeout is the deadline of the way back, too.
        reason: why.
        on_change: called with the state of the workloads whenever it changes.

    Raises:
        LockLost: another process is the writer; the record stays open.
        Errored: nobody knows whether the environment is whole; the record stays open, which recovery looks for.
    """
    objects = tuple(map(encode_string_data, objects_to_restore(base, [record])))
    known = EnvironmentState(newest=record, known_good=base).known
    give_up = time.monotonic() + settings.timeout.total_seconds()
    problem: DeliveryError | None = None
    if record.release_id == LOST:
        known |= await _until_it_answers(lambda: _ours_by_label(cluster, ownership, known), give_up)
    way = Way(cluster, ownership, objects, known, lock, settings, on_change=on_change)
    try:
        await _until_it_answers(way.make_whole, give_up)
    except (Failed, Invalid) as error:
        problem = error
    if problem:
        reason = f"{reason}\n\nand the rollback to {base.release_id} failed:\n\n{problem}"
    state = State.ROLLBACK_FAILED if problem else State.ROLLED_BACK
    outcome = await _until_it_answers(lambda: _settle(cluster, ownership, record, state, lock, reason), give_up)
    return WentBack(outcome, base, problem, way.report, way.first_changes, way.since)


async def make_whole(
    cluster: Cluster,
    ownership: Ownership,
    record: Record,
    base: Record,
    lock: Lock,
    settings: RolloutSettings,
    *,
    on_change: Callable[[Report], None] = _ignore,
) -> None:
    """Look whether the environment is exactly the version of `record`, which was rolled out; repair what is not.

    The last step before a record becomes the known-good.

    Args:
        cluster: the API server.
        ownership: the environment.
        record: of the rollout that is complete.
        base: what the environment ran before.
        lock: held by the caller.
        settings: of the environment's rollouts.
        on_change: called with the state of the workloads where they have to be watched again.

    Raises:
        Errored: somebody else changes what is written, as often as it is written.
        RolloutFailed, Invalid: the repair failed.
        LockLost: another process is the writer.
    """
    known = EnvironmentState(newest=record, known_good=base).known
    way = Way(cluster, ownership, objects_of(record), known, lock, settings, is_written=True, on_change=on_change)
    await way.make_whole()


async def settle_in_place(cluster: Cluster, ownership: Ownership, decision: RecoveryDecision, lock: Lock) -> Record:
    """Give the record of a decision its outcome where no object has to be written.

    Raises:
        ValueError: the decision is another one.
    """
    record, base = decision.record, decision.base
    if record and base and decision.action is RecoveryAction.ABANDON:
        reason = f"{interrupted(record).reason} before it had written an object"
        return await _settle(cluster, ownership, record, State.SUPERSEDED, lock, reason)
    if record and base and decision.action is RecoveryAction.UNFREEZE:
        reason = f"the rollback had failed; by now, {ownership.environment} is whole on {base.release_id}"
        return await _settle(cluster, ownership, record, State.ROLLED_BACK, lock, f"{reason}\n\n{record.reason}")
    raise ValueError(decision)


async def _settle(
    cluster: Cluster, ownership: Ownership, record: Record, state: State, lock: Lock, reason: str
) -> Record:
    store = RecordStore(cluster, ownership, lock.epoch)
    outcome = await store.move(record, state, reason=reason, guard=lock.guard)
    lock.mark_settled()
    return outcome


async def _ours_by_label(cluster: Cluster, ownership: Ownership, known: Iterable[Ref]) -> set[Ref]:
    """The objects that we applied here, where no record says what a release brought in.

    A copy has our labels, too; but its fields are somebody else's.
    """
    kinds = {*_USUAL_KINDS, *((ref.api_version, ref.kind) for ref in known)}

    async def list_kind(api_version: str, name: str) -> list[Object]:
        try:
            kind = await cluster.kind(api_version, name)
            namespace = ownership.namespace if kind.namespaced else ""
            return await cluster.list(kind, namespace, labels=f"{ownership.selector},!{RECORD}")
        except (InvalidManifest, Forbidden):  # not served, or not ours to write
            return []

    lists = await parallel(list_kind(*kind) for kind in sorted(kinds))
    return {Ref.of(item) for items in lists for item in items if _applied_by_us(item)}


def _applied_by_us(item: Object) -> bool:
    entries = item["metadata"].get("managedFields") or []
    return any(entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" for entry in entries)


@dataclass
class Way:
    """The way to a whole version: write, watch, prune, and look.

    Attributes:
        cluster: the API server.
        ownership: the environment.
        objects: the full set of the version.
        known: what the records know of, and what is pruned when it is not in the set.
        lock: the right to write.
        settings: of the environment's rollouts.
        is_written: whether the version was rolled out already, so that only defects are to be repaired.
        on_change: called with the state of the workloads whenever it changes.
        report: of the workloads; None before they were watched to their end.
        first_changes: what was planned at first.
        since: just before the first write.
    """

    cluster: Cluster
    ownership: Ownership
    objects: Sequence[Object]
    known: Iterable[Ref]
    lock: Lock
    settings: RolloutSettings
    is_written: bool = False
    on_change: Callable[[Report], None] = _ignore
    report: Report | None = None
    first_changes: ChangeSet = field(default_factory=lambda: ChangeSet(changes=()))
    since: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    async def make_whole(self) -> None:
        """Return when the environment is whole; see `go_back` and `make_whole`.

        Raises:
            Failed, Invalid: something cannot be brought back; everything else was, unless the workloads do not run.
            Errored: somebody else changes it as often as it is written.
        """
        if not self.is_written:
            self.first_changes = await self._plan()
            await self._write(self.first_changes)
            self.is_written = True
        for _ in range(ROUNDS):
            planned = await self._plan()
            if not object_defects(planned.changes):
                return
            _log.warning("%s is not whole: %s; writing it again", self.ownership.environment, planned)
            await self._write(planned)
        if remaining := object_defects((await self._plan()).changes):
            raise Errored(
                f"{self.ownership.environment} is not whole after it was written {ROUNDS} times more: "
                + ", ".join(map(str, remaining)),
                hint="what else writes to these objects? `kubectl get --show-managed-fields -o yaml` names it",
            )

    async def _plan(self) -> ChangeSet:
        return await compute_changes(
            self.cluster, self.ownership, self.objects, restoring=True, known=self.known, runs=self.objects
        )

    async def _write(self, planned: ChangeSet) -> None:
        """Write what is planned, wait until it runs, and remove what is surplus."""
        refused = await self._apply(planned)
        settings = self.settings.model_copy(update={"settle": timedelta()})
        patient = self.cluster.with_patience(_WATCH_PATIENCE)
        self.report = await watch(
            patient, self.objects, settings, since=self.since, started_at=_now(), on_change=self.on_change
        )
        await prune(self.cluster, self.ownership, planned, lock=self.lock)
        if refused:
            raise Failed(
                f"it went back, except {', '.join(refused)}",
                detail="\n\n".join(f"{name}:\n{error}" for name, error in refused.items()),
                hint="repair what these errors name; `prefect-cd recover` then looks again",
            )

    async def _apply(self, planned: ChangeSet) -> dict[str, DeliveryError]:
        """Write what is planned; where the server refuses an object that passed the dry run, write all others."""
        try:
            await self._apply_some(self.objects, planned)
        except (Invalid, Failed):
            refused: dict[str, DeliveryError] = {}
            planned = await self._plan()
            for wave in waves(self.objects):
                for item in wave:
                    try:
                        await self._apply_some([item], planned)
                    except (Invalid, Failed) as error:
                        refused[str(Ref.of(item))] = error
            return refused
        return {}

    async def _apply_some(self, objects: Sequence[Object], planned: ChangeSet) -> None:
        await apply(self.cluster, self.ownership, objects, planned, restoring=True, lock=self.lock)


async def _until_it_answers(step: Callable[[], Awaitable[_T]], give_up: float) -> _T:
    """The result of a step, which is repeated while the cluster does not answer, until the deadline."""
    while True:
        try:
            return await step()
        except ClusterUnreachable as error:
            if time.monotonic() > give_up:
                raise
            _log.warning("%s; the way back goes on when it answers", error.reason)
            await asyncio.sleep(_RETRY_SECONDS)


def _now() -> datetime:
    return datetime.now(timezone.utc)
