"""Decides whether the node accepts a pod, with the real scheduler's messages. There is one node only.

Supported: nodeSelector, unschedulable nodes, taints, volume claims (always refused: there are no volumes), requests of
CPU and memory. Not supported: affinity, topology spread, priorities. The messages were recorded on Kubernetes 1.36.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from decimal import Decimal

import anyio

from prefect_cd_local.client import PODS, STRATEGIC, ApiError, Client, Object, now_text
from prefect_cd_local.controllers.loop import Cache
from prefect_cd_local.node.environment import quantity
from prefect_cd_local.node.events import Recorder

_NO_HELP = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
_NO_VICTIM = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
_NOT_READY = "node.kubernetes.io/not-ready"  # set by admission until a controller removes it, which may not exist
_RETRY_SECONDS = 30.0
_NAME = "default-scheduler"
_log = logging.getLogger("prefect_cd_local.node")


class Scheduler:
    """Binds pods to the one node, or records why not.

    Args:
        client: an open client.
        pods: all pods.
        node: returns the last known state of the node.
        recorder: writes events.
    """

    def __init__(self, client: Client, pods: Cache, node: Callable[[], Object], recorder: Recorder) -> None:
        self._client, self._pods, self._node, self._recorder = client, pods, node, recorder
        self._changed = asyncio.Event()
        self._bound: set[str] = set()
        self._said: dict[str, str] = {}

    def wake(self) -> None:
        """Check the pods again: there is a new one, or more room."""
        self._changed.set()

    async def run(self) -> None:
        """Schedule pods until cancelled."""
        while True:
            with anyio.move_on_after(_RETRY_SECONDS):
                await self._changed.wait()
            self._changed.clear()
            for pod in list(self._pods.all()):
                if _is_ours(pod):
                    try:
                        await self._place(pod)
                    except ApiError as error:
                        meta = pod["metadata"]
                        _log.info("pod %s/%s is not placed: %s", meta["namespace"], meta["name"], error)

    async def _place(self, pod: Object) -> None:
        meta, node = pod["metadata"], self._node()
        if meta["uid"] in self._bound:  # the watch has not reported it yet
            return
        mine = [other for other in self._pods.all() if other["spec"].get("nodeName") == node["metadata"]["name"] and
                other["status"].get("phase") not in ("Succeeded", "Failed")]  # fmt: skip
        why = why_not(pod, node, mine)
        if why is None:
            await self._client.bind(pod, node["metadata"]["name"])
            self._bound.add(meta["uid"])
            message = f"Successfully assigned {meta['namespace']}/{meta['name']} to {node['metadata']['name']}"
            self._recorder.event(pod, "Normal", "Scheduled", message, component=_NAME)
        elif self._said.get(meta["uid"]) != why:
            self._said[meta["uid"]] = why
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
                         "lastProbeTime": None, "lastTransitionTime": now_text()}  # fmt: skip
            patch = {"status": {"conditions": [condition]}}
            await self._client.patch(PODS, meta["name"], meta["namespace"], patch, STRATEGIC, "status")
            self._recorder.event(pod, "Warning", "FailedScheduling", why, component=_NAME)


def _is_ours(pod: Object) -> bool:
    """Return whether a pod waits for this scheduler: no node, no scheduling gate, and no other scheduler's name."""
    spec, ends = pod["spec"], pod["metadata"].get("deletionTimestamp")
    waits = not (spec.get("nodeName") or spec.get("schedulingGates") or ends)
    return waits and spec.get("schedulerName", _NAME) == _NAME


def why_not(pod: Object, node: Object, others: Sequence[Object]) -> str | None:
    """Return why the node does not accept the pod; None when it does.

    Args:
        pod: without a node.
        node: the only one.
        others: the pods that it has.
    """
    spec = pod["spec"]
    for volume in spec.get("volumes") or []:
        if claim := volume.get("persistentVolumeClaim"):
            return f'0/1 nodes are available: persistentvolumeclaim "{claim["claimName"]}" not found. not found'
    if node["spec"].get("unschedulable"):
        return _sentence("1 node(s) were unschedulable", _NO_HELP)
    if any(not _tolerated(taint, spec.get("tolerations") or []) for taint in node["spec"].get("taints") or []):
        return _sentence("1 node(s) had untolerated taint(s)", _NO_HELP)
    if not (spec.get("nodeSelector") or {}).items() <= (node["metadata"].get("labels") or {}).items():
        return _sentence("1 node(s) didn't match Pod's node affinity/selector", _NO_HELP)
    all_of_it = {kind: quantity(node["status"]["allocatable"][kind]) for kind in ("cpu", "memory")}
    requested = {kind: _request(pod, kind) for kind in all_of_it}
    taken = {kind: sum((_request(other, kind) for other in others), Decimal(0)) for kind in all_of_it}
    missing = [kind for kind in all_of_it if requested[kind] > max(all_of_it[kind] - taken[kind], Decimal(0))]
    if not missing:
        return None
    never = any(requested[kind] > all_of_it[kind] for kind in missing)  # not even on an empty node
    return _sentence(", ".join(f"1 Insufficient {kind}" for kind in missing), _NO_HELP if never else _NO_VICTIM)


def _sentence(why: str, preemption: str) -> str:
    return f"0/1 nodes are available: {why}. no new claims to deallocate, {preemption}"


def _tolerated(taint: Object, tolerations: list[Object]) -> bool:
    if taint["effect"] == "PreferNoSchedule" or taint["key"] == _NOT_READY:
        return True
    return any(
        toleration.get("effect") in (None, "", taint["effect"])
        and toleration.get("key") in (None, "", taint["key"])
        and (toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", ""))
        for toleration in tolerations
    )


def _request(pod: Object, kind: str) -> Decimal:
    requests = [(container.get("resources") or {}).get("requests") or {} for container in pod["spec"]["containers"]]
    return sum((quantity(request.get(kind, "0")) for request in requests), Decimal(0))
