"""Whether a rollout had downtime: what users saw, compared with the limits of the pipeline file. Pure.

This module decides between failed (more requests were lost than the limits allow) and errored (we could not find
out). Failures that began before the rollout are not counted against it, requests by another route than that of users
prove nothing, and requests that this machine was too busy to send are not failures. It knows numbers only:
`metrics` makes them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prefect_cd.gates.evidence import Evidence, Outcome, TestCase
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe
from prefect_cd.pipeline.types import duration_text

_LARGEST_UNSENT_SHARE = 0.05
_SHORTEST_GAP_SHOWN = 0.1  # seconds
_GATEWAY_ERRORS = frozenset({"502", "503", "504"})
_CONNECTION_ERRORS = frozenset({"refused", "closed", "cut off", "unreachable"})
_PORT_FORWARD_HINT = (
    "requests through a port-forward bypass the Service: run the worker inside the cluster, give the Service a "
    "load balancer or node port, or write the URL that users use"
)


class _Unknown(NamedTuple):
    """Why the requests do not answer the question, and what to do about it."""

    reason: str
    hint: str


def evaluate(gate: str, traffic: Traffic, settings: Probe) -> Evidence:
    """Decide what the requests proved: failed where a limit was exceeded, errored where we could not find out."""
    cases = tuple(_cases(traffic, settings))
    failed = any(case.outcome is Outcome.FAILED for case in cases)
    # An incomplete measurement cannot prove the absence of downtime, but the requests that it saw fail did fail.
    unknown = _inconclusive(traffic, settings) or (None if failed else _incomplete(traffic))
    summary = _summary(traffic)
    if unknown:
        return Evidence(
            gate=gate,
            outcome=Outcome.ERRORED,
            summary=f"{unknown.reason}; {summary}",
            hint=unknown.hint,
            seconds=traffic.seconds,
        )
    return Evidence(
        gate=gate,
        outcome=Outcome.FAILED if failed else Outcome.PASSED,
        summary=summary,
        hint=_advice(traffic) if failed else "",
        seconds=traffic.seconds,
        cases=cases,
    )


def _summary(traffic: Traffic) -> str:
    """The numbers in one line."""
    if not traffic.sent:
        return f"no requests were sent in {traffic.seconds:.1f} s"
    failed = f"{traffic.failed} of {traffic.sent} requests failed ({_by_kind(traffic.failures)})"
    show_gap = traffic.failed or traffic.gap >= _SHORTEST_GAP_SHOWN
    parts = [
        failed if traffic.failed else f"{traffic.sent} requests, none failed",
        f"{traffic.slow} slow" if traffic.slow else "",
        f"no good response for {traffic.gap:.2f} s" if show_gap else "",
        f"99 % within {traffic.latency.p99 * 1000:.0f} ms" if traffic.sent > traffic.failed else "",
    ]
    return f"{', '.join(filter(None, parts))} in {traffic.seconds:.1f} s"


def _by_kind(failures: Mapping[str, int]) -> str:
    """Failures by kind: `12 refused, 1 timed out, 3 with status 503`."""
    return ", ".join(
        f"{number} with status {kind}" if kind.isdigit() else f"{number} {kind}" for kind, number in failures.items()
    )


def _inconclusive(traffic: Traffic, settings: Probe) -> _Unknown | None:
    """Why neither good nor failed requests say anything about the rollout."""
    if traffic.error:
        return _Unknown(f"no requests could be sent: {traffic.error}", "correct the environment's url")
    if traffic.route is Route.PORT_FORWARD:
        return _Unknown("a port-forward does not show what users see", _PORT_FORWARD_HINT)
    if traffic.failures_before:
        failed = sum(traffic.failures_before.values())
        kinds = _by_kind(traffic.failures_before)
        return _Unknown(
            f"before the rollout, {failed} of {traffic.sent_before} requests failed already ({kinds})",
            f"check the response to GET {settings.path}; correct the probe, or what was running",
        )
    return None


def _incomplete(traffic: Traffic) -> _Unknown | None:
    """Why the absence of failures does not prove that the rollout was without downtime."""
    if not traffic.sent:
        return _Unknown(
            "the rollout was too short to measure",
            "the rollout ended before the first request was due: raise the probe's rate",
        )
    if not traffic.sent_before:
        return _Unknown(
            "there is no measurement from before the rollout",
            "a rollout is evaluated only when requests were sent before it, for comparison",
        )
    due = traffic.sent + traffic.unsent
    if traffic.unsent > _LARGEST_UNSENT_SHARE * due:
        return _Unknown(
            f"this machine was too busy to send {traffic.unsent} of {due} requests",
            "lower the probe's rate, or give the worker more CPU",
        )
    return None


def _cases(traffic: Traffic, settings: Probe) -> Iterator[TestCase]:
    """One test case for each limit of the pipeline file."""
    limits = settings.limits
    measured = f"{traffic.failed} ({_by_kind(traffic.failures)})"
    yield _case(f"at most {limits.failed} failed", measured, exceeded=traffic.failed > limits.failed)
    if limits.slow is not None:
        name = f"at most {limits.slow} slower than {duration_text(settings.slow)}"
        measured = f"{traffic.slow}; the slowest took {traffic.latency.worst:.2f} s"
        yield _case(name, measured, exceeded=traffic.slow > limits.slow)
    if limits.gap is not None:
        name = f"a good response at least every {duration_text(limits.gap)}"
        measured = f"{traffic.gap:.2f} s, from second {traffic.gap_at:.1f} of the rollout on"
        yield _case(name, measured, exceeded=traffic.gap > limits.gap.total_seconds())


def _case(name: str, measured: str, *, exceeded: bool) -> TestCase:
    outcome = Outcome.FAILED if exceeded else Outcome.PASSED
    return TestCase(name=name, suite="", outcome=outcome, seconds=0, message=measured if exceeded else "")


def _advice(traffic: Traffic) -> str:
    """The usual cause of the most frequent kind of failure, and its fix."""
    most_frequent = next(iter(traffic.failures), "")
    if most_frequent in _CONNECTION_ERRORS:
        return (
            "pods were sent requests while they were starting or shutting down: a readinessProbe and "
            "`preStop: {sleep: {seconds: 5}}` prevent it; the plan lists which of them is missing"
        )
    if most_frequent in _GATEWAY_ERRORS:
        return "for a moment no pod behind the proxy was ready: check maxUnavailable, the readinessProbe and preStop"
    if most_frequent == "timed out":
        return "pods accepted requests and did not respond: check that the readinessProbe waits for the application"
    if most_frequent:
        return "requests failed while both versions ran: check the responses of the new version"
    return "check which responses are slow, and why"


__all__ = ["evaluate"]
