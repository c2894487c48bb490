"""What a version would change, and whether it may go into the environment at all."""

from collections.abc import Callable
from typing import Any

import pytest

from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.record import State
from prefect_cd.errors import EnvironmentFrozen, InvalidManifest, OwnershipConflict, Superseded
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.lint import Rule
from prefect_cd.tasks.changes import Plan, commits_between, plan, refuse_blocked
from prefect_cd.tasks.objects import apply
from prefect_cd.tasks.record import record_outcome, record_start
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import (
    GitRepository,
    config_map,
    deployment,
    environment,
    pipeline,
    plan_of,
    record,
    release,
    service,
    verified,
)
from tests.unit.fake_api import FakeApi

ELSEWHERE = Target(application="shop", environment=environment())


def planned(target: Target, *objects: Object) -> Plan:
    return plan.fn(target, release(*objects))


# --- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_dry_runs_every_object_and_writes_nothing(target: Target, api: FakeApi) -> None:
    ready = planned(target, config_map(greeting="hello"), deployment())
    assert str(ready.changes) == "2 created"
    assert ready.running is None
    assert (ready.server, ready.kubernetes) == (f"http://127.0.0.1:{api.port}", "v1.36.3")
    assert api.writes == []
    dry_runs = {query["target"] for _, query in api.requests if "dryRun" in query}
    assert dry_runs == {"configmaps/shop", "deployments/shop", "pods/shop-prefect-cd-dry-run"}


def test_a_plan_for_a_namespace_that_does_not_exist_yet_writes_nothing_either(target: Target, api: FakeApi) -> None:
    api.remove("namespaces", "shop")
    assert str(planned(target, config_map(greeting="hello")).changes) == "1 created"
    assert api.writes == []


def test_the_plan_of_a_run_is_a_page_with_the_place_the_changes_and_what_may_lose_requests(
    target: Target, run: Callable[[Callable[[], Any]], Run]
) -> None:
    candidate = release(config_map(greeting="hello"), deployment(), service())
    played = run(lambda: plan(target, candidate))
    assert {finding.where for finding in played.result.findings} == {"deployment/shop"}
    assert played.descriptions == {"shop-staging-plan": "staging: 3 created; may lose requests; new risks: 1"}
    page = played.artifacts[0].data
    assert "namespace `shop`" in page
    assert "## What may lose requests" in page
    assert "+  greeting: hello" in page
    assert [task.name for task in played.tasks(1)] == ["plan staging"]


def test_what_the_server_refuses_is_known_before_the_first_write(target: Target, api: FakeApi) -> None:
    api.admission_error = "admission webhook denied the request: no limits"
    with pytest.raises(InvalidManifest, match="no limits"):
        planned(target, config_map(greeting="hello"))
    assert api.writes == []


def test_an_object_of_another_manager_is_refused_and_with_take_over_kept_for_the_first_record(
    target: Target, api: FakeApi
) -> None:
    api.put("configmaps", "shop", data={"greeting": "before us"}, metadata={"labels": {"owner": "Helm"}})
    with pytest.raises(OwnershipConflict, match="would change an object of another manager"):
        planned(target, config_map(greeting="hello"))
    taking_over = target.model_copy(update={"environment": target.environment.model_copy(update={"take_over": True})})
    ready = planned(taking_over, config_map(greeting="hello"))
    assert ready.restoring is False
    assert [item["data"] for item in ready.unrecorded] == [{"greeting": "before us"}]


def test_a_plan_says_what_a_rollback_cannot_undo_in_place(target: Target, lock: Any) -> None:  # noqa: ANN401
    first = planned(target, config_map(greeting="hello"))
    assert first.findings == ()
    started = record_start.fn(first, lock)
    apply.fn(first, lock)
    record_outcome.fn(target, verified(target, started.record, lock), State.KNOWN_GOOD, lock)
    (finding,) = planned(target, {**config_map(greeting="hello"), "immutable": True}).findings
    assert (finding.rule, finding.where) == (Rule.REPLACED, "configmap/shop")


def test_a_release_that_runs_already_needs_nothing(target: Target, lock: Any) -> None:  # noqa: ANN401
    first = planned(target, config_map(greeting="hello"))
    started = record_start.fn(first, lock)
    apply.fn(first, lock)
    record_outcome.fn(target, verified(target, started.record, lock), State.KNOWN_GOOD, lock)
    again = planned(target, config_map(greeting="hello"))
    assert again.already_runs
    assert again.running is not None
    assert again.running.number == 1
    assert not planned(target, config_map(greeting="good day")).already_runs


