"""The independent witness: writes down every change of every object with the time at which it arrived here.

It knows nothing of verdicts. One watch for each kind serves all scenarios at once; what is in no namespace of the
benchmark is passed over.
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
_AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class Seen:
    """An object as it arrived, or as it was when it was deleted."""

    at: float
    item: Object
    gone: bool = False

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.item["kind"])


@dataclass
class Witness:
    """What was seen in each namespace, in the order of arrival."""

    api: Api
    prefix: str
    _seen: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def start(self) -> None:
        """Begin to watch; returns when the lists that the watches go on from have been read."""
        ready = [asyncio.Event() for _ in KINDS]
        self._tasks = [asyncio.create_task(self._follow(*kind, ready[i])) for i, kind in enumerate(KINDS)]
        await asyncio.gather(*(each.wait() for each in ready))

    async def stop(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def seen(self, namespace: str) -> Sequence[Seen]:
        """Everything so far."""
        return self._seen[namespace]

    def forget(self, namespace: str) -> None:
        """Give the memory back."""
        self._seen.pop(namespace, None)

    async def _follow(self, api_version: str, kind: str, ready: asyncio.Event) -> None:
        path = collection_of(api_version, kind)
        while True:
            try:
                listed = await self.api.get(path)
                for item in listed["items"]:
                    self._note({**item, "apiVersion": api_version, "kind": kind}, gone=False)
                ready.set()
                await self._watch(path, listed["metadata"]["resourceVersion"])
            except (Refused, aiohttp.ClientError, OSError):
                await asyncio.sleep(_AGAIN_SECONDS)  # and list anew, for the server forgets

    async def _watch(self, path: str, version: str) -> None:
        while True:
            async for change in self.api.watch(path, version):
                if change["type"] == "ERROR":
                    raise Refused(int(change["object"].get("code", 0)), "watch ended")
                version = change["object"]["metadata"]["resourceVersion"]
                if change["type"] != "BOOKMARK":
                    self._note(change["object"], gone=change["type"] == "DELETED")

    def _note(self, item: Object, *, gone: bool) -> None:
        namespace = item["metadata"].get("namespace", "")
        if namespace.startswith(self.prefix):
            self._seen[namespace].append(Seen(time.time(), item, gone))


def at(seen: Iterable[Seen], moment: float) -> list[Object]:
    """The objects as they were known at a moment."""
    known: dict[str, Object] = {}
    for each in seen:
        if each.at > moment:
            break
        uid = each.item["metadata"]["uid"]
        known.pop(uid, None)
        if not each.gone:
            known[uid] = each.item
    return list(known.values())
