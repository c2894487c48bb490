"""Services as TCP proxies: each connection goes to one endpoint, chosen at random.

Connections go to ready endpoints; where there is none, to endpoints that are terminating and still serve (KEP-1669).
Changes take effect as late as on a real node (minSyncPeriod in kube-proxy's configuration): the first one within 0.1 s,
the following ones together, one second later. Nothing is retried, so that requests that would fail in a real cluster
fail here. A Service without endpoints refuses connections. Differences to kube-proxy: an endpoint that refuses shows as
a reset, not as a refusal; UDP and session affinity are not supported; ports below 1024 are served 8000 higher where we
may not bind them.

An address of a Service is bound as soon as the Service exists. Where another program has the port, connections would
reach that program: the Service gets a Warning event and a condition (`controllers.objects`) by which its endpoints, or
its name, are withdrawn until the port is free.
"""

import asyncio
import contextlib
import errno
import logging
import random
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import anyio

from prefect_cd_local.client import ENDPOINT_SLICES, SERVICES, STRATEGIC, ApiError, Client, Object, now_text
from prefect_cd_local.controllers.loop import Caches
from prefect_cd_local.controllers.objects import CLUSTER_IP_SERVED, NODE_PORTS_SERVED, is_withdrawn
from prefect_cd_local.network import bind
from prefect_cd_local.node.events import Recorder

Endpoint = tuple[str, int]
_LOWEST_FREE_PORT, _HIGHER = 1024, 8000
_SERVICE = "kubernetes.io/service-name"
_CHUNK = 64 * 1024
_BACKLOG = 1024
_RETRY_SECONDS = 2.0
_REASON = "PortInUse"
_CONSEQUENCE = {
    NODE_PORTS_SERVED: "its endpoints count as not ready until the port is free",
    CLUSTER_IP_SERVED: "pods do not find it by name until the port is free",
}
_log = logging.getLogger("prefect_cd_local.node")


@dataclass(frozen=True)
class Lag:
    """Seconds until changes of endpoints take effect: for the first one, and at least between two."""

    first: float = 0.1
    between: float = 1.0


