"""When a watch may end: how long a rollout may take, and how long a complete one is watched on.

Pure. A complete rollout may still fail: pods crash under the first requests, or their liveness probe kills them 20 s
later. So it is watched until it has been complete without problems for the settle time. A problem (a crash, a probe
that fails for too long) restarts that time, and crashes keep counting; merely more or fewer pods (an autoscaler, an
eviction) only delay the end. Time without observations does not count against a rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Phase, Verdict

_LONGEST_INTERVAL = timedelta(seconds=5)
"""Between two observations; a longer one means that this process was suspended."""


@dataclass(frozen=True)
class WatchState:
    """The state of a watch.

    Args:
        started_at: when the timeout starts to count.
        updated_at: when the latest observation was made.
        unobserved: how much of the time since `started_at` passed without observations.
        unobserved_until: the end of the time that `unobserved` covers.
        stable_since: since when all workloads have been complete, without problems.
        complete: whether all workloads are complete now.
        final: whether that cannot change any more, as for Jobs.
        has_verdicts: whether there were verdicts before.
    """

    started_at: datetime
    updated_at: datetime
    unobserved: timedelta = timedelta()
    unobserved_until: datetime | None = None
    stable_since: datetime | None = None
    complete: bool = False
    final: bool = False
    has_verdicts: bool = False

    def after_observation(self, now: datetime, *, lost_since: datetime | None = None) -> "WatchState":
        """The state after an observation.

        Args:
            now: when it was made.
            lost_since: since when the observed objects are out of date; None when they are not.
        """
        if lost_since is None and now - self.updated_at > _LONGEST_INTERVAL:
            lost_since = self.updated_at
        if lost_since is None:
            return replace(self, updated_at=now)
        counted_until = max(lost_since, self.unobserved_until or self.started_at)
        unobserved = self.unobserved + max(now - counted_until, timedelta())
        return replace(self, updated_at=now, unobserved=unobserved, unobserved_until=now)

    def after_verdicts(self, verdicts: Sequence[Verdict], now: datetime) -> "WatchState":
        """The state after verdicts on all workloads.

        Workloads that are complete at the first verdicts have been so for as long as their pods are unchanged.
        """
        state = self if self.has_verdicts else self._before_first_verdicts(verdicts, now)
        complete = _are_complete(verdicts)
        has_problem = any(verdict.causes or verdict.phase is not Phase.COMPLETE for verdict in verdicts)
        if state.stable_since and has_problem:
            # it is rolling out again, and has the whole timeout for it
            return replace(
                state,
                started_at=now,
                unobserved=timedelta(),
                unobserved_until=now,
                stable_since=None,
                complete=False,
            )
        stable_since = state.stable_since or (now if complete else None)
        final = all(verdict.final for verdict in verdicts)
        return replace(state, stable_since=stable_since, complete=complete, final=final)

    def _before_first_verdicts(self, verdicts: Sequence[Verdict], now: datetime) -> "WatchState":
        # by the cluster's clock, which may be ahead of this one
        times = [min(verdict.unchanged_since, now) for verdict in verdicts if verdict.unchanged_since]
        stable_since = max(times) if times and _are_complete(verdicts) else None
        return replace(self, stable_since=stable_since, has_verdicts=True)

    def remaining(self, settings: RolloutSettings, now: datetime) -> timedelta | None:
        """How long a complete rollout is still watched; None for one that is not complete."""
        if not self.complete or not self.stable_since:
            return None
        if self.final:
            return timedelta()
        return max(settings.settle - (now - self.stable_since), timedelta())

    def is_late(self, settings: RolloutSettings, now: datetime) -> bool:
        """Whether the timeout is over.

        Once the workloads have been complete, it counts from the end of the settle time: scaling then is not part of
        the rollout.
        """
        start = self.stable_since + settings.settle if self.stable_since else self.started_at
        return not self.complete and now - start > settings.timeout + self.unobserved


def _are_complete(verdicts: Sequence[Verdict]) -> bool:
    return all(verdict.phase is Phase.COMPLETE and verdict.healthy for verdict in verdicts)


__all__ = ["WatchState"]
