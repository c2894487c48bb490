"""An address for each pod without a network namespace: the kernel asks us before bind(2) and connect(2).

Pods share the machine's network, so two servers on 0.0.0.0:8080 would collide. A seccomp filter (seccomp_unotify(2))
stops a pod's process at these two calls, and we replace the address in its memory:

    bind    0.0.0.0:P or [::]:P      -> the pod's address                    (P = 0 is left alone)
    bind    127.0.0.1:P or [::1]:P   -> the pod's own loopback address
    connect 127.0.0.1:P or [::1]:P   -> whichever of the two listens on P; else the machine's own loopback, unchanged

It works for every program in any language, without root, on x86-64 and arm64. Limits: connections from a pod come from
127.0.0.1; getsockname shows the replaced address; IPv6-only sockets get a loopback port that nothing uses, as in a
cluster without IPv6. It is no isolation: pods can reach each other's ports.
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

from prefect_cd_local.node import kernel

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
    """Return whether this module knows the system calls of this processor."""
    return bool(_SECCOMP)


def install() -> int:
    """Install the filter for this process and its descendants; returns the descriptor that reports their calls."""
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


def handle_call(listener: int, proc: int, pod: str, loopback: str) -> None:
    """Receive one intercepted call, replace its address, and let the call continue.

    Args:
        listener: from `install`.
        proc: a descriptor of the machine's /proc.
        pod: the pod's address.
        loopback: the address that stands for 127.0.0.1 in this pod.
    """
    question = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, question)
    except OSError:  # the process has been killed
        return
    identity, process, _, call, _, _, *arguments = _NOTIFICATION.unpack(question)
    with suppress(OSError):  # the call continues unchanged
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
        sockaddr = os.pread(memory, min(arguments[2] & 0xFFFFFFFF, _LONGEST_ADDRESS), arguments[1])
        if call == _BIND:
            replacement = rewritten_bind(sockaddr, *own, only_ipv6=lambda: _only_ipv6(proc, process, arguments[0]))
        else:
            replacement = rewritten_connect(sockaddr, *own, listens=lambda address, port: _listens(proc, address, port))
        if replacement is not None:
            fcntl.ioctl(listener, _STILL_VALID, struct.pack("=Q", identity))
            os.pwrite(memory, replacement, arguments[1])
    finally:
        os.close(memory)


def rewritten_bind(sockaddr: bytes, pod: str, loopback: str, *, only_ipv6: Callable[[], bool]) -> bytes | None:
    """Return the socket address to bind instead; None for no change."""
    family, port, host = _read(sockaddr)
    to = {_ANY4: pod, _LOOPBACK4: loopback, _ANY6: pod, _LOOPBACK6: loopback}.get(host)
    if to is None or port == 0:
        return None
    if family == socket.AF_INET6 and only_ipv6():
        return sockaddr[:2] + b"\0\0" + sockaddr[4:8] + _LOOPBACK6 + sockaddr[24:]
    return _with_host(sockaddr, family, to)


def rewritten_connect(sockaddr: bytes, pod: str, loopback: str, *, listens: Listens) -> bytes | None:
    """Return the socket address to connect to instead; None for no change."""
    family, port, host = _read(sockaddr)
    if host not in {_ANY4, _LOOPBACK4, _ANY6, _LOOPBACK6}:
        return None
    to = next((candidate for candidate in (loopback, pod) if listens(candidate, port)), None)
    return None if to is None else _with_host(sockaddr, family, to)


def _read(sockaddr: bytes) -> tuple[int, int, bytes]:
    """Return family, port and host; an empty host for what is not TCP/IP."""
    if len(sockaddr) < 8:  # noqa: PLR2004 - the shortest with a port and an address
        return 0, 0, b""
    family, port = int.from_bytes(sockaddr[:2], "little"), int.from_bytes(sockaddr[2:4], "big")
    where: dict[int, slice] = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}
    return family, port, sockaddr[where[family]] if family in where else b""


def _with_host(sockaddr: bytes, family: int, host: str) -> bytes:
    packed = IPv4Address(host).packed
    if family == socket.AF_INET:
        return sockaddr[:4] + packed + sockaddr[8:]
    return sockaddr[:8] + _MAPPED + packed + sockaddr[24:]


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
