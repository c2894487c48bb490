"""One connection for all stages of a run: how long it is kept, and what closes it."""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from types import FrameType

import pytest

from prefect_cd.errors import ClusterUnreachable, DeliveryError, Forbidden, GateFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.tasks import connection
from prefect_cd.tasks.connection import Connections
from tests.unit.fake_api import FakeApi

REQUEST: ContextVar[str] = ContextVar("REQUEST")


@pytest.fixture
def connections() -> Iterator[Connections]:
    opened = Connections()
    yield opened
    opened.close()


class Stages:
    """Stages that use the connection called `cluster` one after the other."""

    def __init__(self, connections: Connections, api: FakeApi) -> None:
        self._connections = connections
        self._api = api
        self.kubeconfigs_read = 0

    def read_kubeconfig(self) -> LoadedKubeconfig:
        self.kubeconfigs_read += 1
        return LoadedKubeconfig(self._api.kubeconfig)

    def play(self, work: Callable[[Cluster], Awaitable[object]], key: str = "cluster") -> object:
        async def connected() -> object:
            async with self._connections.cluster(key, self.read_kubeconfig) as cluster:
                return await work(cluster)

        return self._connections.run(connected)


@pytest.fixture
def stages(connections: Connections, api: FakeApi) -> Stages:
    return Stages(connections, api)


async def ask_version(cluster: Cluster) -> object:
    return await cluster.version()


async def find_kinds(cluster: Cluster) -> object:
    return await cluster.kind("v1", "Secret")


def test_one_connection_serves_several_stages(stages: Stages, api: FakeApi) -> None:
    assert [stages.play(ask_version) for _ in range(3)] == ["v1.36.3"] * 3
    assert (stages.kubeconfigs_read, api.connections) == (1, 1)


def test_kinds_are_discovered_once_for_all_stages(stages: Stages, api: FakeApi) -> None:
    for _ in range(3):
        stages.play(find_kinds)
    assert [path for path, _ in api.requests] == ["v1"]


def test_another_cluster_has_a_connection_of_its_own(stages: Stages, api: FakeApi) -> None:
    stages.play(ask_version, "one")
    stages.play(ask_version, "other")
    assert (stages.kubeconfigs_read, api.connections) == (2, 2)


@pytest.mark.parametrize("error", [ClusterUnreachable("gone"), Forbidden("the token has expired")], ids=repr)
def test_a_connection_that_failed_is_not_used_again(stages: Stages, api: FakeApi, error: DeliveryError) -> None:
    async def fail(cluster: Cluster) -> object:
        await cluster.version()
        raise error

    with pytest.raises(type(error)):
        stages.play(fail)
    stages.play(ask_version)
    assert (stages.kubeconfigs_read, api.connections) == (2, 2)


def test_a_failed_gate_keeps_the_connection(stages: Stages, api: FakeApi) -> None:
    async def fail(cluster: Cluster) -> object:
        await cluster.version()
        raise GateFailed("the shop sells nothing")

    with pytest.raises(GateFailed):
        stages.play(fail)
    stages.play(ask_version)
    assert (stages.kubeconfigs_read, api.connections) == (1, 1)


def test_a_connection_that_failed_for_one_stage_serves_the_other_to_its_end(
    connections: Connections, stages: Stages
) -> None:
    async def two_stages() -> object:
        async with connections.cluster("cluster", stages.read_kubeconfig) as mine:
            with pytest.raises(ClusterUnreachable):
                async with connections.cluster("cluster", stages.read_kubeconfig):
                    raise ClusterUnreachable("gone")
            return await mine.version()

    assert connections.run(two_stages) == "v1.36.3"


def test_the_patience_is_the_stages_and_not_the_connections(connections: Connections, stages: Stages) -> None:
    async def patience(seconds: int) -> timedelta:
        wanted = timedelta(seconds=seconds)
        async with connections.cluster("cluster", stages.read_kubeconfig, patience=wanted) as cluster:
            return cluster.patience

    assert [connections.run(lambda seconds=n: patience(seconds)) for n in (7, 9)] == [  # type: ignore[misc]
        timedelta(seconds=7),
        timedelta(seconds=9),
    ]


