"""How busy the machine was during a measurement, because a busy machine slows every tool. Linux only."""

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class Meter:
    """Measures from its construction until it is printed."""

    def __init__(self) -> None:
        self._started, self._before = time.monotonic(), _ticks()

    def __str__(self) -> str:
        minutes = (time.monotonic() - self._started) / 60
        idle, total = (now - then for now, then in zip(_ticks(), self._before, strict=True))
        busy = f"processors {100 * (1 - idle / total):.0f} % busy" if total else "load not known"
        return f"{minutes:.0f} minutes, {busy}, load average at the end {os.getloadavg()[0]:.1f}"


def _ticks() -> tuple[int, int]:
    """Idle ticks and all ticks of all processors together (proc(5))."""
    if not _STAT.exists():
        return 0, 0
    numbers = [int(number) for number in _STAT.read_text().splitlines()[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers)
