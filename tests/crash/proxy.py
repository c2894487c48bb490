"""A proxy in front of an API server that names the writes of a run, and disturbs one of them.

At one write, the process that sent it is ended, or the write itself is lost, late, or sent twice.
"""

import asyncio
import json
import re
import threading
import time
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
_OPEN = "prefect-cd.dev/open"  # of a lock: the number of the record without an outcome
TOUCHED = "example.org/touched"
"""The annotation that somebody else writes."""
_HOP_BY_HOP = frozenset({"host", "transfer-encoding", "connection", "content-length", "keep-alive", "upgrade"})


class Moment(str, Enum):
    """When the process that sent a write is killed."""

    BEFORE = "before the server gets it"
    UNANSWERED = "after the server has answered, which the process does not learn"
    ANSWERED = "after the process has the answer"


class Fault(str, Enum):
    """What happens to a write whose process goes on."""

    DROPPED = "dropped: the connection is reset, and the server gets nothing"
    OVERTAKEN = "overtaken: somebody else writes to the object just before"
    LATE = "late: no answer in time; the server gets it when a later write was answered"
    LATE_AT_THE_END = "late: no answer in time; the server gets it when the run has ended"
    TWICE = "twice: the server gets it again when a later write was answered"
    TWICE_AT_THE_END = "twice: the server gets it again when the run has ended"


class Outage(str, Enum):
    """What else goes away at a write, which is then carried out."""

    PREFECT = "from here on, Prefect's server is gone"


Event = Moment | Fault | Outage
_TWICE = frozenset({Fault.TWICE, Fault.TWICE_AT_THE_END})
AT_THE_END = frozenset({Fault.LATE_AT_THE_END, Fault.TWICE_AT_THE_END})


@dataclass(frozen=True)
class Boundary:
    """One write of a run, named by what it writes: writes are parallel, so an index would mean different ones."""

    write: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.write} ({self.occurrence})" if self.occurrence > 1 else self.write


@dataclass(frozen=True)
class Answer:
    """What the server answered to a write.

    Args:
        write: its name; method and path of what is no boundary.
        arrived: when the proxy got it, by `time.monotonic`.
        status: the HTTP status.
    """

    write: str
    arrived: float
    status: int


@dataclass(frozen=True)
class _Plan:
    boundary: Boundary
    event: Event
    call: Callable[[], None]


