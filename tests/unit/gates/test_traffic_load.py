"""Requests by the clock: in virtual time, and against real servers on the loopback."""

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
    failure_of,
    http_sender,
    proxy_for,
    send_on_schedule,
)
from prefect_cd.gates.traffic.metrics import UNSENT, Sample, Traffic, measure
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe, ProbeLimits


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing that is due: an hour takes a second."""

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
        """Time passes, and nothing is run: what a busy machine looks like from inside."""
        self.now += seconds


def virtually(work: Coroutine[Any, Any, None]) -> None:
    loop = VirtualTime()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


def after(seconds: float, answer: Callable[[float], str] = lambda _: "") -> Sender:
    """A server that answers after `seconds`; `answer` says how it fails at a time."""

    async def ask() -> Answer:
        failure = answer(now())
        await asyncio.sleep(seconds)
        return Answer(failure, "v1")

    return ask


def sent_for(seconds: float, ask: Sender, settings: Probe, since: float = 1) -> tuple[list[Sample], Traffic]:
    """What requests of so many seconds saw, the first second of them before the rollout."""
    shots: list[Sample] = []
    virtually(send_on_schedule(ask, settings.rate, hit=shots.append, going=lambda: now() < seconds))
    return shots, measure(shots, since=since, settings=settings, way=Route.URL)


# --- by the clock ----------------------------------------------------------------------------------------------------


def test_requests_are_sent_when_they_are_due_however_late_answers_are() -> None:
    shots, _ = sent_for(10, after(3.7), Probe(rate=10))
    assert len(shots) == 100
    assert [shot.sent for shot in shots] == pytest.approx([n / 10 for n in range(100)])


def test_no_more_than_rate_times_timeout_are_in_flight() -> None:
    flying = most = 0

    async def ask() -> Answer:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(5)  # the time limit of each request
        flying -= 1
        return Answer("timed out")

    sent_for(30, ask, Probe(rate=20))
    assert most == 100


def test_the_time_of_an_answer_counts_from_when_its_request_was_due() -> None:
    async def ask() -> Answer:
        if now() == 2:
            asyncio.get_running_loop().stand_still(0.5)  # type: ignore[attr-defined]
        return Answer()

    _, seen = sent_for(4, ask, Probe(rate=10))
    assert seen.latency.worst == pytest.approx(0.5)
    assert seen.late == pytest.approx(0.4)  # the request after the one that stood still
    assert seen.failed == 0
    assert seen.gap == pytest.approx(0.1)  # one answer is missing in between: the others only left late


@pytest.mark.timeout(180)
def test_an_hour_of_good_traffic_gives_no_false_alarm() -> None:
    jitter = iter(range(10**9))

    async def ask() -> Answer:
        await asyncio.sleep(0.005 + 0.09 * (next(jitter) * 7919 % 100) / 100)  # 5 to 95 ms, in no order
        return Answer(version="v1")

    settings = Probe.model_validate({"rate": 10, "limits": {"failed": 0, "slow": 0, "gap": "300ms"}})
    shots, seen = sent_for(3600, ask, settings)
    proved = limits.evaluate("probe", seen, settings)
    assert (len(shots), proved.outcome) == (36_000, Outcome.PASSED), proved.summary
    assert seen.gap < 0.1


@pytest.mark.parametrize("start", [1.5, 1.503, 1.5099])
@pytest.mark.parametrize("kind", ["refused", "503"])
def test_a_gap_of_200_ms_at_100_requests_a_second_is_reported_within_20_percent(start: float, kind: str) -> None:
    settings = Probe(rate=100)
    down = after(0.004, lambda at: kind if start <= at < start + 0.2 else "")
    _, seen = sent_for(4, down, settings)
    assert seen.gap == pytest.approx(0.2, rel=0.2)
    assert seen.gap_at == pytest.approx(start - 1, abs=0.02)
    assert seen.failures == {kind: 20}
    assert limits.evaluate("probe", seen, settings).outcome is Outcome.FAILED


def test_a_server_that_only_holds_its_answers_back_has_a_gap_too_though_nothing_failed() -> None:
    async def ask() -> Answer:
        await asyncio.sleep(max(0.004, 2.2 - now()) if now() >= 2 else 0.004)
        return Answer()

    _, seen = sent_for(4, ask, Probe(rate=100))
    assert seen.failed == 0
    assert seen.gap == pytest.approx(0.2, rel=0.2)
    assert seen.latency.worst == pytest.approx(0.2, rel=0.05)


def test_a_standstill_of_this_machine_is_nobodys_gap_and_ends_without_a_burst() -> None:
    async def ask() -> Answer:
        if now() == 2:
            asyncio.get_running_loop().stand_still(30)  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
        return Answer()

    shots, seen = sent_for(60, ask, Probe(rate=10))
    assert sum(shot.failure == UNSENT for shot in shots) == pytest.approx(290, abs=2)
    assert seen.failed == 0
    assert max(shot.sent - shot.due for shot in shots) <= 1
    proved = limits.evaluate("probe", seen, Probe())
    assert proved.outcome is Outcome.ERRORED
    assert "too busy" in proved.summary


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
async def by_url(reached: AbstractAsyncContextManager[str]) -> AsyncIterator[tuple[Route, str]]:
    async with reached as url:
        yield Route.URL, url


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    open_ones = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_ones
        open_ones += 1
        await serve(reader, writer)
        open_ones -= 1

    listening = await asyncio.start_server(counted, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        while open_ones:
            await asyncio.sleep(0.01)


def asked(serve: Serve, **settings: object) -> Answer:
    async def once() -> Answer:
        given = Probe.model_validate({"timeout": "30s", **settings})
        async with server(serve) as url, http_sender(url, given) as ask:
            return await ask()

    return asyncio.run(once())


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
def test_each_kind_of_failure_has_its_word(serve: Serve, failure: str) -> None:
    assert asked(serve, timeout="300ms" if serve is hang else "30s").failure == failure


def test_a_certain_status_can_be_the_good_one() -> None:
    assert asked(answers(OK), status=200).failure == ""
    assert asked(answers(OK), status=401).failure == "200"


def test_the_version_is_read_from_a_header_or_from_the_body() -> None:
    assert asked(answers(OK)).version == "v7"
    assert asked(answers(OK), version_header="X-Shop-Version").version == ""
    assert asked(answers(OK), version_pattern="go.d").version == "good"
    assert asked(answers(OK), version_pattern="g(oo)d").version == "oo"
    assert asked(answers(OK), version_pattern="g(x)?ood").version == ""
    assert asked(answers(OK), version_pattern="bad").version == ""


def test_nobody_listens_is_refused() -> None:
    async def once() -> Answer:
        async with server(hang) as url:
            pass
        async with http_sender(url, Probe()) as ask:
            return await ask()

    assert asyncio.run(once()).failure == "refused"


@pytest.mark.parametrize(("keep_alive", "connections"), [(False, 3), (True, 1)])
def test_each_request_has_a_connection_of_its_own_unless_they_are_kept(keep_alive: bool, connections: int) -> None:  # noqa: FBT001
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while line := await reader.readline():
            if line == b"\r\n":
                writer.write(OK)
        writer.close()

    async def thrice() -> None:
        async with server(serve) as url, http_sender(url, Probe(keep_alive=keep_alive)) as ask:
            assert [(await ask()).failure for _ in range(3)] == ["", "", ""]

    asyncio.run(thrice())
    assert opened == connections


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (OSError(errno.EMFILE, "too many open files"), UNSENT),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (BrokenPipeError(errno.EPIPE, "broken"), "closed"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "closed"),
        (ssl.SSLError("alert"), "TLS refused"),
        (ValueError("what?"), "not HTTP"),
    ],
)
def test_errors_of_the_network_have_words_and_ours_are_told_apart(error: Exception, word: str) -> None:
    assert failure_of(error) == word


def test_a_name_that_is_not_found_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def once() -> Answer:
        async with http_sender("http://shop.invalid/", Probe()) as ask:
            monkeypatch.setattr(socket, "getaddrinfo", unknown)
            return await ask()

    assert asyncio.run(once()).failure == "name not found"


# --- a thread beside a rollout ---------------------------------------------------------------------------------------


@pytest.fixture
def late_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a standstill of this machine everything is sent that was due meanwhile: none is left out."""
    monkeypatch.setattr(load, "_OVERDUE_SECONDS", 60)


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.01)


