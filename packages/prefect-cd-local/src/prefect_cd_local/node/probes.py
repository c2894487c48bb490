"""Startup, readiness and liveness probes, and lifecycle hooks, which have the same handlers.

Decides whether a probe passes, and when enough results have come. `container` decides what follows.
Sources: kubernetes.io/docs/concepts/workloads/pods/probes; messages were recorded on Kubernetes 1.36.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import aiohttp
import anyio

from prefect_cd_local.client import Object
from prefect_cd_local.node.processes import Container

_FIRST_ERROR = 400


class ProbeResult(NamedTuple):
    """The result of one probe."""

    good: bool
    message: str = ""


async def verdicts(
    probe: Object, ask_once: Callable[[float], Awaitable[ProbeResult]], failed: Callable[[str], None], began: float
) -> AsyncIterator[bool]:
    """Probe again and again; yields True or False whenever enough results in a row agree.

    Args:
        probe: its settings.
        ask_once: probes once, within so many seconds.
        failed: gets the message of each failure.
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


async def run_probe(how: Object, container: Object, process: Container, address: str, seconds: float) -> ProbeResult:
    """Run a probe or hook once."""
    if "exec" in how:
        return await _execute(how["exec"].get("command") or [], process, seconds)
    if "sleep" in how:
        await asyncio.sleep(how["sleep"]["seconds"])
        return ProbeResult(good=True)
    spec = how.get("httpGet") or how.get("tcpSocket")
    if spec is None:
        return ProbeResult(good=False, message="the embedded cluster does not support grpc probes")
    where = f"{spec.get('host') or address}:{_port(spec['port'], container)}"
    try:
        with anyio.fail_after(seconds):
            return await (_get(spec, where) if "httpGet" in how else _connect(where))
    except TimeoutError:
        late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        problem = late if "httpGet" in how else f"dial tcp {where}: i/o timeout"
    except (aiohttp.ClientError, OSError) as error:
        problem = _error_text(error, where)
    return ProbeResult(good=False, message=f'Get "{_url(spec, where)}": {problem}' if "httpGet" in how else problem)


def _port(port: int | str, container: Object) -> int:
    """Return a port by its number, or by its name among the container's ports."""
    if str(port).isdigit():
        return int(port)
    return next((int(entry["containerPort"]) for entry in container.get("ports") or [] if entry.get("name") == port), 0)


async def _execute(command: list[str], process: Container, seconds: float) -> ProbeResult:
    try:
        code, output = await process.execute(command, seconds)
    except TimeoutError:
        return ProbeResult(good=False, message=f'command timed out: "{" ".join(command)}" timed out after {seconds:g}s')
    return ProbeResult(code == 0, output)


def _url(spec: Object, where: str) -> str:
    return f"{spec.get('scheme', 'HTTP').lower()}://{where}/{spec.get('path', '/').lstrip('/')}"


async def _get(spec: Object, where: str) -> ProbeResult:
    headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
    headers.update({header["name"]: header["value"] for header in spec.get("httpHeaders") or []})
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(_url(spec, where), headers=headers) as answer,
    ):
        good = answer.status < _FIRST_ERROR
        return ProbeResult(good, "" if good else f"HTTP probe failed with statuscode: {answer.status}")


async def _connect(where: str) -> ProbeResult:
    host, _, port = where.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    return ProbeResult(good=True)


def _error_text(error: Exception, where: str) -> str:
    """Return an error as Go's network library would describe it."""
    if isinstance(error, (aiohttp.ClientConnectorError, ConnectionRefusedError)):
        return f"dial tcp {where}: connect: connection refused"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    if isinstance(error, (ConnectionResetError, aiohttp.ClientOSError)):
        return f"read tcp {where}: read: connection reset by peer"
    return str(error) or type(error).__name__
