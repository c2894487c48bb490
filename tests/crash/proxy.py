"""A proxy in front of an API server that knows the writes of a run, and can end the run at one of them."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp
from aiohttp import web

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_REVIEWS = "reviews"  # SubjectAccessReview and its like are questions
_STATE = "prefect-cd.dev/state"


class Moment(str, Enum):
    """When the process that sent a write is killed."""

    BEFORE = "before the server gets it"
    UNANSWERED = "after the server has answered, which the process does not learn"
    ANSWERED = "after the process has the answer"


@dataclass(frozen=True)
class Boundary:
    """One write of a run, named by what it writes: writes are parallel, so an index would mean different ones."""

    write: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.write} ({self.occurrence})" if self.occurrence > 1 else self.write


@dataclass
class _Plan:
    boundary: Boundary
    moment: Moment
    kill: Callable[[], None]


@dataclass
class WriteProxy:
    """Forwards every request to `upstream`, an API server without TLS, such as that of `kubectl proxy`."""

    upstream: str
    trace: list[Boundary] = field(default_factory=list)
    killed: bool = False
    _plan: _Plan | None = None
    _counts: Counter[str] = field(default_factory=Counter)
    _holder: str = ""

    def kill_at(self, boundary: Boundary, moment: Moment, kill: Callable[[], None]) -> None:
        """Call `kill`, which ends the process that sends the requests, at this write; later requests are refused."""
        self._plan = _Plan(boundary, moment, kill)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a port of loopback; yields the URL."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="write proxy", daemon=True)
        thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._start(), loop).result(30)
            yield f"http://127.0.0.1:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _start(self) -> int:
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))
        application = web.Application(client_max_size=64 * 1024**2)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        boundary = self._boundary(request, body)
        plan = self._plan if self._plan and boundary == self._plan.boundary else None
        if self.killed:
            raise web.HTTPServiceUnavailable  # nothing of a dead process arrives later
        if plan and plan.moment is Moment.BEFORE:
            return self._kill(plan)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in {"host", "connection"}}
        url = f"{self.upstream}{request.path_qs}"
        async with self._session.request(request.method, url, data=body or None, headers=headers) as answer:
            if plan and plan.moment is Moment.UNANSWERED:
                await answer.read()
                return self._kill(plan)
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            with suppress(ConnectionError):
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            if plan:
                self._kill(plan)
            return response

    def _kill(self, plan: _Plan) -> web.Response:
        self.killed = True
        plan.kill()
        return web.Response(status=503)

    def _boundary(self, request: web.Request, body: bytes) -> Boundary | None:
        """The boundary that a request is; None for what writes nothing, and for the renewals of a lock."""
        *_, last = parts = request.path.strip("/").split("/")
        if request.method not in _WRITES or "dryRun" in request.query or last.endswith(_REVIEWS):
            return None
        item: dict[str, Any] = json.loads(body) if body else {}
        metadata = item.get("metadata") or {}
        named = request.method != "POST"
        what = f"{parts[-2]}/{last}" if named else f"{last}/{metadata.get('name', '')}"
        if "leases/" in what and request.method != "DELETE":
            holder = (item.get("spec") or {}).get("holderIdentity") or ""
            before, self._holder = self._holder, holder
            if holder == before:
                return None
            what += " acquired" if holder else " released"
        if state := (metadata.get("labels") or {}).get(_STATE):
            what += f" as {state}"
        write = f"{request.method} {what}"
        self._counts[write] += 1
        boundary = Boundary(write, self._counts[write])
        self.trace.append(boundary)
        return boundary


def _end_to_end(headers: Any) -> dict[str, str]:  # noqa: ANN401  a multidict
    hop_by_hop = {"transfer-encoding", "connection", "content-length", "keep-alive"}
    return {name: value for name, value in headers.items() if name.lower() not in hop_by_hop}
