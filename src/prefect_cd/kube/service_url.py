"""Turns an environment's `url` into a URL that answers requests from this machine.

`https://…` is used as it is. `service/NAME[:PORT]` needs no ingress: inside the cluster it becomes the Service's DNS
name, elsewhere the address of its load balancer, else a node port, else a port-forward through the API server; so one
pipeline file works on a laptop and inside the cluster. Gates decide whether the answers are good.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain

import aiohttp
import anyio

from prefect_cd.errors import DeliveryError, Forbidden, GateErrored, Invalid
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object, endpoint_is_ready
from prefect_cd.kube.resources import Ref, Route
from prefect_cd.kube.responses import ApiError
from prefect_cd.kube.selectors import has_selector

_CONNECT_SECONDS = 2.0
_PROXY_LAG_SECONDS = 5.0
"""Until the nodes serve the port of a new Service."""
_ENDPOINT_LAG_SECONDS = 10.0
"""Until the endpoints of a Service follow its pods' readiness."""
_POLL_SECONDS = 0.2
_MAX_ADDRESSES = 8
_LINGER_SECONDS = 10.0
"""For the answer to a client that has closed its side of the connection."""
_CHUNK = 64 * 1024
_DATA, _ERROR = 0, 1
_PORT_MESSAGES = 2
"""The first message of each of the two channels is the port number."""
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_url(cluster: Cluster, namespace: str, url: str) -> AsyncIterator[str]:
    """A URL, without a slash at its end, that answers while the block runs.

    Raises:
        Invalid: no such Service or port.
        GateErrored: the Service has no ready pod to forward to.
    """
    async with open_route(cluster, namespace, url) as (_, reachable_url):
        yield reachable_url


@asynccontextmanager
async def open_route(cluster: Cluster, namespace: str, url: str) -> AsyncIterator[tuple[Route, str]]:
    """As `open_url`, with the route that requests to the URL take.

    Raises:
        Invalid: no such Service or port.
        GateErrored: the Service has no ready pod to forward to.
    """
    if not url.startswith("service/"):
        yield Route.URL, url.rstrip("/")
        return
    name, _, port_name = url.removeprefix("service/").partition(":")
    service = await cluster.get(Ref("v1", "Service", namespace, name))
    if service is None:
        raise Invalid(
            f"there is no Service {name!r} in namespace {namespace!r}", where=url, hint="correct the environment's url"
        )
    port = _port(service, port_name, url)
    scheme = "https" if "https" in {port.get("name"), port.get("appProtocol")} else "http"
    if cluster.in_pod:
        yield Route.SERVICE, f"{scheme}://{name}.{namespace}.svc:{port['port']}"
        return
    addresses = (await _addresses(cluster, service, port))[:_MAX_ADDRESSES]
    if addresses and has_selector(service):
        with suppress(Forbidden):  # without a ready pod, what answers at these addresses is another program
            await _wait_for_ready_pod(cluster, namespace, name, port)
    address = await _first_reachable(addresses)
    if address:
        host, number = address
        bracketed = f"[{host}]" if ":" in host else host  # IPv6
        yield Route.ADDRESS, f"{scheme}://{bracketed}:{number}"
        return
    async with _forwarded(cluster, namespace, name, port) as number:
        yield Route.PORT_FORWARD, f"{scheme}://127.0.0.1:{number}"


def _port(service: Object, name: str, url: str) -> Object:
    """The Service's port with this name or number; the first one without a name."""
    ports: list[Object] = service["spec"].get("ports") or []
    for port in ports:
        if name in {"", port.get("name"), str(port["port"])}:
            return port
    known = ", ".join(str(port.get("name") or port["port"]) for port in ports)
    raise Invalid(f"the Service has no port {name!r}; there are: {known or 'none'}", where=url)


async def _addresses(cluster: Cluster, service: Object, port: Object) -> list[tuple[str, int]]:
    """Host and port of the load balancers, then of the nodes."""
    balancers = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or []
    addresses = [(str(balancer.get("hostname") or balancer.get("ip")), int(port["port"])) for balancer in balancers]
    if port.get("nodePort"):
        try:
            nodes = await cluster.list(await cluster.kind("v1", "Node"))
        except Forbidden:  # a Role in a namespace cannot grant access to nodes; the port-forward needs none
            nodes = []
        hosts = _hosts(node["status"].get("addresses") or [] for node in nodes)
        addresses += [(host, int(port["nodePort"])) for host in hosts]
    return addresses


