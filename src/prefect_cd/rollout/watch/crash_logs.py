"""Logs of runs that failed: each is read once, and no other logs are read. Secrets in them are masked."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio

from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.rollout.assess import Log
from prefect_cd.rollout.diagnosis import Container, containers, is_disrupted
from prefect_cd.rollout.watch.secret_values import SecretValues

_LINES = 30
_MAX_CHARACTERS = 4000
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.3
_MAX_CONTAINERS = 5
"""Of one workload: if many crash alike, the logs of a few are enough."""
_PATIENCE_SECONDS = 5
"""For a log, when nothing else has to be waited for."""
_Run = tuple[str, str, int]
"""The pod's uid, the container's name, and how many of its runs have ended."""


@dataclass
class CrashLogs:
    """Logs of failed runs that have been read, or are being read."""

    cluster: Cluster
    secrets: SecretValues
    _tasks: dict[_Run, "asyncio.Task[str]"] = field(default_factory=dict)

    def available(self, pods: Sequence[Object], on_read: Callable[[], None]) -> tuple[Log, ...]:
        """The logs that have been read. Others are read in the background; `on_read` is called after each."""
        candidates = [item for pod in pods if not is_disrupted(pod) for item in containers(pod)]
        failed = sorted(filter(_has_failed, candidates), key=_pod_name)
        logs: list[Log] = []
        for container in failed[:_MAX_CONTAINERS]:
            is_new = _run_of(container) not in self._tasks
            task = self._start_reading(container)
            if is_new:
                task.add_done_callback(lambda _: on_read())
            elif task.done() and (text := task.result()):
                logs.append(Log(_pod_name(container), container.name, text))
        return tuple(logs)

    async def wait(self) -> bool:
        """Wait for all logs that are being read, since they may change a verdict; whether there were any."""
        pending = [task for task in self._tasks.values() if not task.done()]
        if pending:
            await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
        return bool(pending)

    async def read(self, container: Container) -> str:
        """The log of one container's failed run; empty when it wrote nothing, or cannot be read soon."""
        with anyio.move_on_after(_PATIENCE_SECONDS):
            return await asyncio.shield(self._start_reading(container))
        return ""

    def _start_reading(self, container: Container) -> "asyncio.Task[str]":
        run = _run_of(container)
        if run not in self._tasks:
            self._tasks[run] = asyncio.create_task(read_crash_log(self.cluster, container, self.secrets))
        return self._tasks[run]

    async def close(self) -> None:
        """Stop reading."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def read_crash_log(cluster: Cluster, container: Container, secrets: SecretValues) -> str:
    """The log of the run that ended, or of the one that runs, without secrets; empty when no run has started.

    Between two runs the node has removed the one container and not yet created the other, so it is asked again after a
    pause. The present run of one request may be the previous run of the next.
    """
    has_run = container.running or container.last_termination
    for attempt in range(_ATTEMPTS if has_run else 0):
        await asyncio.sleep(_PAUSE_SECONDS if attempt else 0)
        previous = await _read_log(cluster, container, previous=True)
        present = None if previous else await _read_log(cluster, container, previous=False)
        if previous is None and present == "" and not container.running:
            # the next run began between the two requests
            previous = await _read_log(cluster, container, previous=True)
        if text := previous or present:
            await secrets.learn([container.pod])
            return _printable(secrets.mask.tail(text, _MAX_CHARACTERS))
        wrote_nothing = previous is not None or (present is not None and not container.running)
        if wrote_nothing:
            break
    return ""


async def _read_log(cluster: Cluster, container: Container, *, previous: bool) -> str | None:
    """The end of a run's log, empty when it has only spaces; None when there is no such run."""
    namespace = container.pod["metadata"]["namespace"]
    text = await cluster.logs(namespace, _pod_name(container), container.name, previous=previous, lines=_LINES)
    return text if text is None or text.strip() else ""


def _printable(text: str) -> str:
    """A log without control characters that would change the terminal that shows it."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _has_failed(container: Container) -> bool:
    return bool(container.last_termination) and not container.completed and not container.ready


def _run_of(container: Container) -> _Run:
    return str(container.pod["metadata"]["uid"]), container.name, container.ended_runs


def _pod_name(container: Container) -> str:
    return str(container.pod["metadata"]["name"])


__all__ = ["CrashLogs", "read_crash_log"]
