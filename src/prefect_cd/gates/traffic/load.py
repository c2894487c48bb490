"""Requests by the clock while something else goes on: the effect behind `traffic`.

Open loop: a request is sent when it is due, however late the answers to earlier ones are, since users do not wait for
each other. Each has a connection of its own unless settings say otherwise, and a time limit, so that no more than
rate times timeout are in flight. It decides only which words an error of the network gets; what the requests prove is
`downtime`'s matter.
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
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from typing_extensions import Self

from prefect_cd.errors import DeliveryError
from prefect_cd.gates.traffic.metrics import UNSENT, Sample, Traffic, measure
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe

_OVERDUE_SECONDS = 1.0  # after a standstill of this machine no burst is sent to make up for it
_FEWEST_BEFORE = 3
_LARGEST_VERSION = 64 * 1024
_LONGEST_VERSION = 40
_CHUNK = 64 * 1024
_HEADERS = {"User-Agent": "prefect-cd-probe", "Cache-Control": "no-cache"}  # a cache would hide what is lost


class Answer(NamedTuple):
    """What became of one request: how it failed (empty: it did not), and which version answered."""

    failure: str = ""
    version: str = ""


Sender = Callable[[], Awaitable[Answer]]


async def send_on_schedule(
    ask: Sender, rate: float, *, hit: Callable[[Sample], None], going: Callable[[], bool]
) -> None:
    """Send a request whenever one is due by the running loop's clock, until `going` says no; wait for all answers.

    Args:
        ask: sends one; must end by itself.
        rate: requests per second.
        hit: told of each request when it has ended.
        going: asked before each request.
    """
    loop = asyncio.get_running_loop()
    in_flight: set[asyncio.Task[None]] = set()
    start = loop.time()

    async def shoot(due: float) -> None:
        sent = loop.time()
        failure, version = await ask()
        hit(Sample(due, sent, loop.time(), failure, version))

    for number in count():
        due = start + number / rate
        await asyncio.sleep(max(due - loop.time(), 0))
        if not going():
            break
        if loop.time() - due > _OVERDUE_SECONDS:
            hit(Sample(due, due, due, UNSENT))
            continue
        task = loop.create_task(shoot(due))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    await asyncio.gather(*in_flight)


@asynccontextmanager
async def http_sender(url: str, settings: Probe, *, proxy: str | None = None) -> AsyncIterator[Sender]:
    """What sends one GET to `url` and says what became of it.

    Args:
        url: with the path.
        settings: what is a good answer, and where its version stands.
        proxy: the URL of an HTTP proxy.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=not settings.keep_alive, use_dns_cache=settings.keep_alive)
    timeout = aiohttp.ClientTimeout(total=settings.timeout.total_seconds())
    jar = aiohttp.DummyCookieJar()  # a session's cookie may bind all requests to one pod
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=_HEADERS, cookie_jar=jar) as session:

        async def ask() -> Answer:
            try:
                async with session.get(url, allow_redirects=False, proxy=proxy) as answer:
                    beginning = await _read(answer.content)
                    return Answer(_wrong(answer.status, settings), _version(answer.headers, beginning, settings))
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                return Answer(failure_of(error))

        yield ask


