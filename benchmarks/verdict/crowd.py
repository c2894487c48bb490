"""A crowd of processes, and what they need together: CPU seconds, and memory with shared pages counted once. Linux."""

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SAMPLE_SECONDS = 2.0


@dataclass
class Crowd:
    """Processes that run at the same time; nothing else of this process may be waited for meanwhile.

    Args:
        commands: one for each.
    """

    commands: Sequence[Sequence[str]]
    most_memory: float = 0.0
    """Megabytes."""
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    _sampling: "asyncio.Task[None] | None" = None
    _before: float = 0.0

    async def start(self) -> None:
        """Start all of them."""
        self._before = _cpu()
        for command in self.commands:
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
                )
            )
        self._sampling = asyncio.create_task(self._sample())

    async def wait(self, seconds: float) -> float | None:
        """Until all have ended; how long that took, or None when it takes longer."""
        began = time.monotonic()
        try:
            await asyncio.wait_for(asyncio.gather(*(each.wait() for each in self._processes)), seconds)
        except asyncio.TimeoutError:
            return None
        return time.monotonic() - began

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(each.returncode is None for each in self._processes)

    @property
    def codes(self) -> set[int]:
        """The exit codes of those that have ended."""
        return {each.returncode for each in self._processes if each.returncode is not None}

    async def stop(self) -> float:
        """End those that still run; the CPU seconds of all together."""
        if self._sampling:
            self._sampling.cancel()
        for each in self._processes:
            with contextlib.suppress(ProcessLookupError):
                each.send_signal(signal.SIGTERM)
        await asyncio.gather(*(each.wait() for each in self._processes))
        return _cpu() - self._before

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            pids = [each.pid for each in self._processes if each.returncode is None]
            self.most_memory = max(self.most_memory, sum(map(_memory, pids)))


def free_memory() -> float:
    """Megabytes that new processes may use without harm to others."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def _memory(pid: int) -> float:
    """Megabytes of one process, each shared page in parts (proc_pid_smaps(5): Pss)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # it has ended meanwhile
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
