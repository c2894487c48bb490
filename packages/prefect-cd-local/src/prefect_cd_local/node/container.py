"""One container of a pod, run after run: configuration, process, probes, restarts with back-off.

Decides what happens next to a container, and its status meanwhile. Delays that users notice are those of a kubelet:
restarts back off 10 s, doubled up to 5 min. Sources: pod-lifecycle and container-lifecycle-hooks below
kubernetes.io/docs/concepts; messages were recorded on Kubernetes 1.36.
"""

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import anyio

from prefect_cd_local.client import Object, now_text
from prefect_cd_local.node.container_spec import specify
from prefect_cd_local.node.context import PodContext
from prefect_cd_local.node.environment import ConfigError
from prefect_cd_local.node.image import ImageOf
from prefect_cd_local.node.logs import Log
from prefect_cd_local.node.probes import ProbeResult, run_probe, verdicts
from prefect_cd_local.node.processes import Container, Spec, StartError
from prefect_cd_local.node.pull import Image
from prefect_cd_local.node.status import Record, terminated

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 300.0
_RETRY_SECONDS = 10.0  # between two checks of missing objects
_DETECTION_SECONDS = 1.0  # until a kubelet notices that a container has ended
_LEAST_GRACE = 2.0
_MESSAGE_BYTES, _LOG_LINES, _LOG_BYTES = 4096, 80, 2048
_COULD_NOT_START = 128
_OCI = ("failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        "runc create failed: unable to start container process: error during container init: ")  # fmt: skip
_log = logging.getLogger("prefect_cd_local.node")


class ContainerWorker:
    """Runs a container of a pod.

    Args:
        parts: of its pod.
        spec: its specification.
        init: it is one of the init containers.
    """

    def __init__(self, parts: PodContext, spec: Object, *, init: bool) -> None:
        sidecar = init and spec.get("restartPolicy") == "Always"
        self.name: str = spec["name"]
        self.record = Record(self.name, spec["image"], {}, sidecar=sidecar)
        self.logs: list[Log] = []
        self.up = asyncio.Event()
        self.process: Container | None = None
        policy = parts.pod["spec"].get("restartPolicy", "Always")
        self._policy = "Always" if sidecar else ("OnFailure" if init and policy == "Always" else policy)
        self._parts, self._spec, self._init = parts, spec, init
        self._images = ImageOf(parts.node.puller, spec, self._say, self._wait)
        self._restart_delay = 0.0
        self._stopping = False
        self._signal = signal.SIGTERM

    # --- runs ---

    async def run(self) -> None:
        """Run the container until it is not to be restarted."""
        while True:
            image = await self._images.bring()
            spec = await self._specification(image)
            began = time.monotonic()
            code = await self._run_once(spec, image, began)
            ended = time.monotonic()
            if self._policy == "Never" or (self._policy == "OnFailure" and code == 0) or self._stopping:
                return
            await asyncio.sleep(_DETECTION_SECONDS)
            await self._back_off(ended, long_run=ended - began > 2 * _LONGEST_DELAY)

    async def _run_once(self, spec: Spec, image: Image, began: float) -> int:
        """Run its process once, from start to end; returns the exit code."""
        self.record.begin(f"process://{secrets.token_hex(32)}", image.identity)
        self._say("Normal", "Created", "Container created")
        log = Log(self._parts.folder / "logs" / self.name / f"{self.record.restarts}.log")
        self.logs = [*self.logs[-1:], log]
        try:
            process = self.process = await self._parts.node.processes.run(spec, log)
        except StartError as error:
            return self._not_started(str(error))
        started = now_text()
        self._say("Normal", "Started", "Container started")
        watching = asyncio.ensure_future(self._watch(process, started, began))
        try:
            code = await process.wait()
        finally:
            watching.cancel()
            for problem in await asyncio.gather(watching, return_exceptions=True):
                if isinstance(problem, Exception):
                    _log.error("probes of %s in pod %s broke", self.name, self._parts, exc_info=problem)
        good = self._init and not self.record.sidecar and code == 0
        message = self._last_words(code, Path(spec.binds[0].source) if spec.binds else None)
        self._show(terminated(code, started, now_text(), self.record.identity, message=message), ready=good)
        return code

    def _not_started(self, why: str) -> int:
        message = f"{_OCI}{why}" if why.startswith("exec:") else f"failed to create containerd task: {why}"
        self._say("Warning", "Failed", f"Error: {message}")
        self.record.last = terminated(
            _COULD_NOT_START, "", now_text(), self.record.identity, reason="StartError", message=message
        )
        self._show({"waiting": {"reason": "RunContainerError", "message": message}})
        return _COULD_NOT_START

    def _last_words(self, code: int, note: Path | None) -> str:
        text = ""
        if note and note.name == f"{self.name}-termination":
            text = note.read_bytes()[:_MESSAGE_BYTES].decode(errors="replace")
            note.write_bytes(b"")
        if not text and code and self._spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = self.logs[-1].end(_LOG_LINES)[-_LOG_BYTES:]
        return text

    async def _back_off(self, ended: float, *, long_run: bool) -> None:
        """Wait as long as the kubelet would, and show it in the status."""
        delay = 0.0 if long_run else self._restart_delay
        self._restart_delay = min(delay * 2, _LONGEST_DELAY) or _FIRST_DELAY
        left = ended + delay - time.monotonic()
        if left > 0:
            self.record.last = self.record.state if "terminated" in self.record.state else self.record.last
            self._say("Warning", "BackOff", f"Back-off restarting failed container {self.name} in pod {self._parts}")
            message = f"back-off {_duration(delay)} restarting failed container={self.name} pod={self._parts}"
            await self._wait("CrashLoopBackOff", message, left)

    # --- preparing a run ---

    async def _specification(self, image: Image) -> Spec:
        wanted = image.config.get("StopSignal") or "SIGTERM"
        self._signal = getattr(signal, wanted, signal.SIGTERM)
        while True:
            try:
                return await specify(self._parts, self._spec, image)
            except ConfigError as error:
                self._say("Warning", "Failed", f"Error: {error}")
                await self._wait("CreateContainerConfigError", str(error), _RETRY_SECONDS)

    # --- probes ---

    async def _watch(self, process: Container, started: str, began: float) -> None:
        """Run the postStart hook, then the probes; they may end the process."""
        hook = (self._spec.get("lifecycle") or {}).get("postStart")
        if hook and not (answer := await self._ask(hook, process, _LONGEST_DELAY)).good:
            prefix = f'lifecycle hook for Container "{self.name}" in Pod "{self._parts}" failed - error: '
            self._say("Warning", "FailedPostStartHook", "PostStartHook failed")
            self._show({"waiting": {"reason": "PostStartHookError", "message": prefix + answer.message.strip()}})
            await self.stop(self._parts.grace, "FailedPostStartHook")
            return
        self._show({"running": {"startedAt": started}})
        if not await self._probe_until_failure("startup", process, began, once=True):
            return
        self.record.started, self.record.ready = True, "readinessProbe" not in self._spec
        self.up.set()
        self._parts.changed()
        await asyncio.gather(self._readiness(process, began), self._probe_until_failure("liveness", process, began))

    async def _probe_until_failure(self, kind: str, process: Container, began: float, *, once: bool = False) -> bool:
        """Probe until it fails, and end the process then; with `once`, return after the first success."""
        async for good in self._verdicts(kind, process, began):
            if good and once:
                return True
            if not good and not self._stopping:
                grace = self._spec[f"{kind}Probe"].get("terminationGracePeriodSeconds") or self._parts.grace
                await self.stop(grace, f"Container {self.name} failed {kind} probe, will be restarted")
                return False
        return True

    async def _readiness(self, process: Container, began: float) -> None:
        async for good in self._verdicts("readiness", process, began):
            if self.record.ready != good:
                self.record.ready = good
                self._parts.changed()

    async def _verdicts(self, kind: str, process: Container, began: float) -> AsyncIterator[bool]:
        probe = self._spec.get(f"{kind}Probe")
        if not probe:
            return

        def failed(message: str) -> None:
            if not self._stopping or kind == "readiness":
                self._say("Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {message}")

        def once(seconds: float) -> Awaitable[ProbeResult]:
            return self._ask(probe, process, seconds)

        async for good in verdicts(probe, once, failed, began):
            yield good

    async def _ask(self, how: Object, process: Container, seconds: float) -> ProbeResult:
        return await run_probe(how, self._spec, process, self._parts.address, seconds)

    # --- termination ---

    async def stop(self, grace: float, message: str) -> None:
        """End the process: preStop, the stop signal, and SIGKILL at the end of the grace period."""
        process = self.process
        if process is None or not process.running:
            return
        self._say("Normal", "Killing", message)
        deadline = time.monotonic() + grace
        hook = (self._spec.get("lifecycle") or {}).get("preStop")
        if hook:
            with anyio.move_on_after(grace):
                if not (await self._ask(hook, process, grace)).good:
                    self._say("Warning", "FailedPreStopHook", "PreStopHook failed")
        process.signal(self._signal)
        with anyio.move_on_after(max(deadline - time.monotonic(), _LEAST_GRACE if hook else 0)) as late:
            await process.wait()
        if late.cancelled_caught:
            process.signal(signal.SIGKILL)
            await process.wait()

    def give_up(self) -> None:
        """Start nothing any more."""
        self._stopping = True

    def _say(self, kind: str, reason: str, message: str) -> None:
        field = f"spec.{'initContainers' if self._init else 'containers'}{{{self.name}}}"
        self._parts.node.recorder.event(self._parts.pod, kind, reason, message, field)

    async def _wait(self, reason: str, message: str, seconds: float) -> None:
        self._show({"waiting": {"reason": reason, "message": message}})
        await asyncio.sleep(seconds)

    def _show(self, state: Object, *, ready: bool = False) -> None:
        self.record.state, self.record.ready, self.record.started = state, ready, False
        self._parts.changed()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
