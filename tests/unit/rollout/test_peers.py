"""What the other workloads of a release excuse, and for how long."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from prefect_cd.rollout.assess import Patience, Phase, Verdict, find_peers
from prefect_cd.rollout.assess.model import Peers
from prefect_cd.rollout.assess.peers import excused
from prefect_cd.rollout.diagnosis import Category, Cause

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
PATIENCE = Patience()


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def crash(times: int, seen: float = 0, category: Category = Category.CRASH) -> Cause:
    return Cause(
        category, "it crashed", "exit code 1", "read its log", "pod/x", times=times, counts=True, seen=at(seen)
    )


def coming(*causes: Cause) -> Verdict:
    return Verdict(Phase.PROGRESSING, "coming up", causes=causes)


def up(seconds: float) -> Verdict:
    return Verdict(Phase.COMPLETE, "up", unchanged_since=at(seconds), well=True)


def borne(cause: Cause, *others: Verdict) -> bool:
    mine = coming(cause)
    company = find_peers(dict(enumerate([mine, *others])), PATIENCE)[0]
    return bool(excused(cause, company, PATIENCE).left_to)


def test_alone_or_beside_what_has_long_been_up_nothing_is_excused() -> None:
    assert not borne(crash(3, seen=30))
    assert not borne(crash(3, seen=30), up(-600), up(29))


def test_a_crash_is_excused_while_another_comes_up_and_until_a_run_that_begins_afterwards_ends() -> None:
    assert borne(crash(3, seen=10), coming())
    assert borne(crash(3, seen=10), up(25))  # its last run began at 10 s
    assert not borne(crash(4, seen=26), up(25))


def test_nothing_is_excused_for_ever() -> None:
    assert borne(crash(4), coming())
    assert not borne(crash(5), coming())


def test_only_what_may_need_others_is_excused() -> None:
    assert borne(crash(3, category=Category.INIT_CONTAINER), coming())
    assert not borne(crash(3, category=Category.OUT_OF_MEMORY), coming())
    job = replace(crash(3), left_to="backoffLimit 9 decides")
    assert excused(job, Peers(coming=True), PATIENCE) == job


def test_two_that_crash_do_not_excuse_each_other() -> None:
    assert not borne(crash(3), coming(crash(3)))
    assert borne(crash(3), coming(crash(1)))  # a database may need a second start


def test_one_that_crashes_for_want_of_a_third_is_still_coming_up() -> None:
    broker, database = coming(crash(3, seen=14)), up(25)
    assert borne(crash(4, seen=34), broker, database)
    assert not borne(crash(4, seen=34), coming(crash(4, seen=26)), database)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.COMPLETE])
def test_what_does_not_come_up_any_more_is_not_coming(phase: Phase) -> None:
    assert not borne(crash(3), Verdict(phase, "so"))


def test_it_is_the_others_that_count() -> None:
    one, two, three = up(10), up(20), coming()
    found = find_peers({1: one, 2: two, 3: three}, PATIENCE)
    assert found == {
        1: Peers(coming=True, up_at=at(20)),
        2: Peers(coming=True, up_at=at(10)),
        3: Peers(coming=False, up_at=at(20)),
    }
    assert find_peers({1: one}, PATIENCE) == {1: Peers()}
    assert find_peers({}, PATIENCE) == {}
