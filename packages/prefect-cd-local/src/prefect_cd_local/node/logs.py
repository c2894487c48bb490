"""Container logs: one file per run, lines with their time, bounded size.

The lines are those of the container runtime interface (`TIME stdout F TEXT`), so that `kubectl logs --timestamps`
works. Standard output and standard error are one stream. Two runs of a container are kept: the present and the previous
one, as by a kubelet. Source: kubernetes.io/docs/concepts/cluster-administration/logging.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

LARGEST = 5 * 1024 * 1024  # bytes in a file; two files are kept of each run
_LONGEST_LINE = 16 * 1024  # longer ones are split, as by containerd


class Log:
    """The output of one run of a container."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.older = file.with_suffix(".older")
        self.ended = asyncio.Event()
        self._followers: set[asyncio.Queue[bytes]] = set()

    async def follow(self, pipe: int) -> None:
        """Store what comes through a pipe, until all writers have ended."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await reader.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                while len(rest) > _LONGEST_LINE:
                    lines.append(rest[:_LONGEST_LINE])
                    rest = rest[_LONGEST_LINE:]
                self._write(lines)
            self._write([rest] if rest else [])
        finally:
            transport.close()
            self.ended.set()
            for follower in self._followers:
                follower.put_nowait(b"")

    def _write(self, lines: list[bytes]) -> None:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
        dated = [now + b" stdout F " + line + b"\n" for line in lines]
        size = self.file.stat().st_size if self.file.exists() else 0
        kept: list[bytes] = []
        for line in dated:
            size += len(line)
            if size > LARGEST:
                self._append(kept)
                self.file.replace(self.older)
                kept, size = [], len(line)
            kept.append(line)
        self._append(kept)
        for follower in self._followers:
            for line in dated:
                follower.put_nowait(line)

    def _append(self, lines: list[bytes]) -> None:
        with self.file.open("ab") as file:
            file.writelines(lines)

    def lines(self) -> Iterator[bytes]:
        """Return the stored lines, oldest first."""
        for file in (self.older, self.file):
            with suppress(FileNotFoundError), file.open("rb") as text:
                yield from text

    def end(self, lines: int) -> str:
        """Return the last lines as one text."""
        return b"".join(plain(line) for line in deque(self.lines(), lines)).decode(errors="replace")

    async def stream(
        self, *, tail: int | None, follow: bool, timestamps: bool = False, since: datetime | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the output so far, and with `follow` what comes until the run ends."""
        shown = _dated if timestamps else plain
        kept = deque((line for line in self.lines() if since is None or _time(line) >= since), tail)
        coming: asyncio.Queue[bytes] = asyncio.Queue()
        if self.ended.is_set() or not follow:
            coming.put_nowait(b"")  # nothing
        self._followers.add(coming)
        try:
            for line in kept:
                yield shown(line)
            while line := await coming.get():
                yield shown(line)
        finally:
            self._followers.discard(coming)


def plain(line: bytes) -> bytes:
    """Return a stored line as it was printed."""
    return line.split(b" ", 3)[3]


def _dated(line: bytes) -> bytes:
    time, _, _, text = line.split(b" ", 3)
    return time + b" " + text


def _time(line: bytes) -> datetime:
    text = line.split(b" ", 1)[0].decode()
    return datetime.fromisoformat(text[:26] + "+00:00")
