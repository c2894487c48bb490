"""No process outlives the demo, however it ends: a parent process waits for the demo and kills what it left."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_SET_PDEATHSIG, _SET_SUBREAPER = 1, 36  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(play: Callable[[], int]) -> int:
    """Play in a child process; when it has ended, even by SIGKILL, kill its descendants; return its exit code."""
    _libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0)  # orphaned descendants become children of this process
    child = os.fork()
    if child == 0:
        end_with_parent()
        sys.exit(play())

    def forward(number: int, _: object) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal sends Ctrl-C to both
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_all()
    return 128 - code if code < 0 else code


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends; the setting survives an exec."""
    _libc.prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_all() -> None:
    """Kill the children of this process until there are none; orphaned grandchildren become its children."""
    while True:
        for process in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if fields[1] == str(os.getpid()):
                yield int(stat.parent.name)
