"""One pod on the node, from its first status to its deletion: volumes, init containers, containers, the end.

Decides the order of things and writes the pod's status; what a container does is `container`'s, what the status says
is `status`'s. Sources: pod-lifecycle and init-containers below kubernetes.io/docs/concepts/workloads/pods.
"""

import asyncio
import shutil
import time

from prefect_cd.local.client import PODS, STRATEGIC, ApiError, Object, now_text
from prefect_cd.local.node import status
from prefect_cd.local.node.container import ContainerWorker
from prefect_cd.local.node.environment import ConfigError
from prefect_cd.local.node.logs import Log
from prefect_cd.local.node.parts import NodeParts, PodParts
from prefect_cd.local.node.volumes import Volumes

_VOLUMES_AGAIN = 30.0  # seconds until changed ConfigMaps and Secrets are written again
_FIRST_MOUNT_PAUSE, _LONGEST_MOUNT_PAUSE = 0.5, 122.0
_NOT_FOUND, _CONFLICT = 404, 409
_LEAST_GRACE = 1.0


class PodWorker:
    """A pod on its node.

    Args:
        node: what it shares with the other pods.
        pod: the object, bound to the node.
        address: its own address.
        loopback: what 127.0.0.1 is in it.
    """

    def __init__(self, node: NodeParts, pod: Object, address: str, loopback: str) -> None:
        folder = node.folder / "pods" / pod["metadata"]["uid"]
        volumes = Volumes(folder / "volumes", node.client, node.allocatable)
        spec = pod["spec"]
        grace = float(spec.get("terminationGracePeriodSeconds", 30))
        self._change = asyncio.Event()
        self._node = node
        self.parts = PodParts(node, pod, address, loopback, folder, volumes, grace, self._change.set)
        self._init = [ContainerWorker(self.parts, each, init=True) for each in spec.get("initContainers") or []]
        self._main = [ContainerWorker(self.parts, each, init=False) for each in spec["containers"]]
        self._workers = [*self._init, *self._main]
        self._sidecars = [each for each in reversed(self._init) if each.record.sidecar]  # the last one ends first
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

    # --- life ---

    def begin(self) -> None:
        """Let it live."""
        self.parts.folder.mkdir(parents=True, exist_ok=True)
        self._life = asyncio.create_task(self._live())
        self._writing = asyncio.create_task(self._write_status())
        self._change.set()

    def update(self, pod: Object) -> None:
        """The object changed."""
        self.parts.pod = pod
        self._change.set()
        if pod["metadata"].get("deletionTimestamp"):
            given = pod["metadata"].get("deletionGracePeriodSeconds")
            self.end(None if given is None else float(given))

    def end(self, grace: float | None = None) -> asyncio.Task[None]:
        """End what runs, once; the task is done when nothing of the pod is left."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(self.parts.grace if grace is None else grace))
        return self._ending

    async def kill(self) -> None:
        """End everything at once, and say nothing: the node ends."""
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
        await asyncio.wait([self._run(each) for each in self._main])
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
                said = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                self._node.recorder.say(self.parts.pod, "Warning", "FailedMount", said)
                good = False
        return good

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_VOLUMES_AGAIN)
            await self._all_volumes()

    # --- the end ---

    async def _end(self, grace: float) -> None:
        deadline = time.monotonic() + max(grace, _LEAST_GRACE)
        for worker in self._workers:
            worker.give_up()
        # One whose process has just ended by itself still has to write that down.
        running = [each for each in self._workers if each.record.running or (each.process and each.process.running)]
        waiting = [run for name, run in self._runs.items() if name not in [each.name for each in running]]
        await _cancelled(*filter(None, [self._life, self._refreshing, *waiting]))
        others = [each for each in running if not each.record.sidecar]
        await asyncio.gather(*(self._stop([each], deadline) for each in others))
        await self._stop(self._sidecars, deadline)  # they serve the others
        await asyncio.gather(*self._runs.values(), return_exceptions=True)  # they have written down how they ended
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
        init, main = ([each.record for each in group] for group in (self._init, self._main))
        generation = pod["metadata"].get("generation")
        phase = status.phase(pod["spec"].get("restartPolicy", "Always"), init, main, over=self._over)
        wanted = status.conditions(phase, init, main, sandbox=self._sandbox)
        result: Object = {
            "phase": phase,
            "conditions": status.merged(self._conditions, wanted, now_text(), generation),
            "hostIP": self._node.address,
            "hostIPs": [{"ip": self._node.address}],
            "startTime": self._started,
            "containerStatuses": [each.shown() for each in main],
        }
        if init:
            result["initContainerStatuses"] = [each.shown() for each in init]
        if generation:
            result["observedGeneration"] = generation
        if self._sandbox or self._written.get("podIP"):
            result.update({"podIP": address, "podIPs": [{"ip": address}]})
        return result

    # --- for the API server ---

    def log(self, container: str, *, previous: bool) -> Log:
        """The output of the present or the previous run.

        Raises:
            LookupError: there is none, in the kubelet's words.
        """
        worker = next(each for each in self._workers if each.name == container)
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