class Interrupted(BaseException):
    """Raised in the main thread, wherever it is: this is how Prefect cancels a run."""


def main_thread_waits_for_a_result() -> bool:
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    while frame and frame.f_code is not Future.result.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Interrupts the main thread while it waits for a stage; returns once the exception is raised there."""
    interrupted = threading.Event()

    def raise_interrupted(*_: object) -> None:
        interrupted.set()
        raise Interrupted

    def interrupt_main_thread() -> None:
        while not main_thread_waits_for_a_result():
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        interrupted.wait()

    monkeypatch.setattr(connection, "_CANCEL_SECONDS", 3600)  # longer than the timeout of a test
    before = signal.signal(signal.SIGUSR1, raise_interrupted)
    yield interrupt_main_thread
    signal.signal(signal.SIGUSR1, before)


def test_a_cancelled_stage_has_ended_before_run_returns(
    connections: Connections, interrupt: Callable[[], None]
) -> None:
    ended = threading.Event()

    async def write() -> None:
        try:
            interrupt()
            await asyncio.Event().wait()
        finally:
            for _ in range(100):  # the end of a write takes a moment
                await asyncio.sleep(0)
            ended.set()

    with pytest.raises(Interrupted):
        connections.run(write)
    assert ended.is_set()


def test_a_stage_that_is_cancelled_before_its_coroutine_starts_ends_at_once(
    connections: Connections, interrupt: Callable[[], None]
) -> None:
    async def write() -> None:
        await asyncio.Event().wait()

    connections._running_loop().call_soon_threadsafe(interrupt)  # the loop starts no coroutine before it returns
    with pytest.raises(Interrupted):
        connections.run(write)


class Route:
    """A context that notes the threads in which it was entered and left."""

    def __init__(self, error: DeliveryError | None = None) -> None:
        self.entered, self.left = "", ""
        self._error = error

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[str]:
        self.entered = threading.current_thread().name
        if self._error:
            raise self._error
        try:
            yield "a URL"
        finally:
            await asyncio.sleep(0)
            self.left = threading.current_thread().name


def test_a_context_is_held_in_the_loop_and_its_block_runs_in_the_callers_thread(
    connections: Connections, stages: Stages
) -> None:
    route = Route()
    with connections.held(route) as url:
        assert (url, route.left) == ("a URL", "")
        assert threading.current_thread() is threading.main_thread()
        assert stages.play(ask_version) == "v1.36.3"  # the loop serves other stages meanwhile
    assert (route.entered, route.left) == ("connections", "connections")


def test_a_context_is_left_before_the_error_of_its_block_is_raised(connections: Connections) -> None:
    route = Route()
    with pytest.raises(KeyboardInterrupt), connections.held(route):
        raise KeyboardInterrupt
    assert route.left == "connections"


def test_a_context_that_cannot_be_entered_is_the_callers_error(connections: Connections) -> None:
    with (
        pytest.raises(GateFailed, match="there is no such Service"),
        connections.held(Route(GateFailed("there is no such Service"))),
    ):
        pytest.fail("the block ran")


def test_an_error_reaches_the_caller_as_it_is(connections: Connections) -> None:
    async def fail() -> None:
        raise GateFailed("the shop sells nothing")

    with pytest.raises(GateFailed, match="the shop sells nothing"):
        connections.run(fail)


def test_a_stage_sees_the_context_of_its_caller(connections: Connections) -> None:
    async def read() -> str:
        return REQUEST.get()

    token = REQUEST.set("a run")
    try:
        assert connections.run(read) == "a run"
    finally:
        REQUEST.reset(token)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_close_closes_connections_and_ends_the_thread_and_the_next_run_starts_anew(
    connections: Connections, stages: Stages, api: FakeApi
) -> None:
    kept: list[Cluster] = []

    async def keep(cluster: Cluster) -> object:
        kept.append(cluster)
        return await cluster.version()

    before = threads().count("connections")
    stages.play(keep)
    assert threads().count("connections") == before + 1
    connections.close()
    assert threads().count("connections") == before
    assert kept[0]._transport._session.closed
    connections.close()  # there is nothing to close
    assert stages.play(ask_version) == "v1.36.3"
    assert api.connections == 2
