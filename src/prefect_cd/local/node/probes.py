"""Asking a container how it is: startup, readiness and liveness probes, and the hooks that speak the same language.

Decides what an answer means and when enough of them have come. What follows from it is `container`'s.
Sources: kubernetes.io/docs/concepts/workloads/pods/probes; messages: recorded on Kubernetes 1.36.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import aiohttp

from prefect_cd.local.client import Object
from prefect_cd.local.node.processes import Container

_FIRST_ERROR = 400


class Answer(NamedTuple):
    """What one probe found."""

    good: bool
    message: str = ""


async def verdicts(
    probe: Object, ask_once: Callable[[float], Awaitable[Answer]], failed: Callable[[str], None], began: float
) -> AsyncIterator[bool]:
    """Ask again and again; gives True or False whenever enough answers in a row say so.

    Args:
        probe: its settings.
        ask_once: asks, within so many seconds.
        failed: hears the message of each failure.
        began: when the container started, by the monotonic clock.
    """
    needed = {True: probe.get("successThreshold") or 1, False: probe.get("failureThreshold") or 3}
    before, row = None, 0
    due = began + (probe.get("initialDelaySeconds") or 0)
    while True:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        due = max(due, time.monotonic()) + (probe.get("periodSeconds") or 10)
        good, message = await ask_once(probe.get("timeoutSeconds") or 1)
        before, row = good, row + 1 if good == before else 1
        if not good:
            failed(message)
        if row >= needed[good]:
            yield good


async def ask(how: Object, container: Object, process: Container, address: str, seconds: float) -> Answer:
    """Do what a probe or hook says, once."""
    if "exec" in how:
        return await _execute(how["exec"].get("command") or [], process, seconds)
    if "sleep" in how:
        await asyncio.sleep(how["sleep"]["seconds"])
        return Answer(good=True)
    spec = how.get("httpGet") or how.get("tcpSocket")
    if spec is None:
        return Answer(good=False, message="the node of the embedded cluster has no grpc probes")
    where = f"{spec.get('host') or address}:{_port(spec['port'], container)}"
    try:
        return await asyncio.wait_for(_get(spec, where) if "httpGet" in how else _connect(where), seconds)
    except asyncio.TimeoutError:
        late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        said = late if "httpGet" in how else f"dial tcp {where}: i/o timeout"
    except (aiohttp.ClientError, OSError) as error:
        said = _said(error, where)
    return Answer(good=False, message=f'Get "{_url(spec, where)}": {said}' if "httpGet" in how else said)


def _port(port: int | str, container: Object) -> int:
    """A port by number or by its name among the container's ports."""
    if str(port).isdigit():
        return int(port)
    return next((int(each["containerPort"]) for each in container.get("ports") or [] if each.get("name") == port), 0)


async def _execute(command: list[str], process: Container, seconds: float) -> Answer:
    try:
        code, output = await process.execute(command, seconds)
    except asyncio.TimeoutError:
        return Answer(good=False, message=f'command timed out: "{" ".join(command)}" timed out after {seconds:g}s')
    return Answer(code == 0, output)


def _url(spec: Object, where: str) -> str:
    return f"{spec.get('scheme', 'HTTP').lower()}://{where}/{spec.get('path', '/').lstrip('/')}"


async def _get(spec: Object, where: str) -> Answer:
    headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
    headers.update({each["name"]: each["value"] for each in spec.get("httpHeaders") or []})
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(_url(spec, where), headers=headers) as answer,
    ):
        good = answer.status < _FIRST_ERROR
        return Answer(good, "" if good else f"HTTP probe failed with statuscode: {answer.status}")


async def _connect(where: str) -> Answer:
    host, _, port = where.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    return Answer(good=True)


def _said(error: Exception, where: str) -> str:
    """In the words of Go's network library."""
    if isinstance(error, (aiohttp.ClientConnectorError, ConnectionRefusedError)):
        return f"dial tcp {where}: connect: connection refused"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    if isinstance(error, (ConnectionResetError, aiohttp.ClientOSError)):
        return f"read tcp {where}: read: connection reset by peer"
    return str(error) or type(error).__name__