def inside_of(probing: LoadGenerator) -> list[Sample]:
    """Requests that were due since the block began, as far as they have ended."""
    since = probing._since
    return [shot for shot in probing._shots if since is not None and shot.due >= since]


class Noted(threading.Event):
    """Knows when it was set."""

    at = math.inf

    def set(self) -> None:
        super().set()
        self.at = time.monotonic()


@pytest.mark.usefixtures("late_is_sent")
def test_requests_go_on_for_exactly_as_long_as_the_block() -> None:
    settings = Probe.model_validate({"rate": 50, "timeout": "10s", "version_header": "x-version"})
    probing = LoadGenerator(settings, lambda: by_url(server(answers(OK))))
    over = probing._over = Noted()
    with probing:
        wait_for(lambda: len(inside_of(probing)) >= 25)
    assert not probing._thread.is_alive()
    seen = probing.seen()
    dues = sorted(shot.due for shot in probing._shots)
    assert [later - earlier for earlier, later in pairwise(dues)] == pytest.approx([1 / 50] * (len(dues) - 1))
    assert dues[-1] <= over.at
    assert seen.sent == len(inside_of(probing))
    assert seen.sent_before >= 50
    assert (seen.failed, seen.way, [each.version for each in seen.versions]) == (0, Route.URL, ["v7"])
    assert limits.evaluate("probe", seen, settings).outcome is Outcome.PASSED


