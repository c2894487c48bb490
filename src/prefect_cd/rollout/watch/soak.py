"""When a watch may end: how long a rollout may take, and how long a complete one is watched on.

Pure. Complete is a moment, and pods die after it: 20 s later, under the first requests, by their liveness probe. So a
rollout is watched on until it was complete and out of trouble for the settle time, without a break. Trouble (a crash,
a probe that says no for too long) starts that time over, and crashes go on counting; merely more or fewer pods (an
autoscaler, an eviction) delay the end, and no more. Time in which nobody could look counts for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Phase, Verdict

_BLIND_AFTER = timedelta(seconds=5)


@dataclass(frozen=True)
class WatchState:
    """How a watch has gone so far.

    Args:
        begun: from when on the timeout counts.
        looked: when it was last known how things stand.
        blind: for how long, since then, nobody could look.
        blind_until: what is before this has been counted.
        calm_since: since when everything has been complete and out of trouble.
        complete: whether everything is at this moment.
        final: whether nothing can come after it, as for Jobs.
        judging: whether there was a verdict before.
    """

    begun: datetime
    looked: datetime
    blind: timedelta = timedelta()
    blind_until: datetime | None = None
    calm_since: datetime | None = None
    complete: bool = False
    final: bool = False
    judging: bool = False

    def seen(self, now: datetime, *, lost_since: datetime | None = None) -> "WatchState":
        """The course after a look; `lost_since` when what was looked at is out of date.

        A long pause between two looks is ours (a suspended process), and as little to blame on the rollout.
        """
        if lost_since is None and now - self.looked > _BLIND_AFTER:
            lost_since = self.looked
        if lost_since is None:
            return replace(self, looked=now)
        unseen = max(now - max(lost_since, self.blind_until or self.begun), timedelta())
        return replace(self, looked=now, blind=self.blind + unseen, blind_until=now)

    def judged(self, verdicts: Sequence[Verdict], now: datetime) -> "WatchState":
        """The course after the verdicts on all workloads.

        What is complete at the first look has been so before, for as long as its pods say.
        """
        complete = all(each.phase is Phase.COMPLETE and each.well for each in verdicts)
        if not self.judging:
            times = [min(each.unchanged_since, now) for each in verdicts if each.unchanged_since]
            calm = max(times) if complete and times else None
            return replace(self, calm_since=calm, judging=True).judged(verdicts, now)
        if self.calm_since and any(each.causes or each.phase is not Phase.COMPLETE for each in verdicts):
            # it is a rollout again, with all of its time before it
            return replace(self, begun=now, blind=timedelta(), blind_until=now, calm_since=None, complete=False)
        final = all(each.final for each in verdicts)
        return replace(self, calm_since=self.calm_since or (now if complete else None), complete=complete, final=final)

    def settles_in(self, settings: RolloutSettings, now: datetime) -> timedelta | None:
        """For how long a complete rollout is still watched; None for one that is not complete."""
        if not self.complete or not self.calm_since:
            return None
        left = settings.settle - (now - self.calm_since)
        return timedelta() if self.final else max(left, timedelta())

    def late(self, settings: RolloutSettings, now: datetime) -> bool:
        """Whether it has had its time; calm starts the clock again, for what is done then is not a rollout's work."""
        start = self.calm_since + settings.settle if self.calm_since else self.begun
        return not self.complete and now - start > settings.timeout + self.blind


__all__ = ["WatchState"]
