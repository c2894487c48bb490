"""Probes that say no, and how long they may by the pod's own settings.

Decides from when on an unready container is a trouble: never before its own settings would have it so. The arithmetic
is that of the kubelet (kubernetes/kubernetes `pkg/kubelet/prober/worker.go`): nothing before `initialDelaySeconds`,
then one attempt after the other, each as long as the longer of period and timeout; a startup probe comes first, and
the others wait for it.
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
"""What the API server fills in where nothing is said (Kubernetes API reference, Probe)."""
_ROUNDING = timedelta(seconds=1)
"""A container's start is written in whole seconds."""


def budget(probe: object) -> timedelta:
    """How long a probe may say no, from the start on, by its own settings; nothing without a probe."""
    if not isinstance(probe, dict):
        return timedelta()

    def setting(name: str, default: int) -> int:
        value = probe.get(name)
        return value if isinstance(value, int) else default

    attempt = max(setting("periodSeconds", _PERIOD), setting("timeoutSeconds", _TIMEOUT))
    attempts = setting("failureThreshold", _FAILURES) + setting("successThreshold", _SUCCESSES) - 1
    return timedelta(seconds=setting("initialDelaySeconds", _INITIAL_DELAY) + attempts * attempt)


def allowance(container: Container) -> timedelta:
    """How long a container may run unready: its startup probe's time, as long as that has not said yes, and then."""
    startup = budget(container.spec.get("startupProbe"))
    return startup + budget(container.spec.get("readinessProbe")) + _ROUNDING


def answer(container: Container, category: Category, events: Sequence[Object]) -> str:
    """What the latest failed probe of that kind said; empty where there was none."""
    said = [
        as_text(event.get("message")).strip()
        for event in with_reason(container.told(events), "Unhealthy")
        if as_text(event.get("message")).lower().startswith(category.value)
    ]
    return said[-1] if said else ""


def unhealthy(container: Container, events: Sequence[Object]) -> Cause | None:
    """A container that runs and is not ready; within its own settings that is no trouble yet, and never a proof."""
    if not container.running or container.ready or container.init:
        return None
    starting = not container.started and dig(container.spec, "startupProbe")
    if not starting and container.spec.get("readinessProbe") is None:
        return None  # ready as soon as the kubelet looks again
    category = Category.STARTUP if starting else Category.READINESS
    said = answer(container, category, events)
    pod = container.pod
    up, lost = container.up_since, as_time(condition(pod, "ContainersReady").get("lastTransitionTime"))
    was_ready = up is not None and lost is not None and lost > up + allowance(container)
    return Cause(
        category=category,
        summary=f"{kind_and_name(pod)}: container {container.name} runs, but its {category.value} probe "
        + ("says no" if said else "has not said yes"),
        evidence=said or f"not ready since {(up or 'its start')}",
        hint=f"kubectl -n {namespace_of(pod)} logs {as_text(dig(pod, 'metadata', 'name'))} -c {container.name}",
        object=kind_and_name(pod),
        container=container.name,
        since=lost if was_ready else up,
        seen=latest(with_reason(container.told(events), "Unhealthy")),
        allowed=timedelta() if was_ready else allowance(container),
    )


def ungated(pod: Object, _: Sequence[Object]) -> Cause | None:
    """A pod whose containers are ready, while someone outside has not opened its readiness gate."""
    gates = [as_text(each.get("conditionType")) for each in as_objects(dig(pod, "spec", "readinessGates"))]
    shut = [gate for gate in gates if not condition_holds(pod, gate)]
    if not shut or not condition_holds(pod, "ContainersReady"):
        return None
    gate = condition(pod, shut[0])
    return Cause(
        category=Category.READINESS,
        summary=f"{kind_and_name(pod)}: its containers are ready, but its readiness gate {shut[0]} is not open",
        evidence=as_text(gate.get("message")) or as_text(gate.get("reason")) or f"{shut[0]} is not True",
        hint="look at the controller that sets this condition",
        object=kind_and_name(pod),
        since=as_time(condition(pod, "ContainersReady").get("lastTransitionTime")),
        seen=None,
    )
