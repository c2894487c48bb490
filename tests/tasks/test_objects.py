"""Writing a version into an environment, and removing what it no longer contains."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.errors import ClusterUnreachable, LockLost, OwnershipConflict
from prefect_cd.kube.objects import Object
from prefect_cd.tasks.changes import Plan, plan
from prefect_cd.tasks.objects import apply, prune
from prefect_cd.tasks.record import record_start
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import HeldLock, config_map, deployment, record, release
from tests.unit.fake_api import FakeApi


def planned(target: Target, *objects: Object) -> Plan:
    return plan.fn(target, release(*objects))


def bring(target: Target, lock: HeldLock, *objects: Object) -> None:
    """Apply a release whose record the next plan reads."""
    first = planned(target, *objects)
    record_start.fn(first, lock)
    apply.fn(first, lock)


def test_what_is_new_is_written_and_guarded_settings_before_workloads(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    before = datetime.now(timezone.utc)
    candidate = release(deployment(), config_map(greeting="hello"))
    applied = apply.fn(plan.fn(target, candidate), lock)
    assert api.writes == ["PATCH configmaps/shop", "PATCH deployments/shop"]
    assert lock.guarded == 2
    assert (applied.release_id, applied.commit) == (candidate.id, candidate.commit)
    assert before <= applied.since <= datetime.now(timezone.utc)


def test_unchanged_objects_are_not_written(target: Target, api: FakeApi, lock: HeldLock) -> None:
    apply.fn(planned(target, config_map("one", a="1"), config_map("two", a="1")), lock)
    api.requests.clear()
    applied = apply.fn(planned(target, config_map("one", a="1"), config_map("two", a="2")), lock)
    assert api.writes == ["PATCH configmaps/two"]
    assert str(applied.changes) == "1 changed, 1 unchanged"


def test_i3_a_writer_that_lost_its_lock_writes_nothing(target: Target, api: FakeApi, lock: HeldLock) -> None:
    ready = planned(target, config_map(greeting="hello"))
    lock.error = LockLost("no longer the writer of staging")
    with pytest.raises(LockLost):
        apply.fn(ready, lock)
    assert api.writes == []


def test_a_field_that_another_manager_took_since_the_plan_is_not_taken_back(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    ready = planned(target, config_map(greeting="hello"))
    api.other_managers["shop"] = "kubectl-edit"
    with pytest.raises(OwnershipConflict, match="would change fields of kubectl-edit") as caught:
        apply.fn(ready, lock)
    assert "take_over" in caught.value.hint


def test_a_rollback_takes_fields_back_from_other_managers(target: Target, api: FakeApi, lock: HeldLock) -> None:
    apply.fn(planned(target, config_map(greeting="hello")), lock)
    api.other_managers["shop"] = "kubectl-edit"
    apply.fn(plan.fn(target, record(1)), lock)
    assert api.objects["configmaps"]["shop"]["data"] == {"greeting": "hello from 1"}


def test_a_second_attempt_counts_the_rollout_from_the_first_one(
    target: Target, api: FakeApi, lock: HeldLock, run: Callable[[Callable[[], Any]], Run]
) -> None:
    attempts: list[datetime] = []

    async def guard() -> None:
        attempts.append(datetime.now(timezone.utc))
        if len(attempts) == 1:
            raise ClusterUnreachable("the lock could not be renewed")

    lock.guard = guard
    retried = apply.with_options(retry_delay_seconds=0, retry_jitter_factor=0)
    ready = planned(target, config_map(greeting="hello"))
    applied = run(lambda: retried(ready, lock)).result
    assert len(attempts) == 2
    assert applied.since <= attempts[0]
    assert api.writes == ["PATCH configmaps/shop"]


def test_what_the_release_no_longer_contains_is_removed_after_the_rollout(
    target: Target, api: FakeApi, lock: HeldLock
) -> None:
    bring(target, lock, config_map("kept"), config_map("dropped"))
    api.requests.clear()
    applied = apply.fn(planned(target, config_map("kept")), lock)
    assert api.writes == []
    lock.guarded = 0
    prune.fn(applied, lock)
    assert api.writes == ["DELETE configmaps/dropped"]
    assert lock.guarded == 1
    assert list(api.objects["configmaps"]) == ["kept"]


def test_an_object_that_is_no_longer_ours_by_now_is_not_removed(target: Target, api: FakeApi, lock: HeldLock) -> None:
    bring(target, lock, config_map("kept"), config_map("dropped"))
    applied = apply.fn(planned(target, config_map("kept")), lock)
    api.put("configmaps", "dropped", metadata={"labels": {"app.kubernetes.io/managed-by": "Helm"}})
    prune.fn(applied, lock)
    assert "dropped" in api.objects["configmaps"]


def test_i3_nothing_is_removed_without_the_lock(target: Target, api: FakeApi, lock: HeldLock) -> None:
    bring(target, lock, config_map("kept"), config_map("dropped"))
    applied = apply.fn(planned(target, config_map("kept")), lock)
    lock.error = LockLost("no longer the writer of staging")
    with pytest.raises(LockLost):
        prune.fn(applied, lock)
    assert "dropped" in api.objects["configmaps"]
