"""The parts of every controller: a cache that follows a collection, and a queue of keys to reconcile.

Level-triggered: an event only says which object to reconcile; the controller then acts on what the caches contain. Own
writes go into the caches at once (`Cache.put`, `Cache.drop`), so that no controller acts on a state without them.
Resource versions of one server can be compared (KEP-5504). Failed keys are tried again after 5 ms · 2ⁿ.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from typing import Generic, TypeVar

from prefect_cd_local.client import ApiError, Client, Object, Resource
from prefect_cd_local.controllers.objects import Key, key_of, uid_of

K = TypeVar("K", bound=Hashable)
Listener = Callable[[Object], None]

_log = logging.getLogger("prefect_cd_local.controllers")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 1000.0
_CONNECTION_PAUSE, _LONGEST_CONNECTION_PAUSE = 0.1, 5.0
_GONE = 410


class Cache:
    """The last known objects of one collection; notifies listeners of each added, changed or removed object."""

    def __init__(self, client: Client, resource: Resource) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self._client = client
        self._objects: dict[Key, Object] = {}
        self._dropped: set[str] = set()
        self._listeners: list[Listener] = []
        self._version = 0

    def listen(self, listener: Listener) -> None:
        """Call the listener with every object that is added, changed or removed from now on."""
        self._listeners.append(listener)

    def get(self, key: Key) -> Object | None:
        """Return one object, or None."""
        obj = self._objects.get(key)
        return None if obj is None or uid_of(obj) in self._dropped else obj

    def has(self, obj: Object) -> bool:
        """Return whether the cache has this very object, and not only one with its name."""
        known = self.get(key_of(obj))
        return known is not None and uid_of(known) == uid_of(obj)

    def all(self, namespace: str | None = None) -> Iterator[Object]:
        """Return the objects of a namespace, or all."""
        for key, obj in list(self._objects.items()):
            if (namespace is None or key[0] == namespace) and uid_of(obj) not in self._dropped:
                yield obj

    def put(self, obj: Object) -> None:
        """Store the answer to a write of our own, unless the watch has brought a later version already."""
        if _version(obj) > self._version:
            self._remember(obj)

    def drop(self, obj: Object) -> None:
        """Remove an object that we deleted, before the watch reports it."""
        if key_of(obj) in self._objects:
            self._dropped.add(uid_of(obj))

    async def run(self) -> None:
        """Follow the collection until cancelled, through lost connections and expired resource versions."""
        pause, version = _CONNECTION_PAUSE, ""
        while True:
            try:
                version = version or await self._list()
                pause = _CONNECTION_PAUSE
                async for event in self._client.watch(self.resource, resource_version=version):
                    version = event.object["metadata"]["resourceVersion"]
                    self._version = max(self._version, int(version))
                    if event.type == "DELETED":
                        self._forget(event.object)
                    elif event.type != "BOOKMARK":
                        self._remember(event.object)
            except ApiError as error:
                if error.code == _GONE:
                    version = ""
                    continue
                _log.warning("%s: %s; again in %.1f s", self.resource.plural, error, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_CONNECTION_PAUSE)

    async def _list(self) -> str:
        items, version = await self._client.list(self.resource)
        self._version = int(version)
        listed = {uid_of(item) for item in items}
        for obj in list(self._objects.values()):
            if uid_of(obj) not in listed and _version(obj) <= self._version:
                self._forget(obj)
        for item in items:
            self._remember(item)
        self.synced.set()
        return version

    def _remember(self, obj: Object) -> None:
        known = self._objects.get(key_of(obj))
        if known is None or _version(known) < _version(obj):  # else the cache has our own write already, or a later one
            self._objects[key_of(obj)] = obj
            self._notify(obj)

    def _forget(self, obj: Object) -> None:
        self._dropped.discard(uid_of(obj))
        if self.has(obj):
            del self._objects[key_of(obj)]
        self._notify(obj)

    def _notify(self, obj: Object) -> None:
        for listener in self._listeners:
            listener(obj)


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


class Caches:
    """One cache per resource, shared by the controllers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._caches: dict[Resource, Cache] = {}

    def __getitem__(self, resource: Resource) -> Cache:
        if resource not in self._caches:
            self._caches[resource] = Cache(self._client, resource)
        return self._caches[resource]

    async def synced(self) -> None:
        """Wait until every cache has listed its collection once."""
        await asyncio.gather(*(cache.synced.wait() for cache in self._caches.values()))

    def loops(self) -> list[Coroutine[None, None, None]]:
        """Return the coroutines that keep the caches up to date."""
        return [cache.run() for cache in self._caches.values()]


class Queue(Generic[K]):
    """A work queue: each key once, however often it was added, and never two workers on one key.

    Args:
        name: of the controller, for logs.
        sync: reconciles a key; returns the seconds after which to do so again, if need be.
    """

    def __init__(self, name: str, sync: Callable[[K], Awaitable[float | None]]) -> None:
        self._name = name
        self._sync = sync
        self._waiting: dict[K, None] = {}
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._something = asyncio.Event()

    def add(self, key: K) -> None:
        """Queue a key now."""
        self._waiting[key] = None
        self._something.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Queue a key after some seconds, or at an earlier time that was set before."""
        loop = asyncio.get_running_loop()
        due, timer = loop.time() + seconds, self._timers.get(key)
        if timer and loop.time() < timer.when() <= due:
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    async def run(self, workers: int = 5) -> None:
        """Work until cancelled."""
        try:
            await asyncio.gather(*(self._work() for _ in range(workers)))
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _work(self) -> None:
        while True:
            key = await self._next()
            self._working.add(key)
            try:
                again = await self._sync(key)
                self._failures.pop(key, None)
                if again is not None:
                    self.add_after(key, again)
            except Exception as error:  # noqa: BLE001 - no error ends a controller
                self._failed(key, error)
            finally:
                self._working.discard(key)
                self._something.set()

    async def _next(self) -> K:
        while True:
            for key in self._waiting:
                if key not in self._working:
                    del self._waiting[key]
                    return key
            self._something.clear()
            await self._something.wait()

    def _failed(self, key: K, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
        level, trace = (logging.INFO, None) if isinstance(error, ApiError) else (logging.ERROR, error)
        _log.log(level, "%s %s: %s; again in %.3f s", self._name, key, error, pause, exc_info=trace)
        self.add_after(key, pause)
