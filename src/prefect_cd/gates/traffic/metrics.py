"""What users saw of a rollout, in numbers, from requests that were sent on a schedule. Pure.

This module decides what counts as failed, as slow and as a gap. The latency of a request is counted from when it was
due and not from when it was sent, so that the wait before sending is part of it (coordinated omission: Gil Tene, "How
NOT to Measure Latency"; wrk2). `load` sends the requests, and `limits` decides what the numbers prove.
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
"""The `failure` of a request that this machine could not send, which is no failure of the application."""
_MOST_INTERVALS = 60
_MOST_VERSIONS = 20


class Sample(NamedTuple):
    """One request; all times are in seconds of one clock."""

    due: float
    sent: float
    ended: float
    failure: str = ""  # empty: a good response
    version: str = ""

    @property
    def latency(self) -> float:
        """Seconds from when the request was due."""
        return self.ended - self.due


class VersionSeen(Result):
    """One version among the good responses; times are in seconds from the start of the rollout."""

    version: str
    answers: int
    first: float
    last: float


class Interval(Result):
    """A stretch of time: one bar of the chart."""

    start: float = Field(description="seconds from the start of the rollout; negative: before it")
    good: dict[str, int] = Field(description="good responses by version")
    failed: int
    slowest: float = Field(description="the slowest good response, in seconds")


class Latency(Result):
    """Percentiles of the seconds from when a request was due to its good response."""

    half: float = 0
    p95: float = 0
    p99: float = 0
    worst: float = 0


class Traffic(Result):
    """What users saw of a rollout, and, for comparison, until it started."""

    route: Route
    address: str = Field(default="", description="the URL of the requests")
    seconds: float = Field(default=0, ge=0)
    sent_before: int = 0
    failures_before: dict[str, int] = Field(default={}, description="failures before the rollout, by kind")
    sent: int = 0
    failures: dict[str, int] = Field(default={}, description="by kind, most frequent first")
    slow: int = 0
    gap: float = Field(default=0, description="longest time without a good response, seconds; exact to 1 / rate")
    gap_at: float = 0
    latency: Latency = Latency()
    versions: tuple[VersionSeen, ...] = ()
    intervals: tuple[Interval, ...] = ()
    interval: float = Field(default=0, description="the length of an interval, seconds")
    unsent: int = 0
    late: float = Field(default=0, description="the longest delay with which this machine sent a request, seconds")
    error: str = Field(default="", description="why no request could be sent at all")

    @property
    def failed(self) -> int:
        """Requests without a good response."""
        return sum(self.failures.values())


def measure(
    samples: Sequence[Sample], *, rollout_start: float, settings: Probe, route: Route, address: str = ""
) -> Traffic:
    """Summarize requests in numbers.

    Args:
        samples: all requests, in any order.
        rollout_start: on the samples' clock; requests that were due earlier are the baseline.
        settings: what is slow, and the rate at which the requests were due.
        route: how they reached the application.
        address: their URL.
    """
    ordered = sorted(samples)
    before = [sample for sample in ordered if sample.due < rollout_start]
    during = [sample for sample in ordered if sample.due >= rollout_start]
    sent = [sample for sample in during if sample.failure != UNSENT]
    good = [sample for sample in sent if not sample.failure]
    period = 1 / settings.rate
    gap, gap_at = _longest_gap(ordered, rollout_start, period)
    interval = max((during[-1].due - ordered[0].due) / _MOST_INTERVALS, period) if during else period
    return Traffic(
        route=route,
        address=address,
        seconds=max((sample.ended for sample in during), default=rollout_start) - rollout_start,
        sent_before=sum(sample.failure != UNSENT for sample in before),
        failures_before=_failures(before),
        sent=len(sent),
        failures=_failures(sent),
        slow=sum(sample.latency > settings.slow.total_seconds() for sample in good),
        gap=gap,
        gap_at=gap_at,
        latency=_percentiles([sample.latency for sample in good]),
        versions=tuple(_versions(good, rollout_start)),
        intervals=tuple(_intervals(ordered, rollout_start, interval)),
        interval=interval,
        unsent=len(during) - len(sent),
        late=max((sample.sent - sample.due for sample in sent), default=0),
    )


def _failures(samples: Sequence[Sample]) -> dict[str, int]:
    """Failed requests by kind, most frequent first."""
    kinds = Counter(sample.failure for sample in samples if sample.failure and sample.failure != UNSENT)
    return dict(kinds.most_common())


def _longest_gap(ordered: Sequence[Sample], rollout_start: float, period: float) -> tuple[float, float]:
    """The longest time without a good response that reaches into the rollout, and its start after `rollout_start`.

    Two good responses in a row are one period apart; only what exceeds it is a gap. The delay of this machine is not
    held against the application: a response is placed as if its request had been sent when due, and an unsent request
    counts as a good response.
    """
    if not ordered:
        return 0, 0
    good_times = sorted(
        sample.due + (sample.ended - sample.sent) for sample in ordered if sample.failure in {"", UNSENT}
    )
    edges = [ordered[0].due, *good_times, ordered[-1].due + period]
    gaps = [(later - earlier - period, earlier) for earlier, later in pairwise(edges) if later >= rollout_start]
    longest, start = max(gaps, default=(0.0, rollout_start))
    return max(longest, 0.0), max(start - rollout_start, 0.0)


def _percentiles(latencies: list[float]) -> Latency:
    if not latencies:
        return Latency()
    ranked = sorted(latencies)

    def percentile(share: float) -> float:
        return ranked[math.ceil(share * len(ranked)) - 1]  # nearest rank: always the latency of a real response

    return Latency(half=percentile(0.5), p95=percentile(0.95), p99=percentile(0.99), worst=ranked[-1])


def _versions(good: Sequence[Sample], rollout_start: float) -> Iterator[VersionSeen]:
    """The versions that responded, in the order of their first response."""
    times_by_version: dict[str, list[float]] = {}
    for sample in good:
        if sample.version:
            times_by_version.setdefault(sample.version, []).append(sample.due - rollout_start)
    by_first_response = sorted(times_by_version.items(), key=lambda item: item[1][0])
    for version, times in by_first_response[:_MOST_VERSIONS]:
        yield VersionSeen(version=version, answers=len(times), first=times[0], last=times[-1])


def _intervals(ordered: Sequence[Sample], rollout_start: float, length: float) -> Iterator[Interval]:
    by_number: dict[int, list[Sample]] = {}
    for sample in ordered:
        if sample.failure != UNSENT:
            by_number.setdefault(int((sample.due - ordered[0].due) / length), []).append(sample)
    for number, samples in sorted(by_number.items()):
        good = [sample for sample in samples if not sample.failure]
        yield Interval(
            start=ordered[0].due + number * length - rollout_start,
            good=dict(Counter(sample.version for sample in good)),
            failed=len(samples) - len(good),
            slowest=max((sample.latency for sample in good), default=0),
        )


__all__ = ["UNSENT", "Interval", "Latency", "Sample", "Traffic", "VersionSeen", "measure"]