class LoadGenerator:
    """Requests from a thread of its own, from a moment before `with` enters its block until it leaves it.

    Args:
        settings: the environment's probe.
        reach: makes the URL that answers from here, for as long as the requests go on, and says which way they go.
        at_once: the block begins without waiting until it is known how it was before, so that nothing is proved.
    """

    def __init__(
        self,
        settings: Probe,
        reach: Callable[[], AbstractAsyncContextManager[tuple[Route, str]]],
        *,
        at_once: bool = False,
    ) -> None:
        self._settings = settings
        self._reach = reach
        self._shots: list[Sample] = []
        self._way, self._address, self._trouble = Route.URL, "", ""
        self._at_once = at_once
        self._since: float | None = None
        self._clock: Callable[[], float] = lambda: math.inf
        self._warm, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="probe", daemon=True)

    def __enter__(self) -> Self:
        """Begin, and wait until it is known how it was before."""
        self._thread.start()
        if self._at_once:
            return self
        try:
            self._warm.wait()
        except BaseException:  # a cancelled run must not leave a thread that goes on sending
            self._over.set()
            raise
        self._since = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        """Send no more, and wait for the last answers."""
        self._over.set()
        self._thread.join()

    def seen(self) -> Traffic:
        """What came of it, after the block."""
        if self._trouble:
            return Traffic(way=self._way, address=self._address, trouble=self._trouble)
        since = min((shot.due for shot in self._shots), default=0.0) if self._since is None else self._since
        return measure(self._shots, since=since, settings=self._settings, way=self._way, address=self._address)

    def _work(self) -> None:
        try:
            asyncio.run(self._send())
        except (DeliveryError, OSError, aiohttp.ClientError) as error:
            self._trouble = error.reason if isinstance(error, DeliveryError) else str(error)
        finally:
            self._warm.set()

    async def _send(self) -> None:
        self._clock = asyncio.get_running_loop().time
        async with self._reach() as (way, reached):
            self._way, self._address = way, reached.rstrip("/") + self._settings.path
            proxy = proxy_for(self._address) if self._way is Route.URL else None  # it knows no address inside a cluster
            async with http_sender(self._address, self._settings, proxy=proxy) as ask:
                await send_on_schedule(ask, self._settings.rate, hit=self._hit, going=lambda: not self._over.is_set())

    def _hit(self, shot: Sample) -> None:
        self._shots.append(shot)
        if len(self._shots) >= max(math.ceil(self._settings.rate), _FEWEST_BEFORE):  # a second of them
            self._warm.set()


def proxy_for(address: str) -> str | None:
    """The proxy that the environment ($HTTPS_PROXY, $NO_PROXY …) names for a URL; none for this machine itself.

    Not the HTTP client's own `trust_env`: that would send the passwords of ~/.netrc along.
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if host == "localhost" or host.startswith("127.") or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)


def failure_of(error: BaseException) -> str:
    """The kind of a failure, in a word or two; `UNSENT` where this machine itself was the reason."""
    inner = getattr(error, "os_error", error)
    number = getattr(inner, "errno", None)
    if number in _NUMBERS:
        return _NUMBERS[number]
    for kinds, word in _KINDS:
        if isinstance(error, kinds):
            return word
    return "unreachable" if isinstance(inner, OSError) else "not HTTP"


_NUMBERS = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL), UNSENT),
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN), "closed"),
    errno.ECONNREFUSED: "refused",
}
_KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((asyncio.TimeoutError,), "timed out"),
    ((ssl.SSLError, aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError), "TLS refused"),
    ((aiohttp.ServerDisconnectedError,), "closed"),
    ((aiohttp.ClientPayloadError,), "cut off"),
    ((getattr(aiohttp, "ClientConnectorDNSError", aiohttp.InvalidURL),), "name not found"),  # new in aiohttp 3.10
)


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The beginning of a body that is read to its end: one that is cut off is no answer."""
    beginning = b""
    async for piece in content.iter_chunked(_CHUNK):
        if len(beginning) < _LARGEST_VERSION:
            beginning += piece
    return beginning[:_LARGEST_VERSION]


def _wrong(status: int, settings: Probe) -> str:
    """The status as a failure; empty when it is a good one."""
    good = status == settings.status if settings.status else 200 <= status < 400  # noqa: PLR2004
    return "" if good else str(status)


def _version(headers: Mapping[str, str], beginning: bytes, settings: Probe) -> str:
    if settings.version_pattern is None:
        return str(headers.get(settings.version_header, ""))[:_LONGEST_VERSION]
    found = re.search(settings.version_pattern, beginning.decode("utf-8", "replace"))
    if found is None:
        return ""
    return str(found[1 if found.re.groups else 0] or "")[:_LONGEST_VERSION]


__all__ = ["Answer", "LoadGenerator", "Sender", "failure_of", "http_sender", "proxy_for", "send_on_schedule"]
