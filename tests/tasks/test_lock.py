"""Becoming an environment's only writer, by its Lease on the API server."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from prefect.runtime import flow_run

from prefect_cd.errors import EnvironmentBusy, LockLost
from prefect_cd.kube.objects import Object
from prefect_cd.tasks.lock import hold_lock, run_is_over
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.unit.fake_api import FakeApi

LEASE = "prefect-cd.shop"


def lease(api: FakeApi) -> Object:
    return api.objects["leases"][LEASE]


def held_by_another(api: FakeApi) -> None:
    now = datetime.now(timezone.utc).isoformat()
    api.put("leases", LEASE, spec={"holderIdentity": "another run", "leaseDurationSeconds": 20, "renewTime": now})


def test_the_lease_names_its_holder_while_the_block_runs_and_is_free_afterwards(target: Target, api: FakeApi) -> None:
    with hold_lock(target) as lock:
        assert lease(api)["spec"]["holderIdentity"] == lock.holder
        assert lock.holder.startswith("prefect-cd/outside-of-a-run/")
        asyncio.run(lock.guard())
    assert lease(api)["spec"]["holderIdentity"] == ""


def test_i3_after_the_block_nothing_is_written_any_more(target: Target) -> None:
    with hold_lock(target) as lock:
        pass
    with pytest.raises(LockLost, match="no longer the writer of staging"):
        asyncio.run(lock.guard())


def test_i3_another_writer_is_named_and_its_lease_stays_as_it_is(target: Target, api: FakeApi) -> None:
    held_by_another(api)
    with (
        pytest.raises(EnvironmentBusy, match="staging is being changed by another run"),
        hold_lock(target, wait=timedelta()),
    ):
        pytest.fail("there are two writers")
    assert api.writes == []


def test_i3_two_processes_of_one_run_are_two_writers(target: Target) -> None:
    with hold_lock(target), pytest.raises(EnvironmentBusy), hold_lock(target, wait=timedelta()):
        pytest.fail("there are two writers")


def test_a_missing_namespace_is_created_first_since_the_lease_lives_there(target: Target, api: FakeApi) -> None:
    api.remove("namespaces", "shop")
    with hold_lock(target):
        pass
    assert api.writes[:2] == ["PATCH namespaces/shop", f"POST leases/{LEASE}"]


def test_a_failure_in_the_block_frees_the_lease(target: Target, api: FakeApi) -> None:
    with pytest.raises(ZeroDivisionError), hold_lock(target):
        raise ZeroDivisionError
    assert lease(api)["spec"]["holderIdentity"] == ""


def test_the_holder_is_the_run_so_that_people_find_it(target: Target, run: Callable[[Callable[[], Any]], Run]) -> None:
    def hold() -> str:
        with hold_lock(target) as lock:
            return lock.holder

    played = run(hold)
    assert played.result.startswith(f"tests/{played.id}/")


def test_the_lock_of_a_run_that_is_over_is_taken_over_before_its_lease_expires(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    over = run(lambda: None)
    spec = {"holderIdentity": f"release/{over.id}/0123abcd", "leaseDurationSeconds": 600}
    api.put("leases", LEASE, spec=spec)
    with hold_lock(target, wait=timedelta(seconds=30)) as lock:
        assert lease(api)["spec"]["holderIdentity"] == lock.holder


def test_only_a_run_that_has_ended_is_over(run: Callable[[Callable[[], Any]], Run]) -> None:
    from_inside = run(lambda: run_is_over(f"release/{flow_run.id}/0123abcd"))
    assert from_inside.result is False
    assert run_is_over(f"release/{from_inside.id}/0123abcd")
    for nobody in ("", "somebody", "prefect-cd/outside-of-a-run/0123abcd"):
        assert not run_is_over(nobody)
