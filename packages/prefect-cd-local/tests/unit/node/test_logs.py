"""Container logs are stored, bounded, and shown."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from prefect_cd_local.node import logs
from prefect_cd_local.node.logs import Log


async def printed(log: Log, *pieces: bytes) -> None:
    read, write = os.pipe()
    following = asyncio.ensure_future(log.follow(read))
    for piece in pieces:
        os.write(write, piece)
    os.close(write)
    await following


def test_the_last_lines_are_shown_also_one_without_an_end(tmp_path: Path) -> None:
    log = Log(tmp_path / "0.log")

    async def scenario() -> list[bytes]:
        await printed(log, b"one\ntwo\nthr", b"ee")
        return [line async for line in log.stream(tail=2, follow=False)]

    assert asyncio.run(scenario()) == [b"two\n", b"three\n"]


def test_with_timestamps_each_line_has_its_time(tmp_path: Path) -> None:
    log = Log(tmp_path / "0.log")

    async def scenario() -> list[bytes]:
        await printed(log, b"one\n")
        return [line async for line in log.stream(tail=None, follow=False, timestamps=True)]

    (line,) = asyncio.run(scenario())
    assert line.endswith(b"Z one\n")
    assert line.startswith(b"20")


def test_a_log_never_grows_beyond_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGEST", 1000)
    log = Log(tmp_path / "0.log")
    asyncio.run(printed(log, *(b"%03d\n" % number for number in range(500))))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert log.end(1) == "499\n"


def test_following_shows_lines_as_they_come_and_ends_with_the_container(tmp_path: Path) -> None:
    log = Log(tmp_path / "0.log")

    async def scenario() -> list[bytes]:
        read, write = os.pipe()
        following = asyncio.ensure_future(log.follow(read))
        os.write(write, b"first\n")
        seen = []
        async for line in log.stream(tail=None, follow=True):
            seen.append(line)
            if line == b"first\n":
                os.write(write, b"second\n")
                os.close(write)
        await following
        return seen

    assert asyncio.run(scenario()) == [b"first\n", b"second\n"]


def test_following_shows_the_last_lines_of_a_pod_that_is_deleted_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "logs" / "0.log")

    async def scenario() -> list[bytes]:
        stream = log.stream(tail=None, follow=True)
        first = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0)
        await printed(log, b"last\n", b"words\n")
        shutil.rmtree(tmp_path / "logs")
        return [await first, *[line async for line in stream]]

    assert asyncio.run(scenario()) == [b"last\n", b"words\n"]
