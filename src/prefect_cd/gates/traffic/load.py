"""Send requests on a schedule while a rollout goes on in another thread.

Open loop: a request is sent when it is due, however late the responses to earlier ones are, because users do not wait
for each other. Every request has its own connection unless the settings keep connections alive, and a time limit, so
that no more than rate times timeout are in flight. This module decides only which kind of failure a network error is;
`limits` decides what the requests prove.
"""

import asyncio
import errno
import math
import re
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import NamedTuple

import aiohttp
from typing_extensions import Self

from prefect_cd.errors import DeliveryError
from prefect_cd.gates.traffic.metrics import UNSENT, Sample, Traffic, measure
from prefect_cd.http_client import proxy_for, unpack
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe

_OVERDUE_SECONDS = 1.0  # after this machine stood still, the missed requests are not sent in a burst
_FEWEST_BASELINE_SAMPLES = 3
_BODY_SEARCHED = 64 * 1024  # bytes: the version is searched for in this part of the body
_LONGEST_VERSION = 40  # characters
_CHUNK = 64 * 1024  # bytes
_HEADERS = {"User-Agent": "prefect-cd-probe", "Cache-Control": "no-cache"}  # a cached response would hide a failure


class Answer(NamedTuple):
    """The result of one request: the kind of failure (empty: none), and the version that responded."""

    failure: str = ""
    version: str = ""


Sender = Callable[[], Awaitable[Answer]]


async def send_on_schedule(
    send: Sender, rate: float, *, record: Callable[[Sample], None], running: Callable[[], bool]
) -> None:
    """Send a request whenever one is due on the event loop's clock, and wait for all responses at the end.

    Args:
        send: sends one request; must have a time limit of its own.
        rate: requests per second.
        record: called with each request when it has ended.
        running: called before each request; False ends the schedule.
    """
    loop = asyncio.get_running_loop()
    in_flight: set[asyncio.Task[None]] = set()
    start = loop.time()

    async def send_one(due: float) -> None:
        sent = loop.time()
        failure, version = await send()
        record(Sample(due, sent, loop.time(), failure, version))

    for number in count():
        due = start + number / rate
        await asyncio.sleep(max(due - loop.time(), 0))
        if not running():
            break
        if loop.time() - due > _OVERDUE_SECONDS:
            record(Sample(due, due, due, UNSENT))
            continue
        task = loop.create_task(send_one(due))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    await asyncio.gather(*in_flight)