@dataclass(frozen=True)
class _Write:
    """A request as it can be sent to the server again."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Naming = Callable[[str, str, dict[str, Any]], str]
"""From method, path and JSON body to the name of a write; empty for what is no boundary."""


@dataclass
class KubernetesWrites:
    """Names of writes to the Kubernetes API, with the state of a record; renewals of a lock are none."""

    _holder: str = ""
    _open: str = ""

    def __call__(self, method: str, path: str, item: dict[str, Any]) -> str:
        *_, last = parts = path.strip("/").split("/")
        if last.endswith(_REVIEWS):
            return ""
        metadata = item.get("metadata") or {}
        what = f"{last}/{metadata.get('name', '')}" if method == "POST" else f"{parts[-2]}/{last}"
        if "leases/" in what and method != "DELETE":
            holder = (item.get("spec") or {}).get("holderIdentity") or ""
            open_record = (metadata.get("annotations") or {}).get(_OPEN, "")
            before, self._holder = (self._holder, self._open), holder
            self._open = open_record
            if (holder, open_record) == before:
                return ""
            if holder == before[0]:
                what += " marked"
            else:
                what += " acquired" if holder else " released"
        if state := (metadata.get("labels") or {}).get(_STATE):
            what += f" as {state}"
        return f"{method} {what}"


@dataclass
class WriteProxy:
    """Forwards every request to `upstream`, an HTTP server without TLS, such as that of `kubectl proxy`.

    Args:
        upstream: its URL.
        name: how writes are called; default: those of the Kubernetes API.
        trace: the writes in the order of their arrival.
        answers: what the server answered to them, also to late and repeated ones, and to renewals.
        reached: whether the planned boundary was reached.
        gone: whether every connection is reset, as if there were no server.
        planned: called with the path of an object, after the server has answered to a dry run of an apply.
    """

    upstream: str
    name: Naming = field(default_factory=KubernetesWrites)
    trace: list[Boundary] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    reached: bool = False
    gone: bool = False
    planned: Callable[[str], None] = lambda _: None
    _plan: _Plan | None = None
    _counts: Counter[str] = field(default_factory=Counter)
    _undelivered: list[tuple[str, _Write]] = field(default_factory=list)
    _ended: bool = False

    def disturb(self, boundary: Boundary, event: Event, call: Callable[[], None] = lambda: None) -> None:
        """Do something at a write of the run.

        Args:
            boundary: the write.
            event: a moment at which the process is ended, after which no request of it is forwarded; or a fault of
                the write, or an outage that begins with it.
            call: ends the process at that moment; otherwise called when the write arrives.
        """
        self._plan = _Plan(boundary, event, call)

    def deliver(self) -> None:
        """Send what is late, or to be sent twice, to the server now: the run has ended."""
        asyncio.run_coroutine_threadsafe(self._deliver(), self._loop).result(60)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a port of loopback; yields the URL."""
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="write proxy", daemon=True)
        thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
            yield f"http://127.0.0.1:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

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
        if self.gone:
            return _reset(request)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._carry(request)
        arrived, body = time.monotonic(), await request.read()
        boundary = self._boundary(request, body)
        plan = self._plan if self._plan and boundary == self._plan.boundary else None
        if self._ended:
            raise web.HTTPServiceUnavailable  # nothing of a dead process arrives later
        if boundary is None or plan is None:
            return await self._forward(request, body, boundary, arrived)
        self.reached = True
        if isinstance(plan.event, Moment):
            return await self._end(request, body, plan, arrived)
        plan.call()
        return await self._fail(request, body, plan, arrived)

    async def _end(self, request: web.Request, body: bytes, plan: _Plan, arrived: float) -> web.StreamResponse:
        """End the process before, in or after this write."""
        response: web.StreamResponse = web.Response(status=503)
        if plan.event is Moment.UNANSWERED:
            await self._send(plan.boundary.write, _write_of(request, body), arrived)
        elif plan.event is Moment.ANSWERED:
            response = await self._forward(request, body, plan.boundary, arrived)
        self._ended = True
        plan.call()
        return response

    async def _fail(self, request: web.Request, body: bytes, plan: _Plan, arrived: float) -> web.StreamResponse:
        """Lose this write, delay it or repeat it."""
        if self.gone or plan.event is Fault.DROPPED:
            return _reset(request)
        if plan.event is Outage.PREFECT:
            return await self._forward(request, body, plan.boundary, arrived)
        if plan.event is Fault.OVERTAKEN:
            headers = {"Content-Type": "application/merge-patch+json"}
            note = json.dumps({"metadata": {"annotations": {TOUCHED: "yes"}}}).encode()
            await self._send("", _Write("PATCH", request.path, headers, note), arrived)
            return await self._forward(request, body, plan.boundary, arrived)
        if plan.event in _TWICE:
            response = await self._forward(request, body, plan.boundary, arrived)
            self._undelivered.append((plan.boundary.write, _write_of(request, body)))
            return response
        self._undelivered.append((plan.boundary.write, _write_of(request, body)))
        await asyncio.Event().wait()  # until the client gives up: then the handler is cancelled
        raise AssertionError("nobody sets this event")

    async def _forward(
        self, request: web.Request, body: bytes, boundary: Boundary | None, arrived: float
    ) -> web.StreamResponse:
        sent = _write_of(request, body)
        url, headers = f"{self.upstream}{sent.path}", sent.headers
        async with self._session.request(sent.method, url, data=body or None, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            with suppress(ConnectionError):
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
        if request.method == "PATCH" and "dryRun" in request.query:
            self.planned(request.path)
        if _is_write(request):
            name = boundary.write if boundary else f"{request.method} {'/'.join(request.path.split('/')[-2:])}"
            self.answers.append(Answer(name, arrived, answer.status))
        if boundary and self._plan and self._plan.event not in AT_THE_END:
            await self._deliver()
        return response

    async def _deliver(self) -> None:
        while self._undelivered:
            name, write = self._undelivered.pop()
            await self._send(name, write, time.monotonic())

    async def _send(self, name: str, write: _Write, arrived: float) -> None:
        url = f"{self.upstream}{write.path}"
        async with self._session.request(write.method, url, data=write.body or None, headers=write.headers) as answer:
            await answer.read()
        if name:
            self.answers.append(Answer(name, arrived, answer.status))

    async def _carry(self, request: web.Request) -> web.StreamResponse:
        """Forward a websocket in both directions until one side closes it."""
        protocols = request.headers.get("Sec-WebSocket-Protocol", "").replace(" ", "").split(",")
        near = web.WebSocketResponse(protocols=protocols)
        await near.prepare(request)
        async with self._session.ws_connect(f"{self.upstream}{request.path_qs}", protocols=protocols) as far:
            copies = [asyncio.ensure_future(_copy(near, far)), asyncio.ensure_future(_copy(far, near))]
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for copy in copies:
                copy.cancel()
        return near

    def _boundary(self, request: web.Request, body: bytes) -> Boundary | None:
        """The boundary that a request is; None for what writes nothing."""
        if not _is_write(request):
            return None
        item = json.loads(body) if body else {}
        write = self.name(request.method, request.path, item if isinstance(item, dict) else {})
        if not write:
            return None
        self._counts[write] += 1
        boundary = Boundary(write, self._counts[write])
        self.trace.append(boundary)
        return boundary


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_QUESTIONS = frozenset({"filter", "count", "paginate", "history", "logs", "events"})


def prefect_write(method: str, path: str, item: dict[str, Any]) -> str:
    """The name of a write to Prefect's API, with the state that a run gets; updates of artifacts depend on time."""
    parts = _ID.sub("ID", path).strip("/").split("/")[1:]
    if _QUESTIONS & set(parts) or (parts[0] == "artifacts" and method == "PATCH"):
        return ""
    state = item.get("state") or {}
    what = f"{state.get('name') or state['type']}" if state.get("type") else str(item.get("type") or "")
    return f"Prefect: {method} {'/'.join(parts)} {what}".strip()


def _is_write(request: web.Request) -> bool:
    return request.method in _WRITES and "dryRun" not in request.query


def _reset(request: web.Request) -> web.StreamResponse:
    if request.transport:
        request.transport.abort()
    return web.Response(status=503)


def _write_of(request: web.Request, body: bytes) -> _Write:
    return _Write(request.method, request.path_qs, _end_to_end(request.headers), body)


async def _copy(source: Any, sink: Any) -> None:  # noqa: ANN401  a websocket of a server or of a client
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)


def _end_to_end(headers: Any) -> dict[str, str]:  # noqa: ANN401  a multidict
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
