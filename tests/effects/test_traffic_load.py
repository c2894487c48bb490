"""Requests on a schedule: in virtual time, and against real servers on the loopback."""

import asyncio
import errno
import math
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from prefect_cd.errors import Invalid
from prefect_cd.gates.evidence import Outcome
from prefect_cd.gates.traffic import limits, load
from prefect_cd.gates.traffic.load import (
    Answer,
    LoadGenerator,
    Sender,
    failure_kind,
    http_sender,
    send_on_schedule,
)
from prefect_cd.gates.traffic.metrics import UNSENT, Sample, Traffic, measure
from prefect_cd.http_client import proxy_for
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe, ProbeLimits


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next scheduled callback: an hour takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def skip(timeout: float | None) -> object:
            self.now += timeout or 0
            return select(0)

        self._selector.select = skip  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now

    def stand_still(self, seconds: float) -> None:
        """Let time pass without running anything, as on a machine that is too busy."""
        self.now += seconds


def run_in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    loop = VirtualTime()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


def responds_after(seconds: float, failure_at: Callable[[float], str] = lambda _: "") -> Sender:
    """A server that responds after `seconds`; `failure_at` is the kind of failure at a time."""

    async def send() -> Answer:
        failure = failure_at(now())
        await asyncio.sleep(seconds)
        return Answer(failure, "v1")

    return send


def sent_for(seconds: float, send: Sender, settings: Probe, rollout_start: float = 1) -> tuple[list[Sample], Traffic]:
    """What requests of so many seconds saw, the first second of them before the rollout."""
    samples: list[Sample] = []
    run_in_virtual_time(send_on_schedule(send, settings.rate, record=samples.append, running=lambda: now() < seconds))
    return samples, measure(samples, rollout_start=rollout_start, settings=settings, route=Route.URL)


# --- on a schedule ---------------------------------------------------------------------------------------------------


def test_requests_are_sent_when_they_are_due_however_late_responses_are() -> None:
    samples, _ = sent_for(10, responds_after(3.7), Probe(rate=10))
    assert len(samples) == 100
    assert [sample.sent for sample in samples] == pytest.approx([n / 10 for n in range(100)])


def test_no_more_than_rate_times_timeout_are_in_flight() -> None:
    in_flight = most = 0

    async def send() -> Answer:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(5)  # the time limit of each request
        in_flight -= 1
        return Answer("timed out")

    sent_for(30, send, Probe(rate=20))
    assert most == 100


def test_the_latency_of_a_response_counts_from_when_its_request_was_due() -> None:
    async def send() -> Answer:
        if now() == 2:
            asyncio.get_running_loop().stand_still(0.5)  # type: ignore[attr-defined]
        return Answer()

    _, traffic = sent_for(4, send, Probe(rate=10))
    assert traffic.latency.worst == pytest.approx(0.5)
    assert traffic.late == pytest.approx(0.4)  # the request after the one during which the machine stood still
    assert traffic.failed == 0
    assert traffic.gap == pytest.approx(0.1)  # one response is missing; the later ones were only sent late


@pytest.mark.timeout(180)
def test_an_hour_of_good_traffic_gives_no_false_alarm() -> None:
    jitter = iter(range(10**9))

    async def send() -> Answer:
        await asyncio.sleep(0.005 + 0.09 * (next(jitter) * 7919 % 100) / 100)  # 5 to 95 ms, in no order
        return Answer(version="v1")

    settings = Probe.model_validate({"rate": 10, "limits": {"failed": 0, "slow": 0, "gap": "300ms"}})
    samples, traffic = sent_for(3600, send, settings)
    evidence = limits.evaluate("probe", traffic, settings)
    assert (len(samples), evidence.outcome) == (36_000, Outcome.PASSED), evidence.summary
    assert traffic.gap < 0.1


@pytest.mark.parametrize("start", [1.5, 1.503, 1.5099])
@pytest.mark.parametrize("kind", ["refused", "503"])
def test_a_gap_of_200_ms_at_100_requests_a_second_is_reported_within_20_percent(start: float, kind: str) -> None:
    settings = Probe(rate=100)
    down = responds_after(0.004, lambda at: kind if start <= at < start + 0.2 else "")
    _, traffic = sent_for(4, down, settings)
    assert traffic.gap == pytest.approx(0.2, rel=0.2)
    assert traffic.gap_at == pytest.approx(start - 1, abs=0.02)
    assert traffic.failures == {kind: 20}
    assert limits.evaluate("probe", traffic, settings).outcome is Outcome.FAILED


def test_a_server_that_delays_its_responses_has_a_gap_even_if_nothing_failed() -> None:
    async def send() -> Answer:
        await asyncio.sleep(max(0.004, 2.2 - now()) if now() >= 2 else 0.004)
        return Answer()

    _, traffic = sent_for(4, send, Probe(rate=100))
    assert traffic.failed == 0
    assert traffic.gap == pytest.approx(0.2, rel=0.2)
    assert traffic.latency.worst == pytest.approx(0.2, rel=0.05)


