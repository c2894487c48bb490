"""An application answers its gate or its probe with anything: no exception, no delay, no memory without end."""

import asyncio
import gzip
import zlib
from datetime import timedelta
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.runner import run_gate
from prefect_cd.gates.traffic import load
from prefect_cd.pipeline.models import Gate, HttpCheck, Probe
from tests.security.memory import at_most
from tests.security.servers import Script, answer, for_ever, hostile, sends

pytestmark = pytest.mark.timeout(30)
MEGABYTE = 2**20
ZEROS = b"\0" * 128 * MEGABYTE
BOMB, DEFLATED = gzip.compress(ZEROS, 1), zlib.compress(ZEROS, 1)
DOUBLE_BOMB = gzip.compress(BOMB)
OK = b"HTTP/1.1 200 OK\r\n"


def gate(script: Script, *, contains: str | None = None, seconds: float = 10) -> Evidence:
    """What an http gate says about an application."""
    check = Gate(name="smoke", http=HttpCheck(contains=contains), timeout=timedelta(seconds=seconds))
    with hostile(script) as server:
        return run_gate(check, Path(), server.url, Path())


def probe(script: Script, probe_settings: Probe) -> load.Answer:
    """What one request of a probe says about an application."""

    async def send(url: str) -> load.Answer:
        async with load.http_sender(url, probe_settings) as sender:
            return await sender()

    with hostile(script) as server:
        return asyncio.run(send(server.url))


@pytest.mark.parametrize("codec", ["hex", "rot13", "zip", "idna", "utf-16", "nonsense", "\xff", '"', "unicode_escape"])
def test_a_charset_that_no_text_has_is_not_used(codec: str) -> None:
    evidence = gate(
        sends(answer("schön \udcff".encode(errors="surrogateescape"), f"Content-Type: text/html; charset={codec}"))
    )
    assert (evidence.outcome, evidence.output) == (Outcome.PASSED, "schön \N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", BOMB),
        ("gzip, gzip", DOUBLE_BOMB),
        ("deflate", DEFLATED),
        ("br, zstd", BOMB),
    ],
)
def test_a_compressed_bomb_fills_no_memory(encoding: str, body: bytes) -> None:
    packed = answer(body, f"Content-Encoding: {encoding}")
    with at_most(20 * MEGABYTE):
        assert gate(sends(packed)).outcome is Outcome.PASSED  # the status is as wanted
        assert gate(sends(packed), contains="hello").outcome is Outcome.FAILED
        assert probe(sends(packed), Probe(version_pattern="version (.*)")) == load.Answer()


def test_a_compressed_body_is_read_nevertheless() -> None:
    packed = answer(gzip.compress(b"hello, version 7"), "Content-Encoding: GZIP")
    assert gate(sends(packed), contains="hello").outcome is Outcome.PASSED
    assert probe(sends(packed), Probe(version_pattern=r"version (\d)")) == load.Answer("", "7")


@pytest.mark.parametrize("body", [b"", b"\x1f\x8b", b"no gzip", gzip.compress(b"x" * 100)[:-20]])
def test_a_body_that_is_not_what_its_header_says_is_no_error(body: bytes) -> None:
    packed = answer(body, "Content-Encoding: gzip")
    assert gate(sends(packed)).outcome is Outcome.PASSED
    assert probe(sends(packed), Probe(version_pattern="version")) == load.Answer()


SLOW: dict[str, Script] = {
    "a status line, byte by byte": for_ever(b"HTTP/1.1 200 O", b"K", pause=0.05),
    "headers, one by one": for_ever(OK, b"X: y\r\n", pause=0.05),
    "informational answers": for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.05),
    "a body, byte by byte": for_ever(OK + b"\r\n", b"x", pause=0.05),
    "chunks, byte by byte": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", pause=0.05),
    "nothing": for_ever(b"", b"", pause=0.05),
}
FLOODS: dict[str, Script] = {
    "a status line": for_ever(b"HTTP/1.1 200 ", b"K" * 65536),
    "one header": for_ever(OK + b"X: ", b"y" * 65536),
    "headers": for_ever(OK, b"X: y\r\n" * 8192),
    "informational answers": for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1024),
    "a chunk's extension": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
    "trailers": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 8192),
    "a body": for_ever(OK + b"\r\n", b"x" * 65536),
    "tiny chunks": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 8192),
}


@pytest.mark.parametrize("name", SLOW)
def test_an_answer_that_trickles_ends_at_the_one_deadline(name: str) -> None:
    started = monotonic()
    assert gate(SLOW[name], seconds=0.25).outcome is Outcome.ERRORED
    assert probe(SLOW[name], Probe(timeout=timedelta(seconds=0.25))).failure
    assert monotonic() - started < 2.5


@pytest.mark.parametrize("name", FLOODS)
def test_an_answer_without_an_end_fills_no_memory(name: str) -> None:
    started = monotonic()
    with at_most(40 * MEGABYTE):
        gate(FLOODS[name], seconds=0.3)
        probe(FLOODS[name], Probe(timeout=timedelta(seconds=0.3)))
    assert monotonic() - started < 5


def test_a_redirect_is_an_answer_and_never_followed() -> None:
    for location in ("http://[::", "http://127.0.0.1:1/", "\x7f", "x" * 9000, "//"):
        evidence = gate(sends(answer(b"", f"Location: {location}", status="302 Found")))
        assert (evidence.outcome, "302" in evidence.summary) == (Outcome.FAILED, True)
        assert len(evidence.summary) < 300


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=12, deadline=None)
def test_no_bytes_are_an_exception(noise: bytes, starts_well: bool) -> None:  # noqa: FBT001
    script = sends((OK if starts_well else b"") + noise)
    assert gate(script, seconds=0.3).outcome in Outcome
    assert isinstance(probe(script, Probe(timeout=timedelta(seconds=0.3), version_pattern="(x)|y")), load.Answer)
