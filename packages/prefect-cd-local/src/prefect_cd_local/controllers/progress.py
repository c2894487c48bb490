"""The status of a Deployment: counters, and the conditions Available, Progressing and ReplicaFailure.

Pure; `now` is a parameter. Rules: the documentation of Deployment status; reasons and messages are those of the real
controller, which people and programs look for. Progress is any growth of updated, ready or available pods, or fewer old
ones; without it for progressDeadlineSeconds the condition becomes False, and nothing else happens.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from prefect_cd_local.client import Object
from prefect_cd_local.controllers.objects import condition, parse_time, time_text
from prefect_cd_local.controllers.scaling import counted, slack, total, wanted

Truth = Literal["True", "False", "Unknown"]

COMPLETE, TIMED_OUT, PAUSED = "NewReplicaSetAvailable", "ProgressDeadlineExceeded", "DeploymentPaused"
_NO_DEADLINE = 2**31 - 1


def has_deadline(deployment: Object) -> bool:
    """Return whether the Deployment reports progress at all."""
    return deployment["spec"].get("progressDeadlineSeconds") not in {None, _NO_DEADLINE}


def with_condition(
    status: Object, kind: str, truth: Truth, reason: str, message: str, now: datetime, *, anew: bool = False
) -> Object:
    """Return the status with a condition; one with the same status and reason stays as it is, unless it is renewed."""
    before = condition({"status": status}, kind) or {}
    if (before.get("status"), before.get("reason")) == (truth, reason) and not anew:
        return status
    entry = {"type": kind, "status": truth, "reason": reason, "message": message, "lastUpdateTime": time_text(now)}
    entry["lastTransitionTime"] = before["lastTransitionTime"] if before.get("status") == truth else time_text(now)
    return {**status, "conditions": [*_without(status, kind), entry]}


def _without(status: Object, kind: str) -> list[Object]:
    return [entry for entry in status.get("conditions") or [] if entry["type"] != kind]


def with_progress(deployment: Object, status: Object, truth: Truth, reason: str, text: str, now: datetime) -> Object:
    """Return the status with the condition Progressing, if the Deployment reports progress."""
    return with_condition(status, "Progressing", truth, reason, text, now) if has_deadline(deployment) else status


def paused_or_resumed(deployment: Object, now: datetime) -> Object:
    """Return the status with the reason paused or resumed; the deadline does not run while the Deployment is paused."""
    status: Object = deployment.get("status") or {}
    reason = (condition(deployment, "Progressing") or {}).get("reason")
    paused = bool(deployment["spec"].get("paused"))
    if reason == TIMED_OUT or paused == (reason == PAUSED):
        return status
    words = (PAUSED, "Deployment is paused") if paused else ("DeploymentResumed", "Deployment is resumed")
    return with_progress(deployment, status, "Unknown", *words, now)


def refused(deployment: Object, text: str, now: datetime) -> Object:
    """Return the status after the newest ReplicaSet could not be created."""
    return with_progress(deployment, deployment.get("status") or {}, "False", "ReplicaSetCreateError", text, now)


def counters(deployment: Object, before: Object, sets: Sequence[Object], new: Object | None, now: datetime) -> Object:
    """Return the status with new counters and the condition Available."""

    def every(name: str) -> int:
        return sum(counted(rs, name) for rs in sets)

    available = every("availableReplicas")
    numbers = {
        "replicas": every("replicas"),
        "updatedReplicas": counted(new, "replicas"),
        "readyReplicas": every("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, total(sets) - available),
    }
    status: Object = {
        "observedGeneration": deployment["metadata"]["generation"],
        **{name: number for name, number in numbers.items() if number},
        "terminatingReplicas": every("terminatingReplicas"),
        "conditions": before.get("conditions") or [],
    }
    if available >= wanted(deployment) - slack(deployment)[1]:
        text = "Deployment has minimum availability."
        return with_condition(status, "Available", "True", "MinimumReplicasAvailable", text, now)
    text = "Deployment does not have minimum availability."
    return with_condition(status, "Available", "False", "MinimumReplicasUnavailable", text, now)


def is_complete(deployment: Object, status: Object) -> bool:
    """Return whether all wanted pods are of the newest revision and available, and no other is left."""
    numbers = {status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")}
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return seen and numbers == {wanted(deployment)}


def has_progressed(before: Object, after: Object) -> bool:
    """Return whether the newer status is closer to completion."""

    def gained(name: str) -> int:
        return int(after.get(name, 0)) - int(before.get(name, 0))

    fewer_old = gained("updatedReplicas") > gained("replicas")
    return fewer_old or any(gained(name) > 0 for name in ("updatedReplicas", "readyReplicas", "availableReplicas"))


def seconds_to_deadline(deployment: Object, status: Object, now: datetime) -> float | None:
    """Return the time that is left for progress; None where the deadline does not run."""
    progressing = condition({"status": status}, "Progressing")
    if not has_deadline(deployment) or progressing is None or progressing["reason"] in {COMPLETE, TIMED_OUT}:
        return None
    deadline = timedelta(seconds=deployment["spec"]["progressDeadlineSeconds"])
    return (parse_time(progressing["lastUpdateTime"]) + deadline - now).total_seconds()


def rollout_status(
    deployment: Object, before: Object, sets: Sequence[Object], new: Object | None, now: datetime
) -> Object:
    """Return the status of a Deployment during or after a rollout."""
    status = counters(deployment, before, sets, new, now)
    if has_deadline(deployment):
        status = _progress(deployment, before, status, new, now)
    else:
        status["conditions"] = _without(status, "Progressing")
    return _failure(status, [*([new] if new else []), *sets], now)


def _progress(deployment: Object, before: Object, status: Object, new: Object | None, now: datetime) -> Object:
    progressing = condition({"status": status}, "Progressing")
    settled = status.get("replicas", 0) == status.get("updatedReplicas", 0)
    if settled and progressing and progressing["reason"] == COMPLETE:
        return status  # losing a pod does not restart a finished rollout
    who = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{deployment["metadata"]["name"]}"'
    if is_complete(deployment, status):
        text = f"{who} has successfully progressed."
        return with_condition(status, "Progressing", "True", COMPLETE, text, now)
    if has_progressed(before, status):
        text = f"{who} is progressing."
        return with_condition(status, "Progressing", "True", "ReplicaSetUpdated", text, now, anew=True)
    left = seconds_to_deadline(deployment, status, now)
    if left is not None and left < 0:
        return with_condition(status, "Progressing", "False", TIMED_OUT, f"{who} has timed out progressing.", now)
    return status


def _failure(status: Object, sets: Iterable[Object], now: datetime) -> Object:
    """Add the failure of the first ReplicaSet that cannot create its pods."""
    for failure in filter(None, (condition(rs, "ReplicaFailure") for rs in sets)):
        return with_condition(status, "ReplicaFailure", failure["status"], failure["reason"], failure["message"], now)
    return {**status, "conditions": _without(status, "ReplicaFailure")}
