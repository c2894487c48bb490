"""What users saw of a rollout, in numbers, from requests that were sent by the clock. Pure.

Decides what counts as failed, slow and a gap. A request's time counts from the moment it was due and not from when it
was sent, so that waiting for one's turn is part of it (coordinated omission: Gil Tene, "How NOT to Measure Latency";
wrk2). How requests are sent is `probe`'s matter, and what the numbers prove is `downtime`'s.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from pydantic import Field

from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe
from prefect_cd.release.model import Result

UNSENT = "not sent"
"""The `failure` of a request that this machine could not send: its own trouble, and not the application's."""
_STRETCHES = 60
_SHOWN = 20


class Sample(NamedTuple):
    """One request; times are seconds of one clock."""

    due: float
    sent: float
    ended: float
    failure: str = ""  # empty: a good answer
    version: str = ""

    @property
    def latency(self) -> float:
        """From the moment it was due."""
        return self.ended - self.due


class VersionSeen(Result):
    """One version among the good answers, in seconds from the start of the rollout."""

    version: str
    answers: int
    first: float
    last: float


class Stretch(Result):
    """A piece of time: one bar of the chart."""

    start: float = Field(description="seconds from the start of the rollout; negative: before it")
    good: dict[str, int] = Field(description="by version")
    failed: int
    slowest: float = Field(description="of the good answers, seconds")


class Latency(Result):
    """Seconds from when a request was due to its good answer: half, 95 % and 99 % of them were faster, and all."""

    half: float = 0
    p95: float = 0
    p99: float = 0
    worst: float = 0


class Traffic(Result):
    """What users saw of a rollout; in `before` is what they saw until it began."""

    way: Route
    address: str = Field(default="", description="what was asked for")
    seconds: float = Field(default=0, ge=0)
    sent_before: int = 0
    before: dict[str, int] = Field(default={}, description="failures before the rollout, by kind")
    sent: int = 0
    failures: dict[str, int] = Field(default={}, description="by kind, most frequent first")
    slow: int = 0
    gap: float = Field(default=0, description="longest time without a good answer, seconds; exact to 1 / rate")
    gap_at: float = 0
    latency: Latency = Latency()
    versions: tuple[VersionSeen, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    step: float = Field(default=0, description="how long a stretch is")
    unsent: int = 0
    late: float = Field(default=0, description="how late this machine sent at worst, seconds")
    trouble: str = Field(default="", description="why nothing could be sent at all")

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return sum(self.failures.values())


def measure(shots: Sequence[Sample], *, since: float, settings: Probe, way: Route, address: str = "") -> Traffic:
    """Put requests into numbers.

    Args:
        shots: all of them, in any order.
        since: when the rollout began, on the shots' clock; what was due earlier shows how it was before.
        settings: what is slow, and how far apart the requests were due.
        way: how they went.
        address: what was asked for.
    """
    ordered = sorted(shots)
    before = [shot for shot in ordered if shot.due < since]
    during = [shot for shot in ordered if shot.due >= since]
    sent = [shot for shot in during if shot.failure != UNSENT]
    good = [shot for shot in sent if not shot.failure]
    period = 1 / settings.rate
    gap, gap_at = _longest_gap(ordered, since, period)
    step = max((during[-1].due - ordered[0].due) / _STRETCHES, period) if during else period
    return Traffic(
        way=way,
        address=address,
        seconds=max((shot.ended for shot in during), default=since) - since,
        sent_before=sum(shot.failure != UNSENT for shot in before),
        before=_kinds(before),
        sent=len(sent),
        failures=_kinds(sent),
        slow=sum(shot.latency > settings.slow.total_seconds() for shot in good),
        gap=gap,
        gap_at=gap_at,
        latency=_latency([shot.latency for shot in good]),
        versions=tuple(_versions(good, since)),
        stretches=tuple(_stretches(ordered, since, step)),
        step=step,
        unsent=len(during) - len(sent),
        late=max((shot.sent - shot.due for shot in sent), default=0),
    )


def _kinds(shots: Sequence[Sample]) -> dict[str, int]:
    counted = Counter(shot.failure for shot in shots if shot.failure and shot.failure != UNSENT)
    return dict(counted.most_common())


def _longest_gap(ordered: Sequence[Sample], since: float, period: float) -> tuple[float, float]:
    """The longest time without a good answer, and its start after `since`.

    Answers that come one after another are a period apart, so that much is no gap. How late *we* sent is taken out of
    an answer's time; what we did not send at all says nothing, and counts as an answer.
    """
    if not ordered:
        return 0, 0
    answered = sorted(shot.due + (shot.ended - shot.sent) for shot in ordered if shot.failure in {"", UNSENT})
    edges = [ordered[0].due, *answered, ordered[-1].due + period]
    gaps = [(later - earlier - period, earlier) for earlier, later in pairwise(edges) if later >= since]
    longest, start = max(gaps, default=(0.0, since))
    return max(longest, 0.0), max(start - since, 0.0)


def _latency(latencies: list[float]) -> Latency:
    if not latencies:
        return Latency()
    ranked = sorted(latencies)

    def rank(share: float) -> float:
        return ranked[math.ceil(share * len(ranked)) - 1]

    return Latency(half=rank(0.5), p95=rank(0.95), p99=rank(0.99), worst=ranked[-1])


def _versions(good: Sequence[Sample], since: float) -> Iterator[VersionSeen]:
    by_version: dict[str, list[float]] = {}
    for shot in good:
        if shot.version:
            by_version.setdefault(shot.version, []).append(shot.due - since)
    for version, times in sorted(by_version.items(), key=lambda item: item[1][0])[:_SHOWN]:
        yield VersionSeen(version=version, answers=len(times), first=times[0], last=times[-1])


def _stretches(ordered: Sequence[Sample], since: float, step: float) -> Iterator[Stretch]:
    pieces: dict[int, list[Sample]] = {}
    for shot in ordered:
        if shot.failure != UNSENT:
            pieces.setdefault(int((shot.due - ordered[0].due) / step), []).append(shot)
    for number, piece in sorted(pieces.items()):
        good = [shot for shot in piece if not shot.failure]
        yield Stretch(
            start=ordered[0].due + number * step - since,
            good=dict(Counter(shot.version for shot in good)),
            failed=len(piece) - len(good),
            slowest=max((shot.latency for shot in good), default=0),
        )


__all__ = ["UNSENT", "Latency", "Sample", "Stretch", "Traffic", "VersionSeen", "measure"]
