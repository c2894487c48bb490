"""An address of its own for each pod, without a network namespace: the kernel asks us before bind(2) and connect(2).

Pods share the machine's network, so two servers on 0.0.0.0:8080 would collide. A seccomp filter (seccomp_unotify(2))
stops a pod's process at these two calls, and what it meant inside its pod is written over the address it gave:

    bind    0.0.0.0:P or [::]:P      -> the pod's address                    (P = 0 is left alone)
    bind    127.0.0.1:P or [::1]:P   -> the pod's own loopback address
    connect 127.0.0.1:P or [::1]:P   -> whichever of the two listens on P; else the machine's own loopback, unchanged

It works for every program in any language, without root, on x86-64 and arm64. Its limits: connections that leave a pod
come from 127.0.0.1; getsockname shows the address that was written; IPv6 sockets that refuse IPv4 get a loopback port
that nobody calls, as in a cluster without IPv6. This is an arrangement, not a wall: pods can reach each other's ports.
"""

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TextIO

from prefect_cd.local.node import kernel

_SECCOMP, _BIND, _CONNECT, _ARCHITECTURE = {
    "x86_64": (317, 49, 42, 0xC000003E),
    "aarch64": (277, 200, 203, 0xC00000B7),
}.get(platform.machine(), (0, 0, 0, 0))
_SET_MODE_FILTER, _NEW_LISTENER, _CONTINUE = 1, 8, 1
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND, _STILL_VALID = 0xC0502100, 0xC0182101, 0x80082102
_NOTIFICATION, _RESPONSE = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_LONGEST_ADDRESS = 128
_MAPPED = b"\0" * 10 + b"\xff\xff"  # IPv4 in IPv6
_ANY4, _LOOPBACK4 = b"\0" * 4, bytes([127, 0, 0, 1])
_ANY6, _LOOPBACK6 = b"\0" * 16, b"\0" * 15 + b"\1"
_LISTENS = "0A"

Listens = Callable[[str, int], bool]


def supported() -> bool:
    """Whether the system calls of this processor are known here."""
    return bool(_SECCOMP)


def install() -> int:
    """Put the filter on this process and all it starts; returns the descriptor on which the kernel asks."""
    program = b"".join(
        struct.pack("=HBBI", *step)
        for step in (
            (_LOAD, 0, 0, 4),  # seccomp_data.arch
            (_JUMP_IF_EQUAL, 0, 3, _ARCHITECTURE),
            (_LOAD, 0, 0, 0),  # seccomp_data.nr
            (_JUMP_IF_EQUAL, 2, 0, _BIND),
            (_JUMP_IF_EQUAL, 1, 0, _CONNECT),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _NOTIFY),
        )
    )
    steps = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    kernel.never_gain_privileges()
    return kernel.system_call(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, filter_)


def answer(listener: int, proc: int, pod: str, loopback: str) -> None:
    """Take one question of the kernel, write the right address, and let the call go on.

    Args:
        listener: from `install`.
        proc: a descriptor of the machine's /proc.
        pod: the pod's address.
        loopback: the address that stands for 127.0.0.1 in this pod.
    """
    question = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, question)
    except OSError:  # the process was killed meanwhile
        return
    identity, process, _, call, _, _, *arguments = _NOTIFICATION.unpack(question)
    with suppress(OSError):  # the call goes on as it was: the machine's own rules then
        _correct(listener, proc, identity, process, call, arguments, (pod, loopback))
    try:
        fcntl.ioctl(listener, _SEND, _RESPONSE.pack(identity, 0, 0, _CONTINUE))
    except OSError:
        return


def _correct(
    listener: int, proc: int, identity: int, process: int, call: int, arguments: list[int], own: tuple[str, str]
) -> None:
    memory = os.open(f"{process}/mem", os.O_RDWR, dir_fd=proc)
    try:
        given = os.pread(memory, min(arguments[2] & 0xFFFFFFFF, _LONGEST_ADDRESS), arguments[1])
        if call == _BIND:
            meant = bound(given, *own, only_ipv6=lambda: _only_ipv6(proc, process, arguments[0]))
        else:
            meant = connected(given, *own, listens=lambda address, port: _listens(proc, address, port))
        if meant is not None:
            fcntl.ioctl(listener, _STILL_VALID, struct.pack("=Q", identity))
            os.pwrite(memory, meant, arguments[1])
    finally:
        os.close(memory)


def bound(given: bytes, pod: str, loopback: str, *, only_ipv6: Callable[[], bool]) -> bytes | None:
    """The socket address to bind instead of the given one; None: that one."""
    family, port, host = _read(given)
    to = {_ANY4: pod, _LOOPBACK4: loopback, _ANY6: pod, _LOOPBACK6: loopback}.get(host)
    if to is None or port == 0:
        return None
    if family == socket.AF_INET6 and only_ipv6():
        return given[:2] + b"\0\0" + given[4:8] + _LOOPBACK6 + given[24:]
    return _with_host(given, family, to)


def connected(given: bytes, pod: str, loopback: str, *, listens: Listens) -> bytes | None:
    """The socket address to connect to instead of the given one; None: that one."""
    family, port, host = _read(given)
    if host not in {_ANY4, _LOOPBACK4, _ANY6, _LOOPBACK6}:
        return None
    to = next((each for each in (loopback, pod) if listens(each, port)), None)
    return None if to is None else _with_host(given, family, to)


def _read(given: bytes) -> tuple[int, int, bytes]:
    """Family, port and host; an empty host for what is not TCP/IP."""
    if len(given) < 8:  # noqa: PLR2004 - the shortest that has a port and an address
        return 0, 0, b""
    family, port = int.from_bytes(given[:2], "little"), int.from_bytes(given[2:4], "big")
    where: dict[int, slice] = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}
    return family, port, given[where[family]] if family in where else b""


def _with_host(given: bytes, family: int, host: str) -> bytes:
    packed = IPv4Address(host).packed
    if family == socket.AF_INET:
        return given[:4] + packed + given[8:]
    return given[:8] + _MAPPED + packed + given[24:]


def _only_ipv6(proc: int, thread: int, descriptor: int) -> bool:
    with _opened(proc, f"{thread}/status") as file:
        process = next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
    try:
        with socket.socket(fileno=kernel.borrow_descriptor(process, descriptor)) as theirs:
            return bool(theirs.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    except OSError:
        return False


def _listens(proc: int, host: str, port: int) -> bool:
    little = IPv4Address(host).packed[::-1].hex().upper()
    wanted = {f"{little}:{port:04X}", f"0000000000000000FFFF0000{little}:{port:04X}"}
    for table in ("self/net/tcp", "self/net/tcp6"):
        try:
            with _opened(proc, table) as file:
                columns = (line.split()[1:4] for line in file)
                if any(local in wanted and state == _LISTENS for local, _, state in columns):
                    return True
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return False


def _opened(proc: int, path: str) -> TextIO:
    return os.fdopen(os.open(path, os.O_RDONLY, dir_fd=proc), encoding="utf-8", errors="replace")
