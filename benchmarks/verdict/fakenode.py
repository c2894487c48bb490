"""A simulated node: the scheduler places pods on it, and it reports a status for them without running anything.

It does the part of a kubelet that the control plane sees: a ready Node, a renewed Lease, the status of each pod, and
the removal of deleted pods. Its taint keeps out every pod that does not tolerate it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import aiohttp
from api import Api, Object, Refused, collection_of, path_of

TAINT = "verdict.bench/simulated"
_LEASE_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_POD_CAPACITY = "500"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(pod: Object) -> Object:
    """The status of a pod that is up and ready."""
    now = _now()
    states = [
        {"name": container["name"], "image": container["image"], "imageID": container["image"], "ready": True,
         "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}}}
        for container in pod["spec"]["containers"]
    ]  # fmt: skip
    return {"phase": "Running", "startTime": now, "conditions": _conditions(now, up=True), "containerStatuses": states}


def pulling(pod: Object) -> Object:
    """The status of a pod whose image is still being pulled."""
    return _pending(pod, {"reason": "ContainerCreating"})


def unpullable(pod: Object) -> Object:
    """The status of a pod whose image does not exist, with the kubelet's message."""
    image = pod["spec"]["containers"][0]["image"]
    error = f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": {image}: not found'
    return _pending(pod, {"reason": "ErrImagePull", "message": f"rpc error: code = NotFound desc = {error}"})


def _pending(pod: Object, waiting: Object) -> Object:
    states = [
        {"name": container["name"], "image": container["image"], "imageID": "", "ready": False, "started": False,
         "restartCount": 0, "state": {"waiting": waiting}}
        for container in pod["spec"]["containers"]
    ]  # fmt: skip
    now = _now()
    return {"phase": "Pending", "startTime": now, "conditions": _conditions(now, up=False), "containerStatuses": states}


def _conditions(now: str, *, up: bool) -> list[Object]:
    conditions = {"PodReadyToStartContainers": True, "Initialized": True, "Ready": up, "ContainersReady": up,
            "PodScheduled": True}  # fmt: skip
    return [{"type": name, "status": str(on), "lastTransitionTime": now} for name, on in conditions.items()]


@dataclass
class FakeNode:
    """One node, from `start` to `stop`.

    Args:
        api: the cluster.
        name: the node's name, which is also its label `kubernetes.io/hostname`.
        taints: further taints, beside its own.
        behave: makes the status of a pod.
        reported: uids of the pods whose status was written.
    """

    api: Api
    name: str
    taints: Sequence[Object] = ()
    behave: Callable[[Object], Object] = running
    reported: set[str] = field(default_factory=set)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def start(self) -> None:
        """Register the node, and return when the scheduler may use it."""
        simulated = {"key": TAINT, "value": "true", "effect": "NoSchedule"}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
            "spec": {"taints": [simulated, *self.taints]},
        }
        await self.api.create(collection_of("v1", "Node"), node)
        capacity = {"cpu": "64", "memory": "64Gi", "pods": _POD_CAPACITY, "ephemeral-storage": "100Gi"}
        ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": _now(),
                 "lastTransitionTime": _now()}  # fmt: skip
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
        await self.api.patch(f"{path_of(node)}/status", {"status": status})
        self._tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._follow())]
        while any("node.kubernetes.io/" in taint["key"] for taint in await self._taints()):  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_SECONDS)

    async def stop(self) -> None:
        """Unregister the node; its pods must be gone before, because the garbage collector removes them late."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.api.delete(f"{collection_of('v1', 'Node')}/{self.name}")

    async def _taints(self) -> list[Object]:
        node = await self.api.get(f"{collection_of('v1', 'Node')}/{self.name}")
        return list(node["spec"].get("taints") or [])

    async def _renew(self) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
        }
        while True:
            now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
            spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now}
            with contextlib.suppress(Refused, aiohttp.ClientError, OSError):
                await self.api.apply({**lease, "spec": spec})
            await asyncio.sleep(_LEASE_SECONDS)

    async def _follow(self) -> None:
        path, on_this_node = collection_of("v1", "Pod"), f"spec.nodeName={self.name}"
        while True:
            with contextlib.suppress(Refused, aiohttp.ClientError, OSError):
                listed = await self.api.get(path, fieldSelector=on_this_node)
                for item in listed["items"]:
                    await self._report(item)
                async for change in self.api.watch(
                    path, listed["metadata"]["resourceVersion"], fieldSelector=on_this_node
                ):
                    if change["type"] in ("ADDED", "MODIFIED"):
                        await self._report(change["object"])
            await asyncio.sleep(_RETRY_SECONDS)

    async def _report(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = f"{collection_of('v1', 'Pod', metadata['namespace'])}/{metadata['name']}"
        if metadata.get("deletionTimestamp"):
            await self.api.delete(path, grace=0)
        elif metadata["uid"] not in self.reported:
            self.reported.add(metadata["uid"])
            with contextlib.suppress(Refused):  # the pod may have been deleted
                await self.api.patch(f"{path}/status", {"status": self.behave(pod)})