@asynccontextmanager
async def http_sender(url: str, settings: Probe, *, proxy: str | None = None) -> AsyncIterator[Sender]:
    """Make a function that sends one GET request to `url`.

    Args:
        url: with the path.
        settings: what a good response is, and where to find its version.
        proxy: the URL of an HTTP proxy.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=not settings.keep_alive, use_dns_cache=settings.keep_alive)
    timeout = aiohttp.ClientTimeout(total=settings.timeout.total_seconds())
    jar = aiohttp.DummyCookieJar()  # a session cookie may bind all requests to one pod
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        headers=_HEADERS,
        cookie_jar=jar,
        auto_decompress=False,  # a few KB may unpack to more than the memory holds
    ) as session:

        async def send() -> Answer:
            try:
                async with session.get(url, allow_redirects=False, proxy=proxy) as response:
                    body = await _read(response.content)
                    failure = _status_failure(response.status, settings)
                    return Answer(failure, _version(response.headers, body, settings))
            except Exception as error:  # noqa: BLE001  whatever an answer does to the client, it is not a good one
                return Answer(failure_kind(error))

        yield send


class LoadGenerator:
    """Sends requests from a thread of its own, while the `with` block runs.

    It starts about a second before the block, for a baseline to compare the rollout with.

    Args:
        settings: the environment's probe.
        open_route: opens a URL that this machine can reach, for as long as requests are sent, and names its route.
        skip_baseline: start the block at once; without a baseline, the requests prove nothing.
    """

    def __init__(
        self,
        settings: Probe,
        open_route: Callable[[], AbstractAsyncContextManager[tuple[Route, str]]],
        *,
        skip_baseline: bool = False,
    ) -> None:
        self._settings = settings
        self._open_route = open_route
        self._samples: list[Sample] = []
        self._route, self._address, self._error = Route.URL, "", ""
        self._skip_baseline = skip_baseline
        self._rollout_start: float | None = None
        self._clock: Callable[[], float] = lambda: math.inf  # until the event loop of the thread has started
        self._baseline_done, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def __enter__(self) -> Self:
        """Start sending, and wait until the baseline is complete."""
        self._thread.start()
        if self._skip_baseline:
            return self
        try:
            self._baseline_done.wait()
        except BaseException:  # Prefect cancels a run with a BaseException; the thread must not go on sending
            self._stopped.set()
            raise
        self._rollout_start = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sending, and wait for the last responses."""
        self._stopped.set()
        self._thread.join()

    def traffic(self) -> Traffic:
        """What the requests saw; available after the block."""
        if self._error:
            return Traffic(route=self._route, address=self._address, error=self._error)
        start = self._rollout_start
        if start is None:  # without a baseline, the first request counts as part of the rollout
            start = min((sample.due for sample in self._samples), default=0.0)
        return measure(
            self._samples, rollout_start=start, settings=self._settings, route=self._route, address=self._address
        )

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except Exception as error:  # noqa: BLE001  without a reason, the probe would have seen nothing and be silent
            self._error = error.reason if isinstance(error, DeliveryError) else str(error) or type(error).__name__
        finally:
            self._baseline_done.set()  # never leave `__enter__` waiting

    async def _send(self) -> None:
        self._clock = asyncio.get_running_loop().time
        async with self._open_route() as (route, url):
            self._route, self._address = route, url.rstrip("/") + self._settings.path
            # A proxy cannot reach the addresses inside a cluster that the other routes use.
            proxy = proxy_for(self._address) if self._route is Route.URL else None
            async with http_sender(self._address, self._settings, proxy=proxy) as send:
                await send_on_schedule(
                    send, self._settings.rate, record=self._record, running=lambda: not self._stopped.is_set()
                )

    def _record(self, sample: Sample) -> None:
        self._samples.append(sample)
        one_second = math.ceil(self._settings.rate)
        if len(self._samples) >= max(one_second, _FEWEST_BASELINE_SAMPLES):
            self._baseline_done.set()


def failure_kind(error: BaseException) -> str:
    """The kind of a failure, in a word or two; `UNSENT` where this machine itself was the cause."""
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None)
    if number in _KIND_OF_ERRNO:
        return _KIND_OF_ERRNO[number]
    for types, kind in _KIND_OF_TYPE:
        if isinstance(error, types):
            return kind
    return "unreachable" if isinstance(cause, OSError) else "not HTTP"


_KIND_OF_ERRNO = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL), UNSENT),
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN), "closed"),
    errno.ECONNREFUSED: "refused",
}
_KIND_OF_TYPE: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((asyncio.TimeoutError,), "timed out"),
    ((ssl.SSLError, aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError), "TLS refused"),
    ((aiohttp.ServerDisconnectedError,), "closed"),
    ((aiohttp.ClientPayloadError,), "cut off"),
    ((getattr(aiohttp, "ClientConnectorDNSError", aiohttp.InvalidURL),), "name not found"),  # new in aiohttp 3.10
)


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The first part of a body. The rest is read, too, because a body that breaks off is a failure."""
    start = b""
    async for chunk in content.iter_chunked(_CHUNK):
        if len(start) < _BODY_SEARCHED:
            start += chunk
    return start[:_BODY_SEARCHED]


def _status_failure(status: int, settings: Probe) -> str:
    """The status as a kind of failure; empty when it is a good one."""
    good = status == settings.status if settings.status else 200 <= status < 400  # noqa: PLR2004
    return "" if good else str(status)


def _version(headers: Mapping[str, str], body: bytes, settings: Probe) -> str:
    if settings.version_pattern is None:
        return str(headers.get(settings.version_header, ""))[:_LONGEST_VERSION]
    text, _ = unpack(body, headers.get("Content-Encoding", ""), _BODY_SEARCHED)
    match = re.search(settings.version_pattern, text.decode("utf-8", "replace"))
    if match is None:
        return ""
    group = 1 if match.re.groups else 0  # the whole match when the pattern has no group
    return str(match[group] or "")[:_LONGEST_VERSION]


__all__ = ["Answer", "LoadGenerator", "Sender", "failure_kind", "http_sender", "send_on_schedule"]
