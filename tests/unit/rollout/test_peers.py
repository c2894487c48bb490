"""Which crashes are deferred while other workloads of the release start, and for how long."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from prefect_cd.rollout.assess import Patience, Phase, Verdict, find_peers
from prefect_cd.rollout.assess.model import Peers
from prefect_cd.rollout.assess.peers import defer_early_crash
from prefect_cd.rollout.diagnosis import Category, Cause

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
PATIENCE = Patience()


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def crash(times: int, last_seen: float = 0, category: Category = Category.CRASH) -> Cause:
    return Cause(
        category,
        "it crashed",
        "exit code 1",
        "read its log",
        "pod/x",
        times=times,
        counted=True,
        last_seen=at(last_seen),
    )


def starting(*causes: Cause) -> Verdict:
    return Verdict(Phase.PROGRESSING, "starting", causes=causes)


def ready(seconds: float) -> Verdict:
    return Verdict(Phase.COMPLETE, "up", unchanged_since=at(seconds), healthy=True)


def is_deferred(cause: Cause, *others: Verdict) -> bool:
    workloads = [starting(cause), *others]
    peers = find_peers(dict(enumerate(workloads)), PATIENCE)[0]
    return bool(defer_early_crash(cause, peers, PATIENCE).deferred)


def test_a_crash_is_not_deferred_without_peers_or_after_they_were_ready() -> None:
    assert not is_deferred(crash(3, last_seen=30))
    assert not is_deferred(crash(3, last_seen=30), ready(-600), ready(29))


def test_a_crash_is_deferred_while_a_peer_starts_and_until_a_later_run_ends() -> None:
    assert is_deferred(crash(3, last_seen=10), starting())
    assert is_deferred(crash(3, last_seen=10), ready(25))  # its last run began at 10 s
    assert not is_deferred(crash(4, last_seen=26), ready(25))


def test_crashes_are_deferred_up_to_a_limit() -> None:
    assert is_deferred(crash(4), starting())
    assert not is_deferred(crash(5), starting())


def test_only_categories_that_may_need_peers_are_deferred() -> None:
    assert is_deferred(crash(3, category=Category.INIT_CONTAINER), starting())
    assert not is_deferred(crash(3, category=Category.OUT_OF_MEMORY), starting())
    job = replace(crash(3), deferred="backoffLimit 9 decides")
    assert defer_early_crash(job, Peers(starting=True), PATIENCE) == job


def test_two_crashing_workloads_do_not_defer_each_other() -> None:
    assert not is_deferred(crash(3), starting(crash(3)))
    assert is_deferred(crash(3), starting(crash(1)))  # a database may need a second start


def test_a_workload_that_crashes_because_of_a_third_is_still_starting() -> None:
    broker, database = starting(crash(3, last_seen=14)), ready(25)
    assert is_deferred(crash(4, last_seen=34), broker, database)
    assert not is_deferred(crash(4, last_seen=34), starting(crash(4, last_seen=26)), database)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.COMPLETE])
def test_a_failed_or_complete_workload_is_not_starting(phase: Phase) -> None:
    assert not is_deferred(crash(3), Verdict(phase, ""))


def test_a_workload_is_not_its_own_peer() -> None:
    one, two, three = ready(10), ready(20), starting()
    peers = find_peers({1: one, 2: two, 3: three}, PATIENCE)
    assert peers == {
        1: Peers(starting=True, ready_at=at(20)),
        2: Peers(starting=True, ready_at=at(10)),
        3: Peers(starting=False, ready_at=at(20)),
    }
    assert find_peers({1: one}, PATIENCE) == {1: Peers()}
    assert find_peers({}, PATIENCE) == {}
