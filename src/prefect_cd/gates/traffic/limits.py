"""Whether a rollout was without downtime: what users saw, against the limits of the pipeline file. Pure.

Decides between failed (more was lost than allowed) and errored (we could not find out): what failed before the
rollout already is not its fault, what went another way than users go proves nothing, and what this machine was too
busy to send is no user's trouble. It knows numbers only; `traffic` makes them.
"""

from collections.abc import Iterator, Sequence

from prefect_cd.gates.evidence import Evidence, Outcome, TestCase
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe
from prefect_cd.pipeline.types import duration_text

_MOST_UNSENT = 0.05
_NOTICEABLE_SECONDS = 0.1
_GATEWAY = frozenset({"502", "503", "504"})
_NOT_BY_PORT_FORWARD = (
    "requests through a port-forward go round the Service: run the worker inside the cluster, give the Service a "
    "load balancer or node port, or write the URL that users use"
)


def evaluate(gate: str, seen: Traffic, settings: Probe) -> Evidence:
    """What the requests proved against the limits: failed where more was lost than allowed, errored where unknown."""
    cases = tuple(_cases(seen, settings))
    outcome, why, hint = _verdict(seen, cases, settings)
    return Evidence(
        gate=gate,
        outcome=outcome,
        summary=f"{why}; {told(seen)}" if why else told(seen),
        hint=hint,
        seconds=seen.seconds,
        cases=cases if outcome in {Outcome.PASSED, Outcome.FAILED} else (),
    )


def told(seen: Traffic) -> str:
    """The numbers as one line."""
    if not seen.sent:
        return f"nothing was sent in {seen.seconds:.1f} s"
    failed = f"{seen.failed} of {seen.sent} requests failed ({listed(seen.failures)})"
    parts = [
        failed if seen.failed else f"{seen.sent} requests, none failed",
        f"{seen.slow} slow" if seen.slow else "",
        f"no good answer for {seen.gap:.2f} s" if seen.failed or seen.gap >= _NOTICEABLE_SECONDS else "",
        f"99 % within {seen.latency.p99 * 1000:.0f} ms" if seen.sent > seen.failed else "",
    ]
    return f"{', '.join(filter(None, parts))} in {seen.seconds:.1f} s"


def listed(kinds: dict[str, int]) -> str:
    """Failures by kind: `12 refused, 1 timed out`; a status stands for itself."""
    return ", ".join(f"{number} {f'answered {kind}' if kind.isdigit() else kind}" for kind, number in kinds.items())


def _verdict(seen: Traffic, cases: Sequence[TestCase], settings: Probe) -> tuple[Outcome, str, str]:
    """Outcome, why (where the numbers do not say it themselves), and what to do."""
    if unknown := _unattributable(seen, settings):
        return Outcome.ERRORED, *unknown
    if any(case.outcome is Outcome.FAILED for case in cases):
        return Outcome.FAILED, "", _advice(seen)
    if unknown := _incomplete(seen):
        return Outcome.ERRORED, *unknown
    return Outcome.PASSED, "", ""


def _unattributable(seen: Traffic, settings: Probe) -> tuple[str, str] | None:
    """Why neither good nor failed requests say anything about the rollout, and what to do."""
    if seen.trouble:
        return f"nothing could be asked: {seen.trouble}", "correct the environment's url"
    if seen.before:
        lost = f"{sum(seen.before.values())} of {seen.sent_before} requests failed already ({listed(seen.before)})"
        return (
            f"before the rollout {lost}",
            f"has GET {settings.path} a good answer? correct the probe, or what is there",
        )
    if seen.way is Route.PORT_FORWARD:
        return "a port-forward does not show what users see", _NOT_BY_PORT_FORWARD
    return None


def _incomplete(seen: Traffic) -> tuple[str, str] | None:
    """Why that nothing was lost is not proved, and what to do."""
    if not seen.sent:
        return "too short to tell", "the rollout ended before a request was due: raise the probe's rate"
    if not seen.sent_before:
        return "how it was before is not known", "only what follows a look at how it was before is judged"
    due = seen.sent + seen.unsent
    if seen.unsent > _MOST_UNSENT * due:
        said = f"this machine was too busy to send {seen.unsent} of {due} requests"
        return said, "lower the probe's rate, or give the worker more CPU"
    return None


def _cases(seen: Traffic, settings: Probe) -> Iterator[TestCase]:
    limits = settings.limits
    yield _case(
        f"at most {limits.failed} failed", seen.failed > limits.failed, f"{seen.failed} ({listed(seen.failures)})"
    )
    if limits.slow is not None:
        said = f"{seen.slow}; the slowest took {seen.latency.worst:.2f} s"
        yield _case(f"at most {limits.slow} slower than {duration_text(settings.slow)}", seen.slow > limits.slow, said)
    if limits.gap is not None:
        said = f"{seen.gap:.2f} s, from second {seen.gap_at:.1f} of the rollout on"
        over = seen.gap > limits.gap.total_seconds()
        yield _case(f"a good answer at least every {duration_text(limits.gap)}", over, said)


def _case(name: str, exceeded: bool, said: str) -> TestCase:  # noqa: FBT001
    outcome = Outcome.FAILED if exceeded else Outcome.PASSED
    return TestCase(name=name, suite="", outcome=outcome, seconds=0, message=said if exceeded else "")


def _advice(seen: Traffic) -> str:
    """What usually loses requests in this way."""
    most = next(iter(seen.failures), "")
    if most in {"refused", "closed", "cut off", "unreachable"}:
        return (
            "pods ended, or were asked, while they could not answer: `preStop: {sleep: {seconds: 5}}` and a "
            "readinessProbe prevent it; the plan names what is missing"
        )
    if most in _GATEWAY:
        return "for a moment no pod was ready behind the proxy: see maxUnavailable, the readinessProbe and preStop"
    if most == "timed out":
        return "pods took requests and did not answer: is the readinessProbe true before the application can work?"
    return "requests failed while both versions ran: see what the new one answers" if most else "see the slow answers"


__all__ = ["evaluate", "listed", "told"]
