"""What an environment runs, what is half done there, and who holds its lock: for people and programs that ask.

Only for show: nothing decides by it. A lock's age is measured with the clock of this machine. Whether what runs is
exactly the known-good is found out by a dry run of all its objects; nothing is written.
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Literal

from pydantic import Field

from prefect_cd.environment.eligibility import EnvironmentState, damage_problem
from prefect_cd.environment.journal import Damage, Entry
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import BASELINE, Decision, Record, State
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.recovery import look
from prefect_cd.environment.state import read_state_and_lease
from prefect_cd.environment.veto import vetoed_entries
from prefect_cd.environment.wholeness import Defect
from prefect_cd.errors import Invalid
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object, as_time
from prefect_cd.release.model import Commit, Result

Condition = Literal["empty", "whole", "drifted", "changing", "interrupted", "failed", "frozen", "damaged"]
"""How an environment is:

empty: no release was ever good here, and none is on its way.
whole: it runs its known-good, and exactly that where this was looked at.
drifted: it runs its known-good, of which somebody has changed or deleted objects.
changing: a rollout is under way, and its process renews the lock.
interrupted: a rollout has no outcome, and no process works on it; recovery restores the known-good.
failed: the newest release failed and was left as it is, because nothing was to be rolled back.
frozen: a rollback failed; a person is needed.
damaged: a record that may decide cannot be read; a person is needed.
"""


_COMPARED = frozenset({"whole", "interrupted", "frozen"})
_RELEASES = 10


class Version(Result):
    """A release that an environment runs, or that is being rolled out."""

    release_id: str
    record: int
    commit: Commit | None = Field(description="None for what ran before prefect-cd")
    image: str = Field(description="the image by digest; empty for what ran before prefect-cd")
    state: State
    since: datetime = Field(description="when its rollout started")
    run: str = Field(description="URL of the flow run; empty when Prefect has no UI")
    decision: Decision | None
    reason: str


class Holder(Result):
    """The process that holds the environment's lock."""

    name: str
    since: datetime | None
    renewed: datetime | None
    alive: bool = Field(description="whether it renewed the lock within the lock's duration")


class EnvironmentStatus(Result):
    """One environment at one moment."""

    environment: str
    namespace: str
    condition: Condition
    runs: Version | None = Field(description="the known-good")
    newest: Version | None = Field(description="the newest release, when it is another one than `runs`")
    releases: tuple[Version, ...] = Field(default=(), description="the last ten that were started here, newest first")
    holder: Holder | None
    damaged: tuple[Damage, ...] = Field(default=(), description="records that cannot be read, or were edited by hand")
    vetoed: tuple[Entry, ...] = Field(default=(), description="releases that triggers do not bring in again")

    defects: tuple[Defect, ...] = Field(default=(), description="what is not as in the known-good")
    unchecked: str = Field(default="", description="why nobody knows whether the objects are those of the known-good")

    @property
    def is_whole(self) -> bool:
        """Whether nothing is half done and nobody is needed."""
        return self.condition in {"empty", "whole", "changing"}


async def read_status(
    cluster: Cluster, ownership: Ownership, *, compare: bool = True, history: bool = True
) -> EnvironmentStatus:
    """The status of an environment; one whose namespace does not exist is empty.

    Args:
        cluster: where it is.
        ownership: the environment.
        compare: whether to find out, by a dry run of all its objects, whether they are those of the known-good.
        history: whether to read the records of the last releases, too.

    Raises:
        ClusterUnreachable, Forbidden: as for every request.
    """
    state, lease = await read_state_and_lease(cluster, ownership)
    holder = holder_of(lease, datetime.now(timezone.utc))
    condition = condition_of(state, holder)
    looking = _look(cluster, ownership, state, condition) if compare else _not_compared()
    entries = [entry for entry in state.entries if entry.number != BASELINE][: _RELEASES if history else 0]
    (defects, unchecked), releases = await asyncio.gather(looking, _releases(cluster, ownership, entries))
    return EnvironmentStatus(
        environment=ownership.environment,
        namespace=ownership.namespace,
        condition="drifted" if condition == "whole" and defects else condition,
        runs=_version(state.known_good) if state.known_good else None,
        newest=_version(state.newest) if state.newest and state.newest != state.known_good else None,
        releases=releases,
        holder=holder,
        damaged=state.damaged,
        vetoed=vetoed_entries(state.entries),
        defects=defects,
        unchecked=unchecked,
    )


async def _not_compared() -> tuple[tuple[Defect, ...], str]:
    return (), "they were not compared"


async def _releases(cluster: Cluster, ownership: Ownership, entries: Iterable[Entry]) -> tuple[Version, ...]:
    """The releases of these entries, without those whose records cannot be read."""
    store = RecordStore(cluster, ownership)
    read = await asyncio.gather(*(_release(store, entry) for entry in entries))
    return tuple(version for version in read if version)


async def _release(store: RecordStore, entry: Entry) -> Version | None:
    try:
        record = await store.examine(entry.number)
    except Invalid:  # deleted since the list was read
        return None
    # that a release was withdrawn by a rollback follows from later records
    return _version(record.model_copy(update={"state": entry.state})) if isinstance(record, Record) else None


async def _look(
    cluster: Cluster, ownership: Ownership, state: EnvironmentState, condition: Condition
) -> tuple[tuple[Defect, ...], str]:
    """What is not as in the known-good, or why that cannot be found out; while a rollout is under way, nothing is."""
    if state.known_good is None or condition not in _COMPARED:
        return (), ""
    try:
        return await look(cluster, ownership, state.known_good, state), ""
    except Invalid as error:  # a dry run needs the permission to write
        return (), error.reason


def condition_of(state: EnvironmentState, holder: Holder | None) -> Condition:
    """The condition that follows from the records and the lock. Pure."""
    if damage_problem(state):
        return "damaged"
    if state.interrupted:
        return "changing" if holder and holder.alive else "interrupted"
    if state.frozen:
        return "frozen"
    if state.newest and state.newest.state == State.FAILED:
        return "failed"
    return "whole" if state.known_good else "empty"


def holder_of(lease: Object | None, now: datetime) -> Holder | None:
    """The holder that a Lease names; None when nobody holds it. Pure."""
    spec = (lease or {}).get("spec") or {}
    if not spec.get("holderIdentity"):
        return None
    renewed = as_time(spec.get("renewTime"))
    duration = timedelta(seconds=spec.get("leaseDurationSeconds") or 0)
    return Holder(
        name=str(spec["holderIdentity"]),
        since=as_time(spec.get("acquireTime")),
        renewed=renewed,
        alive=renewed is not None and now - renewed < duration,
    )


def _version(record: Record) -> Version:
    return Version(
        release_id=record.release_id,
        record=record.number,
        commit=record.commit,
        image=record.image.reference if record.image else "",
        state=record.state,
        since=record.started_at,
        run=record.run,
        decision=record.decision,
        reason=record.reason,
    )
