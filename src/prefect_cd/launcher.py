"""Run one program of a commit apart from everything else; `process` starts this file in an interpreter of its own.

It decides how the program is isolated, with the means of the Linux kernel and without any privilege:

- new pid, mount, IPC and (for level `network`) network namespaces: the program sees no other process, can signal none,
  and none of its processes outlives it. All files are read-only except the given ones and temporary folders of its own,
  and the given paths are hidden.
- where that is not possible: all its descendants become children of this process, which kills them in the end.

It imports only the standard library and nothing of this package, so that it starts in milliseconds. Sources: the manual
pages unshare(2), mount(2), mount_setattr(2), prctl(2), pid_namespaces(7), mount_namespaces(7), user_namespaces(7).
"""

import ctypes
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_SUID, _NO_DEVICES, _NO_EXEC = 2, 4, 8
_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_SUBREAPER = 1, 4, 24, 36
_CAPABILITIES = 64
_KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31})
"""Those that Docker gives to containers, without CAP_MKNOD: a program that runs as root gets no others."""
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  a new one is mounted there
_SET_FLAGS, _UP = 0x8914, 0x1
_WAITED_FOR = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_NOT_INHERITED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and a program inherits that
_POLL = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Run the program that the first argument describes, a JSON object; see `_start` in `process`."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    report = int(options["report"])
    os.set_inheritable(report, False)
    _die_with_parent()
    if os.getppid() != options["parent"]:
        os._exit(1)
    try:
        if options["isolation"] != "none":
            _enter_namespaces(options)
    except OSError as error:
        _tell(report, refused=str(error))
        os._exit(1)
    _tell(report, isolation=options["isolation"])
    if options["isolation"] == "none":
        _checked(_libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0), "prctl")
        _protect()
        program = _fork_program(options, report)
        status = _supervise(program, _signal_descendants, options["grace"])
    else:
        status = _supervise_namespace(options, report)
    _end_as(status)


def _supervise_namespace(options: dict[str, Any], report: int) -> int:
    """Fork the first process of the pid namespace; when that ends, the kernel kills all others in it."""
    reader, writer = os.pipe()
    first = os.fork()
    if not first:
        try:
            os.close(reader)
            _die_with_parent()
            _mount_proc()
            _protect()
            program = _fork_program(options, report)
            status = _supervise(program, lambda number: os.kill(-1, number), options["grace"])
            os.write(writer, struct.pack("i", status))
        except OSError as error:
            _tell(report, refused=str(error))
        finally:
            os._exit(1)  # the status of the program went through the pipe
    os.close(report)
    os.close(writer)
    _leave_output()
    _protect()
    ended = _supervise(first, lambda number: os.kill(first, number), options["grace"] + 1)
    answer = os.read(reader, 4)
    return int(struct.unpack("i", answer)[0]) if answer else ended


def _fork_program(options: dict[str, Any], report: int) -> int:
    program = os.fork()
    if program:
        os.close(report)
        _leave_output()
        return program
    try:
        os.setsid()
        for number in _NOT_INHERITED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
        variables = {name: os.environ[name] for name in options["variables"]}
        os.execvpe(options["command"][0], options["command"], variables)
    except OSError as error:
        _tell(report, errno=error.errno)
    finally:
        os._exit(127)


def _supervise(program: int, send: Callable[[int], None], grace: float) -> int:
    """Wait for the program and all that it left; returns its wait status.

    When it has ended, or SIGTERM asks for the end, what still runs gets SIGTERM, and SIGKILL `grace` seconds later.
    """
    status, deadline = 0, 0.0
    while True:
        ending = False
        try:
            while True:
                pid, ended_with = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == program:
                    status, ending = ended_with, True
        except ChildProcessError:
            return status
        received = signal.sigtimedwait(_WAITED_FOR, 0 if ending else _POLL if deadline else 3600)
        ending = ending or (received is not None and received.si_signo != signal.SIGCHLD)
        if ending and not deadline:
            deadline = time.monotonic() + grace
            _send(send, signal.SIGTERM)
        if deadline and time.monotonic() > deadline:
            _send(send, signal.SIGKILL)


def _send(send: Callable[[int], None], number: int) -> None:
    try:
        send(number)
    except ProcessLookupError:
        return


def _signal_descendants(number: int) -> None:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                    parents[int(entry)] = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    for pid in family - {os.getpid()}:
        _send(lambda n, pid=pid: os.kill(pid, n), number)  # type: ignore[misc]


