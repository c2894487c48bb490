"""Who may acquire a Lease, as a pure decision."""

import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.environment import lease as lease_module
from prefect_cd.environment.lease import DURATION, TAKEOVER_WAIT, Lock, ObservedLease, may_acquire
from prefect_cd.environment.ownership import Ownership
from prefect_cd.kube.client import WRITE_SECONDS
from prefect_cd.pipeline.models import ClusterAccess

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
    assert item["spec"]["leaseTransitions"] == 1
