"""The independent witness: records every change of every object with the time of its arrival.

It knows nothing of verdicts. One watch for each kind serves all scenarios at once; objects outside the namespaces of
the benchmark are ignored.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp
from api import Api, Object, Refused, collection_of

KINDS = (
    ("v1", "Pod"),
    ("v1", "Event"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "ControllerRevision"),
    ("batch/v1", "Job"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
)
_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Observation:
    """An object as it arrived, or its last state when it was deleted."""

    at: float
    item: Object
    deleted: bool = False

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.item["kind"])


@dataclass
class Witness:
    """The changes in each namespace, in the order of arrival."""

    api: Api
    prefix: str
    _observations: dict[str, list[Observation]] = field(default_factory=lambda: defaultdict(list))
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def start(self) -> None:
        """Start to watch; return when the initial list of every kind has been read."""
        ready = [asyncio.Event() for _ in KINDS]
        self._tasks = [
            asyncio.create_task(self._follow(api_version, kind, listed))
            for (api_version, kind), listed in zip(KINDS, ready, strict=True)
        ]
        await asyncio.gather(*(listed.wait() for listed in ready))

    async def stop(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def observations(self, namespace: str) -> Sequence[Observation]:
        """All changes so far."""
        return self._observations[namespace]

    def forget(self, namespace: str) -> None:
        """Free the memory of a namespace."""
        self._observations.pop(namespace, None)

    async def _follow(self, api_version: str, kind: str, ready: asyncio.Event) -> None:
        path = collection_of(api_version, kind)
        while True:
            try:
                listed = await self.api.get(path)
                for item in listed["items"]:
                    self._record({**item, "apiVersion": api_version, "kind": kind}, deleted=False)
                ready.set()
                await self._watch(path, listed["metadata"]["resourceVersion"])
            except (Refused, aiohttp.ClientError, OSError):
                await asyncio.sleep(
                    _RETRY_SECONDS
                )  # then list again, because the server keeps old changes for a short time only

    async def _watch(self, path: str, version: str) -> None:
        while True:
            async for change in self.api.watch(path, version):
                if change["type"] == "ERROR":
                    raise Refused(int(change["object"].get("code", 0)), "watch ended")
                version = change["object"]["metadata"]["resourceVersion"]
                if change["type"] != "BOOKMARK":
                    self._record(change["object"], deleted=change["type"] == "DELETED")

    def _record(self, item: Object, *, deleted: bool) -> None:
        namespace = item["metadata"].get("namespace", "")
        if namespace.startswith(self.prefix):
            self._observations[namespace].append(Observation(time.time(), item, deleted))


def at(observations: Iterable[Observation], moment: float) -> list[Object]:
    """The objects as they were at a moment."""
    known: dict[str, Object] = {}
    for change in observations:
        if change.at > moment:
            break
        uid = change.item["metadata"]["uid"]
        known.pop(uid, None)
        if not change.deleted:
            known[uid] = change.item
    return list(known.values())
