"""Rewriting of a pod's socket addresses."""

import socket
import struct

import pytest

from prefect_cd_local.node.addresses import rewritten_bind, rewritten_connect

POD, LOOPBACK = "127.1.0.7", "127.3.0.7"


def v4(host: str, port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(host) + b"\0" * 8


def v6(host: str, port: int) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + b"\0" * 4 + packed + b"\0" * 4


@pytest.mark.parametrize(
    ("sockaddr", "expected"),
    [
        (v4("0.0.0.0", 8080), v4(POD, 8080)),  # noqa: S104
        (v4("127.0.0.1", 8080), v4(LOOPBACK, 8080)),
        (v6("::", 8080), v6(f"::ffff:{POD}", 8080)),
        (v6("::1", 8080), v6(f"::ffff:{LOOPBACK}", 8080)),
        (v4("0.0.0.0", 0), None),  # noqa: S104
        (v4("127.1.0.7", 8080), None),
        (v4("192.0.2.1", 8080), None),
        (struct.pack("=H", socket.AF_UNIX) + b"/run/socket", None),
        (b"", None),
    ],
)
def test_a_server_gets_the_address_of_its_pod(sockaddr: bytes, expected: bytes | None) -> None:
    assert rewritten_bind(sockaddr, POD, LOOPBACK, only_ipv6=lambda: False) == expected


def test_an_ipv6_only_socket_gets_an_unused_loopback_port() -> None:
    assert rewritten_bind(v6("::", 8080), POD, LOOPBACK, only_ipv6=lambda: True) == v6("::1", 0)


@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        ({LOOPBACK, POD}, LOOPBACK),
        ({POD}, POD),
        (set(), None),  # the machine's own loopback, as it is
    ],
)
def test_localhost_is_the_pod_itself_where_it_listens(listening: set[str], expected: str | None) -> None:
    def listens(host: str, port: int) -> bool:
        return port == 8080 and host in listening

    assert rewritten_connect(v4("127.0.0.1", 8080), POD, LOOPBACK, listens=listens) == (expected and v4(expected, 8080))
    mapped = expected and v6(f"::ffff:{expected}", 8080)
    assert rewritten_connect(v6("::1", 8080), POD, LOOPBACK, listens=listens) == mapped


def test_connections_to_elsewhere_are_left_alone() -> None:
    assert rewritten_connect(v4("127.96.0.1", 443), POD, LOOPBACK, listens=lambda *_: True) is None
