"""From an environment's `url` to a URL that can be requested from here.

`https://…` stands for itself. `service/NAME[:PORT]` needs no ingress: inside the cluster it is the Service's DNS name,
elsewhere the load balancer's address, else a node port, else a port-forward through the API server; so one pipeline
file works on a laptop and inside the cluster. Whether what answers is good is for the gates to say.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

import aiohttp

from prefect_cd.errors import DeliveryError, Forbidden, GateErrored, Invalid
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object
from prefect_cd.kube.resources import Ref, Route
from prefect_cd.kube.responses import ApiError

_CONNECT_SECONDS = 2.0
_PROXY_LAG_SECONDS = 5.0
_MOST_ADDRESSES = 8
_LINGER_SECONDS = 10.0
_ENDPOINT_LAG_SECONDS = 10.0
# aiohttp does not wait for the end of a TLS connection that was a websocket (its docs: Graceful Shutdown)
_FAREWELL_SECONDS = 0.25
_CHUNK = 64 * 1024
_DATA, _ERROR = 0, 1
_PORT_FRAMES = 2  # the first message of each channel is the port number
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_url(cluster: Cluster, namespace: str, url: str) -> AsyncIterator[str]:
    """A URL, without a slash at its end, that answers for as long as the block runs.

    Raises:
        Invalid: no such Service or port.
        GateErrored: the Service has no ready pod to forward to.
    """
    async with open_route(cluster, namespace, url) as (_, reached):
        yield reached


@asynccontextmanager
async def open_route(cluster: Cluster, namespace: str, url: str) -> AsyncIterator[tuple[Route, str]]:
    """As `reach`, with the way that requests to the URL go.

    Raises:
        Invalid: no such Service or port.
        GateErrored: the Service has no ready pod to forward to.
    """
    if not url.startswith("service/"):
        yield Route.URL, url.rstrip("/")
        return
    name, _, wanted = url.removeprefix("service/").partition(":")
    service = await cluster.get(Ref("v1", "Service", namespace, name))
    if service is None:
        raise Invalid(
            f"there is no Service {name!r} in namespace {namespace!r}", where=url, hint="correct the environment's url"
        )
    port = _port(service, wanted, url)
    scheme = "https" if "https" in {port.get("name"), port.get("appProtocol")} else "http"
    if cluster.in_pod:
        yield Route.SERVICE, f"{scheme}://{name}.{namespace}.svc:{port['port']}"
        return
    answering = await _first_that_answers((await _addresses(cluster, service, port))[:_MOST_ADDRESSES])
    if answering:
        host, number = answering
        shown = f"[{host}]" if ":" in host else host
        yield Route.ADDRESS, f"{scheme}://{shown}:{number}"
        return
    async with _forwarded(cluster, namespace, name, port) as number:
        yield Route.PORT_FORWARD, f"{scheme}://127.0.0.1:{number}"


def _port(service: Object, wanted: str, url: str) -> Object:
    ports: list[Object] = service["spec"].get("ports") or []
    for port in ports:
        if wanted in {"", port.get("name"), str(port["port"])}:
            return port
    known = ", ".join(str(port.get("name") or port["port"]) for port in ports)
    raise Invalid(f"the Service has no port {wanted!r}; there are: {known or 'none'}", where=url)


async def _addresses(cluster: Cluster, service: Object, port: Object) -> list[tuple[str, int]]:
    ingresses = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or []
    found = [(str(each.get("hostname") or each.get("ip")), int(port["port"])) for each in ingresses]
    if port.get("nodePort"):
        try:
            nodes = await cluster.list(await cluster.kind("v1", "Node"))
        except Forbidden:  # a Role of the namespace alone does not reach the nodes; a port-forward needs none
            nodes = []
        hosts = _hosts(node["status"].get("addresses") or [] for node in nodes)
        found += [(host, int(port["nodePort"])) for host in hosts]
    return found


def _hosts(addresses: Iterable[list[dict[str, str]]]) -> list[str]:
    """External addresses before internal ones."""
    flat = [address for each in addresses for address in each]
    return [address["address"] for kind in ("ExternalIP", "InternalIP") for address in flat if address["type"] == kind]


async def _first_that_answers(addresses: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    """The best address that accepts a connection; a new Service's port is refused until the nodes know of it."""
    give_up = asyncio.get_running_loop().time() + _PROXY_LAG_SECONDS
    while addresses:
        answers = await asyncio.gather(*(_answers(host, number) for host, number in addresses))
        for address, answered in zip(addresses, answers, strict=True):
            if answered:
                return address
        if asyncio.get_running_loop().time() > give_up:
            break
        await asyncio.sleep(0.2)
    return None


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _CONNECT_SECONDS)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


