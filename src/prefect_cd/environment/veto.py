"""Whether a release that an environment has given up may come in again, decided from the records. Pure.

A release that was rolled back, or withdrawn by a rollback of a user, is the same release however often it is triggered:
the same commit, image and manifests. Triggers do not know that, so without a veto each of them would bring it in, and
take it back, again. A user may say so; a new commit is another release.
"""

from collections.abc import Sequence

from prefect_cd.environment.journal import Entry
from prefect_cd.environment.record import BEFORE, LOST, NOTHING, State
from prefect_cd.errors import Vetoed
from prefect_cd.release.model import Release

_GIVEN_UP = {
    State.ROLLED_BACK: "was rolled back",
    State.ROLLBACK_FAILED: "failed, and so did its rollback,",
    State.WITHDRAWN: "was good, but withdrawn by a rollback",
}


def vetoed_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The newest entry of each release that triggers do not bring in again.

    Args:
        entries: of all records, newest first.
    """
    newest: dict[str, Entry] = {}
    for entry in entries:
        newest.setdefault(entry.release_id, entry)
    return tuple(
        entry
        for entry in newest.values()
        if entry.state in _GIVEN_UP and entry.release_id not in {BEFORE, NOTHING, LOST}
    )


def veto(environment: str, release: Release, entries: Sequence[Entry], *, again: bool) -> Vetoed | None:
    """Why a release must not come into an environment again, or None.

    Args:
        environment: its name.
        release: the candidate.
        entries: of all records, newest first.
        again: whether a user wants it again.
    """
    given_up = next((entry for entry in vetoed_entries(entries) if entry.release_id == release.id), None)
    if again or given_up is None:
        return None
    return Vetoed(
        f"{release.id} {_GIVEN_UP[given_up.state]} in {environment} (record {given_up.number})",
        hint="push a new commit; or, to bring the same one in again, "
        f"`prefect deployment run 'release/{release.application}' -p revision={release.commit.sha} -p again=true`",
    )


__all__ = ["veto", "vetoed_entries"]
