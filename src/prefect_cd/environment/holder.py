"""Which process holds a lock, and whether it has ended, where this machine can know that.

A process is known by its number and start time, in the PID namespace of one boot of one machine: numbers are used
again, containers number their processes anew, and another machine's processes cannot be looked at.
"""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_STATE, _START_TIME = 0, 19  # in /proc/PID/stat, after the name (proc(5))
_ENDED = frozenset("ZX")  # a zombie sends nothing more


def this_process() -> str:
    """The identity of this process, for `has_ended`; empty where the system does not tell (it is not Linux)."""
    try:
        return f"{_place()}/{os.getpid()}/{_stat(os.getpid())[_START_TIME]}"
    except (OSError, IndexError):
        return ""


def has_ended(process: str) -> bool:
    """Whether a process has ended for sure; False where this process cannot know.

    Args:
        process: what `this_process` returned there.
    """
    place, _, number_and_start = process.partition("/")
    number, _, start = number_and_start.partition("/")
    try:
        if place != _place() or not number.isdigit():
            return False
    except OSError:
        return False
    try:
        stat = _stat(int(number))
    except FileNotFoundError:
        return True
    except (OSError, IndexError):
        return False
    return stat[_STATE] in _ENDED or stat[_START_TIME] != start


def _place() -> str:
    """The boot and the PID namespace of this process."""
    return f"{_BOOT_ID.read_text().strip()}:{_PID_NAMESPACE.stat().st_ino}"


def _stat(number: int) -> list[str]:
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
