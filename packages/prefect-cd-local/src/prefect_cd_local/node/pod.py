"""One pod on the node, from its first status to its deletion: volumes, init containers, containers, termination.

Decides the order, and writes the pod's status; `container` runs the containers, `status` computes the status. Sources:
pod-lifecycle and init-containers below kubernetes.io/docs/concepts/workloads/pods.
"""

import asyncio
import shutil
import time

from prefect_cd_local.client import PODS, STRATEGIC, ApiError, Object, now_text
from prefect_cd_local.node import status
from prefect_cd_local.node.container import ContainerWorker
from prefect_cd_local.node.context import NodeContext, PodContext
from prefect_cd_local.node.environment import ConfigError
from prefect_cd_local.node.logs import Log
from prefect_cd_local.node.volumes import Volumes

_VOLUMES_AGAIN = 30.0  # seconds until changed ConfigMaps and Secrets are written again
_FIRST_MOUNT_PAUSE, _LONGEST_MOUNT_PAUSE = 0.5, 122.0
_NOT_FOUND, _CONFLICT = 404, 409
_LEAST_GRACE = 1.0


class PodWorker:
    """Runs a pod.

    Args:
        node: what it shares with the other pods.
        pod: the object, bound to the node.
        address: its own address.
        loopback: the address that stands for 127.0.0.1 in it.
    """

    def __init__(self, node: NodeContext, pod: Object, address: str, loopback: str) -> None:
        folder = node.folder / "pods" / pod["metadata"]["uid"]
        volumes = Volumes(folder / "volumes", node.client, node.allocatable)
        spec = pod["spec"]
        grace = float(spec.get("terminationGracePeriodSeconds", 30))
        self._change = asyncio.Event()
        self._node = node
        self.parts = PodContext(node, pod, address, loopback, folder, volumes, grace, self._change.set)
        self._init = [
            ContainerWorker(self.parts, container, init=True) for container in spec.get("initContainers") or []
        ]
        self._main = [ContainerWorker(self.parts, container, init=False) for container in spec["containers"]]
        self._workers = [*self._init, *self._main]
        self._sidecars = [
            worker for worker in reversed(self._init) if worker.record.sidecar
        ]  # in reverse order, as they are stopped
        for worker in self._workers:
            worker.record.state = {"waiting": {"reason": "PodInitializing" if self._init else "ContainerCreating"}}
        self._sandbox = self._over = False
        self._started = now_text()
        self._written: Object = {}
        self._conditions: list[Object] = (pod.get("status") or {}).get("conditions") or []
        self._life: asyncio.Task[None] | None = None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    # --- life cycle ---

    def begin(self) -> None:
        """Start the pod."""
        self.parts.folder.mkdir(parents=True, exist_ok=True)
        self._life = asyncio.create_task(self._live())
        self._writing = asyncio.create_task(self._write_status())
        self._change.set()

    def update(self, pod: Object) -> None:
        """Use the new state of the object."""
        self.parts.pod = pod
        self._change.set()
        if pod["metadata"].get("deletionTimestamp"):
            grace = pod["metadata"].get("deletionGracePeriodSeconds")
            self.end(None if grace is None else float(grace))

    def end(self, grace: float | None = None) -> asyncio.Task[None]:
        """End the pod, once; the task is done when nothing of the pod is left."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(self.parts.grace if grace is None else grace))
        return self._ending

    async def kill(self) -> None:
        """Kill everything at once without writing a status, because the node ends."""
        tasks = [self._life, self._writing, self._refreshing, self._ending, *self._runs.values()]
        await _cancelled(*filter(None, tasks))
        for worker in self._workers:
            if worker.process:
                worker.process.close()

    async def _live(self) -> None:
        await self._mount()
        self._sandbox = True
        self._change.set()
        for worker in self._init:
            run = self._run(worker)
            if worker.record.sidecar:
                await worker.up.wait()
                continue
            await asyncio.wait([run])
            if worker.record.exit_code != 0:
                self._change.set()
                return  # restartPolicy Never
        await asyncio.wait([self._run(worker) for worker in self._main])
        await self._stop(self._sidecars, time.monotonic() + self.parts.grace)
        self._over = True
        self._change.set()

    def _run(self, worker: ContainerWorker) -> asyncio.Task[None]:
        self._runs[worker.name] = asyncio.create_task(worker.run())
        return self._runs[worker.name]

    async def _mount(self) -> None:
        pause = _FIRST_MOUNT_PAUSE
        while not await self._all_volumes():
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_MOUNT_PAUSE)
        if self.parts.pod["spec"].get("volumes"):
            self._refreshing = asyncio.create_task(self._refresh())

    async def _all_volumes(self) -> bool:
        good = True
        for volume in self.parts.pod["spec"].get("volumes") or []:
            try:
                await self.parts.volumes.provide(self.parts.pod, volume)
            except (ConfigError, ApiError) as error:
                message = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                self._node.recorder.event(self.parts.pod, "Warning", "FailedMount", message)
                good = False
        return good

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_VOLUMES_AGAIN)
            await self._all_volumes()

    # --- termination ---

    async def _end(self, grace: float) -> None:
        deadline = time.monotonic() + max(grace, _LEAST_GRACE)
        for worker in self._workers:
            worker.give_up()
        # A worker whose process has just ended by itself still has to write its status.
        running = [
            worker for worker in self._workers if worker.record.running or (worker.process and worker.process.running)
        ]
        waiting = [run for name, run in self._runs.items() if name not in [worker.name for worker in running]]
        await _cancelled(*filter(None, [self._life, self._refreshing, *waiting]))
        others = [worker for worker in running if not worker.record.sidecar]
        await asyncio.gather(*(self._stop([worker], deadline) for worker in others))
        await self._stop(self._sidecars, deadline)  # sidecars serve the other containers
        await asyncio.gather(*self._runs.values(), return_exceptions=True)  # until they have written their exit codes
        for worker in self._workers:
            if "waiting" in worker.record.state and worker.record.last:
                worker.record.state = worker.record.last
        self._over, self._sandbox = True, False
        await _cancelled(*filter(None, [self._writing]))
        await self._delete()
        shutil.rmtree(self.parts.folder, ignore_errors=True)

    async def _stop(self, workers: list[ContainerWorker], deadline: float) -> None:
        for worker in workers:
            worker.give_up()
            left = max(deadline - time.monotonic(), _LEAST_GRACE)
            await worker.stop(left, f"Stopping container {worker.name}")

    async def _delete(self) -> None:
        meta = self.parts.pod["metadata"]
        while True:
            try:
                await self._write_once()
                await self._node.client.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"], grace_seconds=0)
            except ApiError as error:
                if error.code not in (_NOT_FOUND, _CONFLICT):  # gone, or another pod of that name
                    await asyncio.sleep(1)
                    continue
            return

    # --- status ---

    async def _write_status(self) -> None:
        while True:
            await self._change.wait()
            self._change.clear()
            try:
                await self._write_once()
            except ApiError as error:
                if error.code == _NOT_FOUND:
                    return
                await asyncio.sleep(1)
                self._change.set()

    async def _write_once(self) -> None:
        wanted = self._status()
        if wanted != self._written:
            meta = self.parts.pod["metadata"]
            patch = {"metadata": {"uid": meta["uid"]}, "status": wanted}
            await self._node.client.patch(PODS, meta["name"], meta["namespace"], patch, STRATEGIC, "status")
            self._written, self._conditions = wanted, wanted["conditions"]

    def _status(self) -> Object:
        pod, address = self.parts.pod, self.parts.address
        init, main = ([worker.record for worker in group] for group in (self._init, self._main))
        generation = pod["metadata"].get("generation")
        phase = status.phase(pod["spec"].get("restartPolicy", "Always"), init, main, over=self._over)
        wanted = status.conditions(phase, init, main, sandbox=self._sandbox)
        result: Object = {
            "phase": phase,
            "conditions": status.merged(self._conditions, wanted, now_text(), generation),
            "hostIP": self._node.address,
            "hostIPs": [{"ip": self._node.address}],
            "startTime": self._started,
            "containerStatuses": [record.shown() for record in main],
        }
        if init:
            result["initContainerStatuses"] = [record.shown() for record in init]
        if generation:
            result["observedGeneration"] = generation
        if self._sandbox or self._written.get("podIP"):
            result.update({"podIP": address, "podIPs": [{"ip": address}]})
        return result

    # --- for the API server ---

    def log(self, container: str, *, previous: bool) -> Log:
        """Return the log of the present or the previous run.

        Raises:
            LookupError: there is none, with the kubelet's message.
        """
        worker = next(candidate for candidate in self._workers if candidate.name == container)
        name = self.parts.pod["metadata"]["name"]
        if worker.logs[1:] if previous else worker.logs:
            return worker.logs[-2 if previous else -1]
        if previous:
            raise LookupError(f'previous terminated container "{container}" in pod "{name}" not found')
        waiting = worker.record.state.get("waiting", {})
        reason = waiting.get("reason", "ContainerCreating")
        why = f"waiting to start: {waiting.get('message') or reason}"
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            why = "trying and failing to pull image"
        raise LookupError(f'container "{container}" in pod "{name}" is {why}')


async def _cancelled(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
