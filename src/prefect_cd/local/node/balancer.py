"""Services as TCP balancers: each connection goes to one endpoint, chosen by chance, once.

Decides who may get a connection: ready endpoints; where there is none, endpoints that are terminating and still serve
(KEP-1669). Changes take effect as late as on a real node (minSyncPeriod in kube-proxy's configuration): one after a
quiet time within 0.1 s, the next ones together, one second after that. Nothing is tried a second time, so that what
users of a real cluster would have seen fail fails here. A Service without endpoints refuses connections. Differences:
an endpoint that refuses shows as a reset, not as a refusal; UDP and session affinity are not balanced; ports below
1024, where they are forbidden to us, are served 8000 higher.
"""

import asyncio
import contextlib
import logging
import random
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from prefect_cd.local.client import ENDPOINT_SLICES, SERVICES, Object
from prefect_cd.local.controllers.loop import Caches

Endpoint = tuple[str, int]
_LOWEST_FREE_PORT, _HIGHER = 1024, 8000
_SERVICE = "kubernetes.io/service-name"
_CHUNK = 64 * 1024
_log = logging.getLogger("prefect_cd.local.node")


@dataclass(frozen=True)
class Lag:
    """Seconds until changes of endpoints take effect: the first one, and at least between two."""

    first: float = 0.1
    between: float = 1.0


class Balancer:
    """The Services of a cluster, on this machine.

    Args:
        caches: follow Services and EndpointSlices.
        node_address: where node ports are served.
        lag: until changes take effect.
    """

    def __init__(self, caches: Caches, node_address: str = "127.0.0.1", lag: Lag | None = None) -> None:
        self._services, self._slices = caches[SERVICES], caches[ENDPOINT_SLICES]
        self._node_address, self._lag = node_address, lag or Lag()
        self._endpoints: dict[Endpoint, list[Endpoint]] = {}
        self._servers: dict[Endpoint, asyncio.Server] = {}
        self._links: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        for cache in (self._services, self._slices):
            cache.listen(lambda _: self._changed.set())

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(self._lag.first)
                self._changed.clear()
                await self._apply()
                await asyncio.sleep(max(self._lag.between - self._lag.first, 0))
        finally:
            await self._stop()

    async def _apply(self) -> None:
        slices: dict[tuple[str, str], list[Object]] = {}
        for each in self._slices.all():
            service = (each["metadata"].get("labels") or {}).get(_SERVICE, "")
            slices.setdefault((each["metadata"]["namespace"], service), []).append(each)
        wanted: dict[Endpoint, list[Endpoint]] = {}
        for service in self._services.all():
            behind = slices.get((service["metadata"]["namespace"], service["metadata"]["name"]), [])
            wanted.update(fronts(service, self._node_address, behind))
        self._endpoints = {address: endpoints for address, endpoints in wanted.items() if endpoints}
        for address in set(self._servers) - set(self._endpoints):
            self._servers.pop(address).close()  # connections that are open stay, as on a real node
        for address in set(self._endpoints) - set(self._servers):
            try:
                self._servers[address] = await self._listen(address)
            except OSError as error:
                _log.warning("no Service at %s:%d: %s", *address, error)

    async def _listen(self, address: Endpoint) -> asyncio.Server:
        host, port = address

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._link(address, reader, writer))
            self._links.add(task)
            task.add_done_callback(self._links.discard)

        try:
            return await asyncio.start_server(accept, host, port, backlog=1024)
        except PermissionError:
            if port >= _LOWEST_FREE_PORT:
                raise
            _log.warning("port %d is forbidden to us: the Service is at %s:%d", port, host, port + _HIGHER)
            return await asyncio.start_server(accept, host, port + _HIGHER, backlog=1024)

    async def _link(self, address: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        try:
            endpoint = random.choice(self._endpoints.get(address, []))  # noqa: S311
            far_reader, far_writer = await asyncio.open_connection(*endpoint)
        except (OSError, IndexError):
            _reset(writer)
            return
        try:
            await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        except OSError:
            _reset(writer)
            _reset(far_writer)
        finally:
            writer.close()
            far_writer.close()

    async def _stop(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in self._links:
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side sees an error, not an end."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def fronts(service: Object, node_address: str, slices: Iterable[Object]) -> dict[Endpoint, list[Endpoint]]:
    """The addresses of a Service on this machine, and the endpoints behind each: a pure function."""
    spec, slices = service["spec"], list(slices)
    result: dict[Endpoint, list[Endpoint]] = {}
    for port in spec.get("ports") or []:
        if port.get("protocol", "TCP") != "TCP":
            continue
        behind = _behind(port.get("name") or "", slices)
        address = spec.get("clusterIP") or ""
        if address.startswith("127."):  # others belong to a network that this machine does not have
            result[address, int(port["port"])] = behind
        if port.get("nodePort"):
            result[node_address, int(port["nodePort"])] = behind
    return result


def _behind(port: str, slices: list[Object]) -> list[Endpoint]:
    ready: list[Endpoint] = []
    leaving: list[Endpoint] = []
    for each in slices:
        numbers = [int(one["port"]) for one in each.get("ports") or [] if (one.get("name") or "") == port]
        for endpoint in each.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            found = [(str(address), number) for address in endpoint["addresses"] for number in numbers]
            if conditions.get("ready") is not False:
                ready += found
            elif conditions.get("serving") and conditions.get("terminating"):
                leaving += found
    return ready or leaving
