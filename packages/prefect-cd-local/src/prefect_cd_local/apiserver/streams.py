"""Logs of pods and port-forwards, which the node provides by two functions.

Port-forward uses the WebSocket subprotocol v4.channel.k8s.io: frames begin with a channel number (0 data, 1 errors),
and each channel is opened by the port as two bytes, low byte first. The protocols of `kubectl port-forward` are not
supported.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import WSMsgType, web

from prefect_cd_local.apiserver.errors import Refusal, bad_request

Object = dict[str, Any]
Logs = Callable[..., AsyncIterator[bytes]]
"""(namespace, pod, container, previous, tail, follow) → bytes; LookupError says why there is no log.

`timestamps=True` and `since=datetime` are keywords."""
Connect = Callable[[str, str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""(namespace, pod, port) → a connection to that port of the pod; OSError when nothing listens."""
_CHANNELS, _DATA, _ERRORS = "v4.channel.k8s.io", b"\0", b"\1"
_CHUNK = 32 * 1024


def _not_implemented(why: str) -> Refusal:
    return Refusal(501, "NotImplemented", f"the embedded cluster {why}", {})


def _container(pod: Object, requested: str) -> str:
    """Return the container whose log is requested."""
    name = pod["metadata"]["name"]
    main = [str(container["name"]) for container in pod["spec"]["containers"]]
    first = [str(container["name"]) for container in pod["spec"].get("initContainers") or ()]
    if requested in main + first:
        return requested
    if requested:
        raise bad_request(f"container {requested} is not valid for pod {name}")
    if len(main) == 1:
        return main[0]
    more = f" or one of the init containers: [{' '.join(first)}]" if first else ""
    raise bad_request(f"a container name must be specified for pod {name}, choose one of: [{' '.join(main)}]{more}")


async def send_log(request: web.Request, pod: Object, logs: Logs | None) -> web.StreamResponse:
    """Answer GET …/pods/NAME/log.

    Raises:
        Refusal: 400, no such container, not on a node yet, or no log; 501, there is no node.
    """
    query, metadata = request.query, pod["metadata"]
    container = _container(pod, query.get("container", ""))
    if logs is None:
        raise _not_implemented("runs without a node")
    if not pod["spec"].get("nodeName"):
        raise bad_request(f"pod {metadata['name']} does not have a host assigned")
    more: dict[str, Any] = {"timestamps": True} if query.get("timestamps") in {"true", "1"} else {}
    if query.get("sinceSeconds"):
        more["since"] = datetime.now(timezone.utc) - timedelta(seconds=int(query["sinceSeconds"]))
    elif query.get("sinceTime"):
        more["since"] = datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00"))
    previous, follow = (query.get(name) in {"true", "1"} for name in ("previous", "follow"))
    tail = int(query["tailLines"]) if query.get("tailLines") else None
    source = logs(metadata["namespace"], metadata["name"], container, previous, tail, follow, **more)
    try:
        chunk = await anext(source, b"")
    except LookupError as error:
        raise bad_request(str(error.args[0] if error.args else error)) from error
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    left = int(query.get("limitBytes") or 0) or float("inf")
    while chunk and left > 0:
        await response.write(chunk if len(chunk) <= left else chunk[: int(left)])
        left -= len(chunk)
        chunk = await anext(source, b"")
    return response


async def forward_port(request: web.Request, pod: Object, connect: Connect | None) -> web.StreamResponse:
    """Answer …/pods/NAME/portforward?ports=N over a WebSocket, one port at a time.

    Raises:
        Refusal: 400, no port; 501, no WebSocket of the supported protocol, several ports, or no node.
    """
    ports = request.query.getall("ports", [])
    offered = {protocol.strip() for protocol in request.headers.get("Sec-WebSocket-Protocol", "").split(",")}
    if _CHANNELS not in offered or len(ports) > 1:
        raise _not_implemented(f"forwards one port at a time, over {_CHANNELS}")
    if connect is None:
        raise _not_implemented("runs without a node")
    if not ports or not ports[0].isdigit():
        raise bad_request('query parameter "ports" is required')
    port, phase = int(ports[0]), pod["status"].get("phase")
    if phase != "Running":
        raise bad_request(f"unable to forward port because pod is not running. Current status={phase}")
    socket = web.WebSocketResponse(protocols=(_CHANNELS,), max_msg_size=0)
    await socket.prepare(request)
    for channel in (_DATA, _ERRORS):
        await socket.send_bytes(channel + port.to_bytes(2, "little"))
    try:
        reader, writer = await connect(pod["metadata"]["namespace"], pod["metadata"]["name"], port)
    except (OSError, LookupError) as error:
        await socket.send_bytes(_ERRORS + f"error forwarding port {port}: {error}".encode())
        await socket.close()
        return socket
    pump = asyncio.create_task(_pump(reader, socket))
    try:
        with contextlib.suppress(ConnectionError):
            async for message in socket:
                if message.type == WSMsgType.BINARY and message.data[:1] == _DATA:
                    writer.write(message.data[1:])
                    await writer.drain()
    finally:
        pump.cancel()
        writer.close()
    return socket


async def _pump(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            await socket.send_bytes(_DATA + chunk)
    await socket.close()
