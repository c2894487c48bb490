"""Probes that fail, and how long the pod's own settings let them fail.

Decides when an unready container starts to be a problem: never before its own settings are exhausted. The arithmetic is
the kubelet's (kubernetes/kubernetes `pkg/kubelet/prober/worker.go`): nothing happens before `initialDelaySeconds`, then
one attempt follows the other, each as long as the longer of period and timeout; the other probes wait for the startup
probe to succeed.
"""

from collections.abc import Sequence
from datetime import timedelta

from prefect_cd.kube.objects import (
    Object,
    as_objects,
    as_text,
    as_time,
    condition,
    condition_holds,
    dig,
    kind_and_name,
    latest,
    namespace_of,
    with_reason,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.container import Container

_INITIAL_DELAY, _PERIOD, _TIMEOUT, _FAILURES, _SUCCESSES = 0, 10, 1, 3, 1
"""The API server's defaults (Kubernetes API reference, Probe)."""
_ROUNDING = timedelta(seconds=1)
"""The start of a container is recorded in whole seconds."""


def probe_grace(probe: object) -> timedelta:
    """How long after the start a probe may fail by its own settings; zero without a probe."""
    if not isinstance(probe, dict):
        return timedelta()

    def setting(name: str, default: int) -> int:
        value = probe.get(name)
        return value if isinstance(value, int) else default

    attempt = max(setting("periodSeconds", _PERIOD), setting("timeoutSeconds", _TIMEOUT))
    attempts = setting("failureThreshold", _FAILURES) + setting("successThreshold", _SUCCESSES) - 1
    return timedelta(seconds=setting("initialDelaySeconds", _INITIAL_DELAY) + attempts * attempt)


def readiness_grace(container: Container) -> timedelta:
    """How long a container may run unready by its own settings: startup probe first, readiness probe after it."""
    startup = probe_grace(container.spec.get("startupProbe"))
    return startup + probe_grace(container.spec.get("readinessProbe")) + _ROUNDING


def latest_probe_failure(container: Container, category: Category, events: Sequence[Object]) -> str:
    """The message of the latest failed probe of a category; empty when none has failed."""
    messages = [
        as_text(event.get("message")).strip()
        for event in with_reason(container.events_in(events), "Unhealthy")
        if as_text(event.get("message")).lower().startswith(category.value)
    ]
    return messages[-1] if messages else ""


def probe_problem(container: Container, events: Sequence[Object]) -> Cause | None:
    """A container that runs and is not ready; never permanent, and only a problem after its own grace period."""
    if not container.running or container.ready or container.init:
        return None
    starting = not container.started and dig(container.spec, "startupProbe")
    if not starting and container.spec.get("readinessProbe") is None:
        return None  # without a probe it becomes ready with the kubelet's next sync
    category = Category.STARTUP if starting else Category.READINESS
    failure = latest_probe_failure(container, category, events)
    pod, grace = container.pod, readiness_grace(container)
    started_at = container.running_since
    changed_at = as_time(condition(pod, "ContainersReady").get("lastTransitionTime"))
    # A condition that changed after the grace period means that the container was ready and has lost its readiness.
    was_ready = started_at is not None and changed_at is not None and changed_at > started_at + grace
    return Cause(
        category=category,
        fact=f"{kind_and_name(pod)}: container {container.name} runs, but its {category.value} probe "
        + ("fails" if failure else "has not succeeded yet"),
        evidence=failure or f"not ready since {started_at or 'its start'}",
        hint=f"kubectl -n {namespace_of(pod)} logs {as_text(dig(pod, 'metadata', 'name'))} -c {container.name}",
        object=kind_and_name(pod),
        container=container.name,
        since=changed_at if was_ready else started_at,
        last_seen=latest(with_reason(container.events_in(events), "Unhealthy")),
        grace=timedelta() if was_ready else grace,
    )


def readiness_gate_problem(pod: Object, _: Sequence[Object]) -> Cause | None:
    """A pod whose containers are ready, but one of whose readiness gates is not true."""
    gates = [as_text(gate.get("conditionType")) for gate in as_objects(dig(pod, "spec", "readinessGates"))]
    closed = [gate for gate in gates if not condition_holds(pod, gate)]
    if not closed or not condition_holds(pod, "ContainersReady"):
        return None
    gate = condition(pod, closed[0])
    return Cause(
        category=Category.READINESS,
        fact=f"{kind_and_name(pod)}: its containers are ready, but its readiness gate {closed[0]} is not true",
        evidence=as_text(gate.get("message")) or as_text(gate.get("reason")) or f"{closed[0]} is not True",
        hint="check the controller that sets this condition",
        object=kind_and_name(pod),
        since=as_time(condition(pod, "ContainersReady").get("lastTransitionTime")),
    )