def _enter_namespaces(options: dict[str, Any]) -> None:
    _require_recursive_read_only()
    flags = _NEW_MOUNTS | _NEW_PIDS | _NEW_IPC | (_NEW_NET if options["isolation"] == "network" else 0)
    user, group = os.geteuid(), os.getegid()
    if user or _libc.unshare(flags):
        _checked(_libc.unshare(flags | _NEW_USER), "no user namespaces: unshare")
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(content)
    if options["isolation"] == "network":
        _start_loopback()
    _mount("", "/", flags=_RECURSIVE | _PRIVATE)
    _arrange_files(options)
    os.chdir(options["cwd"])


def _arrange_files(options: dict[str, Any]) -> None:
    """All files read-only, except those that the program may write; hide what it must not read."""
    # opened before anything covers them
    writable = {path: os.open(path, os.O_PATH) for path in options["writable"]}
    visible = {path: os.open(path, os.O_PATH) for path in options["visible"]}
    caches = {path: os.open(path, os.O_PATH) for path in options["caches"]}
    temporary = {path: os.open(folder, os.O_PATH) for path, folder in options["temporary"].items()}
    own = {**caches, **temporary}
    for path in sorted(own):  # one may be below another: HOME in a temporary folder, TMPDIR in a cache
        os.makedirs(path, exist_ok=True)
        _mount(f"/proc/self/fd/{own[path]}", path, flags=_BIND)
    _mount("tmpfs", _SHARED_MEMORY, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=1777")
    for path in options["hidden"]:
        _hide(path)
    for path, descriptor in {**visible, **writable}.items():
        if path in writable or not _is_same(path, descriptor):
            os.makedirs(path, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}", path, flags=_BIND | _RECURSIVE)
    for path in options["read_only"]:  # below a writable one
        _mount(path, path, flags=_BIND | _RECURSIVE)
    _set_read_only("/", recursive=True)
    for path in (*own, *options["writable"], _SHARED_MEMORY):
        _set_read_only(path, clear=True)
    for descriptor in (*writable.values(), *visible.values(), *caches.values(), *temporary.values()):
        os.close(descriptor)


def _hide(path: str) -> None:
    if os.path.isdir(path):
        _mount("tmpfs", path, "tmpfs", _NO_SUID | _NO_DEVICES | _NO_EXEC, "mode=0755,size=1m")
    elif os.path.exists(path):  # it may be below one that is hidden already
        _mount("/dev/null", path, flags=_BIND)


def _is_same(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _mount_proc() -> None:
    """Show only the processes of the namespace; containers with a masked /proc refuse that, and keep theirs."""
    try:
        _mount("proc", "/proc", "proc", _NO_SUID | _NO_DEVICES | _NO_EXEC)
    except PermissionError:
        return
    if os.geteuid() == 0:  # root may write the machine's settings without any capability
        for path in ("/proc/sys", "/proc/sysrq-trigger"):
            if os.path.exists(path):
                _mount(path, path, flags=_BIND)
                _set_read_only(path)


def _start_loopback() -> None:
    import fcntl  # noqa: PLC0415
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


def _protect() -> None:
    """Close /proc/PID and the memory of this process to the program, and give up what root may do to the machine."""
    _checked(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    for capability in set(range(_CAPABILITIES)) - _KEPT_CAPABILITIES:
        _libc.prctl(
            _CAPBSET_DROP, capability, 0, 0, 0
        )  # fails for numbers that the kernel does not have, or without right


def _die_with_parent() -> None:
    _checked(_libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _leave_output() -> None:
    """Keep the program's input and output open in the program only."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)


def _tell(report: int, **fields: object) -> None:
    os.write(report, json.dumps(fields).encode() + b"\n")


def _end_as(status: int) -> NoReturn:
    """End as the program did, by the same signal or with the same exit code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    texts = [text.encode(errors="surrogateescape") or None for text in (source, target, kind, options)]
    _checked(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount on {target}")


def _set_read_only(path: str, *, recursive: bool = False, clear: bool = False) -> None:
    attributes = struct.pack("=QQQQ", 0 if clear else _READ_ONLY, _READ_ONLY if clear else 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    name = path.encode(errors="surrogateescape")
    result = _libc.syscall(ctypes.c_long(_MOUNT_SETATTR), _AT_FDCWD, name, flags, attributes, len(attributes))
    _checked(result, f"mount_setattr on {path}")


def _require_recursive_read_only() -> None:
    """Fail before anything has changed where Linux is older than 5.12."""
    _libc.syscall(ctypes.c_long(_MOUNT_SETATTR), -1, b"", 0, None, 0)
    if ctypes.get_errno() == 38:  # noqa: PLR2004  ENOSYS
        raise OSError("Linux is older than 5.12")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()
