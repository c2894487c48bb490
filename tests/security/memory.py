"""How much memory a block takes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROCESS = Path("/proc/self")


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Fail if this process ever holds more bytes in the block than before it, by more than the limit."""
    (_PROCESS / "clear_refs").write_text("5")  # the peak begins again: proc(5)
    before = _kilobytes("VmRSS")
    yield
    grown = (_kilobytes("VmHWM") - before) * 1024
    assert grown <= limit, f"{grown / 2**20:.0f} MiB"


def _kilobytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert match
    return int(match[1])
