"""The namespace of one copy of a scenario: the objects that exist before, and the changes during the rollout."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from api import CLUSTER_WIDE, Api, Object, Refused, collection_of, path_of
from fakenode import FakeNode
from scenario import Scenario, Step

KINDS = {
    "deployment": ("apps/v1", "Deployment"),
    "statefulset": ("apps/v1", "StatefulSet"),
    "daemonset": ("apps/v1", "DaemonSet"),
    "job": ("batch/v1", "Job"),
    "pod": ("v1", "Pod"),
    "configmap": ("v1", "ConfigMap"),
    "service": ("v1", "Service"),
    "resourcequota": ("v1", "ResourceQuota"),
    "node": ("v1", "Node"),
}
_POLL_SECONDS = 0.25
_EARLIER_SECONDS = 60
_POLICY_SECONDS = 4.0
"""A new policy or webhook takes effect in the API server after a delay."""


@dataclass
class Stage:
    """One namespace, from `prepare` to `close`."""

    api: Api
    scenario: Scenario
    namespace: str
    _nodes: list[FakeNode] = field(default_factory=list)

    async def prepare(self) -> None:
        """Create the namespace, its simulated node, and the objects that exist before."""
        labels = {"verdict.bench/scenario": self.scenario.name}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        await self.api.apply(namespace)
        await self._until_exists(f"{collection_of('v1', 'ServiceAccount', self.namespace)}/default")
        if self.scenario.node is not None:
            self._nodes.append(FakeNode(self.api, f"{self.namespace}-node", self.scenario.node))
            await self._nodes[0].start()
        for item in self.scenario.existing:
            await self.api.apply(item)
        if any(item["kind"].startswith("Validating") for item in self.scenario.existing):
            await asyncio.sleep(_POLICY_SECONDS)

    async def apply(self, manifests: Sequence[Object]) -> None:
        """Write the manifests in their order."""
        for item in manifests:
            await self.api.apply(item)

    async def until_up(self) -> None:
        """Wait for the earlier version: until its pods are ready, or for the seconds that its header gives."""
        earlier = self.scenario.earlier
        if earlier and earlier.until is not None:
            await asyncio.sleep(earlier.until)
            return
        give_up = time.monotonic() + _EARLIER_SECONDS
        while not is_up(await self.api.get(self._path(self.scenario.watch))):
            if time.monotonic() > give_up:
                raise TimeoutError(f"{self.scenario.name}: the earlier version did not become ready")
            await asyncio.sleep(_POLL_SECONDS)

    async def until_applied(self, generation: int) -> None:
        """Wait until the workload has a newer generation, which Helm's upgrade gives it."""
        while await self.generation() <= generation:  # noqa: ASYNC110  a condition in the API server has no local event
            await asyncio.sleep(_POLL_SECONDS)

    async def generation(self) -> int:
        """The generation of the workload; 0 while it does not exist."""
        try:
            return int((await self.api.get(self._path(self.scenario.watch)))["metadata"]["generation"])
        except Refused:
            return 0

    async def play(self, applied: float) -> None:
        """Make the scenario's changes after the apply, each at its time."""
        for step in sorted(self.scenario.steps, key=lambda step: step.after):
            await asyncio.sleep(max(applied + step.after - time.time(), 0))
            await self._do(step)

    async def _do(self, step: Step) -> None:
        match step.verb:
            case "apply":
                await self.api.apply(step.target)
            case "delete":
                await self.api.delete(self._path(step.target))
            case "patch":
                await self.api.patch(self._path(step.target), step.change)
            case _:
                await self._evict(step.target)

    async def _evict(self, label: str) -> None:
        pods = await self.api.get(collection_of("v1", "Pod", self.namespace), labelSelector=label)
        name = min(pod["metadata"]["name"] for pod in pods["items"])
        path = f"{collection_of('v1', 'Pod', self.namespace)}/{name}/eviction"
        metadata = {"name": name, "namespace": self.namespace}
        await self.api.create(path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})

    async def close(self) -> None:
        """Delete everything; the deletion of the namespace is not waited for."""
        with contextlib.suppress(Refused):
            await self.api.delete(f"{collection_of('v1', 'Namespace')}/{self.namespace}")
            for item in self.scenario.existing:
                if item["kind"] in CLUSTER_WIDE - {"Namespace", "Node"}:
                    await self.api.delete(path_of(item))
        for node in self._nodes:
            await self._until_empty()
            await node.stop()

    async def _until_empty(self) -> None:
        for _ in range(40):
            if not (await self.api.get(collection_of("v1", "Pod", self.namespace)))["items"]:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _until_exists(self, path: str) -> None:
        while True:
            try:
                await self.api.get(path)
            except Refused:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return

    def _path(self, target: str) -> str:
        kind, _, name = target.partition("/")
        return f"{collection_of(*KINDS[kind], self.namespace)}/{name}"


def is_up(workload: Object) -> bool:
    """Whether all pods of the workload are new and ready by its own status."""
    status, metadata, spec = workload.get("status") or {}, workload["metadata"], workload["spec"]
    if status.get("observedGeneration", 0) < metadata["generation"]:
        return False
    if workload["kind"] == "DaemonSet":
        return bool(status.get("numberAvailable", 0) >= status.get("desiredNumberScheduled", 0) > 0)
    wanted = spec.get("replicas", 1)
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    return all(status.get(count, 0) == wanted for count in counts)
