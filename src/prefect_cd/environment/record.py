"""One record: which release an environment got, what became of it, and what it may become next. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum

from pydantic import Field

from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import Errored
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.release.model import BuiltImage, Commit, Release, Result

BASELINE = 0
"""The number of the record of what was there before the first release."""
BEFORE, NOTHING = "before-prefect-cd", "nothing"
"""The release ids of a baseline with objects, and of an empty one."""
LOST = "lost"
"""The release id of a record that somebody deleted while its rollout had no outcome."""
_MAX_REASON_LENGTH = 20_000


class State(str, Enum):
    """How far a release came in an environment. The values are a stable contract: they are labels of Secrets."""

    PREPARED = "prepared"
    """Its record is in the cluster; none of its objects is."""
    APPLYING = "applying"
    """Its objects are being written. Format 1 said `started`, whatever had been done."""
    VERIFYING = "verifying"
    """Its objects are all there, and its pods run; gates go on."""
    KNOWN_GOOD = "known-good"
    ROLLED_BACK = "rolled-back"
    ROLLBACK_FAILED = "rollback-failed"
    FAILED = "failed"
    """It failed and was left as it is: nothing was to be rolled back."""
    WITHDRAWN = "withdrawn"
    """Derived: it was good, and a rollback went back behind it. Only older versions of prefect-cd wrote it."""
    SUPERSEDED = "superseded"
    """It was given up before any of its objects was written."""


OPEN = frozenset({State.PREPARED, State.APPLYING, State.VERIFYING})
"""The states of a rollout that has no outcome."""
_FAILURES = frozenset({State.ROLLED_BACK, State.ROLLBACK_FAILED, State.FAILED})
MOVES: Mapping[State, frozenset[State]] = {
    State.PREPARED: frozenset({State.APPLYING, State.SUPERSEDED}) | _FAILURES,
    State.APPLYING: frozenset({State.VERIFYING}) | _FAILURES,
    State.VERIFYING: frozenset({State.KNOWN_GOOD}) | _FAILURES,
    State.KNOWN_GOOD: frozenset({State.WITHDRAWN}),
    State.ROLLBACK_FAILED: frozenset({State.ROLLED_BACK}),
    State.ROLLED_BACK: frozenset(),
    State.FAILED: frozenset(),
    State.WITHDRAWN: frozenset(),
    State.SUPERSEDED: frozenset(),
}
"""What each state may become. Writing a state again, after a lost answer, is no move."""


class Decision(Result):
    """The decision of an approver about a release for an environment."""

    approved: bool
    name: str
    comment: str
    decided_at: datetime
    content: str = Field(description="digest of what was approved")


class GateResult(Result):
    """The result of a gate, in one line."""

    name: str
    outcome: str
    summary: str


class Record(Result):
    """One release in one environment: enough to apply it again. The names of the fields are a stable contract."""

    number: int
    application: str
    environment: str
    state: State
    release_id: str
    release_hash: str
    commit: Commit | None = Field(description="None for what ran before prefect-cd")
    image: BuiltImage | None
    objects: tuple[Object, ...] = Field(description="the full set, labelled and with namespaces")
    known: tuple[Ref, ...] = Field(default=(), description="objects that may have been here when its rollout started")
    replaced: tuple[Object, ...] = Field(
        default=(), description="objects of somebody else that it took over, as they were before"
    )
    pruned: tuple[Ref, ...] = Field(default=(), description="objects of earlier releases that it removes")
    decision: Decision | None = None
    gates: tuple[GateResult, ...] = ()
    started_at: datetime
    settled_at: datetime | None = None
    run: str = Field(default="", description="URL of the flow run")
    reason: str = Field(default="", description="why it is in this state, when that is not obvious")
    restores: int | None = Field(default=None, description="number of the record that a rollback restores")


def new_record(
    ownership: Ownership,
    version: Release | Record,
    objects: Sequence[Object],
    now: datetime,
    *,
    known: Iterable[Ref] = (),
    replaced: Iterable[Object] = (),
    pruned: Iterable[Ref] = (),
    decision: Decision | None = None,
    run: str = "",
) -> Record:
    """The record of a rollout that is about to start; `RecordStore.start` numbers it.

    Args:
        ownership: the environment.
        version: a new release, or the record that a rollback restores.
        objects: the full set, labelled and with namespaces.
        now: when the rollout starts.
        known: the objects that earlier releases may have left.
        replaced: the objects of somebody else that it takes over, as they are.
        pruned: the objects of earlier releases that it removes.
        decision: the approval, where the environment requires one.
        run: URL of the flow run.
    """
    return Record(
        number=0,
        application=ownership.application,
        environment=ownership.environment,
        state=State.PREPARED,
        release_id=version.release_id if isinstance(version, Record) else version.id,
        release_hash=version.release_hash if isinstance(version, Record) else version.hash,
        commit=version.commit,
        image=version.image,
        objects=tuple(objects),
        known=tuple(sorted(known)),
        replaced=tuple(replaced),
        pruned=tuple(sorted(pruned)),
        decision=decision,
        started_at=now,
        run=run,
        restores=version.number if isinstance(version, Record) else None,
    )


def baseline(ownership: Ownership, objects: Sequence[Object], now: datetime) -> Record:
    """The record of what an environment contained before its first release: a known-good to go back to.

    Args:
        ownership: the environment.
        objects: the objects that the first release takes over; often none.
        now: when they were read.
    """
    return Record(
        number=BASELINE,
        application=ownership.application,
        environment=ownership.environment,
        state=State.KNOWN_GOOD,
        release_id=BEFORE if objects else NOTHING,
        release_hash="",
        commit=None,
        image=None,
        objects=tuple(ownership.label(item) for item in objects),
        started_at=now,
        settled_at=now,
        reason="what was there before the first release",
    )


def added_by(record: Record) -> list[Ref]:
    """The objects that a release brings in for the first time; those of others that it takes over are none of them."""
    return sorted(
        {Ref.of(item) for item in record.objects} - {Ref.of(item) for item in record.replaced} - {*record.known}
    )


def lost_record(ownership: Ownership, number: int, now: datetime, added: Iterable[Ref] = ()) -> Record:
    """A record in place of one that was deleted while its rollout had no outcome: the environment may be half.

    Args:
        ownership: the environment.
        number: of the deleted record, by the Lease.
        now: when it was missed.
        added: the objects that its release may have added, by the Lease.
    """
    return Record(
        number=number,
        application=ownership.application,
        environment=ownership.environment,
        state=State.APPLYING,
        release_id=LOST,
        release_hash="",
        commit=None,
        image=None,
        objects=(),
        known=tuple(added),
        started_at=now,
        reason="its record was deleted before its rollout had an outcome",
    )


def refuse_move(number: int, state: State, to: State) -> None:
    """Return where a record in `state` may get the state `to`, or has it already.

    Raises:
        Errored: it may not.
    """
    if to != state and to not in MOVES[state]:
        raise Errored(
            f"record {number} is {state.value}, and cannot become {to.value}",
            hint="another process has written it; the next release or recovery decides anew",
        )


def moved(record: Record, to: State, now: datetime, *, reason: str = "", gates: Sequence[GateResult] = ()) -> Record:
    """The record in another state; without `gates` it keeps those that it has. See `refuse_move` for whether it may."""
    changes = {
        "state": to,
        "reason": reason[:_MAX_REASON_LENGTH],
        "settled_at": None if to in OPEN else now,
        "gates": tuple(gates) or record.gates,
    }
    return record.model_copy(update=changes)
