"""Protects the process that imports it: no other one of the same user can read its memory or environment variables.

The fork server of runs imports it first, since importing is the only thing that a fork server does; its forks inherit
the protection. `/proc/self` belongs to root from then on, so that the name of a process is set by a system call.
"""

import ctypes
import sys

from prefect_cd.process import protect_this_process

_SET_NAME = 15

protect_this_process()


def set_process_name(name: str) -> None:
    """Set the name that `ps` shows, where this is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_NAME, name.encode(), 0, 0, 0)


__all__ = ["set_process_name"]
