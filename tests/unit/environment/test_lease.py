"""Who may take a lease, as a pure decision."""

import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.environment import lease as lease_module
from prefect_cd.environment.lease import DURATION, TAKEOVER, Lock, Seen, Step, decide
from prefect_cd.environment.ownership import Ownership
from prefect_cd.kube.client import WRITE_SECONDS
from prefect_cd.pipeline.models import ClusterAccess

SECONDS = timedelta(seconds=1)
SHOP = Ownership("shop", "staging", "shop-staging")


def seen(holder: str, unchanged: int, duration: int = 20) -> Seen:
    return Seen(holder, unchanged * SECONDS, duration * SECONDS)


@pytest.mark.parametrize(
    ("lease", "step"),
    [
        (None, Step.TAKE),
        (seen("", 0), Step.TAKE),
        (seen("me", 0), Step.TAKE),
        (seen("you", 0), Step.WAIT),
        (seen("you", 19), Step.WAIT),
        (seen("you", 20), Step.TAKE),
        (seen("you", 21), Step.TAKE),
        (seen("you", 21, duration=60), Step.WAIT),
        (seen("me too", 0), Step.WAIT),
    ],
)
def test_a_lease_is_taken_when_it_is_nobodys_ours_or_abandoned(lease: Seen | None, step: Step) -> None:
    assert decide("me", lease) == step


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 100))
def test_i3_a_lease_of_another_is_never_taken_before_its_duration_is_over(unchanged: int, duration: int) -> None:
    assert (decide("me", seen("you", unchanged, duration)) == Step.TAKE) == (unchanged >= duration)


def test_i3_two_locks_of_one_name_are_two_holders() -> None:
    one, other = (Lock(ClusterAccess(), SHOP, "release/blue-fox/1", SECONDS) for _ in range(2))
    assert one.holder != other.holder
    assert one.holder.startswith("release/blue-fox/1/")


def test_i3_no_write_outlives_the_lease_it_was_begun_under() -> None:
    assert DURATION.total_seconds() > WRITE_SECONDS
    assert TAKEOVER > DURATION


def test_i3_the_clock_of_a_lease_goes_on_while_the_machine_sleeps() -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no such clock")
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= lease_module._now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_lease_without_holder_or_duration_is_read_all_the_same() -> None:
    read = lease_module._seen({"metadata": {"resourceVersion": "7"}, "spec": {"holderIdentity": None}}, SECONDS)
    assert read == Seen("", SECONDS, DURATION)
    assert lease_module._seen(None, SECONDS) is None


def test_the_lease_is_marked_so_that_it_is_never_pruned() -> None:
    item = Lock(ClusterAccess(), SHOP, "me", SECONDS)._lease(None)
    assert item["metadata"]["labels"]["prefect-cd.dev/record"] == "lock"
    assert item["spec"]["leaseTransitions"] == 1
