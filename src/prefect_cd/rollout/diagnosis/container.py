"""One container of a pod with its status, and whether the cluster disrupted the pod."""

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
    dig_mapping,
    earliest,
)


@dataclass(frozen=True)
class Container:
    """The specification and the status of one container."""

    pod: Object
    spec: Object
    status: Object
    init: bool
    """True for a container that must complete before the next starts; False for a sidecar, which keeps running."""

    @property
    def name(self) -> str:
        """The container's name in the pod."""
        return as_text(self.status.get("name"))

    @property
    def waiting(self) -> Object:
        """The `waiting` state with its reason; empty when the container does not wait."""
        return dig_mapping(self.status, "state", "waiting")

    @property
    def running_since(self) -> datetime | None:
        """When the current run started; None when the container does not run."""
        return as_time(dig(self.status, "state", "running", "startedAt"))

    @property
    def running(self) -> bool:
        """Whether the container runs at this moment."""
        return isinstance(dig(self.status, "state", "running"), dict)

    @property
    def ready(self) -> bool:
        """Whether the kubelet reports the container as ready."""
        return self.running and self.status.get("ready") is True

    @property
    def started(self) -> bool:
        """Whether the container runs and its startup probe, if it has one, has succeeded."""
        return self.running and self.status.get("started") is not False

    @property
    def last_termination(self) -> Object:
        """The `terminated` state of the latest finished run; empty when no run has finished."""
        return dig_mapping(self.status, "state", "terminated") or dig_mapping(self.status, "lastState", "terminated")

    @property
    def last_run_duration(self) -> timedelta:
        """How long the latest finished run lasted; zero when that is not known."""
        started = as_time(self.last_termination.get("startedAt"))
        finished = as_time(self.last_termination.get("finishedAt"))
        return finished - started if started and finished else timedelta()

    @property
    def ended_runs(self) -> int:
        """How many runs have ended."""
        restarts = as_int(self.status.get("restartCount"))
        # `restartCount` does not include the latest run that ended until the next one starts.
        if not self.running and self.last_termination:
            return restarts + 1
        return restarts

    @property
    def completed(self) -> bool:
        """Whether the latest run ended as intended: exit code 0 of a container that is not meant to run forever."""
        runs_once = self.init or (dig(self.pod, "spec", "restartPolicy") or "Always") != "Always"
        return runs_once and self.last_termination.get("exitCode") == 0

    def events_in(self, events: Sequence[Object]) -> list[Object]:
        """Those of the pod's events that are about this container, or name no container."""
        return [
            event
            for event in events
            if not (path := as_text(dig(event, "involvedObject", "fieldPath"))) or f"{{{self.name}}}" in path
        ]


def containers(pod: Object) -> Iterator[Container]:
    """The containers that have a status; init containers first."""
    for specs, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        by_name = {as_text(spec.get("name")): spec for spec in as_objects(dig(pod, "spec", specs))}
        for status in as_objects(dig(pod, "status", statuses)):
            spec = by_name.get(as_text(status.get("name")), {})
            init = specs == "initContainers" and spec.get("restartPolicy") != "Always"
            yield Container(pod, spec, status, init)


def problem_start(container: Container, failures: Sequence[Object]) -> datetime | None:
    """When the problem that the events report began: not before the latest run, since the container started then."""
    first_failure, run_ended = earliest(failures), as_time(container.last_termination.get("finishedAt"))
    if first_failure and run_ended and run_ended > first_failure:
        return run_ended
    return first_failure


def is_disrupted(pod: Object) -> bool:
    """Whether the cluster ends the pod for other reasons than its program: evicted, preempted, drained, node shut down.

    A pod with restartPolicy Always ends only by the node's decision. Its phase is then Failed, or Succeeded when the
    program exits with 0 on SIGTERM, as was recorded for an evicted pod.
    """
    if dig(pod, "metadata", "deletionTimestamp") or condition_holds(pod, "DisruptionTarget"):
        return True
    ended = dig(pod, "status", "phase") in ("Failed", "Succeeded")
    always = (dig(pod, "spec", "restartPolicy") or "Always") == "Always"
    return ended and (always or dig(pod, "status", "reason") in NODE_REASONS)


NODE_REASONS = ("Evicted", "NodeShutdown", "NodeLost", "Shutdown", "Terminated", "Preempting", "NodeAffinity")
"""Reasons in a pod's status with which a node ends a pod that it had accepted."""


def is_ready(pod: Object) -> bool:
    """Whether the pod is ready, so that Services send requests to it."""
    return condition(pod, "Ready").get("status") == "True"


_TRANSIENT = (  # kubernetes/kubernetes `pkg/kubelet/util/manager` and `pkg/kubelet/token`
    r"failed to sync (configmap|secret) cache|object .* not registered|"
    r"failed to fetch token.*(refused|timeout|unreachable|EOF)"
)


def is_transient(message: str) -> bool:
    """Whether the kubelet only waits for its own cache or for the API server: no sign of wrong configuration."""
    return bool(re.search(_TRANSIENT, message))
