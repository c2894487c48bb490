"""Whether a release may go into an environment, from the records alone."""

# ruff: noqa: FBT001  a parameter of a test is a row of its table
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.eligibility import (
    EnvironmentState,
    approval_problem,
    blocked_by,
    content_digest,
    frozen_problem,
    withdrawn_problem,
)
from prefect_cd.environment.record import Decision, Record, State
from prefect_cd.errors import ContentChanged, EnvironmentFrozen, Superseded
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
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


def state_of(newest: Record | None, known_good: Record | None = None) -> EnvironmentState:
    return EnvironmentState(newest=newest, known_good=known_good)


@pytest.mark.parametrize("state", State)
def test_i4_only_a_record_without_an_outcome_is_interrupted(state: State) -> None:
    newest = record(2, state)
    open_states = {State.PREPARED, State.APPLYING, State.VERIFYING}
    assert state_of(newest).interrupted == (newest if state in open_states else None)


def test_an_environment_without_records_has_no_interrupted_rollout() -> None:
    assert EnvironmentState().interrupted is None
    assert EnvironmentState().known == set()
    assert not EnvironmentState().runs(release())


def named(kind: str, name: str) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}


@pytest.mark.parametrize("state", State)
def test_i4_what_earlier_releases_left_is_known_until_a_whole_version_has_pruned_it(state: State) -> None:
    left = Ref("v1", "Service", "", "left")
    newest = record(2, state, "b", named("Service", "new")).model_copy(update={"known": (left,)})
    known = state_of(newest, record(1, State.KNOWN_GOOD, "a", named("ConfigMap", "good"))).known
    assert known - {left} == {Ref("v1", "Service", "", "new"), Ref("v1", "ConfigMap", "", "good")}
    assert (left in known) == (state not in {State.KNOWN_GOOD, State.ROLLED_BACK})


GOOD = record(1, State.KNOWN_GOOD)


@pytest.mark.parametrize(
    ("state", "digit", "runs"),
    [
        (state_of(GOOD, GOOD), "a", True),
        (state_of(GOOD, GOOD), "b", False),
        (state_of(record(2, State.ROLLED_BACK, "b"), GOOD), "a", False),
        (state_of(record(2, State.APPLYING, "a"), GOOD), "a", False),
        (state_of(record(1, State.FAILED)), "a", False),
    ],
)
def test_a_release_runs_when_it_is_the_known_good_and_no_rollout_started_after_it(
    state: EnvironmentState, digit: str, runs: bool
) -> None:
    assert state.runs(release(digit)) == runs


def problem_of(state: EnvironmentState, digit: str = "b", older: bool | None = None) -> Any:  # noqa: ANN401
    return blocked_by("staging", state, release(digit), older=older)


@pytest.mark.parametrize("older", [None, False, True])
@pytest.mark.parametrize("known_good", [None, GOOD])
def test_i6_an_environment_whose_rollback_failed_is_blocked(known_good: Record | None, older: bool | None) -> None:
    error = problem_of(state_of(record(2, State.ROLLBACK_FAILED, reason="disk full"), known_good), older=older)
    assert isinstance(error, EnvironmentFrozen)
    assert error.detail == "disk full"
    assert "prefect deployment run 'rollback/shop' -p environment=staging" in error.hint


@pytest.mark.parametrize("state", State)
def test_i6_only_an_environment_whose_newest_record_is_a_failed_rollback_is_frozen(state: State) -> None:
    error = frozen_problem(state_of(record(2, state, reason="disk full"), GOOD))
    assert (error is not None) == (state == State.ROLLBACK_FAILED)
    assert error is None or error.reason.startswith("staging is frozen: the rollback from aaaaaaa-")
    assert frozen_problem(EnvironmentState()) is None


@pytest.mark.parametrize("state", State)
def test_i8_a_run_does_not_bring_its_own_release_in_again_after_a_rollback_has_withdrawn_it(state: State) -> None:
    error = withdrawn_problem("staging", release(), record(1, state))
    assert (error is not None) == (state == State.WITHDRAWN)
    assert error is None or "a rollback has withdrawn it since" in error.reason
    assert withdrawn_problem("staging", release(), None) is None


@pytest.mark.parametrize("state", [state for state in State if state != State.ROLLBACK_FAILED])
def test_any_other_outcome_blocks_nothing(state: State) -> None:
    assert problem_of(state_of(record(2, state), GOOD), older=False) is None


def test_i8_an_older_commit_does_not_overwrite_a_newer_one() -> None:
    error = problem_of(state_of(GOOD, GOOD), older=True)
    assert isinstance(error, Superseded)
    assert error.reason == "staging runs aaaaaaa, which contains bbbbbbb already"
    assert "-p to=RELEASE" in error.hint


@pytest.mark.parametrize("older", [None, False])
def test_i8_a_newer_commit_and_one_that_git_does_not_know_are_not_blocked(older: bool | None) -> None:
    assert problem_of(state_of(GOOD, GOOD), older=older) is None


@pytest.mark.parametrize(
    "state", [EnvironmentState(), state_of(GOOD, GOOD), state_of(GOOD, record(1, State.KNOWN_GOOD, None))]
)
def test_i8_the_same_commit_a_first_release_and_a_record_without_a_commit_block_nothing(
    state: EnvironmentState,
) -> None:
    same = "a" if state.known_good and state.known_good.commit else "b"
    assert problem_of(state, same, older=True) is None


def decision(content: str) -> Decision:
    return Decision(approved=True, name="approver one", comment="", decided_at=NOW, content=content)


@pytest.mark.parametrize("required", [False, True])
def test_i5_an_approval_of_exactly_this_content_is_valid(required: bool) -> None:
    assert approval_problem("production", required=required, decision=decision("a"), content="a") is None


@pytest.mark.parametrize("required", [False, True])
def test_i5_an_approval_of_other_content_does_not_count_even_where_none_is_required(required: bool) -> None:
    error = approval_problem("production", required=required, decision=decision("a"), content="b")
    assert isinstance(error, ContentChanged)
    assert error.reason == "what would be applied to production is no longer what approver one approved"
    assert "new approval form" in error.hint


def test_i5_a_missing_approval_is_an_error_only_where_one_is_required() -> None:
    error = approval_problem("production", required=True, decision=None, content="a")
    assert isinstance(error, ContentChanged)
    assert error.reason == "production requires an approval, and there is none"
    assert approval_problem("staging", required=False, decision=None, content="a") is None


def test_i5_the_content_changes_with_everything_that_an_approval_covers() -> None:
    covered = ("staging", "shop", "https://cluster", release("a").hash, "changes")
    contents = {content_digest(*covered)}
    for position, other in enumerate(["production", "other", "https://other", release("b").hash, "other changes"]):
        changed = [*covered]
        changed[position] = other
        contents.add(content_digest(*changed))
    assert len(contents) == 6
    assert content_digest(*covered) in contents
