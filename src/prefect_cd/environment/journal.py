"""The records of one environment together: the known-good, what to go back to, and what cannot be trusted. Pure."""

from collections.abc import Sequence

from prefect_cd.environment.record import BASELINE, BEFORE, NOTHING, OPEN, Record, State
from prefect_cd.errors import Invalid
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Identity, Ref
from prefect_cd.release.model import Result

_ROLLBACK_TARGETS = frozenset({State.KNOWN_GOOD, State.WITHDRAWN})  # withdrawn ones only by name
_TAKEN_BACK = frozenset({State.ROLLED_BACK, State.SUPERSEDED})


class Entry(Result):
    """The metadata of a record, as a list request returns it."""

    number: int
    state: State
    release_id: str
    restores: int | None = None

    @property
    def was_good(self) -> bool:
        """Whether its gates passed once, also where a rollback has withdrawn it."""
        return self.state in _ROLLBACK_TARGETS


class Damage(Result):
    """A Secret that says it is a record and is not what prefect-cd wrote."""

    number: int | None
    where: str
    problem: str
    hint: str
    hides: bool = True
    """Whether what the record said is unknown; an edited label hides nothing."""
    newer: bool = False
    """Whether a newer version of prefect-cd wrote it: it must not be written over."""
    foreign: bool = False
    """Whether prefect-cd never wrote it, so that it is ignored, though nothing can be written under its name."""
    unsigned: bool = False
    """Whether it lacks a signature only, so that an operator may adopt it."""

    def error(self) -> Invalid:
        """The same as an error."""
        return Invalid(self.problem, where=self.where, hint=self.hint)


class Journal(Result):
    """All records of an environment by their metadata, newest first, and what cannot be trusted among them.

    Attributes:
        entries: those that a rollback has withdrawn have this state.
        damaged: Secrets that are no entries, or whose labels were edited.
        epoch: the highest epoch in which a record was written, also one that cannot be read; 0 without records.
    """

    entries: tuple[Entry, ...] = ()
    damaged: tuple[Damage, ...] = ()
    epoch: int = 0

    @property
    def newest(self) -> Entry | None:
        """The newest release that may have changed the environment; one that was superseded wrote nothing."""
        return next((entry for entry in self.entries if entry.state != State.SUPERSEDED), None)

    @property
    def known_good(self) -> Entry | None:
        """What to roll back to: the newest release whose gates passed after its rollout."""
        return next((entry for entry in self.entries if entry.state == State.KNOWN_GOOD), None)

    @property
    def last_number(self) -> int:
        """The highest number that a record has, also one that cannot be read."""
        damaged = [damage.number or 0 for damage in self.damaged if not damage.foreign]
        return max([*(entry.number for entry in self.entries), *damaged], default=0)

    def next_number(self, above: int) -> int:
        """The number of the next record; a name that somebody else's Secret has is left out.

        Args:
            above: a number that is taken although no record has it.
        """
        taken = {damage.number for damage in self.damaged if damage.foreign}
        number = max(self.last_number, above) + 1
        while number in taken:
            number += 1
        return number

    def lost(self, marked: int | None) -> int | None:
        """The number of a record that somebody deleted before its rollout had an outcome.

        Args:
            marked: the number of the open record, by the Lease. One that is not the last is outdated: other releases
                have been recorded since.
        """
        return marked if marked is not None and marked > self.last_number else None

    def is_settled(self, marked: int | None) -> bool:
        """Whether the record that the Lease calls open has an outcome, or is outdated."""
        if marked is None or marked < self.last_number:
            return True
        return any(entry.number == marked and entry.state not in OPEN for entry in self.entries)

    def refuse_hidden(self, since: int | None) -> None:
        """Return where every record after `since` can be read: one that cannot may be what decides.

        Raises:
            Invalid: one cannot; the message names it.
        """
        if problem := hidden_problem(self.damaged, since):
            raise problem


def hidden_problem(damaged: Sequence[Damage], since: int | None) -> Invalid | None:
    """The error of the newest damaged record that may decide, or None.

    Args:
        damaged: all damaged records.
        since: records before this number decide nothing; None: all of them may.
    """
    hiding = [damage for damage in damaged if damage.hides and (since is None or (damage.number or 0) >= since)]
    return max(hiding, key=lambda damage: damage.number or 0).error() if hiding else None