def test_a_standstill_of_this_machine_is_no_gap_and_ends_without_a_burst() -> None:
    async def send() -> Answer:
        if now() == 2:
            asyncio.get_running_loop().stand_still(30)  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
        return Answer()

    samples, traffic = sent_for(60, send, Probe(rate=10))
    assert sum(sample.failure == UNSENT for sample in samples) == pytest.approx(290, abs=2)
    assert traffic.failed == 0
    assert max(sample.sent - sample.due for sample in samples) <= 1
    evidence = limits.evaluate("probe", traffic, Probe())
    assert evidence.outcome is Outcome.ERRORED
    assert "too busy" in evidence.summary


# --- real connections ------------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answers(text: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            writer.write(text)
        writer.close()

    return serve


OK = b"HTTP/1.1 200 OK\r\nX-Version: v7\r\nContent-Length: 4\r\n\r\ngood"


@asynccontextmanager
async def by_url(server: AbstractAsyncContextManager[str]) -> AsyncIterator[tuple[Route, str]]:
    async with server as url:
        yield Route.URL, url


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    open_connections = 0

    async def serve_and_count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        await serve(reader, writer)
        open_connections -= 1

    listening = await asyncio.start_server(serve_and_count, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        while open_connections:
            await asyncio.sleep(0.01)


def answer_of(serve: Serve, **settings: object) -> Answer:
    async def send_once() -> Answer:
        probe = Probe.model_validate({"timeout": "30s", **settings})
        async with server(serve) as url, http_sender(url, probe) as send:
            return await send()

    return asyncio.run(send_once())


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("serve", "failure"),
    [
        (answers(OK), ""),
        (answers(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"), ""),
        (answers(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"), "503"),
        (answers(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "404"),
        (answers(b""), "closed"),
        (answers(OK[:-2]), "cut off"),
        (answers(b"SSH-2.0-OpenSSH_9.9\r\n"), "not HTTP"),
        (hang, "timed out"),
    ],
)
def test_each_failure_has_its_kind(serve: Serve, failure: str) -> None:
    assert answer_of(serve, timeout="300ms" if serve is hang else "30s").failure == failure


def test_the_settings_can_name_the_good_status() -> None:
    assert answer_of(answers(OK), status=200).failure == ""
    assert answer_of(answers(OK), status=401).failure == "200"


def test_the_version_is_read_from_a_header_or_from_the_body() -> None:
    assert answer_of(answers(OK)).version == "v7"
    assert answer_of(answers(OK), version_header="X-Shop-Version").version == ""
    assert answer_of(answers(OK), version_pattern="go.d").version == "good"
    assert answer_of(answers(OK), version_pattern="g(oo)d").version == "oo"
    assert answer_of(answers(OK), version_pattern="g(x)?ood").version == ""
    assert answer_of(answers(OK), version_pattern="bad").version == ""


def test_a_closed_port_is_refused() -> None:
    async def send_once() -> Answer:
        async with server(hang) as url:
            pass
        async with http_sender(url, Probe()) as send:
            return await send()

    assert asyncio.run(send_once()).failure == "refused"


@pytest.mark.parametrize(("keep_alive", "connections"), [(False, 3), (True, 1)])
def test_each_request_has_its_own_connection_unless_they_are_kept_alive(keep_alive: bool, connections: int) -> None:  # noqa: FBT001
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while line := await reader.readline():
            if line == b"\r\n":
                writer.write(OK)
        writer.close()

    async def thrice() -> None:
        async with server(serve) as url, http_sender(url, Probe(keep_alive=keep_alive)) as send:
            assert [(await send()).failure for _ in range(3)] == ["", "", ""]

    asyncio.run(thrice())
    assert opened == connections


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EMFILE, "too many open files"), UNSENT),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (BrokenPipeError(errno.EPIPE, "broken"), "closed"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "closed"),
        (ssl.SSLError("alert"), "TLS refused"),
        (ValueError("what?"), "not HTTP"),
    ],
)
def test_network_errors_are_distinguished_from_errors_of_this_machine(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


def test_an_unknown_host_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def send_once() -> Answer:
        async with http_sender("http://shop.invalid/", Probe()) as send:
            monkeypatch.setattr(socket, "getaddrinfo", unknown)
            return await send()

    assert asyncio.run(send_once()).failure == "name not found"


# --- in a thread during a rollout ------------------------------------------------------------------------------------


@pytest.fixture
def overdue_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send even overdue requests, so that a busy test machine leaves none out."""
    monkeypatch.setattr(load, "_OVERDUE_SECONDS", 60)


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.01)


def samples_of_block(load_generator: LoadGenerator) -> list[Sample]:
    """Requests that were due since the block began and have ended."""
    start = load_generator._rollout_start
    return [sample for sample in load_generator._samples if start is not None and sample.due >= start]


class TimedEvent(threading.Event):
    """Remembers when it was set."""

    at = math.inf

    def set(self) -> None:
        super().set()
        self.at = time.monotonic()


@pytest.mark.usefixtures("overdue_is_sent")
def test_requests_go_on_for_exactly_as_long_as_the_block() -> None:
    settings = Probe.model_validate({"rate": 50, "timeout": "10s", "version_header": "x-version"})
    load_generator = LoadGenerator(settings, lambda: by_url(server(answers(OK))))
    stopped = load_generator._stopped = TimedEvent()
    with load_generator:
        wait_for(lambda: len(samples_of_block(load_generator)) >= 25)
    assert not load_generator._thread.is_alive()
    traffic = load_generator.traffic()
    dues = sorted(sample.due for sample in load_generator._samples)
    assert [later - earlier for earlier, later in pairwise(dues)] == pytest.approx([1 / 50] * (len(dues) - 1))
    assert dues[-1] <= stopped.at
    assert traffic.sent == len(samples_of_block(load_generator))
    assert traffic.sent_before >= 50
    assert (traffic.failed, traffic.route, [version.version for version in traffic.versions]) == (0, Route.URL, ["v7"])
    assert limits.evaluate("probe", traffic, settings).outcome is Outcome.PASSED


def test_without_a_baseline_the_block_starts_at_once_and_proves_nothing() -> None:
    """The server starts only inside the block: waiting for a baseline before it would never end."""
    entered, received = threading.Event(), threading.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            received.set()
        await hang(reader, writer)

    @asynccontextmanager
    async def open_route() -> AsyncIterator[tuple[Route, str]]:
        await asyncio.to_thread(entered.wait, 50)
        async with by_url(server(serve)) as route_and_url:
            yield route_and_url

    settings = Probe(rate=50, timeout=timedelta(seconds=1))
    with LoadGenerator(settings, open_route, skip_baseline=True) as load_generator:
        assert not load_generator._samples
        entered.set()
        assert received.wait(30)
    traffic = load_generator.traffic()
    assert (traffic.sent_before, traffic.sent > 0) == (0, True)
    assert limits.evaluate("probe", traffic, Probe(limits=ProbeLimits(failed=1000))).outcome is Outcome.ERRORED


def test_an_unreachable_service_is_errored_with_the_reason() -> None:
    @asynccontextmanager
    async def open_missing_route() -> AsyncIterator[tuple[Route, str]]:
        raise Invalid("there is no Service 'shop' in namespace 'n'")
        yield Route.SERVICE, ""

    with LoadGenerator(Probe(), open_missing_route) as load_generator:
        pass
    evidence = limits.evaluate("probe", load_generator.traffic(), Probe())
    assert evidence.outcome is Outcome.ERRORED
    assert "there is no Service 'shop'" in evidence.summary


@pytest.mark.usefixtures("overdue_is_sent")
def test_a_real_gap_is_reported_as_long_as_it_was() -> None:
    """The server refuses 200 requests, about two seconds, and measures how long it was down with its own clock."""
    settings = Probe.model_validate({"rate": 100, "timeout": "5s"})
    block_started, back = threading.Event(), threading.Event()
    edges: list[float] = []

    def refused() -> int:
        return sum(sample.failure == "refused" for sample in samples_of_block(load_generator))

    def delay_at(moment: float) -> float:
        """How late this machine ended the requests around a moment, which limits the precision of the measurement."""
        around = (sample for sample in load_generator._samples if sample.due - 0.03 <= moment <= sample.ended + 0.03)
        return max(sample.ended - sample.due for sample in around)

    @asynccontextmanager
    async def interrupted() -> AsyncIterator[str]:
        first = await asyncio.start_server(answers(OK), "127.0.0.1", 0)
        port = first.sockets[0].getsockname()[1]

        async def interrupt() -> asyncio.Server:
            await asyncio.to_thread(block_started.wait, 50)
            asyncio.get_running_loop().remove_reader(first.sockets[0].fileno())
            await asyncio.sleep(0)  # serves the connection just accepted, which close() would drop
            first.close()
            edges.append(time.monotonic())
            with socket.socket() as held:  # bound but not listening, so that no other process takes the port
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(("127.0.0.1", port))
                while refused() < 200:
                    await asyncio.sleep(0.01)
                again = await asyncio.start_server(answers(OK), "127.0.0.1", port)
            edges.append(time.monotonic())
            back.set()
            return again

        task = asyncio.get_running_loop().create_task(interrupt())
        yield f"http://127.0.0.1:{port}/"
        (await task).close()

    with LoadGenerator(settings, lambda: by_url(interrupted())) as load_generator:
        block_started.set()
        assert back.wait(50)
        enough = len(load_generator._samples) + 50
        wait_for(lambda: len(load_generator._samples) >= enough)
    traffic = load_generator.traffic()
    # closed: connected, but not yet accepted when the server stopped
    assert set(traffic.failures) <= {"refused", "closed"}
    assert traffic.failures["refused"] >= 200
    closed, opened = edges
    assert traffic.gap == pytest.approx(opened - closed, abs=0.04 + delay_at(closed) + delay_at(opened))
    assert traffic.gap > 2 - 0.04 - delay_at(closed)


def test_no_proxy_is_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example.com")
    assert proxy_for("https://shop.example.com/") == "http://proxy:3128"
    assert proxy_for("https://inside.example.com/") is None
    assert proxy_for("http://127.0.0.1:8080/") is None
    assert proxy_for("http://localhost/") is None
