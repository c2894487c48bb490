"""The addresses of one cluster: a /16 of the loopback network 127.0.0.0/8 that no other cluster of this machine has.

    127.B.0.1        the node: node ports are served here
    127.B.64.0/18    Services
    127.B.128.0/18   pods
    127.B.192.0/18   in place of 127.0.0.1 inside pods

A cluster reserves its block by binding an abstract unix socket (unix(7)): the kernel lets one process have a name,
releases it when the process ends, however it ends, and separates names by network namespace, as loopback addresses.
Other programs may still listen on one port of all addresses (0.0.0.0); see `Network.is_free`.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

_BLOCKS = range(128, 255)  # 127.0 belongs to the machine, 127.255 has the broadcast address
_SERVICES, _PODS, _LOOPBACKS = 64 << 8, 128 << 8, 192 << 8
_POD_COUNT = (1 << 14) - 2


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster.

    Attributes:
        block: the /16 that contains them.
    """

    block: IPv4Network

    @property
    def node(self) -> str:
        """The node's address."""
        return str(self.block[1])

    @property
    def services(self) -> IPv4Network:
        """The range for Services."""
        return IPv4Network((self.block[_SERVICES], 18))

    def pod(self, number: int) -> tuple[str, str]:
        """Return a pod's address and loopback address by its running number, which wraps around after 16,382."""
        host = 1 + number % _POD_COUNT
        return str(self.block[_PODS + host]), str(self.block[_LOOPBACKS + host])

    def is_free(self, port: int) -> bool:
        """Return whether this cluster can serve a port: no program of this machine listens on it on all addresses.

        The test binds an address that the cluster uses for nothing else.
        """
        try:
            bind(str(self.block[2]), port).close()
        except OSError as error:
            return error.errno != errno.EADDRINUSE
        return True


@contextlib.contextmanager
def reserve() -> Iterator[Network]:
    """Hold a block of addresses until the block of code ends, or this process.

    Raises:
        OSError: all are in use.
    """
    for second in _BLOCKS:
        block = IPv4Network((IPv4Address(bytes([127, second, 0, 0])), 16))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
            try:
                lock.bind(f"\0prefect-cd-local/{block}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            yield Network(block)
            return
    raise OSError(
        errno.EADDRINUSE, f"{len(_BLOCKS)} embedded clusters run on this machine, and there are no addresses left"
    )


def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP socket without listening: the address is reserved, and connections to it are refused.

    Raises:
        OSError: another program has the address.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not prevent it
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