class ServiceProxy:
    """Serves the Services of a cluster on this machine.

    Args:
        client: to write conditions of Services.
        caches: follow Services and EndpointSlices.
        recorder: writes events.
        node_address: where node ports are served.
        lag: until changes take effect.
    """

    def __init__(
        self, client: Client, caches: Caches, recorder: Recorder, node_address: str, lag: Lag | None = None
    ) -> None:
        self._client, self._recorder = client, recorder
        self._services, self._slices = caches[SERVICES], caches[ENDPOINT_SLICES]
        self._node_address, self._lag = node_address, lag or Lag()
        self._endpoints: dict[Endpoint, list[Endpoint]] = {}
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._servers: dict[Endpoint, asyncio.Server] = {}
        self._problems: dict[Endpoint, str] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        for cache in (self._services, self._slices):
            cache.listen(lambda _: self._changed.set())

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                with anyio.move_on_after(_RETRY_SECONDS if self._problems else None):
                    await self._changed.wait()
                await asyncio.sleep(self._lag.first)
                self._changed.clear()
                await self._apply()
                await asyncio.sleep(max(self._lag.between - self._lag.first, 0))
        finally:
            await self._stop()

    async def _apply(self) -> None:
        slices: dict[tuple[str, str], list[Object]] = {}
        for slice_ in self._slices.all():
            name = (slice_["metadata"].get("labels") or {}).get(_SERVICE, "")
            slices.setdefault((slice_["metadata"]["namespace"], name), []).append(slice_)
        services = list(self._services.all())
        wanted = [
            service_addresses(service, self._node_address, slices.get((meta["namespace"], meta["name"]), []))
            for service in services
            for meta in [service["metadata"]]
        ]
        self._endpoints = {address: endpoints for front in wanted for address, endpoints in front.items()}
        for address in set(self._sockets) - set(self._endpoints):
            self._release(address)
        self._problems = {}
        for address, endpoints in self._endpoints.items():
            try:
                await self._serve(address, with_endpoints=bool(endpoints))
            except OSError as error:
                self._problems[address] = error.strerror or str(error)
        for service, front in zip(services, wanted, strict=True):
            await self._report(service, [address for address in front if address in self._problems])

    async def _serve(self, address: Endpoint, *, with_endpoints: bool) -> None:
        """Listen on an address of a Service that has endpoints; hold the address of another one.

        Raises:
            OSError: another program has the port.
        """
        if address in self._servers and not with_endpoints:
            self._release(address)
        if address not in self._sockets:
            self._sockets[address] = _bind(address)
        if address not in self._servers and with_endpoints:
            try:
                self._servers[address] = await self._listen(address)
            except OSError:  # another program listens on the port since we bound it
                self._release(address)
                raise

    async def _listen(self, address: Endpoint) -> asyncio.Server:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._proxy_connection(address, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return await asyncio.start_server(accept, sock=self._sockets[address], backlog=_BACKLOG)

    def _release(self, address: Endpoint) -> None:
        """Stop listening on an address; connections that are open stay, as on a real node."""
        server, sock = self._servers.pop(address, None), self._sockets.pop(address)
        if server:
            server.close()
        sock.close()

    async def _report(self, service: Object, failed: list[Endpoint]) -> None:
        """Write an event and a condition where a Service begins or ceases to be served."""
        node_ports = [address for address in failed if address[0] == self._node_address]
        cluster_ips = [address for address in failed if address[0] != self._node_address]
        for kind, addresses in ((NODE_PORTS_SERVED, node_ports), (CLUSTER_IP_SERVED, cluster_ips)):
            if bool(addresses) == is_withdrawn(service, kind):
                continue
            reasons = ", ".join(f"{host}:{port} ({self._problems[host, port]})" for host, port in addresses)
            message = f"cannot listen on {reasons}; {_CONSEQUENCE[kind]}" if addresses else ""
            if message:
                self._recorder.event(service, "Warning", _REASON, message, component="kube-proxy")
            await self._write_condition(service, kind, message)

    async def _write_condition(self, service: Object, kind: str, message: str) -> None:
        meta = service["metadata"]
        entry = {
            "type": kind,
            "status": "False" if message else "True",
            "reason": _REASON if message else "Listening",
            "message": message,
            "lastTransitionTime": now_text(),
        }
        try:
            patch = {"status": {"conditions": [entry]}}
            await self._client.patch(SERVICES, meta["name"], meta["namespace"], patch, STRATEGIC, "status")
        except ApiError as error:  # the next change tries again
            _log.info("no condition %s of Service %s: %s", kind, meta["name"], error)

    async def _proxy_connection(
        self, address: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection to its end."""
        try:
            endpoint = random.choice(self._endpoints.get(address, []))  # noqa: S311
            far_reader, far_writer = await asyncio.open_connection(*endpoint)
        except (OSError, IndexError):
            _reset(writer)
            return
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        except OSError:
            _reset(writer)
            _reset(far_writer)
        finally:
            writer.close()
            far_writer.close()

    async def _stop(self) -> None:
        for address in list(self._sockets):
            self._release(address)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


def _bind(address: Endpoint) -> socket.socket:
    host, port = address
    try:
        return bind(host, port)
    except PermissionError:
        if port >= _LOWEST_FREE_PORT:
            raise
        with socket.socket() as sock:
            if sock.connect_ex(address) == 0:
                raise OSError(errno.EADDRINUSE, "another program answers there") from None
        _log.warning("port %d is forbidden to us: the Service is at %s:%d", port, host, port + _HIGHER)
        return bind(host, port + _HIGHER)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset, so that the other side sees an error."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def service_addresses(service: Object, node_address: str, slices: Iterable[Object]) -> dict[Endpoint, list[Endpoint]]:
    """Return the addresses of a Service on this machine, and the endpoints behind each. Pure."""
    spec, slices = service["spec"], list(slices)
    result: dict[Endpoint, list[Endpoint]] = {}
    for port in spec.get("ports") or []:
        if port.get("protocol", "TCP") != "TCP":
            continue
        behind = _behind(port.get("name") or "", slices)
        address = spec.get("clusterIP") or ""
        if address.startswith("127."):  # this machine does not have other networks
            result[address, int(port["port"])] = behind
        if port.get("nodePort"):
            result[node_address, int(port["nodePort"])] = behind
    return result


def _behind(port: str, slices: list[Object]) -> list[Endpoint]:
    ready: list[Endpoint] = []
    leaving: list[Endpoint] = []
    for slice_ in slices:
        numbers = [int(entry["port"]) for entry in slice_.get("ports") or [] if (entry.get("name") or "") == port]
        for endpoint in slice_.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            addresses = [(str(address), number) for address in endpoint["addresses"] for number in numbers]
            if conditions.get("ready") is not False:
                ready += addresses
            elif conditions.get("serving") and conditions.get("terminating"):
                leaving += addresses
    return ready or leaving
