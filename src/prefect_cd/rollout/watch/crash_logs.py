"""The last words of what failed: logs of runs that ended badly, each read once, and of nothing else."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.rollout.assess import Log
from prefect_cd.rollout.diagnosis import Container, containers, is_disrupted

_LINES = 30
_MOST_CHARACTERS = 4000
_ATTEMPTS = 3
_WAIT_SECONDS = 0.3
_MOST = 5
"""Containers of one workload: if they crash alike, the words of a few are enough."""
_PATIENCE_SECONDS = 5
"""For the words of one container, when nothing else is waited for any more."""
_Key = tuple[str, str, int]


@dataclass
class CrashLogs:
    """Logs that were read, and those that are being read."""

    cluster: Cluster
    _read: dict[_Key, "asyncio.Task[str]"] = field(default_factory=dict)
    """By the pod's uid, the container, and how many of its runs have ended."""

    def of(self, pods: Sequence[Object], read: Callable[[], None]) -> tuple[Log, ...]:
        """What is known now; what is not is read in the background, and `read` is called when it was."""
        found: list[Log] = []
        failed = [each for pod in pods if not is_disrupted(pod) for each in containers(pod) if _failed(each)]
        for each in sorted(failed, key=_pod)[:_MOST]:
            if _key(each) not in self._read:
                self._begun(each).add_done_callback(lambda _: read())
            elif (reading := self._begun(each)).done() and (text := reading.result()):
                found.append(Log(_pod(each), each.name, text))
        return tuple(found)

    async def known(self) -> bool:
        """Wait for all that is being read, since words may change what an end means; whether there was anything."""
        reading = [each for each in self._read.values() if not each.done()]
        if reading:
            await asyncio.wait(reading, timeout=_PATIENCE_SECONDS)
        return bool(reading)

    async def said(self, container: Container) -> str:
        """The words of one container, waited for; empty when it has none, or nobody tells them soon."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._begun(container)), _PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            return ""

    def _begun(self, container: Container) -> "asyncio.Task[str]":
        key = _key(container)
        if key not in self._read:
            self._read[key] = asyncio.create_task(read_crash_log(self.cluster, container))
        return self._read[key]

    async def close(self) -> None:
        """Read no further."""
        for reading in self._read.values():
            reading.cancel()
        await asyncio.gather(*self._read.values(), return_exceptions=True)


async def read_crash_log(cluster: Cluster, container: Container) -> str:
    """The log of the instance that ended, or of the one that runs; empty where none has ever run.

    Between two crashes the node has thrown the one away and not begun the other: it is asked again for a moment. What
    is the present run at one question may be the previous one at the next.
    """
    for attempt in range(_ATTEMPTS if container.running or container.last_end else 0):
        await asyncio.sleep(_WAIT_SECONDS if attempt else 0)
        previous = await _log(cluster, container, previous=True)
        present = None if previous else await _log(cluster, container, previous=False)
        if previous is None and present == "" and not container.running:
            previous = await _log(cluster, container, previous=True)
        if said := previous or present:
            return _printable(said)
        if previous is not None or (present is not None and not container.running):
            break
    return ""


async def _log(cluster: Cluster, container: Container, *, previous: bool) -> str | None:
    """The end of a run's log, empty when it wrote nothing but spaces; None when there is no such run."""
    namespace, pod = container.pod["metadata"]["namespace"], _pod(container)
    said = await cluster.logs(namespace, pod, container.name, previous=previous, lines=_LINES)
    return said if said is None or said.strip() else ""


def _printable(text: str) -> str:
    """The end of a log, without what would write over the report that quotes it."""
    return "".join(each for each in text[-_MOST_CHARACTERS:] if each.isprintable() or each in "\n\t")


def _failed(container: Container) -> bool:
    return bool(container.last_end) and not container.ended_in_peace and not container.ready


def _key(container: Container) -> _Key:
    return str(container.pod["metadata"]["uid"]), container.name, container.failures


def _pod(container: Container) -> str:
    return str(container.pod["metadata"]["name"])


__all__ = ["CrashLogs", "read_crash_log"]
