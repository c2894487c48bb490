"""When a problem fails the rollout: how long it has lasted, whether it is this rollout's, and the patience left.

Two clocks are involved, the cluster's and ours, which may differ: a time in an object counts only if it lies between
the apply and now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect_cd.rollout.assess.model import Patience
from prefect_cd.rollout.diagnosis.cause import Category, Cause

_CLOCK_SKEW = timedelta(seconds=5)
"""Tolerated between the two clocks; timestamps in objects are whole seconds besides."""
NO_ROOM = (Category.UNSCHEDULABLE, Category.QUOTA, Category.VOLUME)
"""Problems that other pods may end: their grace period lasts while those start or terminate."""
_COUNTED = {Category.NODE: "rejections", Category.STORAGE_LIMIT: "evictions"}
"""What is counted of a problem; of the others, failed runs of one container."""


@dataclass(frozen=True)
class Clock:
    """When the rollout began, what time it is, and the patience settings."""

    since: datetime
    now: datetime
    patience: Patience

    def elapsed(self, start: datetime | None) -> timedelta:
        """Time since `start`, but not more than since the rollout began.

        A start in the future means that the clocks differ. Within the tolerated skew it counts as now; further off it
        is not usable, and the time since the rollout began counts.
        """
        if start is None or start < self.since or start > self.now + _CLOCK_SKEW:
            start = self.since
        return max(self.now - start, timedelta())

    def in_rollout(self, at: datetime | None) -> bool:
        """Whether a time is not before the rollout; an unknown time counts as within it."""
        return at is None or at >= self.since - _CLOCK_SKEW

    def fails_rollout(self, cause: Cause) -> bool:
        """Whether a problem fails the rollout by now."""
        in_rollout = self.in_rollout(cause.last_seen or cause.since)
        if cause.permanent and in_rollout:
            return True
        if cause.deferred:
            return False
        if cause.counted:
            return in_rollout and cause.times >= self.patience.crashes and not cause.retrying
        return self._remaining(cause) <= timedelta()

    def countdown(self, cause: Cause, *, show_seconds: bool = True) -> str:
        """For the user: when the problem will fail the rollout.

        Args:
            cause: the problem.
            show_seconds: False for … in place of seconds.
        """
        if cause.deferred:
            return f" ({cause.deferred})"
        if cause.counted:
            return f" (fails after {self.patience.crashes} {_COUNTED.get(cause.category, 'crashes')})"
        grace = cause.grace - self.elapsed(cause.since)
        if grace > timedelta():
            seconds = str(round(grace.total_seconds())) if show_seconds else "…"
            if cause.category is Category.SERVICE:
                return f" (its controller may need {seconds} s more)"
            if cause.category in NO_ROOM:
                return f" (waiting for other pods, {seconds} s more)"
            return f" (its probe settings allow {seconds} s more)"
        remaining = max(round(self._remaining(cause).total_seconds()), 0)
        return f" (fails in {remaining if show_seconds else '…'} s)"

    def _remaining(self, cause: Cause) -> timedelta:
        patience = self.patience.for_category(cause.category)
        if cause.retrying:
            patience *= 2  # the attempt that is in progress may succeed
        return cause.grace + patience - self.elapsed(cause.since)

    def rank(self, causes: Sequence[Cause], fallback: Cause | None) -> tuple[Cause, ...]:
        """Sort the causes, those that fail the rollout first, and keep one per category and container.

        Args:
            causes: in any order; the order of the result does not depend on it.
            fallback: the cause that explains the least, which comes last.
        """
        best: dict[tuple[Category, str], Cause] = {}
        for cause in sorted(causes, key=self._rank):
            best.setdefault((cause.category, cause.container), cause)
        ranked = tuple(best.values())
        return (*ranked, fallback) if fallback else ranked

    def _rank(self, cause: Cause) -> tuple[bool, bool, int, timedelta, str, str, str, str]:
        return (
            not self.fails_rollout(cause),
            not cause.permanent,
            -cause.times,
            self._remaining(cause),
            cause.object,
            cause.container,
            cause.summary,
            cause.evidence,
        )
