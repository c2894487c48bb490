"""Plan one step of a Deployment: which ReplicaSets to write or delete, its status, and when to check again.

Pure; `now` is a parameter. This module decides the order of considerations; sizes are in `scaling`, names and numbers
of revisions in `revisions`, the status in `progress`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from prefect_cd_local.client import Object
from prefect_cd_local.controllers import progress, scaling
from prefect_cd_local.controllers.objects import annotations, condition, is_ending, uid_of
from prefect_cd_local.controllers.revisions import (
    DESIRED,
    MAXIMUM,
    REVISION,
    as_newest,
    beyond_history_limit,
    new_set,
    newest_of,
)

_GRACE = 1.0  # times in conditions are whole seconds, so the deadline is checked a second later
_TO_BE_MADE = ""  # in place of the uid of a ReplicaSet that does not exist yet


class Plan(NamedTuple):
    """What to do, in this order; a ReplicaSet without uid is to be created."""

    write: list[Object]
    remove: list[Object]
    status: Object
    revision: str = ""
    look_again: float | None = None


def plan(deployment: Object, sets: Sequence[Object], now: datetime, *, old_pods_run: bool) -> Plan:
    """Decide on one Deployment.

    Args:
        deployment: its last known state.
        sets: its ReplicaSets.
        now: the time.
        old_pods_run: a pod of an old revision may still be running, also a terminating one.
    """
    new = newest_of(deployment, sets)
    old = [rs for rs in sets if new is None or uid_of(rs) != uid_of(new)]
    status: Object = deployment.get("status") or {}
    if is_ending(deployment):
        return Plan([], [], progress.counters(deployment, status, sets, new, now))
    paused = bool(deployment["spec"].get("paused"))
    resizing = paused or scaling.is_resized(deployment, sets)
    if resizing:
        steps = scaling.proportional(deployment, new, old)
    elif scaling.is_rolling(deployment):
        steps = scaling.rolling(deployment, new, old)
    else:
        steps = scaling.recreating(deployment, new, old, old_pods_run=old_pods_run)
    done = not resizing and not steps and progress.is_complete(deployment, status)
    remove = beyond_history_limit(deployment, old) if paused or done else []

    status = progress.paused_or_resumed(deployment, now)
    sizes = {uid_of(step.rs) if step.rs else _TO_BE_MADE: step.replicas for step in steps}
    wishes = [_sized(deployment, rs, sizes.get(uid_of(rs))) for rs in old]
    newest = new or (new_set(deployment) if _TO_BE_MADE in sizes else None)
    if newest:
        newest = _sized(deployment, as_newest(deployment, newest, old), sizes.get(uid_of(new) if new else _TO_BE_MADE))
        wishes.append(newest)
        status = _found_or_created(deployment, status, newest, now)
    existing = {uid_of(rs): rs for rs in sets}
    write = [rs for rs in wishes if rs != existing.get(rs["metadata"].get("uid", _TO_BE_MADE))]
    revision = annotations(newest).get(REVISION, "") if newest else ""
    if resizing:
        return Plan(write, remove, progress.counters(deployment, status, wishes, newest, now), revision)
    status = progress.rollout_status(deployment, status, wishes, newest, now)
    left = None if progress.is_complete(deployment, status) else progress.seconds_to_deadline(deployment, status, now)
    return Plan(write, remove, status, revision, None if left is None else max(left, 0) + _GRACE)


def _sized(deployment: Object, rs: Object, size: int | None) -> Object:
    """Return a ReplicaSet in its next size, with the annotations that proportional scaling needs later."""
    if size is None:
        return rs
    goal, surge = scaling.wanted(deployment), scaling.slack(deployment)[0]
    noted = {**annotations(rs), DESIRED: str(goal), MAXIMUM: str(goal + surge)}
    return {**rs, "metadata": {**rs["metadata"], "annotations": noted}, "spec": {**rs["spec"], "replicas": size}}


def _found_or_created(deployment: Object, status: Object, newest: Object, now: datetime) -> Object:
    name = newest["metadata"]["name"]
    if "uid" not in newest["metadata"]:
        text = f'Created new replica set "{name}"'
        return progress.with_progress(deployment, status, "True", "NewReplicaSetCreated", text, now)
    if condition({"status": status}, "Progressing") is None:
        text = f'Found new replica set "{name}"'
        return progress.with_progress(deployment, status, "True", "FoundNewReplicaSet", text, now)
    return status
