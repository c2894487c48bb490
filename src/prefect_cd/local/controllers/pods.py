"""What a ReplicaSet does about its pods: which to make, which to end first, what its status says.

Pure; `now` is a parameter. Rules: the documentation of ReplicaSets (scaling down, pod deletion cost) and KEP-2185.
"""

import math
from collections.abc import Sequence
from datetime import datetime

from prefect_cd.local.client import Object
from prefect_cd.local.controllers.objects import (
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
    """Make a pod of the ReplicaSet's template; the server gives it a name."""
    template = rs["spec"]["template"]
    copied = {key: text for key, text in template["metadata"].items() if key in {"labels", "annotations", "finalizers"}}
    named = {"generateName": f"{rs['metadata']['name']}-", "namespace": rs["metadata"]["namespace"]}
    return {"metadata": {**copied, **named, "ownerReferences": [reference_to(rs)]}, "spec": template["spec"]}


def first_to_go(pods: Sequence[Object], count: int, now: datetime) -> list[Object]:
    """Choose pods to end: those that serve least, then the youngest. There is one node, so no node is more crowded.

    Args:
        pods: the ReplicaSet's active pods.
        count: how many must go.
        now: ages are compared by order of magnitude, so that not always the same pods go.
    """
    return sorted(pods, key=lambda pod: _worth(pod, now))[:count]


def _worth(pod: Object, now: datetime) -> tuple[float | str, ...]:
    """Sort key: the smaller, the sooner it goes."""
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
    """Give the power of two of an age in nanoseconds."""
    age = (now - parse_time(since)).total_seconds() * 1e9 if since else 0
    return math.floor(math.log2(age)) if age > 1 else 0


def _seconds_to_available(rs: Object, pod: Object, now: datetime) -> float | None:
    """Give how long the pod must stay ready to be available: 0 when it is, None when it is not even ready."""
    least, since = rs["spec"].get("minReadySeconds", 0), _ready_since(pod)
    if not least:
        return 0 if is_ready(pod) else None
    return max(0.0, least - (now - parse_time(since)).total_seconds()) if since else None


def set_status(
    rs: Object, active: Sequence[Object], ending: int, problem: tuple[str, str] | None, now: datetime
) -> Object:
    """Give the ReplicaSet's status.

    Args:
        rs: the ReplicaSet.
        active: its pods that count.
        ending: how many more were asked to end and are still there.
        problem: reason and message when pods could not be made or ended.
        now: for availability and condition times.
    """
    worn = labels(rs["spec"]["template"]).items()
    numbers = {
        "fullyLabeledReplicas": sum(worn <= labels(pod).items() for pod in active),
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
    """Give the seconds until another pod has been ready for minReadySeconds, if any is on its way."""
    waits = [_seconds_to_available(rs, pod, now) for pod in active]
    return min(filter(None, waits), default=None)