def test_what_was_changed_by_hand_is_applied_again_though_the_release_runs(
    target: Target,
    api: FakeApi,
    lock: Any,  # noqa: ANN401
) -> None:
    first = planned(target, config_map(greeting="hello"))
    started = record_start.fn(first, lock)
    apply.fn(first, lock)
    record_outcome.fn(target, verified(target, started.record, lock), State.KNOWN_GOOD, lock)
    labels = api.objects["configmaps"]["shop"]["metadata"]["labels"]
    api.put("configmaps", "shop", data={"greeting": "edited"}, metadata={"labels": labels})
    again = planned(target, config_map(greeting="hello"))
    assert not again.already_runs
    assert str(again.changes) == "1 changed"


def test_i5_the_content_of_an_approval_covers_release_changes_place_and_cluster() -> None:
    candidate = release()
    ready = plan_of(ELSEWHERE, candidate)
    others = [
        plan_of(ELSEWHERE, release(config_map(greeting="good day"))),
        plan_of(ELSEWHERE, candidate, server="https://another.example.org"),
        plan_of(Target(application="shop", environment=environment(namespace="other")), candidate),
        plan_of(Target(application="shop", environment=environment(name="production")), candidate),
    ]
    assert len({ready.content, *(other.content for other in others)}) == 5
    assert plan_of(ELSEWHERE, candidate, kubernetes="v1.37.0").content == ready.content


# --- whether it may ---------------------------------------------------------------------------------------------------


def test_i6_a_frozen_environment_is_refused_with_the_reason_and_the_next_command() -> None:
    broken = record(2, State.ROLLBACK_FAILED, reason="its image is gone")
    ready = plan_of(ELSEWHERE, release(), state=EnvironmentState(newest=broken, known_good=record(1)))
    with pytest.raises(EnvironmentFrozen, match="the rollback from release-2 failed") as caught:
        refuse_blocked(pipeline(), release(), ready)
    assert caught.value.detail == "its image is gone"
    assert "prefect deployment run 'rollback/shop'" in caught.value.hint


def test_i6_a_frozen_environment_is_refused_even_when_git_is_away() -> None:
    broken = record(2, State.ROLLBACK_FAILED)
    good = record(1, commit=release().commit.model_copy(update={"sha": "b" * 40}))
    ready = plan_of(ELSEWHERE, release(), state=EnvironmentState(newest=broken, known_good=good))
    with pytest.raises(EnvironmentFrozen):
        refuse_blocked(pipeline(repository="/nowhere"), release(), ready)


def running(commit: Any) -> EnvironmentState:  # noqa: ANN401
    good = record(1, commit=commit)
    return EnvironmentState(newest=good, known_good=good)


def test_i8_an_older_commit_is_superseded_and_a_newer_one_is_not(repository: GitRepository) -> None:
    older, newer = repository.commit({"app": "1"}), repository.commit({"app": "2"})
    settings = pipeline(repository=repository.path)
    with pytest.raises(Superseded, match=f"runs {newer.short}, which contains {older.short} already"):
        refuse_blocked(settings, release(of=older), plan_of(ELSEWHERE, release(of=older), state=running(newer)))
    refuse_blocked(settings, release(of=newer), plan_of(ELSEWHERE, release(of=newer), state=running(older)))
    refuse_blocked(settings, release(of=newer), plan_of(ELSEWHERE, release(of=newer), state=running(newer)))


def test_i8_a_commit_that_was_pushed_after_the_checkout_is_fetched_before_the_answer(
    repository: GitRepository,
) -> None:
    older = repository.commit({"app": "1"})
    settings = pipeline(repository=repository.path)
    assert commits_between(settings, release(of=older), None)[0].sha == older.sha  # makes the checkout
    newer = repository.commit({"app": "2"})
    with pytest.raises(Superseded):
        refuse_blocked(settings, release(of=older), plan_of(ELSEWHERE, release(of=older), state=running(newer)))


def test_a_running_commit_that_the_repository_no_longer_has_is_no_obstacle(repository: GitRepository) -> None:
    candidate = repository.commit({"app": "1"})
    gone = candidate.model_copy(update={"sha": "b" * 40})
    ready = plan_of(ELSEWHERE, release(of=candidate), state=running(gone))
    refuse_blocked(pipeline(repository=repository.path), release(of=candidate), ready)


def test_the_commits_since_what_runs_are_listed_newest_first(repository: GitRepository) -> None:
    first = repository.commit({"app": "1"}, "first")
    repository.commit({"app": "2"}, "second")
    third = repository.commit({"app": "3"}, "third")
    settings = pipeline(repository=repository.path)
    since = commits_between(settings, release(of=third), record(1, commit=first))
    assert [commit.subject for commit in since] == ["third", "second"]
    first_release = commits_between(settings, release(of=third), None)
    assert [commit.subject for commit in first_release] == ["third", "second", "first"]
