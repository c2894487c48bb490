"""One connection to each cluster for all stages of a run: reconnecting and discovering kinds again costs seconds.

A connection belongs to one event loop, and stages are synchronous. So one thread keeps a loop, and stages hand their
coroutines to it. The lock and the requests of a probe have threads and connections of their own: neither may wait for
what a stage does.
"""

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from prefect_cd.errors import ClusterUnreachable, Forbidden
from prefect_cd.kube.client import PATIENCE, Cluster, connect
from prefect_cd.kube.kubeconfig import Access

_T = TypeVar("_T")
_CANCEL_SECONDS = 15
"""For a cancelled coroutine to end: longer than any single write takes."""


@dataclass
class _Connection:
    """An open connection and how many stages use it."""

    cluster: Cluster
    stack: AsyncExitStack
    users: int = 0
    stale: bool = False
    """Not handed out any more; closed when its last user is done."""


@dataclass
class Connections:
    """The connections of this process, by a key that says which cluster and which credentials."""

    _open: dict[str, _Connection] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def run(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run a coroutine in the loop of the connections, and wait for it.

        It sees the caller's context variables, and so its Prefect run. When the caller is interrupted (Prefect cancels
        with a BaseException), the coroutine is cancelled and has ended before this returns.
        """
        ended = threading.Event()

        async def supervised() -> _T:
            try:
                return await work()
            finally:
                ended.set()

        loop, future = self._running_loop(), None
        try:  # the coroutine is started inside, so that an interruption right after its start cancels it as well
            future = asyncio.run_coroutine_threadsafe(supervised(), loop)
            return future.result()
        except BaseException:
            if future and not future.done():
                future.cancel()
                ended.wait(_CANCEL_SECONDS)
            raise

    @contextmanager
    def held(self, context: Callable[[], AbstractAsyncContextManager[_T]]) -> Iterator[_T]:
        """Hold an asynchronous context in the loop of the connections for as long as the block runs.

        The block itself runs in the caller's thread, where Prefect can interrupt it.
        """
        entered: Future[_T] = Future()
        left = asyncio.Event()

        async def hold() -> None:
            try:
                async with context() as value:
                    entered.set_result(value)
                    await left.wait()
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        loop = self._running_loop()
        holding = asyncio.run_coroutine_threadsafe(hold(), loop)
        try:
            yield entered.result()
        finally:
            if entered.done():
                loop.call_soon_threadsafe(left.set)
            else:  # interrupted before the context was entered
                holding.cancel()
            wait([holding], _CANCEL_SECONDS)
        holding.result()

    @asynccontextmanager
    async def cluster(
        self, key: str, access: Callable[[], Access], *, patience: timedelta = PATIENCE
    ) -> AsyncIterator[Cluster]:
        """The connection called `key`, opened when it is not; to be used in `run`.

        One that failed is not used again: the next stage reads the kubeconfig anew.
        """
        connection = self._open.get(key) or await self._opened(key, access)
        connection.users += 1
        try:
            yield connection.cluster.with_patience(patience)
        except (ClusterUnreachable, Forbidden):
            connection.stale = True
            if self._open.get(key) is connection:
                del self._open[key]
            raise
        finally:
            connection.users -= 1
            if connection.stale and not connection.users:
                await connection.stack.aclose()

    async def _opened(self, key: str, access: Callable[[], Access]) -> _Connection:
        stack = AsyncExitStack()
        cluster = await stack.enter_async_context(connect(access()))
        if key in self._open:  # another stage was faster
            await stack.aclose()
            return self._open[key]
        self._open[key] = _Connection(cluster, stack)
        return self._open[key]

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="connections", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Close all connections and end the thread; the next `run` starts anew."""
        if self._loop is None or self._thread is None:
            return

        async def close_all() -> None:
            for connection in self._open.values():
                await connection.stack.aclose()
            self._open.clear()

        self.run(close_all)
        with self._starting:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop, self._thread = None, None


CONNECTIONS = Connections()
"""Those of this process; a flow closes them when it ends."""
atexit.register(CONNECTIONS.close)