def test_what_must_not_wait_begins_at_once_and_proves_nothing() -> None:
    """Nothing can be asked before the block has begun: who waited for an answer to begin would wait for ever."""
    entered, was_asked = threading.Event(), threading.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            was_asked.set()
        await hang(reader, writer)

    @asynccontextmanager
    async def reach() -> AsyncIterator[tuple[Route, str]]:
        await asyncio.to_thread(entered.wait, 50)
        async with by_url(server(serve)) as reached:
            yield reached

    settings = Probe(rate=50, timeout=timedelta(seconds=1))
    with LoadGenerator(settings, reach, at_once=True) as probing:
        assert not probing._shots
        entered.set()
        assert was_asked.wait(30)
    seen = probing.seen()
    assert (seen.sent_before, seen.sent > 0) == (0, True)
    assert limits.evaluate("probe", seen, Probe(limits=ProbeLimits(failed=1000))).outcome is Outcome.ERRORED


def test_what_cannot_be_reached_is_errored_with_the_reason() -> None:
    @asynccontextmanager
    async def nowhere() -> AsyncIterator[tuple[Route, str]]:
        raise Invalid("there is no Service 'shop' in namespace 'n'")
        yield Route.SERVICE, ""

    with LoadGenerator(Probe(), nowhere) as probing:
        pass
    proved = limits.evaluate("probe", probing.seen(), Probe())
    assert proved.outcome is Outcome.ERRORED
    assert "there is no Service 'shop'" in proved.summary


@pytest.mark.usefixtures("late_is_sent")
def test_a_real_gap_is_reported_as_long_as_it_was() -> None:
    """A server that refuses 200 requests, which is two seconds of them; its own clock says for how long it was away."""
    settings = Probe.model_validate({"rate": 100, "timeout": "5s"})
    inside, back = threading.Event(), threading.Event()
    edges: list[float] = []

    def refused() -> int:
        return sum(shot.failure == "refused" for shot in inside_of(probing))

    def late_at(moment: float) -> float:
        """How much later than due this machine was done with what it had to do then: what it cannot know better."""
        around = (shot for shot in probing._shots if shot.due - 0.03 <= moment <= shot.ended + 0.03)
        return max(shot.ended - shot.due for shot in around)

    @asynccontextmanager
    async def interrupted() -> AsyncIterator[str]:
        first = await asyncio.start_server(answers(OK), "127.0.0.1", 0)
        port = first.sockets[0].getsockname()[1]

        async def interrupt() -> asyncio.Server:
            await asyncio.to_thread(inside.wait, 50)
            asyncio.get_running_loop().remove_reader(first.sockets[0].fileno())
            await asyncio.sleep(0)  # a connection that it has just accepted it could not serve once it is closed
            first.close()
            edges.append(time.monotonic())
            with socket.socket() as held:  # bound, but deaf: meanwhile the port becomes nobody else's
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

    with LoadGenerator(settings, lambda: by_url(interrupted())) as probing:
        inside.set()
        assert back.wait(50)
        enough = len(probing._shots) + 50
        wait_for(lambda: len(probing._shots) >= enough)
    seen = probing.seen()
    assert set(seen.failures) <= {"refused", "closed"}  # closed: connected, and not yet accepted when it went away
    assert seen.failures["refused"] >= 200
    closed, opened = edges
    assert seen.gap == pytest.approx(opened - closed, abs=0.04 + late_at(closed) + late_at(opened))
    assert seen.gap > 2 - 0.04 - late_at(closed)


def test_a_proxy_is_never_asked_about_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example.com")
    assert proxy_for("https://shop.example.com/") == "http://proxy:3128"
    assert proxy_for("https://inside.example.com/") is None
    assert proxy_for("http://127.0.0.1:8080/") is None
    assert proxy_for("http://localhost/") is None