@asynccontextmanager
async def _forwarded(cluster: Cluster, namespace: str, service: str, port: Object) -> AsyncIterator[int]:
    """A local port whose every connection goes to a pod of the Service that is ready at that moment."""
    await _wait_for_ready_pod(cluster, namespace, service, port)
    open_ones: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _connect(cluster, namespace, service, port, reader, writer)
        except (DeliveryError, OSError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            _log.debug("a connection to service/%s ended: %s", service, error)  # as its user sees of any network
        finally:
            with suppress(OSError):
                writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        open_ones.add(task)
        task.add_done_callback(open_ones.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        left = tuple(open_ones)
        for task in left:  # kept-alive connections would otherwise outlive the block
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(_FAREWELL_SECONDS)


async def _connect(
    cluster: Cluster,
    namespace: str,
    service: str,
    port: Object,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Join a local connection with the first ready pod that takes it: the endpoints may still name one that is gone."""
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
    """Endpoints lag behind the pods' readiness: a Service is given a few seconds before it counts as empty."""
    give_up = asyncio.get_running_loop().time() + _ENDPOINT_LAG_SECONDS
    while True:
        try:
            await _ready_pods(cluster, namespace, service, port)
        except GateErrored:
            if asyncio.get_running_loop().time() > give_up:
                raise
            await asyncio.sleep(0.2)
        else:
            return


async def _ready_pods(cluster: Cluster, namespace: str, service: str, port: Object) -> list[tuple[str, int]]:
    """Name and port of each pod that is ready.

    Raises:
        GateErrored: there is none.
    """
    kind = await cluster.kind("discovery.k8s.io/v1", "EndpointSlice")
    found: list[tuple[str, int]] = []
    for piece in await cluster.list(kind, namespace, labels=f"{SERVICE_NAME_LABEL}={service}"):
        ports = piece.get("ports") or []
        numbers = [each["port"] for each in ports if (each.get("name") or "") == port.get("name", "")]
        for endpoint in piece.get("endpoints") or []:
            target = endpoint.get("targetRef") or {}
            if numbers and target.get("kind") == "Pod" and (endpoint.get("conditions") or {}).get("ready", True):
                found.append((target["name"], int(numbers[0])))
    if not found:
        raise GateErrored(
            f"no pod behind Service {service!r} is ready",
            where=f"service/{service} in {namespace}",
            hint=f"does its selector match the pods? `kubectl -n {namespace} describe service {service}`",
        )
    return found


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, websocket: aiohttp.ClientWebSocketResponse
) -> None:
    """Carry bytes both ways until one side ends; what is on its way down when the client is done still arrives."""
    up = asyncio.create_task(_upstream(reader, websocket))
    down = asyncio.create_task(_downstream(writer, websocket))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not up.exception():
            # the protocol has no half-closed connections: who has sent all may still wait for the answer
            await asyncio.wait({down}, timeout=_LINGER_SECONDS)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        writer.close()  # now, and not after the websocket's own farewell


async def _upstream(reader: asyncio.StreamReader, websocket: aiohttp.ClientWebSocketResponse) -> None:
    while data := await reader.read(_CHUNK):
        await websocket.send_bytes(bytes([_DATA]) + data)


async def _downstream(writer: asyncio.StreamWriter, websocket: aiohttp.ClientWebSocketResponse) -> None:
    frames = 0
    async for message in websocket:
        frames += 1
        if message.type != aiohttp.WSMsgType.BINARY or frames <= _PORT_FRAMES or not message.data:
            continue
        if message.data[0] == _ERROR:
            return
        writer.write(message.data[1:])
        await writer.drain()
