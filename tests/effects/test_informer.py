"""An informer holds the objects of the server, whatever happens to the connection between them."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from prefect_cd.errors import ClusterUnreachable, Forbidden
from prefect_cd.kube import transport
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.informer import Informer, Query
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Kind, ObjectList
from tests.unit.fake_api import FakeApi

Scenario = Callable[[FakeApi, Informer, "asyncio.Task[None]"], Awaitable[None]]


def play(
    scenario: Scenario, *, labels: str = "", patience: float = 30, keep: Callable[[Object], bool] = lambda _: True
) -> None:
    """Run a scenario with a server that has one pod, and with an informer for its pods."""

    async def run() -> None:
        api = FakeApi()
        api.put("pods", "first", metadata={"labels": {"app": "shop"}})
        async with api.running(patience) as cluster:
            informer = Informer(cluster, Query(await cluster.kind("v1", "Pod"), "shop", labels), keep=keep)
            running = asyncio.create_task(informer.run())
            try:
                await until(lambda: api.watches("pods") or running.done())
                await scenario(api, informer, running)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        await asyncio.sleep(0.01)


def names(informer: Informer) -> list[str]:
    return sorted(item["metadata"]["name"] for item in informer.objects.values())


def test_it_begins_with_a_list_and_follows_every_change() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        assert names(informer) == ["first"]
        api.put("pods", "second")
        await until(lambda: names(informer) == ["first", "second"])
        api.put("pods", "second", status={"phase": "Running"})
        await until(lambda: informer.objects["uid-second"].get("status") == {"phase": "Running"})
        api.remove("pods", "first")
        await until(lambda: names(informer) == ["second"])
        assert len(api.lists("pods")) == 1

    play(scenario)


def test_a_watch_that_drops_is_resumed_at_its_version() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        api.bookmark("pods")
        api.put("pods", "second")
        await until(lambda: "second" in names(informer))
        api.drop_connections()
        api.put("pods", "third")
        await until(lambda: "third" in names(informer))
        assert len(api.lists("pods")) == 1
        assert (
            api.watches("pods")[-1]["resourceVersion"] == informer.objects["uid-second"]["metadata"]["resourceVersion"]
        )

    play(scenario)


def test_a_watch_is_resumed_at_the_version_of_the_last_bookmark() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        before = int(api.watches("pods")[-1]["resourceVersion"])
        api.bookmark("pods")
        await until(lambda: int(informer._version) == before + 1)
        api.drop_connections()
        await until(lambda: len(api.watches("pods")) == 2)
        assert int(api.watches("pods")[-1]["resourceVersion"]) == before + 1
        assert api.watches("pods")[-1]["allowWatchBookmarks"] == "true"

    play(scenario)


def test_when_the_version_has_expired_everything_is_listed_again() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        api.drop_connections()
        api.remove("pods", "first")
        api.put("pods", "second")
        api.expire_versions()
        await until(lambda: names(informer) == ["second"])
        assert len(api.lists("pods")) == 2

    play(scenario)


def test_a_server_that_restarts_is_watched_again_and_the_outage_is_known_meanwhile() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        assert informer.lost_since is None
        await api.stop()
        await until(lambda: informer.lost_since is not None)
        api.put("pods", "second")
        await asyncio.sleep(0.3)
        assert informer.lost_since is not None
        await api.start()
        await until(lambda: "second" in names(informer))
        assert informer.lost_since is None

    play(scenario)


def test_a_server_that_stays_unreachable_ends_it_after_the_patience() -> None:
    async def scenario(api: FakeApi, informer: Informer, running: "asyncio.Task[None]") -> None:
        await api.stop()
        await until(running.done)
        assert informer.list_count == 1
        with pytest.raises(ClusterUnreachable):
            running.result()

    play(scenario, patience=0.5)


def test_a_silent_watch_counts_as_lost_since_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_SILENCE_SECONDS", 0.3)

    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        before = informer._version
        api.bookmark("pods")
        await until(lambda: informer._version != before)
        last_contact = informer._last_contact
        await until(lambda: informer.lost_since is not None)
        assert informer.lost_since == last_contact
        watches = len(api.watches("pods"))
        await until(lambda: len(api.watches("pods")) > watches and informer.lost_since is None)

    play(scenario)


def test_a_forbidden_watch_after_a_list_is_retried_since_a_server_may_be_starting() -> None:
    async def scenario(api: FakeApi, informer: Informer, running: "asyncio.Task[None]") -> None:
        api.watch_errors += [403, 403]
        api.drop_connections()
        api.put("pods", "second")
        await until(lambda: "second" in names(informer))
        assert not running.done()

    play(scenario)


def test_a_watch_that_stays_forbidden_ends_it() -> None:
    async def scenario(api: FakeApi, _: Informer, running: "asyncio.Task[None]") -> None:
        api.watch_errors += [403] * 100
        api.drop_connections()
        await until(running.done)
        with pytest.raises(Forbidden):
            running.result()

    play(scenario, patience=0.3)


def test_only_objects_of_the_query_are_requested_and_kept() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        api.put("pods", "other", metadata={"labels": {"app": "other"}})
        api.put("pods", "unwanted", metadata={"labels": {"app": "shop"}})
        api.put("pods", "last", metadata={"labels": {"app": "shop"}})
        await until(lambda: "last" in names(informer))
        assert names(informer) == ["first", "last"]
        assert api.watches("pods")[0]["labelSelector"] == "app=shop"

    play(scenario, labels="app=shop", keep=lambda item: item["metadata"]["name"] != "unwanted")


def test_a_watch_that_ends_at_once_is_opened_again_after_growing_pauses() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        api.watches_end = True
        api.drop_connections()
        await asyncio.sleep(1)
        assert len(api.watches("pods")) < 9
        await until(lambda: len(api.watches("pods")) >= 2)
        api.watches_end = False
        api.put("pods", "second")
        await until(lambda: "second" in names(informer))

    play(scenario)


def test_a_refresh_does_not_undo_events_that_arrive_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    real, lists = Cluster.snapshot, 0

    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        async def slow(cluster: Cluster, kind: Kind, namespace: str = "", **query: str) -> ObjectList:
            nonlocal lists
            lists += 1
            snapshot = await real(cluster, kind, namespace, **query)
            if lists <= lists_with_changes:
                api.put("pods", f"new-{lists}")
                await until(lambda: f"new-{lists}" in names(informer))
            return snapshot

        monkeypatch.setattr(Cluster, "snapshot", slow)
        lists_with_changes = 1
        await informer.refresh()
        assert names(informer) == ["first", "new-1"]
        assert lists == 2
        lists_with_changes = 99
        await informer.refresh()  # the watch is alive, and newer than every list
        assert names(informer) == ["first", "new-1", "new-3", "new-4", "new-5"]

    play(scenario)


def test_an_object_of_a_megabyte_is_read_as_one_line() -> None:
    async def scenario(api: FakeApi, informer: Informer, _: object) -> None:
        api.put("pods", "large", status={"message": "x" * 3_000_000}, metadata={"managedFields": ["y" * 100_000]})
        await until(lambda: "large" in names(informer))
        assert len(informer.objects["uid-large"]["status"]["message"]) == 3_000_000
        assert "managedFields" not in informer.objects["uid-large"]["metadata"]

    play(scenario)


def test_a_refresh_does_not_need_the_watch() -> None:
    async def run() -> None:
        api = FakeApi()
        api.put("pods", "first")
        async with api.running() as cluster:
            informer = Informer(cluster, Query(await cluster.kind("v1", "Pod"), "shop"))
            await informer.refresh()
            api.put("pods", "second")
            assert names(informer) == ["first"]
            await informer.refresh()
            assert names(informer) == ["first", "second"]
            assert informer.list_count == 2

    asyncio.run(run())
