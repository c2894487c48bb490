"""A group of processes and its total cost: CPU seconds, and memory with shared pages counted once. Linux only."""

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
    """Processes that run at the same time.

    CPU time is that of all ended children of this process, so no other child may end meanwhile.

    Args:
        commands: one command for each process.
        most_memory: the highest sum of the processes' memory so far, in megabytes.
    """

    commands: Sequence[Sequence[str]]
    most_memory: float = 0.0
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    _sampling: "asyncio.Task[None] | None" = None
    _before: float = 0.0

    async def start(self) -> None:
        """Start all processes."""
        self._before = _cpu()
        for command in self.commands:
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
                )
            )
        self._sampling = asyncio.create_task(self._sample())

    async def wait(self, seconds: float) -> float | None:
        """Wait until all have ended; return the seconds that it took, or None when `seconds` are over."""
        started = time.monotonic()
        try:
            await asyncio.wait_for(asyncio.gather(*(process.wait() for process in self._processes)), seconds)
        except asyncio.TimeoutError:
            return None
        return time.monotonic() - started

    @property
    def running(self) -> int:
        """The number of processes that have not ended."""
        return sum(process.returncode is None for process in self._processes)

    @property
    def codes(self) -> set[int]:
        """The exit codes of the processes that have ended."""
        return {process.returncode for process in self._processes if process.returncode is not None}

    async def stop(self) -> float:
        """End the processes that still run; return the CPU seconds of all together."""
        if self._sampling:
            self._sampling.cancel()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in self._processes))
        return _cpu() - self._before

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            pids = [process.pid for process in self._processes if process.returncode is None]
            self.most_memory = max(self.most_memory, sum(map(_memory, pids)))


def free_memory() -> float:
    """Megabytes of free memory."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def _memory(pid: int) -> float:
    """Megabytes of one process; a shared page counts in equal parts for all its users (proc_pid_smaps(5): Pss)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # the process has ended
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
