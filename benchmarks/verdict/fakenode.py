"""A simulated node: the scheduler believes in it, and its pods are said to run without anything running.

It does of a kubelet what a control plane can see: a Node that is ready, a Lease that is renewed, the status of each
pod, and the end of the pods that are deleted. A taint keeps every pod away that does not ask for it.
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
_AGAIN_SECONDS = 0.2
_PODS = "500"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(pod: Object) -> Object:
    """The status of a pod that is up and ready."""
    now = _now()
    states = [
        {"name": each["name"], "image": each["image"], "imageID": each["image"], "ready": True, "started": True,
         "restartCount": 0, "state": {"running": {"startedAt": now}}}
        for each in pod["spec"]["containers"]
    ]  # fmt: skip
    return {"phase": "Running", "startTime": now, "conditions": _conditions(now, up=True), "containerStatuses": states}


def pulling(pod: Object) -> Object:
    """The status of a pod whose image is still being pulled."""
    return _pending(pod, {"reason": "ContainerCreating"})


def unpullable(pod: Object) -> Object:
    """The status of a pod whose image does not exist, in the kubelet's words."""
    image = pod["spec"]["containers"][0]["image"]
    said = f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": {image}: not found'
    return _pending(pod, {"reason": "ErrImagePull", "message": f"rpc error: code = NotFound desc = {said}"})


def _pending(pod: Object, waiting: Object) -> Object:
    states = [
        {"name": each["name"], "image": each["image"], "imageID": "", "ready": False, "started": False,
         "restartCount": 0, "state": {"waiting": waiting}}
        for each in pod["spec"]["containers"]
    ]  # fmt: skip
    now = _now()
    return {"phase": "Pending", "startTime": now, "conditions": _conditions(now, up=False), "containerStatuses": states}


def _conditions(now: str, *, up: bool) -> list[Object]:
    told = {"PodReadyToStartContainers": True, "Initialized": True, "Ready": up, "ContainersReady": up,
            "PodScheduled": True}  # fmt: skip
    return [{"type": name, "status": str(on), "lastTransitionTime": now} for name, on in told.items()]


@dataclass
class FakeNode:
    """One node, from `start` to `stop`.

    Args:
        api: the cluster.
        name: of the node; a label `kubernetes.io/hostname` has it, too.
        taints: beside the one that keeps everybody away.
        behave: the status of each pod.
    """

    api: Api
    name: str
    taints: Sequence[Object] = ()
    behave: Callable[[Object], Object] = running
    told: set[str] = field(default_factory=set)
    """The uids of the pods whose status was written."""
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def start(self) -> None:
        """Register, and return when the scheduler would take it."""
        simulated = {"key": TAINT, "value": "true", "effect": "NoSchedule"}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
            "spec": {"taints": [simulated, *self.taints]},
        }
        await self.api.create(collection_of("v1", "Node"), node)
        room = {"cpu": "64", "memory": "64Gi", "pods": _PODS, "ephemeral-storage": "100Gi"}
        ready = {"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": _now(),
                 "lastTransitionTime": _now()}  # fmt: skip
        status = {"capacity": room, "allocatable": room, "conditions": [ready]}
        await self.api.patch(f"{path_of(node)}/status", {"status": status})
        self._tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._follow())]
        while any("node.kubernetes.io/" in each["key"] for each in await self._taints()):  # noqa: ASYNC110
            await asyncio.sleep(_AGAIN_SECONDS)

    async def stop(self) -> None:
        """Unregister; its pods must be gone before, or the garbage collector takes its time with them."""
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
        path, mine = collection_of("v1", "Pod"), f"spec.nodeName={self.name}"
        while True:
            with contextlib.suppress(Refused, aiohttp.ClientError, OSError):
                listed = await self.api.get(path, fieldSelector=mine)
                for item in listed["items"]:
                    await self._tend(item)
                async for change in self.api.watch(path, listed["metadata"]["resourceVersion"], fieldSelector=mine):
                    if change["type"] in ("ADDED", "MODIFIED"):
                        await self._tend(change["object"])
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _tend(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = f"{collection_of('v1', 'Pod', metadata['namespace'])}/{metadata['name']}"
        if metadata.get("deletionTimestamp"):
            await self.api.delete(path, grace=0)
        elif metadata["uid"] not in self.told:
            self.told.add(metadata["uid"])
            with contextlib.suppress(Refused):  # it may be gone by now
                await self.api.patch(f"{path}/status", {"status": self.behave(pod)})
