"""How long a rollout is watched: until it is late, or has stayed up."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Phase, Verdict
from prefect_cd.rollout.diagnosis import Category, Cause
from prefect_cd.rollout.watch.soak import WatchState

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SETTINGS = RolloutSettings(timeout=timedelta(seconds=100), settle=timedelta(seconds=30))
UP = Verdict(Phase.COMPLETE, "up", well=True)
GROWING = Verdict(Phase.COMPLETE, "one pod more is coming up")
COMING = Verdict(Phase.PROGRESSING, "coming up")
CRASHED = Verdict(Phase.COMPLETE, "it crashed", causes=(Cause(Category.CRASH, "it crashed", "", "", "pod/x"),))
JOB = Verdict(Phase.COMPLETE, "done", well=True, final=True)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def course(*looks: tuple[float, Verdict], begun: WatchState | None = None) -> WatchState:
    """How it stands after looks at these seconds."""
    now = begun or WatchState(START, looked=START)
    for seconds, verdict in looks:
        now = now.judged([verdict], at(seconds))
    return now


def left(stands: WatchState, seconds: float) -> float | None:
    told = stands.settles_in(SETTINGS, at(seconds))
    return None if told is None else told.total_seconds()


def test_a_complete_rollout_is_watched_on_for_the_settle_time() -> None:
    stands = course((5, COMING), (10, UP), (20, UP))
    assert (left(stands, 20), left(stands, 40), left(stands, 50)) == (20, 0, 0)
    assert left(course((5, COMING)), 50) is None


def test_what_is_complete_at_the_first_look_has_stood_a_part_of_the_settle_time() -> None:
    before = replace(UP, unchanged_since=at(-20))
    assert left(course((0, before)), 0) == 10
    assert left(course((0, before), (5, before)), 5) == 5
    assert left(course((0, replace(UP, unchanged_since=at(-200)))), 0) == 0
    assert left(course((0, replace(UP, unchanged_since=at(90)))), 0) == 30  # another machine's clock
    assert left(course((0, COMING), (5, before)), 5) == 30


def test_a_crash_starts_the_settle_time_over() -> None:
    stands = course((10, UP), (30, CRASHED))
    assert left(stands, 60) is None
    assert left(course((60, UP), begun=stands), 60) == 30


def test_a_crash_after_the_end_of_the_timeout_is_given_a_timeout_of_its_own() -> None:
    stands = course((10, UP), (500, CRASHED))
    assert not stands.late(SETTINGS, at(599))
    assert stands.late(SETTINGS, at(601))


def test_more_pods_delay_the_end_and_start_nothing_over() -> None:
    stands = course((10, UP), (30, GROWING))
    assert left(stands, 60) is None
    assert left(course((60, UP), begun=stands), 60) == 0


def test_nothing_comes_after_a_job() -> None:
    assert left(course((10, JOB)), 10) == 0
    assert left(course(), 10) is None
    assert WatchState(START, looked=START).judged([], at(1)).settles_in(SETTINGS, at(1)) == timedelta()
    assert WatchState(START, looked=START).judged([JOB, UP], at(1)).settles_in(SETTINGS, at(1)) == SETTINGS.settle


def test_what_is_not_complete_in_time_is_late() -> None:
    assert not course((99, COMING)).late(SETTINGS, at(100))
    assert course((99, COMING)).late(SETTINGS, at(101))


def test_what_is_complete_is_never_late_and_what_scales_then_has_time() -> None:
    assert not course((99, UP)).late(SETTINGS, at(1000))
    assert not course((99, UP), (110, GROWING)).late(SETTINGS, at(229))
    assert course((99, UP), (110, GROWING)).late(SETTINGS, at(230))


def test_time_in_which_the_server_was_lost_is_counted_once_and_not_against_the_rollout() -> None:
    stands = WatchState(START, looked=at(10))
    stands = stands.seen(at(20), lost_since=at(5)).seen(at(30), lost_since=at(5))
    assert stands.blind == timedelta(seconds=25)
    assert stands.seen(at(31)).blind == timedelta(seconds=25)
    assert not stands.late(SETTINGS, at(125))
    assert stands.late(SETTINGS, at(126))


def test_what_was_lost_before_the_watch_began_is_not_its_time() -> None:
    assert WatchState(START, looked=START).seen(at(1), lost_since=at(-50)).blind == timedelta(seconds=1)


def test_a_pause_of_our_own_is_not_counted_either() -> None:
    assert WatchState(START, looked=START).seen(at(2)).blind == timedelta()
    assert WatchState(START, looked=START).seen(at(70)).blind == timedelta(seconds=70)
