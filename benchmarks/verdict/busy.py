"""How busy the machine was, so that the figures can be judged: a busy machine makes every tool slow. Linux only."""

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class Meter:
    """Measures from its making to the moment that it is printed."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), _ticks()

    def __str__(self) -> str:
        minutes = (time.monotonic() - self._began) / 60
        idle, total = (now - then for now, then in zip(_ticks(), self._before, strict=True))
        busy = f"processors {100 * (1 - idle / total):.0f} % busy" if total else "load not known"
        return f"{minutes:.0f} minutes, {busy}, load average at the end {os.getloadavg()[0]:.1f}"


def _ticks() -> tuple[int, int]:
    """Idle and all, of all processors together (proc(5))."""
    if not _STAT.exists():
        return 0, 0
    numbers = [int(each) for each in _STAT.read_text().splitlines()[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers)
