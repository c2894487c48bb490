"""How long a rollout is watched: until it is late, or has stayed up."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Phase, Verdict
from prefect_cd.rollout.diagnosis import Category, Cause
from prefect_cd.rollout.watch.soak import WatchState

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SETTINGS = RolloutSettings(timeout=timedelta(seconds=100), settle=timedelta(seconds=30))
UP = Verdict(Phase.COMPLETE, "up", healthy=True)
SCALING_UP = Verdict(Phase.COMPLETE, "one pod more is coming up")
STARTING = Verdict(Phase.PROGRESSING, "coming up")
CRASHED = Verdict(Phase.COMPLETE, "it crashed", causes=(Cause(Category.CRASH, "it crashed", "", "", "pod/x"),))
JOB = Verdict(Phase.COMPLETE, "done", healthy=True, final=True)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def state_after(*verdicts: tuple[float, Verdict], before: WatchState | None = None) -> WatchState:
    """The state after verdicts at these seconds."""
    state = before or WatchState(START, updated_at=START)
    for seconds, verdict in verdicts:
        state = state.after_verdicts([verdict], at(seconds))
    return state


def remaining(state: WatchState, seconds: float) -> float | None:
    time = state.remaining(SETTINGS, at(seconds))
    return None if time is None else time.total_seconds()


def test_a_complete_rollout_is_watched_on_for_the_settle_time() -> None:
    state = state_after((5, STARTING), (10, UP), (20, UP))
    assert (remaining(state, 20), remaining(state, 40), remaining(state, 50)) == (20, 0, 0)
    assert remaining(state_after((5, STARTING)), 50) is None


def test_what_is_complete_at_first_has_completed_a_part_of_the_settle_time() -> None:
    before = replace(UP, unchanged_since=at(-20))
    assert remaining(state_after((0, before)), 0) == 10
    assert remaining(state_after((0, before), (5, before)), 5) == 5
    assert remaining(state_after((0, replace(UP, unchanged_since=at(-200)))), 0) == 0
    assert remaining(state_after((0, replace(UP, unchanged_since=at(90)))), 0) == 30  # the clock of another machine
    assert remaining(state_after((0, STARTING), (5, before)), 5) == 30


def test_a_crash_restarts_the_settle_time() -> None:
    state = state_after((10, UP), (30, CRASHED))
    assert remaining(state, 60) is None
    assert remaining(state_after((60, UP), before=state), 60) == 30


def test_after_a_crash_the_timeout_starts_again() -> None:
    state = state_after((10, UP), (500, CRASHED))
    assert not state.is_late(SETTINGS, at(599))
    assert state.is_late(SETTINGS, at(601))


def test_more_pods_delay_the_end_but_do_not_restart_the_settle_time() -> None:
    state = state_after((10, UP), (30, SCALING_UP))
    assert remaining(state, 60) is None
    assert remaining(state_after((60, UP), before=state), 60) == 0


def test_a_finished_job_is_not_watched_on() -> None:
    assert remaining(state_after((10, JOB)), 10) == 0
    assert remaining(state_after(), 10) is None
    assert WatchState(START, updated_at=START).after_verdicts([], at(1)).remaining(SETTINGS, at(1)) == timedelta()
    assert (
        WatchState(START, updated_at=START).after_verdicts([JOB, UP], at(1)).remaining(SETTINGS, at(1))
        == SETTINGS.settle
    )


def test_what_is_not_complete_in_time_is_late() -> None:
    assert not state_after((99, STARTING)).is_late(SETTINGS, at(100))
    assert state_after((99, STARTING)).is_late(SETTINGS, at(101))


def test_a_complete_rollout_is_never_late_and_scaling_then_has_time() -> None:
    assert not state_after((99, UP)).is_late(SETTINGS, at(1000))
    assert not state_after((99, UP), (110, SCALING_UP)).is_late(SETTINGS, at(229))
    assert state_after((99, UP), (110, SCALING_UP)).is_late(SETTINGS, at(230))


def test_time_without_the_server_is_counted_once_and_not_against_the_rollout() -> None:
    state = WatchState(START, updated_at=at(10))
    state = state.after_observation(at(20), lost_since=at(5)).after_observation(at(30), lost_since=at(5))
    assert state.unobserved == timedelta(seconds=25)
    assert state.after_observation(at(31)).unobserved == timedelta(seconds=25)
    assert not state.is_late(SETTINGS, at(125))
    assert state.is_late(SETTINGS, at(126))


def test_time_before_the_watch_began_is_not_counted() -> None:
    assert WatchState(START, updated_at=START).after_observation(at(1), lost_since=at(-50)).unobserved == timedelta(
        seconds=1
    )


def test_a_pause_of_this_process_does_not_count_against_the_rollout() -> None:
    assert WatchState(START, updated_at=START).after_observation(at(2)).unobserved == timedelta()
    assert WatchState(START, updated_at=START).after_observation(at(70)).unobserved == timedelta(seconds=70)
