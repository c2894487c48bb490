"""The record before the first write, what became of it, and what must be true before there is one."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.apply import ChangeSet
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.records import Decision, Record, State
from prefect_cd.errors import ContentChanged, Invalid, LockLost
from prefect_cd.gates.evidence import Outcome
from prefect_cd.pipeline.models import Approval, Environment
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.tasks.changes import Plan, plan
from prefect_cd.tasks.record import (
    find_record,
    read_state,
    record_outcome,
    record_start,
    recorded_evidence,
    withdraw,
)
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import HeldLock, config_map, evidence, record, release
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
        unowned=(),
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


def started(target: Target, lock: Any, greeting: str = "hello") -> Record:  # noqa: ANN401
    return record_start.fn(plan.fn(target, release(config_map(greeting=greeting))), lock)


def released(target: Target, lock: Any, greeting: str) -> Record:  # noqa: ANN401
    return record_outcome.fn(target, started(target, lock, greeting), State.KNOWN_GOOD, lock)


def test_i2_a_record_that_is_complete_enough_to_restore_the_version_is_written(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    ready = plan.fn(target, release(config_map(greeting="hello")))
    written = record_start.fn(ready, lock)
    assert api.writes == ["POST secrets/prefect-cd.shop.1"]
    assert lock.guarded == 1
    state = read_state.fn(target)
    assert state.newest == written
    assert state.interrupted == written
    assert (written.number, written.state, written.objects) == (1, State.STARTED, ready.objects)


def test_i3_without_the_lock_no_record_is_written(target: Target, api: FakeApi, lock: HeldLock) -> None:
    lock.error = LockLost("no longer the writer of staging")
    with pytest.raises(LockLost):
        started(target, lock)
    assert api.writes == []


def test_i4_an_interrupted_rollout_is_marked_as_failed_before_the_next_record(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    started(target, lock, "hello")
    api.requests.clear()
    second = started(target, lock, "good day")
    assert api.writes == ["PATCH secrets/prefect-cd.shop.1", "POST secrets/prefect-cd.shop.2"]
    assert second.number == 2
    assert api.objects["secrets"]["prefect-cd.shop.1"]["metadata"]["labels"]["prefect-cd.dev/state"] == "failed"


def test_i2_a_takeover_first_records_the_objects_to_roll_back_to(target: Target, api: FakeApi, lock: HeldLock) -> None:
    api.put("configmaps", "shop", data={"greeting": "before us"})
    taking_over = target.model_copy(update={"environment": target.environment.model_copy(update={"take_over": True})})
    ready = plan.fn(taking_over, release(config_map(greeting="hello")))
    assert record_start.fn(ready, lock).number == 2
    known_good = read_state.fn(target).known_good
    assert known_good is not None
    assert (known_good.number, known_good.release_id) == (1, "before-prefect-cd")
    assert [item["data"] for item in known_good.objects] == [{"greeting": "before us"}]


def test_an_outcome_is_written_with_its_gates_and_becomes_a_page(
    target: Target,
    api: FakeApi,
    lock: HeldLock,
    run: Callable[[Callable[[], Any]], Run],
) -> None:
    first = started(target, lock)
    proof = [evidence("smoke"), evidence("E2E")]
    played = run(lambda: record_outcome(target, first, State.KNOWN_GOOD, lock, evidence=proof))
    known_good = read_state.fn(target).known_good
    assert known_good == played.result
    assert [(gate.name, gate.outcome) for gate in known_good.gates] == [("smoke", "passed"), ("E2E", "passed")]
    assert known_good.settled_at is not None
    assert played.descriptions == {"shop-staging-outcome": f"staging: {first.release_id} is known-good"}
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
    with pytest.raises(Invalid, match="no known-good record of release 'nothing'") as caught:
        find_record.fn(target, "nothing")
    assert "(number 3)" in caught.value.hint


def test_after_a_rollback_the_releases_in_between_are_chosen_by_name_only(
    target: Target,
    api: FakeApi,
    lock: Any,  # noqa: ANN401
) -> None:
    one, two, three = (released(target, lock, greeting) for greeting in ("one", "two", "three"))
    withdraw.fn(target, one, three, lock)
    labels = {name: item["metadata"]["labels"] for name, item in api.objects["secrets"].items()}
    states = [labels[f"prefect-cd.shop.{n}"]["prefect-cd.dev/state"] for n in (1, 2, 3)]
    assert states == ["known-good", "withdrawn", "known-good"]
    assert find_record.fn(target, "").number == 1
    assert find_record.fn(target, two.release_id).number == 2


def test_the_results_of_gates_are_read_from_a_record(target: Target, lock: Any) -> None:  # noqa: ANN401
    first = started(target, lock)
    proof = [evidence("smoke"), evidence("load", Outcome.ERRORED)]
    outcome = record_outcome.fn(target, first, State.KNOWN_GOOD, lock, evidence=proof)
    read = recorded_evidence(outcome)
    assert [(gate.gate, gate.outcome, gate.summary) for gate in read] == [
        ("smoke", Outcome.PASSED, "passed in 1.0 s"),
        ("load", Outcome.ERRORED, "errored in 1.0 s"),
    ]
    assert recorded_evidence(record(1)) == []