def _hosts(addresses_by_node: Iterable[list[dict[str, str]]]) -> list[str]:
    """The addresses of all nodes, external ones before internal ones."""
    addresses = list(chain.from_iterable(addresses_by_node))
    external = [address["address"] for address in addresses if address["type"] == "ExternalIP"]
    internal = [address["address"] for address in addresses if address["type"] == "InternalIP"]
    return external + internal


async def _first_reachable(addresses: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    """The first address that accepts a connection; None when none does within a few seconds."""
    deadline = asyncio.get_running_loop().time() + _PROXY_LAG_SECONDS
    while addresses:
        accepted = await asyncio.gather(*(_accepts(host, number) for host, number in addresses))
        for address, accepts in zip(addresses, accepted, strict=True):
            if accepts:
                return address
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return None


async def _accepts(host: str, port: int) -> bool:
    try:
        with anyio.fail_after(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def _forwarded(cluster: Cluster, namespace: str, service: str, port: Object) -> AsyncIterator[int]:
    """A local port whose every connection goes to a pod of the Service that is ready at that moment."""
    await _wait_for_ready_pod(cluster, namespace, service, port)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _connect(cluster, namespace, service, port, reader, writer)
        except (DeliveryError, OSError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            _log.debug("a connection to service/%s ended: %s", service, error)  # its client sees the connection close
        finally:
            with suppress(OSError):
                writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        remaining = tuple(connections)
        for task in remaining:  # kept-alive connections would otherwise outlive the block
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)


async def _connect(
    cluster: Cluster,
    namespace: str,
    service: str,
    port: Object,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Connect a local client with the first ready pod that accepts: endpoints may still name a pod that is deleted."""
    pods = await _ready_pods(cluster, namespace, service, port)
    for pod, number in pods:
        try:
            async with cluster.port_forward(namespace, pod, number) as websocket:
                await _pump(reader, writer, websocket)
                return
        except ApiError:
            if (pod, number) == pods[-1]:
                raise


async def _wait_for_ready_pod(cluster: Cluster, namespace: str, service: str, port: Object) -> None:
    """Return when the Service has a ready pod; endpoints lag behind the pods' readiness by a few seconds."""
    deadline = asyncio.get_running_loop().time() + _ENDPOINT_LAG_SECONDS
    while True:
        try:
            await _ready_pods(cluster, namespace, service, port)
        except GateErrored:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return


async def _ready_pods(cluster: Cluster, namespace: str, service: str, port: Object) -> list[tuple[str, int]]:
    """Name and port of each ready pod of a Service.

    Raises:
        GateErrored: it has none.
    """
    kind = await cluster.kind("discovery.k8s.io/v1", "EndpointSlice")
    pods: list[tuple[str, int]] = []
    for endpoint_slice in await cluster.list(kind, namespace, labels=f"{SERVICE_NAME_LABEL}={service}"):
        ports = endpoint_slice.get("ports") or []
        numbers = [entry["port"] for entry in ports if (entry.get("name") or "") == port.get("name", "")]
        for endpoint in endpoint_slice.get("endpoints") or []:
            target = endpoint.get("targetRef") or {}
            if numbers and target.get("kind") == "Pod" and endpoint_is_ready(endpoint):
                pods.append((target["name"], int(numbers[0])))
    if not pods:
        raise GateErrored(
            f"no pod behind Service {service!r} is ready",
            where=f"service/{service} in {namespace}",
            hint=f"does its selector match the pods? `kubectl -n {namespace} describe service {service}`",
        )
    return pods


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, websocket: aiohttp.ClientWebSocketResponse
) -> None:
    """Copy bytes in both directions until one side closes; an answer that is under way still arrives."""
    up = asyncio.create_task(_upstream(reader, websocket))
    down = asyncio.create_task(_downstream(writer, websocket))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not up.exception():
            # the protocol has no half-closed connections: a client that has sent everything may wait for the answer
            await asyncio.wait({down}, timeout=_LINGER_SECONDS)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        writer.close()  # before the websocket's closing handshake, which takes time


async def _upstream(reader: asyncio.StreamReader, websocket: aiohttp.ClientWebSocketResponse) -> None:
    while data := await reader.read(_CHUNK):
        await websocket.send_bytes(bytes([_DATA]) + data)


async def _downstream(writer: asyncio.StreamWriter, websocket: aiohttp.ClientWebSocketResponse) -> None:
    count = 0
    async for message in websocket:
        count += 1
        if message.type != aiohttp.WSMsgType.BINARY or count <= _PORT_MESSAGES or not message.data:
            continue
        if message.data[0] == _ERROR:
            return
        writer.write(message.data[1:])
        await writer.drain()
