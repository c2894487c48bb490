"""Who may acquire a Lease, in which epoch, and who still has it."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.environment import lease as lease_module
from prefect_cd.environment.lease import (
    DURATION,
    TAKEOVER_WAIT,
    Lock,
    ObservedLease,
    added_objects,
    hold,
    may_acquire,
    next_epoch,
    open_record,
)
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import LockLost
from prefect_cd.kube.client import WRITE_SECONDS
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.labels import RECORD
from prefect_cd.pipeline.models import ClusterAccess
from tests.unit.fake_api import FakeApi

SECONDS = timedelta(seconds=1)
SHOP = Ownership("shop", "staging", "shop-staging")


def observed(holder: str, unchanged: int, duration: int = 20) -> ObservedLease:
    return ObservedLease(holder, unchanged * SECONDS, duration * SECONDS)


@pytest.mark.parametrize(
    ("lease", "allowed"),
    [
        (None, True),
        (observed("", 0), True),
        (observed("me", 0), True),
        (observed("you", 0), False),
        (observed("you", 19), False),
        (observed("you", 20), True),
        (observed("you", 21), True),
        (observed("you", 21, duration=60), False),
        (observed("me too", 0), False),
    ],
)
def test_a_lease_may_be_acquired_when_it_is_missing_released_our_own_or_abandoned(
    lease: ObservedLease | None,
    allowed: bool,  # noqa: FBT001  a column of the table
) -> None:
    assert may_acquire("me", lease) is allowed


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 100))
def test_i3_the_lease_of_another_holder_is_never_acquired_before_its_duration_is_over(
    unchanged: int, duration: int
) -> None:
    assert may_acquire("me", observed("you", unchanged, duration)) == (unchanged >= duration)


@pytest.mark.parametrize(
    ("unchanged", "duration", "allowed"), [(0, 20, False), (1, 20, False), (2, 20, True), (1, 1, True)]
)
def test_a_lease_of_a_process_that_has_ended_may_be_acquired_after_its_last_requests(
    unchanged: int,
    duration: int,
    allowed: bool,  # noqa: FBT001  a column of the table
) -> None:
    lease = replace(observed("you", unchanged, duration), ended=True)
    assert may_acquire("me", lease) is allowed


@pytest.mark.parametrize(
    ("unchanged", "duration", "allowed"), [(0, 20, False), (4, 20, False), (5, 20, True), (3, 3, True)]
)
def test_a_lease_of_a_holder_whose_run_is_over_may_be_acquired_when_it_has_missed_a_renewal(
    unchanged: int,
    duration: int,
    allowed: bool,  # noqa: FBT001  a column of the table
) -> None:
    lease = replace(observed("you", unchanged, duration), over=True)
    assert may_acquire("me", lease) is allowed


def test_i3_two_locks_of_one_name_are_two_holders() -> None:
    one, other = (Lock(ClusterAccess(), SHOP, "release/blue-fox/1", SECONDS) for _ in range(2))
    assert one.holder != other.holder
    assert one.holder.startswith("release/blue-fox/1/")


def test_i3_no_write_outlives_the_lease_under_which_it_started() -> None:
    assert DURATION.total_seconds() > WRITE_SECONDS
    assert TAKEOVER_WAIT > DURATION


def test_i3_the_clock_of_a_lease_goes_on_while_the_machine_sleeps() -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no such clock")
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= lease_module._now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_lease_without_a_holder_or_a_duration_is_read_as_released_with_our_duration() -> None:
    read = lease_module._observe({"metadata": {"resourceVersion": "7"}, "spec": {"holderIdentity": None}}, SECONDS)
    assert read == ObservedLease("", SECONDS, DURATION)
    assert lease_module._observe(None, SECONDS) is None


def test_the_lease_is_marked_so_that_it_is_never_pruned() -> None:
    item = Lock(ClusterAccess(), SHOP, "me", SECONDS)._lease(None)
    assert item["metadata"]["labels"]["prefect-cd.dev/record"] == "lock"


# --- epochs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "recorded", "epoch"),
    [
        (None, 0, 1),
        (None, 7, 8),
        ({}, 0, 1),
        ({"leaseTransitions": None}, 3, 4),
        ({"leaseTransitions": 4}, 0, 5),
        ({"leaseTransitions": 4}, 9, 10),
        ({"leaseTransitions": 9}, 4, 10),
    ],
)
def test_i3_an_epoch_is_higher_than_that_of_the_lease_and_of_every_record(
    spec: dict[str, int] | None, recorded: int, epoch: int
) -> None:
    assert next_epoch(None if spec is None else {"spec": spec}, recorded) == epoch


@settings(deadline=None)
@given(st.lists(st.sampled_from(["hold", "record", "delete the Lease"]), max_size=12))
def test_i3_no_two_writers_of_records_have_one_epoch(steps: list[str]) -> None:
    """As `Lock` and `RecordStore` do it: each holder takes an epoch, and some of them write it into a record."""
    lease: dict[str, int] | None = None
    holders, recorded, writers = 0, 0, dict[int, set[int]]()
    for step in steps:
        if step == "hold":
            holders += 1
            lease = {"leaseTransitions": next_epoch(lease and {"spec": lease}, recorded)}
        elif step == "record" and lease:
            assert lease["leaseTransitions"] >= recorded
            recorded = lease["leaseTransitions"]
            writers.setdefault(recorded, set()).add(holders)
        elif step == "delete the Lease":
            lease = None
    assert all(len(of_one_epoch) == 1 for of_one_epoch in writers.values())


def served(api: FakeApi) -> LoadedKubeconfig:
    return LoadedKubeconfig(api.kubeconfig)


def put_record(api: FakeApi, name: str, epoch: str) -> None:
    labels = {**SHOP.labels, RECORD: "release"}
    where = {"namespace": SHOP.namespace, "labels": labels, "annotations": {"prefect-cd.dev/epoch": epoch}}
    api.put("secrets", name, metadata=where)


def test_i3_a_lease_that_was_deleted_goes_on_after_the_epochs_of_the_records() -> None:
    api = FakeApi()
    api.put("namespaces", SHOP.namespace)
    with api.serving():
        epochs = []
        for number, recorded in enumerate(("", "7", "damaged")):
            put_record(api, f"prefect-cd.shop.{number}", recorded)
            with hold(served(api), SHOP, "me", wait=SECONDS) as lock:
                epochs.append(lock.epoch)
                lease = next(iter(api.objects["leases"].values()))
                assert lease["spec"]["leaseTransitions"] == lock.epoch
                asyncio.run(confirm(api, lock))
            key = next(iter(api.objects["leases"]))
            api.remove("leases", key)
        assert epochs == [1, 8, 8]


async def confirm(api: FakeApi, lock: Lock) -> None:
    async with lease_module.connect(served(api), patience=SECONDS) as cluster:
        await lock.confirm(cluster)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (None, "the lock was deleted"),
        ({"holderIdentity": "", "leaseTransitions": 3}, "the lock was released by another process"),
        ({"holderIdentity": "you", "leaseTransitions": 4}, "the lock is now held by you"),
        ({"holderIdentity": "me", "leaseTransitions": 4}, "the lock is in epoch 4, and ours was 3"),
        ({"holderIdentity": "me", "leaseTransitions": 3}, ""),
    ],
)
def test_i3_a_lock_is_confirmed_by_the_lease_with_our_name_and_our_epoch(
    spec: dict[str, object] | None, reason: str
) -> None:
    api = FakeApi()
    lock = Lock(ClusterAccess(), SHOP, "me", SECONDS)
    lock.epoch = 3
    if spec:
        mine = {"holderIdentity": lock.holder} if spec["holderIdentity"] == "me" else {}
        api.put("leases", "prefect-cd.shop", spec={**spec, **mine}, metadata={"namespace": SHOP.namespace})

    with api.serving():
        if not reason:
            asyncio.run(confirm(api, lock))
            return
        with pytest.raises(LockLost, match=f"no longer the writer of staging: {reason}"):
            asyncio.run(confirm(api, lock))


# --- the mark of an open record --------------------------------------------------------------------------------------


def lease_in(api: FakeApi) -> Object:
    return next(iter(api.objects["leases"].values()))


def put_settled(api: FakeApi, number: int, state: str) -> None:
    """A record of format 1 in this state."""
    shown = {"number": str(number), "state": state, "release-id": "a-1"}
    labels = {**SHOP.labels, RECORD: "release", **{f"prefect-cd.dev/{key}": value for key, value in shown.items()}}
    api.put("secrets", f"prefect-cd.shop.{number}", metadata={"namespace": SHOP.namespace, "labels": labels})


@pytest.mark.timeout(30)
def test_i4_the_lease_says_which_record_is_open_until_it_is_settled() -> None:
    api = FakeApi()
    api.put("namespaces", SHOP.namespace)
    with api.serving():
        with hold(served(api), SHOP, "me", wait=SECONDS) as lock:
            assert open_record(lease_in(api)) is None
            asyncio.run(lock.mark_open(4, [more := Ref("v1", "ConfigMap", "shop", "more")]))
            assert (open_record(lease_in(api)), added_objects(lease_in(api))) == (4, (more,))
            writes = len(api.writes)
            lock.mark_settled()
            assert len(api.writes) == writes
        assert (open_record(lease_in(api)), added_objects(lease_in(api))) == (None, ())
        assert len(api.writes) == writes + 1  # that which releases the lock


@pytest.mark.timeout(30)
def test_i4_a_mark_is_written_though_somebody_edits_the_lease() -> None:
    api = FakeApi()
    api.put("namespaces", SHOP.namespace)
    with api.serving(), hold(served(api), SHOP, "me", wait=SECONDS) as lock:
        lease = lease_in(api)
        metadata = {key: value for key, value in lease["metadata"].items() if key != "resourceVersion"}
        metadata["annotations"] = {**metadata["annotations"], "note": "beside"}
        api.put("leases", "prefect-cd.shop", metadata=metadata, spec=lease["spec"])
        asyncio.run(lock.mark_open(4))
        assert open_record(lease_in(api)) == 4
        assert lease_in(api)["metadata"]["annotations"]["note"] == "beside"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("state", "kept"),
    [("started", True), ("", True), ("rolled-back", False), ("known-good", False)],
    ids=["open", "deleted", "rolled back", "known-good"],
)
def test_i4_the_next_holder_keeps_the_mark_of_a_record_without_an_outcome(state: str, kept: bool) -> None:  # noqa: FBT001
    api = FakeApi()
    api.put("namespaces", SHOP.namespace)
    with api.serving():
        with hold(served(api), SHOP, "killed", wait=SECONDS) as lock:
            asyncio.run(lock.mark_open(4, [more := Ref("v1", "ConfigMap", "shop", "more")]))
        put_settled(api, 3, "known-good")
        if state:
            put_settled(api, 4, state)
        with hold(served(api), SHOP, "next", wait=SECONDS):
            assert open_record(lease_in(api)) == (4 if kept else None)
        assert open_record(lease_in(api)) == (4 if kept else None)
        assert added_objects(lease_in(api)) == ((more,) if kept else ())


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["v1"]]', "null"])
def test_objects_that_were_edited_on_the_lease_are_none(text: str) -> None:
    assert added_objects({"metadata": {"annotations": {"prefect-cd.dev/added": text}}}) == ()


@pytest.mark.timeout(30)
def test_i3_nothing_is_marked_without_the_lock() -> None:
    api = FakeApi()
    api.put("namespaces", SHOP.namespace)
    with api.serving():
        with hold(served(api), SHOP, "me", wait=SECONDS) as lock:
            pass
        with pytest.raises(LockLost):
            asyncio.run(lock.mark_open(4))
    assert open_record(lease_in(api)) is None
