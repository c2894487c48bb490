"""System calls that Python 3.10 does not offer, by ctypes: namespaces, mounts, process control.

Sources: the manual pages unshare(2), mount(2), mount_setattr(2), prctl(2), pidfd_getfd(2), user_namespaces(7).
"""

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

NEW_MOUNTS, NEW_NAMES, NEW_USER, NEW_PIDS = 0x00020000, 0x04000000, 0x10000000, 0x20000000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000

_SET_PDEATHSIG, _SET_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 36, 38
_MOUNT_SETATTR, _PIDFD_GETFD = 442, 438  # the same number on every processor
_AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = -100, 0x8000, 1


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Enter new namespaces; a new user namespace maps the user to itself, so that nothing looks different inside."""
    user, group = os.getuid(), os.getgid()
    _checked(_libc.unshare(flags), "unshare")
    if flags & NEW_USER:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system, or bind a folder or file."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None), f"mount {kind} on {target}")


def make_read_only(target: str) -> None:
    """Make a mount and everything mounted below it read-only (Linux 5.12)."""
    attributes = struct.pack("=QQQQ", _READ_ONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, len(attributes)
    )
    _checked(result, f"mount_setattr {target}")


def die_with_parent() -> None:
    """Receive SIGKILL when the parent process ends, for whatever reason."""
    _checked(_libc.prctl(_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    _checked(_libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0), "prctl")


def never_gain_privileges() -> None:
    """Ignore set-user-id bits from now on; seccomp filters require this without root."""
    _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def system_call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call that has no function in the C library."""
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), f"system call {number}")


def borrow_descriptor(process: int, descriptor: int) -> int:
    """Duplicate a file descriptor of another process (Linux 5.6)."""
    handle = os.pidfd_open(process)
    try:
        return system_call(_PIDFD_GETFD, handle, descriptor, 0)
    finally:
        os.close(handle)
