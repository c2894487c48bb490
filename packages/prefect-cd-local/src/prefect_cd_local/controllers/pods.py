"""The pods of a ReplicaSet: what to create, what to delete first, and the status.

Pure; `now` is a parameter. Rules: the documentation of ReplicaSets (scaling down, pod deletion cost) and KEP-2185.
"""

import math
from collections.abc import Sequence
from datetime import datetime

from prefect_cd_local.client import Object
from prefect_cd_local.controllers.objects import (
    annotations,
    condition,
    is_ready,
    labels,
    parse_time,
    reference_to,
    time_text,
    uid_of,
)

_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Unknown": 1, "Running": 2}


def new_pod(rs: Object) -> Object:
    """Make a pod from the ReplicaSet's template; the server generates its name."""
    template = rs["spec"]["template"]
    copied = {key: text for key, text in template["metadata"].items() if key in {"labels", "annotations", "finalizers"}}
    named = {"generateName": f"{rs['metadata']['name']}-", "namespace": rs["metadata"]["namespace"]}
    return {"metadata": {**copied, **named, "ownerReferences": [reference_to(rs)]}, "spec": template["spec"]}


def pods_to_delete(pods: Sequence[Object], count: int, now: datetime) -> list[Object]:
    """Choose pods to delete: the least useful first, then the youngest. Crowded nodes do not count, with one node.

    Args:
        pods: the ReplicaSet's active pods.
        count: how many to delete.
        now: ages are compared by order of magnitude, so that it is not always the same pods.
    """
    return sorted(pods, key=lambda pod: _deletion_rank(pod, now))[:count]


def _deletion_rank(pod: Object, now: datetime) -> tuple[float | str, ...]:
    """Sort key: pods with smaller keys are deleted first."""
    status = pod.get("status") or {}
    cost = annotations(pod).get(_COST, "0")
    return (
        bool(pod["spec"].get("nodeName")),
        _PHASES.get(status.get("phase", ""), 0),
        is_ready(pod),
        int(cost) if cost.removeprefix("-").isdecimal() else 0,
        _magnitude(_ready_since(pod), now),
        -max((entry.get("restartCount", 0) for entry in status.get("containerStatuses") or []), default=0),
        _magnitude(pod["metadata"].get("creationTimestamp"), now),
        uid_of(pod),
    )


def _ready_since(pod: Object) -> str | None:
    return (condition(pod, "Ready") or {}).get("lastTransitionTime") if is_ready(pod) else None


def _magnitude(since: str | None, now: datetime) -> int:
    """Return the power of two of an age in nanoseconds."""
    age = (now - parse_time(since)).total_seconds() * 1e9 if since else 0
    return math.floor(math.log2(age)) if age > 1 else 0


def _seconds_to_available(rs: Object, pod: Object, now: datetime) -> float | None:
    """Return how long a pod must stay ready to be available: 0 when it is, None when it is not even ready."""
    least, since = rs["spec"].get("minReadySeconds", 0), _ready_since(pod)
    if not least:
        return 0 if is_ready(pod) else None
    return max(0.0, least - (now - parse_time(since)).total_seconds()) if since else None


def set_status(
    rs: Object, active: Sequence[Object], ending: int, problem: tuple[str, str] | None, now: datetime
) -> Object:
    """Return the ReplicaSet's status.

    Args:
        rs: the ReplicaSet.
        active: its active pods.
        ending: how many more are terminating.
        problem: reason and message when pods could not be created or deleted.
        now: for availability and condition times.
    """
    template_labels = labels(rs["spec"]["template"]).items()
    numbers = {
        "fullyLabeledReplicas": sum(template_labels <= labels(pod).items() for pod in active),
        "readyReplicas": sum(map(is_ready, active)),
        "availableReplicas": sum(_seconds_to_available(rs, pod, now) == 0 for pod in active),
    }
    status: Object = {"replicas": len(active), "terminatingReplicas": ending}
    status |= {name: number for name, number in numbers.items() if number}
    status["observedGeneration"] = rs["metadata"]["generation"]
    if problem:
        reason, text = problem
        failure = {"type": "ReplicaFailure", "status": "True", "reason": reason, "message": text}
        status["conditions"] = [condition(rs, "ReplicaFailure") or {**failure, "lastTransitionTime": time_text(now)}]
    return status


def next_available(rs: Object, active: Sequence[Object], now: datetime) -> float | None:
    """Return the seconds until the next ready pod becomes available (minReadySeconds), if there is one."""
    waits = [_seconds_to_available(rs, pod, now) for pod in active]
    return min(filter(None, waits), default=None)
