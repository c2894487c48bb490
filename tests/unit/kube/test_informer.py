"""A mirror shows what the server has, whatever happens to the connection between them."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from prefect_cd.errors import ClusterUnreachable, Forbidden
from prefect_cd.kube import client as cluster_module
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.informer import Informer, Query
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Kind, ObjectList
from tests.unit.fake_api import FakeApi

Story = Callable[[FakeApi, Informer, "asyncio.Task[None]"], Awaitable[None]]


def play(
    story: Story, *, labels: str = "", patience: float = 30, keep: Callable[[Object], bool] = lambda _: True
) -> None:
    """Tell a story of a server with one pod, and of the mirror that follows it."""

    async def run() -> None:
        api = FakeApi()
        api.put("pods", "first", metadata={"labels": {"app": "shop"}})
        async with api.running(patience) as cluster:
            mirror = Informer(cluster, Query(await cluster.kind("v1", "Pod"), "shop", labels), keep=keep)
            following = asyncio.create_task(mirror.follow())
            try:
                await until(lambda: api.watches("pods") or following.done())
                await story(api, mirror, following)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


async def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)


def names(mirror: Informer) -> list[str]:
    return sorted(each["metadata"]["name"] for each in mirror.objects.values())


def test_it_begins_with_what_is_there_and_takes_over_every_change() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        assert names(mirror) == ["first"]
        api.put("pods", "second")
        await until(lambda: names(mirror) == ["first", "second"])
        api.put("pods", "second", status={"phase": "Running"})
        await until(lambda: mirror.objects["uid-second"].get("status") == {"phase": "Running"})
        api.remove("pods", "first")
        await until(lambda: names(mirror) == ["second"])
        assert len(api.lists("pods")) == 1

    play(story)


def test_a_watch_that_drops_is_resumed_where_it_was() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        api.bookmark("pods")
        api.put("pods", "second")
        await until(lambda: "second" in names(mirror))
        api.drop()
        api.put("pods", "third")
        await until(lambda: "third" in names(mirror))
        assert len(api.lists("pods")) == 1
        assert api.watches("pods")[-1]["resourceVersion"] == mirror.objects["uid-second"]["metadata"]["resourceVersion"]

    play(story)


def test_a_bookmark_is_where_a_watch_goes_on() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        before = int(api.watches("pods")[-1]["resourceVersion"])
        api.bookmark("pods")
        await until(lambda: int(mirror._version) == before + 1)
        api.drop()
        await until(lambda: len(api.watches("pods")) == 2)
        assert int(api.watches("pods")[-1]["resourceVersion"]) == before + 1
        assert api.watches("pods")[-1]["allowWatchBookmarks"] == "true"

    play(story)


def test_what_the_server_has_forgotten_is_listed_anew() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        api.drop()
        api.remove("pods", "first")
        api.put("pods", "second")
        api.forget()
        await until(lambda: names(mirror) == ["second"])
        assert len(api.lists("pods")) == 2

    play(story)


def test_a_server_that_is_restarted_is_found_again_and_the_time_between_is_known() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        assert mirror.lost_since is None
        await api.stop()
        await until(lambda: mirror.lost_since is not None)
        api.put("pods", "second")
        await asyncio.sleep(0.3)
        assert mirror.lost_since is not None
        await api.start()
        await until(lambda: "second" in names(mirror))
        assert mirror.lost_since is None

    play(story)


def test_a_server_that_stays_away_ends_it_after_our_patience() -> None:
    async def story(api: FakeApi, mirror: Informer, following: "asyncio.Task[None]") -> None:
        await api.stop()
        await until(following.done)
        assert mirror.lists == 1
        with pytest.raises(ClusterUnreachable):
            following.result()

    play(story, patience=0.5)


def test_a_silent_watch_is_taken_for_lost_since_it_was_heard_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_SILENCE_SECONDS", 0.3)

    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        before = mirror._version
        api.bookmark("pods")
        await until(lambda: mirror._version != before)
        heard = mirror._heard
        await until(lambda: mirror.lost_since is not None)
        assert mirror.lost_since == heard
        watches = len(api.watches("pods"))
        await until(lambda: len(api.watches("pods")) > watches and mirror.lost_since is None)

    play(story)


def test_a_refusal_after_the_first_answer_is_that_of_a_server_that_starts() -> None:
    async def story(api: FakeApi, mirror: Informer, following: "asyncio.Task[None]") -> None:
        api.refusals += [403, 403]
        api.drop()
        api.put("pods", "second")
        await until(lambda: "second" in names(mirror))
        assert not following.done()

    play(story)


def test_a_refusal_that_stays_ends_it() -> None:
    async def story(api: FakeApi, _: Informer, following: "asyncio.Task[None]") -> None:
        api.refusals += [403] * 100
        api.drop()
        await until(following.done)
        with pytest.raises(Forbidden):
            following.result()

    play(story, patience=0.3)


def test_only_what_is_asked_for_is_asked_of_the_server_and_kept() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        api.put("pods", "other", metadata={"labels": {"app": "other"}})
        api.put("pods", "unwanted", metadata={"labels": {"app": "shop"}})
        api.put("pods", "last", metadata={"labels": {"app": "shop"}})
        await until(lambda: "last" in names(mirror))
        assert names(mirror) == ["first", "last"]
        assert api.watches("pods")[0]["labelSelector"] == "app=shop"

    play(story, labels="app=shop", keep=lambda item: item["metadata"]["name"] != "unwanted")


def test_a_watch_that_ends_at_once_is_opened_again_with_pauses_that_grow() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        api.hasty = True
        api.drop()
        await asyncio.sleep(1)
        assert len(api.watches("pods")) < 9
        await until(lambda: len(api.watches("pods")) >= 2)
        api.hasty = False
        api.put("pods", "second")
        await until(lambda: "second" in names(mirror))

    play(story)


def test_a_fresh_look_does_not_undo_what_the_watch_tells_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    real, lists = Cluster.snapshot, 0

    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        async def slow(cluster: Cluster, kind: Kind, namespace: str = "", **asked: str) -> ObjectList:
            nonlocal lists
            lists += 1
            taken = await real(cluster, kind, namespace, **asked)
            if lists <= restless:
                api.put("pods", f"new-{lists}")
                await until(lambda: f"new-{lists}" in names(mirror))
            return taken

        monkeypatch.setattr(Cluster, "snapshot", slow)
        restless = 1
        await mirror.look()
        assert names(mirror) == ["first", "new-1"]
        assert lists == 2
        restless = 99
        await mirror.look()  # the watch is alive, and every list is older
        assert names(mirror) == ["first", "new-1", "new-3", "new-4", "new-5"]

    play(story)


def test_an_object_of_a_megabyte_is_no_line_too_long() -> None:
    async def story(api: FakeApi, mirror: Informer, _: object) -> None:
        api.put("pods", "large", status={"message": "x" * 3_000_000}, metadata={"managedFields": ["y" * 100_000]})
        await until(lambda: "large" in names(mirror))
        assert len(mirror.objects["uid-large"]["status"]["message"]) == 3_000_000
        assert "managedFields" not in mirror.objects["uid-large"]["metadata"]

    play(story)


def test_a_fresh_look_does_not_wait_for_the_watch() -> None:
    async def run() -> None:
        api = FakeApi()
        api.put("pods", "first")
        async with api.running() as cluster:
            mirror = Informer(cluster, Query(await cluster.kind("v1", "Pod"), "shop"))
            await mirror.look()
            api.put("pods", "second")
            assert names(mirror) == ["first"]
            await mirror.look()
            assert names(mirror) == ["first", "second"]
            assert mirror.lists == 2

    asyncio.run(run())
