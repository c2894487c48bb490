"""The node: it is there, takes pods, runs them, and serves their logs and ports.

Decides which pods there are and who looks after each; all else is asked of the modules beside it. It talks to the API
only. Source: kubernetes.io/docs/concepts/architecture/nodes. Of a node's two heartbeats it has the one in its status;
what it does not measure (pressure of memory, disk and processes) it does not report.
"""

import asyncio
import itertools
import logging
import os
import platform
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from prefect_cd.local.client import MERGE, NODES, PODS, SERVICES, ApiError, Client, Object, now_text
from prefect_cd.local.controllers.loop import Caches
from prefect_cd.local.node.balancer import Balancer, Lag
from prefect_cd.local.node.events import Recorder
from prefect_cd.local.node.names import Names
from prefect_cd.local.node.parts import NodeParts
from prefect_cd.local.node.pod import PodWorker
from prefect_cd.local.node.processes import Processes
from prefect_cd.local.node.pull import Puller
from prefect_cd.local.node.scheduler import Scheduler

VERSION = "v1.36.3+embedded"
ADDRESS = "127.0.0.1"
_HEARTBEAT = 10.0
_PODS_IN_A_BLOCK = 250
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_log = logging.getLogger("prefect_cd.local.node")


class Node:
    """The one node of the embedded cluster.

    Args:
        client: an open client.
        folder: where it keeps images, logs and volumes; what pods leave there is deleted with them.
        name: of the node.
        lag: until changes of endpoints take effect.
    """

    def __init__(self, client: Client, folder: Path, name: str = "embedded", lag: Lag | None = None) -> None:
        self.name = name
        self._client, self._folder = client, folder
        self._caches = Caches(client)
        self._pods, services = self._caches[PODS], self._caches[SERVICES]
        self._processes, self._recorder = Processes(), Recorder(client)
        self._balancer = Balancer(self._caches, ADDRESS, lag)
        self._scheduler = Scheduler(client, self._pods, lambda: self._object, self._recorder)
        self._object: Object = {}
        self._since = now_text()
        self._workers: dict[str, PodWorker] = {}
        self._numbers = itertools.cycle(range(1, _PODS_IN_A_BLOCK**2))
        names = Names(folder / "hosts", services)
        self._parts = NodeParts(
            client, ADDRESS, folder, self._processes, Puller(folder / "images"), self._recorder,
            services=lambda: list(services.all()), hosts_file=names.file, allocatable=_capacity(),
        )  # fmt: skip

    @property
    def banner(self) -> list[str]:
        """What a person should know about this node."""
        return self._processes.features.banner()

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Be a node until cancelled; then kill what runs.

        Args:
            ready: called when the node is in the API and takes pods.
        """
        shutil.rmtree(self._folder / "pods", ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        await self._processes.start()
        tasks: list[asyncio.Future[Any]] = []
        try:
            await self._register()
            self._pods.listen(self._look)
            loops = (*self._caches.loops(), self._recorder.run(), self._beat(), self._scheduler.run())
            tasks = [asyncio.ensure_future(each) for each in (*loops, self._balancer.run())]
            await self._caches.synced()
            if ready:
                ready()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(each.kill() for each in self._workers.values()))
            self._processes.stop()
            shutil.rmtree(self._folder / "pods", ignore_errors=True)

    # --- pods ---

    def _look(self, pod: Object) -> None:
        """Something happened to a pod."""
        meta, spec = pod["metadata"], pod["spec"]
        present = self._pods.get((meta["namespace"], meta["name"]))
        worker = self._workers.get(meta["uid"])
        self._scheduler.look()
        if present is None or present["metadata"]["uid"] != meta["uid"]:
            if worker:
                worker.end().add_done_callback(lambda _: self._workers.pop(meta["uid"], None))
        elif worker:
            worker.update(pod)
        elif spec.get("nodeName") == self.name:
            over = pod["status"].get("phase") in ("Succeeded", "Failed")
            if not over or meta.get("deletionTimestamp"):
                self._take(pod)

    def _take(self, pod: Object) -> None:
        high, low = divmod(next(self._numbers), _PODS_IN_A_BLOCK)
        worker = PodWorker(self._parts, pod, f"127.1.{high}.{low + 1}", f"127.3.{high}.{low + 1}")
        self._workers[pod["metadata"]["uid"]] = worker
        worker.begin()
        worker.update(pod)

    # --- the node's own object ---

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _ARCHITECTURE,
            "prefect-cd.dev/embedded": "true",
        }
        while True:
            try:
                if await self._client.find(NODES, self.name) is None:
                    await self._client.create(NODES, {"metadata": {"name": self.name, "labels": labels}})
                await self._report()
            except ApiError as error:
                _log.info("the node waits for the API server: %s", error)
                await asyncio.sleep(0.2)
            else:
                return

    async def _report(self) -> None:
        """Write how the node is; reads at the same time what others have done to it."""
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady",
                 "message": "kubelet is posting ready status", "lastHeartbeatTime": now_text(),
                 "lastTransitionTime": self._since}  # fmt: skip
        empty = dict.fromkeys(("kubeProxyVersion", "machineID", "systemUUID", "bootID"), "")
        status = {
            "addresses": [{"type": "InternalIP", "address": ADDRESS}, {"type": "Hostname", "address": self.name}],
            "capacity": _capacity(),
            "allocatable": _capacity(),
            "conditions": [ready],
            "nodeInfo": {
                **empty, "kubeletVersion": VERSION, "containerRuntimeVersion": "process://0.1",
                "operatingSystem": "linux", "architecture": _ARCHITECTURE, "kernelVersion": platform.release(),
                "osImage": "this machine (prefect-cd embedded: pods are processes)",
            },
        }  # fmt: skip
        self._object = await self._client.patch(NODES, self.name, None, {"status": status}, MERGE, "status")

    async def _beat(self) -> None:
        while True:
            try:
                await self._report()
            except ApiError as error:
                _log.info("no heartbeat: %s", error)
            self._scheduler.look()
            await asyncio.sleep(_HEARTBEAT)

    # --- what the API server asks for ---

    def _worker(self, namespace: str, pod: str) -> PodWorker:
        for worker in self._workers.values():
            meta = worker.parts.pod["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, pod):
                return worker
        raise LookupError(f'pod "{pod}" is not on this node')

    async def logs(
        self, namespace: str, pod: str, container: str, previous: bool, tail: int | None, follow: bool,  # noqa: FBT001
        **more: Any,  # noqa: ANN401
    ) -> AsyncIterator[bytes]:  # fmt: skip
        """What a container printed, line by line.

        Raises:
            LookupError: there is nothing to show, and why.
        """
        log = self._worker(namespace, pod).log(container, previous=previous)
        async for line in log.stream(tail=tail, follow=follow and not previous, **more):
            yield line

    async def connect(self, namespace: str, pod: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a port of a pod, also to one that listens on the pod's loopback only.

        Raises:
            LookupError: no such pod here.
            OSError: nobody listens.
        """
        parts = self._worker(namespace, pod).parts
        try:
            return await asyncio.open_connection(parts.loopback, port)
        except OSError:
            return await asyncio.open_connection(parts.address, port)


def _capacity() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    return {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": "110"}