def with_withdrawn(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries, newest first, with the known-good ones that a good rollback went back behind as withdrawn."""
    skips = [(entry.restores, entry.number) for entry in entries if entry.restores is not None and entry.was_good]
    return tuple(
        entry.model_copy(update={"state": State.WITHDRAWN})
        if entry.state == State.KNOWN_GOOD and any(first < entry.number < last for first, last in skips)
        else entry
        for entry in entries
    )


def rollback_target(environment: str, journal: Journal, release: str = "") -> Entry:
    """What to roll back to when a user asks for a rollback.

    Args:
        environment: its name.
        journal: its records.
        release: a release id or its first digits, or a record number; empty: the known-good before what runs
            now, or the known-good itself when something failed after it and was not rolled back.

    Raises:
        Invalid: there is none, or more than one; the message lists the available ones. Or the record that was named,
            or one after the one that was not, cannot be read.
    """
    for damage in journal.damaged:
        if damage.hides and damage.number is not None and str(damage.number) == release:
            raise damage.error()
    targets = [entry for entry in journal.entries if entry.was_good]
    candidates = matching(targets, release) if release else before_running(journal.entries)
    if release and len({entry.release_id for entry in candidates}) > 1:
        raise Invalid(
            f"{release!r} matches more than one release of {environment}",
            hint=f"write more digits, or the number: {_listed(candidates)}",
        )
    if not release:
        journal.refuse_hidden(candidates[0].number if candidates else None)
    if candidates:
        return candidates[0]
    missing = f"release {release!r}" if release else "an earlier release"
    hint = f"choose one of: {_listed(targets)}" if targets else "no release has passed its gates here: release a commit"
    raise Invalid(f"{environment} has no known-good record of {missing}", hint=hint)


def matching(entries: Sequence[Entry], release: str) -> list[Entry]:
    """The entries that `release` names, newest first; digits are a record's number first, then the start of an id.

    The baseline has to be named in full: going back to it may remove everything.
    """
    numbered = [entry for entry in entries if str(entry.number) == release and entry.number != BASELINE]
    named = [entry for entry in entries if entry.release_id == release]
    releases = [entry for entry in entries if entry.release_id not in {BEFORE, NOTHING}]
    begun = [entry for entry in releases if entry.release_id.startswith(release)]
    return numbered or named or begun


def before_running(entries: Sequence[Entry]) -> list[Entry]:
    """The known-good entries before what runs now, newest first.

    A release that failed after the known-good may still run; one that was rolled back does not, and neither does one
    without an outcome over which another was started. From a good release, nothing but its name leads back to an empty
    environment.
    """
    known_good = [entry for entry in entries if entry.state == State.KNOWN_GOOD]
    replaced = [entry for entry in entries[1:] if entry.state in OPEN]
    may_run = [entry for entry in entries if entry.state not in _TAKEN_BACK and entry not in replaced]
    if known_good and known_good[0] == may_run[0]:
        return [entry for entry in known_good if entry.release_id not in {known_good[0].release_id, NOTHING}]
    return known_good


def objects_to_restore(base: Record, left: Sequence[Record]) -> tuple[Object, ...]:
    """What to apply to go back to a record: its objects, and those of others that the records since have replaced.

    An original is not labelled as ours: once it is restored, it is its owner's again. It is applied a single time, so
    it belongs into no record's `objects`.

    Args:
        base: the record to go back to.
        left: the records since, which the environment leaves, in any order.
    """
    originals: dict[Identity, Object] = {}
    for record in sorted(left, key=lambda record: record.number):
        if record.number <= base.number or record.state in _TAKEN_BACK:
            continue
        if record.restores is not None and record.state in _ROLLBACK_TARGETS:  # a rollback has restored them before
            kept = {Ref.of(item).identity for item in record.objects}
            originals = {identity: item for identity, item in originals.items() if identity in kept}
        for item in record.replaced:
            originals.setdefault(Ref.of(item).identity, item)
    own = {Ref.of(item).identity for item in base.objects}
    return base.objects + tuple(item for identity, item in originals.items() if identity not in own)


def _listed(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{entry.release_id} (number {entry.number})" for entry in entries)
