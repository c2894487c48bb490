import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from prefect_cd_local.client import PODS, ApiError, Listing, WatchEvent
from prefect_cd_local.controllers.loop import Cache, Queue

Object = dict[str, Any]


def pod(name: str, version: int, uid: str = "") -> Object:
    meta = {"namespace": "shop", "name": name, "uid": uid or name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}


class Script:
    """A client with prepared lists and watches, for faults that a real server shows too rarely."""

    def __init__(self, lists: list[Listing | ApiError], watches: list[list[WatchEvent | ApiError]]) -> None:
        self._lists, self._watches = iter(lists), iter(watches)
        self.played = asyncio.Event()

    async def list(self, _resource: object) -> Listing:
        answer = next(self._lists)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def watch(self, _resource: object, resource_version: str) -> AsyncIterator[WatchEvent]:
        assert resource_version
        for event in next(self._watches, [None]):
            if event is None:
                self.played.set()
                await asyncio.Event().wait()
            elif isinstance(event, ApiError):
                raise event
            else:
                yield event


async def follow(script: Script) -> tuple[Cache, list[str]]:
    """Run a cache until the end of the script; returns it and the names that its listener got."""
    cache, notified = Cache(script, PODS), []  # type: ignore[arg-type]
    cache.listen(lambda obj: notified.append(obj["metadata"]["name"]))
    running = asyncio.ensure_future(cache.run())
    await script.played.wait()
    running.cancel()
    return cache, notified


def names(cache: Cache) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in cache.all())


def test_a_cache_follows_its_collection_through_lost_connections_and_expired_versions() -> None:
    async def run() -> None:
        script = Script(
            [
                ApiError(0, "NoAnswer", "refused"),
                Listing([pod("a", 1), pod("b", 2)], "2"),
                Listing([pod("c", 5), pod("a", 9, "other")], "9"),
            ],
            [
                [WatchEvent("ADDED", pod("c", 5)), ApiError(0, "NoAnswer", "reset")],
                [WatchEvent("BOOKMARK", pod("", 6)), ApiError(410, "Expired", "too old resource version")],
            ],
        )
        cache, notified = await follow(script)
        assert names(cache) == ["a", "c"]
        assert notified == ["a", "b", "c", "a", "b", "a"]  # both removed ones, and the new "a"

    asyncio.run(run())


def test_own_writes_are_visible_at_once_and_not_undone_by_older_events() -> None:
    async def run() -> None:
        cache, _ = await follow(Script([Listing([pod("a", 1)], "5")], []))
        cache.put(pod("mine", 7))
        assert names(cache) == ["a", "mine"]
        cache.put(pod("ghost", 4))  # created, seen and deleted before the answer arrived
        assert names(cache) == ["a", "mine"]
        cache.drop(pod("a", 1))
        assert names(cache) == ["mine"]
        cache._remember(pod("a", 6))  # an event that was on its way when we deleted it
        assert names(cache) == ["mine"]
        cache._forget(pod("a", 8))
        cache._remember(pod("a", 9, "namesake"))
        assert names(cache) == ["a", "mine"]

    asyncio.run(run())


def test_a_key_is_synced_once_however_often_it_is_added_and_never_twice_at_a_time() -> None:
    async def run() -> None:
        seen: list[str] = []
        inside: set[str] = set()
        twice: list[str] = []
        both, free, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def sync(key: str) -> None:
            if key in inside:
                twice.append(key)
            inside.add(key)
            seen.append(key)
            if len(seen) == 2:
                both.set()
            await free.wait()
            inside.discard(key)
            if len(seen) == 3:
                done.set()

        queue: Queue[str] = Queue("test", sync)
        for key in ("a", "a", "b", "a"):
            queue.add(key)
        running = asyncio.ensure_future(queue.run())
        await both.wait()
        queue.add("a")  # added during a sync: synced once more, afterwards
        queue.add("a")
        free.set()
        await done.wait()
        running.cancel()
        assert seen == ["a", "b", "a"]
        assert twice == []

    asyncio.run(run())


def test_a_failed_key_is_tried_again_later_and_later() -> None:
    async def run() -> None:
        loop, times, done = asyncio.get_running_loop(), [], asyncio.Event()

        async def sync(_key: str) -> None:
            times.append(loop.time())
            if len(times) < 5:
                raise ApiError(409, "Conflict", "changed")
            done.set()

        queue: Queue[str] = Queue("test", sync)
        queue.add("a")
        running = asyncio.ensure_future(queue.run())
        await done.wait()
        running.cancel()
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(pause >= least for pause, least in zip(pauses, (0.004, 0.009, 0.019, 0.039), strict=True))

    asyncio.run(run())


def test_of_two_delays_the_earlier_counts() -> None:
    async def run() -> None:
        seen = asyncio.Event()

        async def sync(_key: str) -> None:
            seen.set()

        queue: Queue[str] = Queue("test", sync)
        queue.add_after("a", 0.01)
        queue.add_after("a", 600)
        running = asyncio.ensure_future(queue.run())
        await asyncio.wait_for(seen.wait(), 30)
        running.cancel()

    asyncio.run(run())
