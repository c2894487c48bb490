"""A container of a pod, and whether the pod goes for reasons that are not its own."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect_cd.kube.objects import (
    Object,
    as_int,
    as_objects,
    as_text,
    as_time,
    condition,
    condition_holds,
    dig,
    earliest,
)


@dataclass(frozen=True)
class Container:
    """What was asked for, and what became of it."""

    pod: Object
    spec: Object
    status: Object
    init: bool
    """True for one that has to end before the next starts; a sidecar among the init containers is not."""

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return as_text(self.status.get("name"))

    @property
    def waiting(self) -> Object:
        """Why it waits; empty when it does not."""
        found = dig(self.status, "state", "waiting")
        return found if isinstance(found, dict) else {}

    @property
    def up_since(self) -> datetime | None:
        """When the present run started; None when nothing runs."""
        return as_time(dig(self.status, "state", "running", "startedAt"))

    @property
    def running(self) -> bool:
        """Whether it runs at this moment."""
        return isinstance(dig(self.status, "state", "running"), dict)

    @property
    def ready(self) -> bool:
        """Whether the kubelet calls it ready."""
        return self.running and self.status.get("ready") is True

    @property
    def started(self) -> bool:
        """Whether its startup probe, if it has one, has said yes."""
        return self.running and self.status.get("started") is not False

    @property
    def last_end(self) -> Object:
        """How the latest finished run ended; empty when none did."""
        for state in ("state", "lastState"):
            found = dig(self.status, state, "terminated")
            if isinstance(found, dict):
                return found
        return {}

    @property
    def last_run(self) -> timedelta:
        """How long the latest finished run lasted."""
        began, ended = as_time(self.last_end.get("startedAt")), as_time(self.last_end.get("finishedAt"))
        return ended - began if began and ended else timedelta()

    @property
    def failures(self) -> int:
        """How many runs have ended."""
        restarts = as_int(self.status.get("restartCount"))
        return restarts if self.running else restarts + bool(self.last_end)

    @property
    def ended_in_peace(self) -> bool:
        """Whether the latest end is one that was wanted: exit 0 where nobody asked for restarts."""
        once = self.init or (dig(self.pod, "spec", "restartPolicy") or "Always") != "Always"
        return once and self.last_end.get("exitCode") == 0

    def told(self, events: Sequence[Object]) -> list[Object]:
        """The pod's events about this container, and those that name none."""
        return [
            event
            for event in events
            if not (path := as_text(dig(event, "involvedObject", "fieldPath"))) or f"{{{self.name}}}" in path
        ]


def containers(pod: Object) -> Iterator[Container]:
    """The containers that have a status, init containers first."""
    for specs, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        by_name = {as_text(spec.get("name")): spec for spec in as_objects(dig(pod, "spec", specs))}
        for status in as_objects(dig(pod, "status", statuses)):
            spec = by_name.get(as_text(status.get("name")), {})
            init = specs == "initContainers" and spec.get("restartPolicy") != "Always"
            yield Container(pod, spec, status, init)


def trouble_began(container: Container, failed: Sequence[Object]) -> datetime | None:
    """When what the events tell began; what was before the latest run has healed meanwhile."""
    at, ended = earliest(failed), as_time(container.last_end.get("finishedAt"))
    return ended if at and ended and ended > at else at


def is_disrupted(pod: Object) -> bool:
    """Whether the pod goes for reasons that are not its program's: evicted, preempted, drained, node shut down.

    A pod that restarts its containers ends only by the node's decision. It is Failed then, or Succeeded when its
    program obeyed the SIGTERM: an evicted pod was recorded so.
    """
    if dig(pod, "metadata", "deletionTimestamp") or condition_holds(pod, "DisruptionTarget"):
        return True
    ended = dig(pod, "status", "phase") in ("Failed", "Succeeded")
    always = (dig(pod, "spec", "restartPolicy") or "Always") == "Always"
    return ended and (always or dig(pod, "status", "reason") in NODE_REASONS)


NODE_REASONS = ("Evicted", "NodeShutdown", "NodeLost", "Shutdown", "Terminated", "Preempting", "NodeAffinity")


def is_ready(pod: Object) -> bool:
    """Whether the cluster sends requests to it."""
    return condition(pod, "Ready").get("status") == "True"


_NODE_WAITS = (
    r"failed to sync (configmap|secret) cache|object .* not registered|"
    r"failed to fetch token.*(refused|timeout|unreachable|EOF)"
)


def is_transient(said: str) -> bool:
    """The kubelet's own cache was not warm, or it did not reach the API server: nothing about the configuration."""
    return bool(re.search(_NODE_WAITS, said))
