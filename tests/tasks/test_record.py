"""The record before the first write, what became of it, and what must be true before there is one."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.change_set import Action, ChangeSet
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.journal import objects_to_restore
from prefect_cd.environment.record import Decision, Record, State
from prefect_cd.errors import ContentChanged, Errored, Forbidden, Invalid, LockLost
from prefect_cd.gates.evidence import Outcome
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import Approval, Environment
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.tasks.changes import Plan, plan
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
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import HeldLock, config_map, evidence, record, release, verified
from tests.unit.fake_api import FakeApi

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
NO_LOCK: Any = None


@pytest.fixture
def planned() -> Plan:
    commit = Commit(
        repository="https://example.org/acme/shop",
        sha="a" * 40,
        revision="main",
        subject="Sell more",
        author="Test Author",
        committed_at=NOW,
    )
    image = BuiltImage(name="registry.example.org/shop", digest=f"sha256:{'0' * 64}", built=True)
    environment = Environment(name="production", namespace="shop", manifests="k8s", approval=Approval())
    return Plan(
        target=Target(application="shop", environment=environment),
        version=Release(application="shop", commit=commit, image=image, manifests={"production": ()}),
        objects=(),
        changes=ChangeSet(changes=()),
        state=EnvironmentState(),
        unrecorded=(),
        findings=(),
        server="https://cluster.example.org",
        kubernetes="v1.36.3",
    )


def decision(content: str) -> Decision:
    return Decision(approved=True, name="approver one", comment="", decided_at=NOW, content=content)


def test_i5_an_approval_of_other_content_does_not_open_a_record(planned: Plan) -> None:
    elsewhere = planned.model_copy(update={"server": "https://another.example.org"})
    with pytest.raises(ContentChanged, match="no longer what approver one approved"):
        record_start.fn(planned, NO_LOCK, decision(elsewhere.content))


def test_i5_without_an_approval_no_record_is_opened_where_one_is_wanted(planned: Plan) -> None:
    with pytest.raises(ContentChanged, match="requires an approval"):
        record_start.fn(planned, NO_LOCK, None)


# --- in the cluster --------------------------------------------------------------------------------------------------


def started(target: Target, lock: Any, greeting: str = "hello") -> Started:  # noqa: ANN401
    return record_start.fn(plan.fn(target, release(config_map(greeting=greeting))), lock)


def released(target: Target, lock: Any, greeting: str) -> Record:  # noqa: ANN401
    return succeed(target, started(target, lock, greeting).record, lock)


def succeed(target: Target, record: Record, lock: Any) -> Record:  # noqa: ANN401
    return record_outcome.fn(target, verified(target, record, lock), State.KNOWN_GOOD, lock)


def test_i2_a_record_that_is_complete_enough_to_restore_the_version_is_written(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    ready = plan.fn(target, release(config_map(greeting="hello")))
    written = record_start.fn(ready, lock).record
    assert api.writes == ["POST secrets/prefect-cd.shop.0", "POST secrets/prefect-cd.shop.1"]
    assert lock.guarded == 2
    state = read_state.fn(target)
    assert state.newest == written
    assert state.interrupted == written
    assert (written.number, written.state, written.objects) == (1, State.PREPARED, ready.objects)


def test_i3_without_the_lock_no_record_is_written(target: Target, api: FakeApi, lock: HeldLock) -> None:
    lock.error = LockLost("no longer the writer of staging")
    with pytest.raises(LockLost):
        started(target, lock)
    assert api.writes == []


@pytest.mark.parametrize(("applying", "outcome"), [(True, "failed"), (False, "superseded")])
def test_i4_an_interrupted_rollout_gets_its_outcome_after_the_next_record_exists(
    target: Target,
    api: FakeApi,
    lock: HeldLock,
    applying: bool,  # noqa: FBT001  a column of the table
    outcome: str,
) -> None:
    """A process that is killed between two of the writes leaves a record that leads back: half may be written."""
    first = started(target, lock, "hello").record
    if applying:
        record_applying(target, first, lock)
    api.requests.clear()
    second = started(target, lock, "good day")
    assert api.writes == ["POST secrets/prefect-cd.shop.2", *(f"PATCH secrets/prefect-cd.shop.{n}" for n in (2, 1))]
    assert second.record.state is State.APPLYING
    assert (second.record.number, second.base.number) == (2, 0)
    assert api.objects["secrets"]["prefect-cd.shop.1"]["metadata"]["labels"]["prefect-cd.dev/state"] == outcome


def taking_over(target: Target) -> Target:
    return target.model_copy(update={"environment": target.environment.model_copy(update={"take_over": True})})


def test_i2_a_takeover_first_records_the_objects_to_roll_back_to(target: Target, api: FakeApi, lock: HeldLock) -> None:
    api.put("configmaps", "shop", data={"greeting": "before us"})
    begun = record_start.fn(plan.fn(taking_over(target), release(config_map(greeting="hello"))), lock)
    assert begun.record.number == 1
    assert begun.base == read_state.fn(target).known_good
    assert (begun.base.number, begun.base.release_id) == (0, "before-prefect-cd")
    assert [item["data"] for item in begun.base.objects] == [{"greeting": "before us"}]


def test_i4_before_the_first_release_it_is_recorded_that_there_was_nothing(target: Target, lock: HeldLock) -> None:
    begun = started(target, lock)
    assert begun.base == read_state.fn(target).known_good
    assert (begun.base.number, begun.base.release_id, begun.base.objects) == (0, "nothing", ())
    assert plan.fn(target, release()).running is None


def test_i2_the_base_of_a_later_release_is_the_known_good(target: Target, lock: HeldLock) -> None:
    first = released(target, lock, "hello")
    assert started(target, lock, "good day").base == first


def test_i2_a_start_that_is_tried_again_keeps_the_baseline_that_it_wrote(
    target: Target, api: FakeApi, lock: HeldLock, run: Callable[[Callable[[], Any]], Run]
) -> None:
    """Its response was lost, and meanwhile the objects are ours: what was there before must not be written again."""
    api.put("configmaps", "shop", data={"greeting": "before us"})
    ready = plan.fn(taking_over(target), release(config_map(greeting="hello")))

    def again() -> list[Started]:
        first = record_start(ready, lock)
        return [first, record_start(ready.model_copy(update={"unrecorded": ()}), lock)]

    first, second = run(again).result
    assert first == second
    assert [item["data"] for item in second.base.objects] == [{"greeting": "before us"}]
    assert sorted(api.objects["secrets"]) == ["prefect-cd.shop.0", "prefect-cd.shop.1"]


def test_i4_a_record_says_how_far_its_rollout_came(target: Target, api: FakeApi, lock: HeldLock) -> None:
    record = started(target, lock).record
    assert lock.marked == 1
    for advance, state in ((record_applying, State.APPLYING), (record_verifying, State.VERIFYING)):
        api.requests.clear()
        record = advance(target, record, lock)
        assert record.state == state
        assert read_state.fn(target).interrupted == record
        assert api.writes == ["PATCH secrets/prefect-cd.shop.1"]
    assert lock.marked == 1
    record_outcome.fn(target, record, State.KNOWN_GOOD, lock)
    assert lock.marked is None


def test_i4_no_stage_gives_a_settled_record_another_outcome(target: Target, lock: HeldLock) -> None:
    good = released(target, lock, "hello")
    with pytest.raises(Errored, match="record 1 is known-good, and cannot become rolled-back"):
        record_outcome.fn(target, good, State.ROLLED_BACK, lock)
    assert read_state.fn(target).known_good == good


def test_i4_a_rollout_whose_record_was_deleted_by_hand_is_interrupted_and_its_number_stays_taken(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    good = released(target, lock, "hello")
    candidate = release(config_map(greeting="good day"), config_map("more", a="b"))
    record_applying(target, record_start.fn(plan.fn(target, candidate), lock).record, lock)
    assert lock.added == ["configmap/more"]
    mark = {"prefect-cd.dev/open": "2", "prefect-cd.dev/added": '[["v1", "ConfigMap", "shop", "more"]]'}
    api.put("leases", "prefect-cd.shop", metadata={"annotations": mark}, spec={})
    api.remove("secrets", "prefect-cd.shop.2")
    state = read_state.fn(target)
    assert (state.known_good, state.lost) == (good, state.interrupted)
    assert state.lost
    assert (state.lost.number, state.lost.release_id) == (2, "lost")
    assert Ref("v1", "ConfigMap", "shop", "more") in state.known
    assert started(target, lock, "good evening").record.number == 3
    again = read_state.fn(target)
    assert again.newest
    assert (again.newest.number, again.lost) == (3, None)
    assert sorted(api.objects["secrets"]) == [f"prefect-cd.shop.{number}" for number in range(4)]


def test_a_record_says_what_its_release_prunes(target: Target, api: FakeApi, lock: HeldLock) -> None:
    first = release(config_map(greeting="hello"), config_map("more", a="b"))
    ready = plan.fn(target, first)
    succeed(target, record_start.fn(ready, lock).record, lock)
    for item in ready.objects:
        api.put("configmaps", item["metadata"]["name"], metadata=item["metadata"], data=item["data"])
    assert [str(ref) for ref in started(target, lock).record.pruned] == ["configmap/more"]


def test_i6_an_object_of_somebody_else_that_a_later_release_takes_over_goes_back_to_them(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    target = taking_over(target)
    good = released(target, lock, "hello")
    api.put("configmaps", "theirs", metadata={"labels": {"team": "other"}}, data={"a": "before us"})
    taken = plan.fn(target, release(config_map(greeting="hello"), config_map("theirs", a="ours")))
    begun = record_start.fn(taken, lock)
    (original,) = begun.record.replaced
    assert (original["data"], original["metadata"]["labels"]) == ({"a": "before us"}, {"team": "other"})
    (ours,) = [item for item in taken.objects if item["metadata"]["name"] == "theirs"]
    api.put("configmaps", "theirs", metadata=ours["metadata"], data=ours["data"])

    base = begun.base.model_copy(update={"objects": objects_to_restore(begun.base, [begun.record])})
    back = plan.fn(target, base)
    assert begun.base == good
    assert {change.name: change.action for change in back.changes.changes}["theirs"] == Action.CHANGED
    assert original in back.objects

    succeed(target, begun.record, lock)
    chosen = find_record.fn(target, "1")
    assert chosen.objects == (*good.objects, original)
    again = record_start.fn(plan.fn(target, chosen), lock).record
    assert (again.objects, again.replaced) == (good.objects, ())


def test_i6_what_a_failed_release_took_over_is_remembered_until_it_is_given_back(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    target = taking_over(target)
    released(target, lock, "hello")
    api.put("configmaps", "theirs", data={"a": "before us"})
    candidate = release(config_map(greeting="hello"), config_map("theirs", a="ours"))
    left = record_start.fn(plan.fn(target, candidate), lock).record
    record_outcome.fn(target, left, State.FAILED, lock)
    assert started(target, lock, "good day").record.replaced == left.replaced
    assert len(left.replaced) == 1


def test_i4_an_outcome_does_not_depend_on_old_records_that_cannot_be_deleted(
    target: Target,
    api: FakeApi,
    lock: HeldLock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def delete(*_: object, **__: object) -> None:
        raise Forbidden("we may not delete secrets")

    monkeypatch.setattr(Cluster, "delete", delete)
    for greeting in "abcdefghijk":
        newest = released(target, lock, greeting)
    assert read_state.fn(target).known_good == newest
    assert "old records of staging are kept: we may not delete secrets" in caplog.text
    assert len(api.objects["secrets"]) == 12


def test_an_outcome_is_written_with_its_gates_and_becomes_a_page(
    target: Target,
    api: FakeApi,
    lock: HeldLock,
    run: Callable[[Callable[[], Any]], Run],
) -> None:
    first = started(target, lock).record
    proof = [evidence("smoke"), evidence("E2E")]
    verified(target, first, lock)
    played = run(lambda: record_outcome(target, first, State.KNOWN_GOOD, lock, evidence=proof))
    known_good = read_state.fn(target).known_good
    assert known_good == played.result
    assert [(gate.name, gate.outcome) for gate in known_good.gates] == [("smoke", "passed"), ("E2E", "passed")]
    assert known_good.settled_at is not None
    assert played.descriptions == {"shop-staging-outcome": "staging: aaaaaaa Sell more: known-good"}
    assert [task.name for task in played.tasks(1)] == ["record known-good in staging"]
    assert "secrets/prefect-cd.shop.1" in api.writes[-1]


def test_a_namespace_that_does_not_exist_has_no_records(target: Target, api: FakeApi) -> None:
    api.remove("namespaces", "shop")
    assert read_state.fn(target) == EnvironmentState()


def test_the_record_to_roll_back_to_is_the_known_good_before_what_runs_or_the_named_one(
    target: Target,
    lock: Any,  # noqa: ANN401
) -> None:
    records = [released(target, lock, greeting) for greeting in ("one", "two", "three")]
    assert find_record.fn(target, "").number == 2
    assert find_record.fn(target, "1") == records[0]
    assert find_record.fn(target, records[0].release_id) == records[0]
    with pytest.raises(Invalid, match="no known-good record of release 'nowhere'") as caught:
        find_record.fn(target, "nowhere")
    assert "(number 3)" in caught.value.hint


def test_after_a_rollback_the_releases_in_between_are_chosen_by_name_only(
    target: Target,
    api: FakeApi,
    lock: Any,  # noqa: ANN401
) -> None:
    one, two, three = (released(target, lock, greeting) for greeting in ("one", "two", "three"))
    back = record_start.fn(plan.fn(target, two), lock).record
    assert find_record.fn(target, "") == three  # it may run still: the rollback has no outcome yet
    verified(target, back, lock)
    api.requests.clear()
    record_outcome.fn(target, back, State.KNOWN_GOOD, lock)
    assert api.writes == ["PATCH secrets/prefect-cd.shop.4"]
    assert find_record.fn(target, "") == one
    assert find_record.fn(target, three.release_id) == three


def test_i8_what_a_run_released_is_found_by_the_run_until_a_rollback_withdraws_it(
    target: Target,
    lock: Any,  # noqa: ANN401
    run: Callable[[Callable[[], Any]], Run],
) -> None:
    one, two = release(config_map(greeting="one")), release(config_map(greeting="two"))

    def work() -> list[Record | None]:
        first, second = released(target, lock, "one"), released(target, lock, "two")
        seen = [own_record(target, one), own_record(target, two)]
        back = record_start.fn(plan.fn(target, first), lock).record
        succeed(target, back, lock)
        return [first, second, *seen, own_record(target, two)]

    first, second, own_first, own_second, own_afterwards = run(work).result
    assert (own_first, own_second) == (first, second)
    assert own_afterwards.state is State.WITHDRAWN
    assert run(lambda: own_record(target, one)).result is None  # another run
    assert own_record(target, one) is None  # no run


def test_the_results_of_gates_are_read_from_a_record(target: Target, lock: Any) -> None:  # noqa: ANN401
    first = started(target, lock).record
    proof = [evidence("smoke"), evidence("load", Outcome.ERRORED)]
    verified(target, first, lock)
    outcome = record_outcome.fn(target, first, State.KNOWN_GOOD, lock, evidence=proof)
    read = recorded_evidence(outcome)
    assert [(gate.gate, gate.outcome, gate.summary) for gate in read] == [
        ("smoke", Outcome.PASSED, "passed in 1.0 s"),
        ("load", Outcome.ERRORED, "errored in 1.0 s"),
    ]
    assert recorded_evidence(record(1)) == []
