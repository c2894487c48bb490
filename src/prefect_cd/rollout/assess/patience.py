"""From a trouble to doom: how long it has lasted, whether it is this rollout's, and how much patience is left.

Decides by two clocks, the cluster's and ours, which may differ: a time in an object counts only between the apply and
now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect_cd.rollout.assess.model import Patience
from prefect_cd.rollout.diagnosis.cause import Category, Cause

_CLOCKS_DIFFER = timedelta(seconds=5)
"""Timestamps in objects are whole seconds of another machine's clock."""


@dataclass(frozen=True)
class Clock:
    """When the rollout began, what time it is, and how patient to be."""

    since: datetime
    now: datetime
    patience: Patience

    def elapsed(self, start: datetime | None) -> timedelta:
        """Time since `start`, but not more than we have watched.

        A start in the future means that clocks differ: by seconds, then it was just now; by more, then it is no guide.
        """
        if start is None or start < self.since or start > self.now + _CLOCKS_DIFFER:
            start = self.since
        return max(self.now - start, timedelta())

    def fresh(self, at: datetime | None) -> bool:
        """Whether something was seen in this rollout and not only before it."""
        return at is None or at >= self.since - _CLOCKS_DIFFER

    def dooms(self, cause: Cause) -> bool:
        """Whether a trouble is doom by now."""
        fresh = self.fresh(cause.seen or cause.since)
        if cause.proven and fresh:
            return True
        if cause.left_to:
            return False
        if cause.counts:
            return fresh and cause.times >= self.patience.crashes and not cause.trying
        return self._left(cause) <= timedelta()

    def countdown(self, cause: Cause) -> str:
        """How much patience is left, for people."""
        if cause.left_to:
            return f" ({cause.left_to})"
        if cause.counts:
            return f" (given up at {self.patience.crashes})"
        by_itself = cause.allowed - self.elapsed(cause.since)
        if by_itself > timedelta():
            why = "its controller may need" if cause.category is Category.SERVICE else "its own settings allow it"
            return f" ({why} {round(by_itself.total_seconds())} s more)"
        return f" (given up in {max(round(self._left(cause).total_seconds()), 0)} s)"

    def _left(self, cause: Cause) -> timedelta:
        patience = self.patience.with_(cause.category)
        return cause.allowed + patience * (2 if cause.trying else 1) - self.elapsed(cause.since)

    def ranked(self, causes: Sequence[Cause], last: Cause | None) -> tuple[Cause, ...]:
        """One cause per trouble and container, doom first; `last` is the one that explains the least."""
        best: dict[tuple[Category, str], Cause] = {}
        order = sorted(
            causes,
            key=lambda c: (
                not self.dooms(c),
                not c.proven,
                -c.times,
                self._left(c),
                c.object,
                c.container,
                c.summary,
                c.evidence,
            ),
        )
        for cause in order:
            best.setdefault((cause.category, cause.container), cause)
        return (*best.values(), *([last] if last else ()))
