"""What is stopped at the very moment for which it waits does stop: the cancellation is not lost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import MagicMock

import pytest

from prefect_cd_local.client import PODS, Client
from prefect_cd_local.controllers.loop import Cache, Caches
from prefect_cd_local.node import probes
from prefect_cd_local.node.events import Recorder
from prefect_cd_local.node.scheduler import Scheduler
from prefect_cd_local.node.service_proxy import ServiceProxy

_SECONDS_TO_STOP = 10
Component = tuple[Coroutine[Any, Any, None], Callable[[], None]]
"""What runs until it is cancelled, and what tells it of a change."""


def scheduler() -> Component:
    client = Client("http://127.0.0.1")
    component = Scheduler(client, Cache(client, PODS), dict, Recorder(client))
    return component.run(), component.wake


def service_proxy() -> Component:
    client = Client("http://127.0.0.1")
    component = ServiceProxy(client, Caches(client), Recorder(client), "127.0.0.1")
    component._problems = {("127.0.0.1", 80): "in use"}  # then it waits for some time only
    return component.run(), component._changed.set


@pytest.mark.parametrize("component", [scheduler, service_proxy])
def test_a_component_that_is_stopped_when_something_changes_stops(component: Callable[[], Component]) -> None:
    async def run() -> None:
        running, change = component()
        task = asyncio.ensure_future(running)
        await asyncio.sleep(0.01)
        change()
        task.cancel()
        await asyncio.wait([task], timeout=_SECONDS_TO_STOP)
        stopped = task.done()
        task.cancel()  # where it was lost
        assert stopped

    asyncio.run(run())


def test_a_probe_that_is_stopped_when_it_is_answered_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelled() -> bool:
        answered = asyncio.Event()

        async def connect(_where: str) -> probes.ProbeResult:
            await answered.wait()
            return probes.ProbeResult(good=True)

        monkeypatch.setattr(probes, "_connect", connect)
        how: dict[str, Any] = {"tcpSocket": {"port": 80}}
        probe = asyncio.ensure_future(probes.run_probe(how, {}, MagicMock(), "127.0.0.1", 600))
        await asyncio.sleep(0.01)
        answered.set()
        probe.cancel()
        await asyncio.wait([probe])
        return probe.cancelled()

    assert asyncio.run(cancelled())
