"""Whether a release may go into an environment, from the records alone."""

# ruff: noqa: FBT001  a parameter of a test is a row of its table
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.eligibility import EnvironmentState, blocked_by, content_digest
from prefect_cd.environment.records import Record, State
from prefect_cd.errors import EnvironmentFrozen, Superseded
from prefect_cd.kube.objects import Object
from prefect_cd.release.model import BuiltImage, Commit, Release

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
IMAGE = BuiltImage(name="r/shop", digest="sha256:" + "a" * 64, built=True)


def commit(digit: str) -> Commit:
    return Commit(repository="r", sha=digit * 40, revision="main", subject="Sell", author="An author", committed_at=NOW)


def release(digit: str = "a") -> Release:
    return Release(application="shop", commit=commit(digit), image=IMAGE, manifests={"staging": ()})


def record(number: int, state: State, digit: str | None = "a", *objects: Object, reason: str = "") -> Record:
    candidate = release(digit or "a")
    return Record(
        number=number,
        application="shop",
        environment="staging",
        state=state,
        release_id=candidate.id,
        release_hash=candidate.hash,
        commit=candidate.commit if digit else None,
        image=IMAGE if digit else None,
        objects=objects,
        started_at=NOW,
        reason=reason,
    )


def standing(newest: Record | None, known_good: Record | None = None) -> EnvironmentState:
    return EnvironmentState(newest=newest, known_good=known_good)


@pytest.mark.parametrize("state", State)
def test_i4_only_a_record_that_nobody_ended_is_interrupted(state: State) -> None:
    newest = record(2, state)
    assert standing(newest).interrupted == (newest if state == State.STARTED else None)


def test_nothing_is_interrupted_where_nothing_was_released() -> None:
    assert EnvironmentState().interrupted is None
    assert EnvironmentState().known_kinds == set()
    assert not EnvironmentState().runs(release())


def test_the_kinds_of_the_newest_and_of_the_known_good_are_looked_for_when_pruning() -> None:
    one, other = {"apiVersion": "v1", "kind": "Service"}, {"apiVersion": "batch/v1", "kind": "CronJob"}
    both = standing(record(2, State.FAILED, "b", one), record(1, State.KNOWN_GOOD, "a", one, other))
    assert both.known_kinds == {("v1", "Service"), ("batch/v1", "CronJob")}


GOOD = record(1, State.KNOWN_GOOD)


@pytest.mark.parametrize(
    ("there", "digit", "runs"),
    [
        (standing(GOOD, GOOD), "a", True),
        (standing(GOOD, GOOD), "b", False),
        (standing(record(2, State.ROLLED_BACK, "b"), GOOD), "a", False),
        (standing(record(2, State.STARTED, "a"), GOOD), "a", False),
        (standing(record(1, State.FAILED)), "a", False),
    ],
)
def test_a_release_runs_when_it_is_the_known_good_and_nothing_was_tried_after(
    there: EnvironmentState, digit: str, runs: bool
) -> None:
    assert there.runs(release(digit)) == runs


def judged(there: EnvironmentState, digit: str = "b", older: bool | None = None) -> Any:  # noqa: ANN401
    return blocked_by("staging", there, release(digit), older=older)


@pytest.mark.parametrize("older", [None, False, True])
@pytest.mark.parametrize("known_good", [None, GOOD])
def test_i6_an_environment_whose_rollback_failed_takes_no_release(
    known_good: Record | None, older: bool | None
) -> None:
    error = judged(standing(record(2, State.ROLLBACK_FAILED, reason="disk full"), known_good), older=older)
    assert isinstance(error, EnvironmentFrozen)
    assert error.detail == "disk full"
    assert "prefect deployment run 'rollback/shop' -p environment=staging" in error.hint


@pytest.mark.parametrize("state", set(State) - {State.ROLLBACK_FAILED})
def test_any_other_past_is_no_obstacle(state: State) -> None:
    assert judged(standing(record(2, state), GOOD), older=False) is None


def test_i8_an_older_commit_does_not_overwrite_a_newer_one() -> None:
    error = judged(standing(GOOD, GOOD), older=True)
    assert isinstance(error, Superseded)
    assert error.reason == "staging runs aaaaaaa, which contains bbbbbbb already"
    assert "-p to=RELEASE" in error.hint


@pytest.mark.parametrize("older", [None, False])
def test_i8_a_newer_commit_and_one_that_git_cannot_place_may_go_in(older: bool | None) -> None:
    assert judged(standing(GOOD, GOOD), older=older) is None


@pytest.mark.parametrize(
    "there", [EnvironmentState(), standing(GOOD, GOOD), standing(GOOD, record(1, State.KNOWN_GOOD, None))]
)
def test_i8_the_same_commit_a_first_release_and_what_was_there_before_us_are_no_obstacle(
    there: EnvironmentState,
) -> None:
    same = "a" if there.known_good and there.known_good.commit else "b"
    assert judged(there, same, older=True) is None


def test_i5_the_content_changes_with_everything_that_a_person_was_asked_about() -> None:
    asked = ("staging", "shop", "https://cluster", release("a").hash, "changes")
    contents = {content_digest(*asked)}
    for position, other in enumerate(["production", "other", "https://other", release("b").hash, "other changes"]):
        changed = [*asked]
        changed[position] = other
        contents.add(content_digest(*changed))
    assert len(contents) == 6
    assert content_digest(*asked) in contents
