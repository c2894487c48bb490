"""Which releases do not come in again by themselves, from the records alone."""

import pytest

from prefect_cd.environment.journal import Entry
from prefect_cd.environment.record import State
from prefect_cd.environment.veto import veto, vetoed_entries
from prefect_cd.release.model import BuiltImage, Release
from tests.unit.environment.test_eligibility import commit

IMAGE = BuiltImage(name="r/shop", digest="sha256:" + "a" * 64, built=True)


def release(digit: str = "a", digest: str = "a") -> Release:
    image = IMAGE.model_copy(update={"digest": "sha256:" + digest * 64})
    return Release(application="shop", commit=commit(digit), image=image, manifests={"staging": ()})


def entry(number: int, state: State, of: Release | str) -> Entry:
    return Entry(number=number, state=state, release_id=of if isinstance(of, str) else of.id)


def history(*entries: Entry) -> list[Entry]:
    return sorted(entries, key=lambda entry: -entry.number)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.ROLLED_BACK, "was rolled back in staging (record 2)"),
        (State.WITHDRAWN, "was good, but withdrawn by a rollback in staging (record 2)"),
        (State.ROLLBACK_FAILED, "failed, and so did its rollback, in staging (record 2)"),
    ],
)
def test_a_release_that_was_given_up_is_vetoed_until_a_user_says_again(state: State, reason: str) -> None:
    entries = history(entry(1, State.KNOWN_GOOD, "other-1"), entry(2, state, release()))
    error = veto("staging", release(), entries, again=False)
    assert error is not None
    assert error.reason == f"{release().id} {reason}"
    assert f"-p revision={'a' * 40} -p again=true" in error.hint
    assert veto("staging", release(), entries, again=True) is None


@pytest.mark.parametrize("state", [State.KNOWN_GOOD, State.APPLYING, State.FAILED, State.SUPERSEDED])
def test_a_release_in_another_state_is_not_vetoed(state: State) -> None:
    assert veto("staging", release(), history(entry(2, state, release())), again=False) is None


def test_what_counts_is_the_newest_entry_of_the_release() -> None:
    good_again = history(entry(2, State.ROLLED_BACK, release()), entry(3, State.KNOWN_GOOD, release()))
    assert veto("staging", release(), good_again, again=False) is None
    gone_again = history(entry(2, State.KNOWN_GOOD, release()), entry(3, State.ROLLED_BACK, release()))
    assert veto("staging", release(), gone_again, again=False) is not None


def test_another_commit_and_another_image_are_other_releases_and_the_same_content_is_the_same_one() -> None:
    entries = history(entry(2, State.ROLLED_BACK, release()))
    assert veto("staging", release("b"), entries, again=False) is None
    assert veto("staging", release(digest="b"), entries, again=False) is None
    rebuilt = release()
    rebuilt = rebuilt.model_copy(update={"image": rebuilt.image.model_copy(update={"built": False})})
    assert veto("staging", rebuilt, entries, again=False) is not None


def test_all_vetoed_releases_are_listed_newest_first_and_a_baseline_is_none() -> None:
    entries = history(
        entry(0, State.WITHDRAWN, "nothing"),
        entry(1, State.WITHDRAWN, "one"),
        entry(2, State.KNOWN_GOOD, "two"),
        entry(3, State.ROLLED_BACK, "one"),
        entry(4, State.ROLLED_BACK, "three"),
    )
    assert [(found.release_id, found.number) for found in vetoed_entries(entries)] == [("three", 4), ("one", 3)]
