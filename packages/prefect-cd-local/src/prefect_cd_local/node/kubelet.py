"""The node: registers itself, runs pods, and serves their logs and ports.

Decides which pods run and which worker handles each; other modules do the rest. It uses the API only. Source:
kubernetes.io/docs/concepts/architecture/nodes. Of a node's two heartbeats it has the one in its status; it reports no
pressure conditions, because it does not measure memory, disk and processes.
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

from prefect_cd_local.client import MERGE, NODES, PODS, SERVICES, ApiError, Client, Object, now_text
from prefect_cd_local.controllers.loop import Caches
from prefect_cd_local.network import Network
from prefect_cd_local.node.context import NodeContext
from prefect_cd_local.node.events import Recorder
from prefect_cd_local.node.hosts_files import HostsFiles
from prefect_cd_local.node.pod import PodWorker
from prefect_cd_local.node.processes import Processes
from prefect_cd_local.node.pull import Puller
from prefect_cd_local.node.scheduler import Scheduler
from prefect_cd_local.node.service_proxy import Lag, ServiceProxy

VERSION = "v1.36.3+embedded"
_HEARTBEAT = 10.0
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_log = logging.getLogger("prefect_cd_local.node")


class Node:
    """The one node of the embedded cluster.

    Args:
        client: an open client.
        folder: for images, logs and volumes; what pods leave there is deleted with them.
        network: the addresses of the cluster.
        name: of the node.
        lag: until changes of endpoints take effect.
    """

    def __init__(
        self, client: Client, folder: Path, network: Network, name: str = "embedded", lag: Lag | None = None
    ) -> None:
        self.name, self._network = name, network
        self._client, self._folder = client, folder
        self._caches = Caches(client)
        self._pods, services = self._caches[PODS], self._caches[SERVICES]
        self._processes, self._recorder = Processes(), Recorder(client)
        self._service_proxy = ServiceProxy(client, self._caches, self._recorder, network.node, lag)
        self._scheduler = Scheduler(client, self._pods, lambda: self._object, self._recorder)
        self._object: Object = {}
        self._since = now_text()
        self._workers: dict[str, PodWorker] = {}
        self._numbers = itertools.count()
        names = HostsFiles(folder / "hosts", services)
        self._parts = NodeContext(
            client, network.node, folder, self._processes, Puller(folder / "images"), self._recorder,
            services=lambda: list(services.all()), hosts_file=names.file, allocatable=_capacity(),
        )  # fmt: skip

    @property
    def banner(self) -> list[str]:
        """Sentences about the limits of this node, for the user."""
        addresses = f"pods and Services have addresses in {self._network.block}, node ports are on {self._network.node}"
        return [*self._processes.features.banner(), addresses]

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Run the node until cancelled; then kill its pods.

        Args:
            ready: called when the node is in the API and accepts pods.
        """
        shutil.rmtree(self._folder / "pods", ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        await self._processes.start()
        tasks: list[asyncio.Future[Any]] = []
        try:
            await self._register()
            self._pods.listen(self._pod_changed)
            loops = (*self._caches.loops(), self._recorder.run(), self._heartbeat_loop(), self._scheduler.run())
            tasks = [asyncio.ensure_future(loop) for loop in (*loops, self._service_proxy.run())]
            await self._caches.synced()
            if ready:
                ready()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(worker.kill() for worker in self._workers.values()))
            self._processes.stop()
            shutil.rmtree(self._folder / "pods", ignore_errors=True)

    # --- pods ---

    def _pod_changed(self, pod: Object) -> None:
        """Start, update or end the worker of a pod."""
        meta, spec = pod["metadata"], pod["spec"]
        present = self._pods.get((meta["namespace"], meta["name"]))
        worker = self._workers.get(meta["uid"])
        self._scheduler.wake()
        if present is None or present["metadata"]["uid"] != meta["uid"]:
            if worker:
                worker.end().add_done_callback(lambda _: self._workers.pop(meta["uid"], None))
        elif worker:
            worker.update(pod)
        elif spec.get("nodeName") == self.name:
            over = pod["status"].get("phase") in ("Succeeded", "Failed")
            if not over or meta.get("deletionTimestamp"):
                self._start_pod(pod)

    def _start_pod(self, pod: Object) -> None:
        worker = PodWorker(self._parts, pod, *self._network.pod(next(self._numbers)))
        self._workers[pod["metadata"]["uid"]] = worker
        worker.begin()
        worker.update(pod)

    # --- the Node object ---

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
        """Write the node's status; the answer has what others have changed."""
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady",
                 "message": "kubelet is posting ready status", "lastHeartbeatTime": now_text(),
                 "lastTransitionTime": self._since}  # fmt: skip
        empty = dict.fromkeys(("kubeProxyVersion", "machineID", "systemUUID", "bootID"), "")
        status = {
            "addresses": [
                {"type": "InternalIP", "address": self._network.node}, {"type": "Hostname", "address": self.name},
            ],
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

    async def _heartbeat_loop(self) -> None:
        while True:
            try:
                await self._report()
            except ApiError as error:
                _log.info("no heartbeat: %s", error)
            self._scheduler.wake()
            await asyncio.sleep(_HEARTBEAT)

    # --- for the API server ---

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
        """Yield the output of a container, line by line.

        Raises:
            LookupError: there is no log; the text says why.
        """
        log = self._worker(namespace, pod).log(container, previous=previous)
        async for line in log.stream(tail=tail, follow=follow and not previous, **more):
            yield line

    async def connect(self, namespace: str, pod: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port of a pod, also to one on the pod's loopback.

        Raises:
            LookupError: no such pod here.
            OSError: nothing listens there.
        """
        parts = self._worker(namespace, pod).parts
        try:
            return await asyncio.open_connection(parts.loopback, port)
        except OSError:
            return await asyncio.open_connection(parts.address, port)


def _capacity() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    return {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": "110"}
