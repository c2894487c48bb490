"""Checks whether a program listens on the ports that Services send requests to: it connects, and sends nothing.

Done only for rollouts that are complete otherwise, and only at their own pods. A connection from the API server to the
pod's address decides, because requests arrive at that address: a program that listens on 127.0.0.1 gets none of them.
Under a NetworkPolicy something else than the program may refuse the connection; then the node, which connects to the
pod's loopback address, must be refused, too. Without permission to connect, or without a clear answer, nothing is
concluded.

A ready pod whose readiness probe uses that very port has been checked by the kubelet, and is not checked again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import aiohttp
import anyio

from prefect_cd.errors import DeliveryError, Forbidden, InvalidManifest
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object, endpoint_is_ready
from prefect_cd.kube.responses import ApiError
from prefect_cd.rollout.assess import PortResult
from prefect_cd.rollout.diagnosis.services import slices_of

MAX_CONCURRENT = 16
_MAX_PODS = 5
"""Checked behind one port, since one pod that refuses may be a standby: all must refuse."""
_POD_SECONDS = 3
_REFUSAL_SECONDS = 1.0
"""A refusal comes at once; a connection without an answer after this time was accepted."""
_MESSAGE_SECONDS = 0.5
_ERROR_CHANNEL = 1
_REFUSED = "connection refused"


@dataclass(frozen=True)
class _ServicePort:
    """A port of a Service, and the pods behind it."""

    service: str
    port: int
    namespace: str
    pods: tuple[tuple[str, int], ...]
    """Each pod's name and port number."""


async def check_ports(
    cluster: Cluster,
    services: Sequence[Object],
    endpoints: Sequence[Object],
    pods: Sequence[Object],
    slots: asyncio.Semaphore | None = None,
) -> tuple[PortResult, ...]:
    """Connect to every TCP port of every Service that has one of `pods` ready behind it.

    Args:
        cluster: where they are.
        services: which Services. Headless ones are skipped, since requests to them do not use the Service's ports.
        endpoints: any EndpointSlices.
        pods: the pods of the workload; pods of others behind the same Service are not checked.
        slots: limits the concurrent connections; shared when several workloads are checked.
    """
    slots = slots or asyncio.Semaphore(MAX_CONCURRENT)
    ports = [port for service in services for port in _ports_to_check(service, endpoints, pods)]
    errors = await asyncio.gather(*(_check_port(cluster, slots, port) for port in ports))
    now = datetime.now(timezone.utc)
    return tuple(
        PortResult(service=port.service, port=port.port, open=not error, error=error, at=now)
        for port, error in zip(ports, errors, strict=True)
        if error is not None
    )


def keep_first_refusal(results: Sequence[PortResult], before: Sequence[PortResult]) -> tuple[PortResult, ...]:
    """The results, where a port that was closed before has the time of its first refusal."""
    closed_since = {(result.service, result.port): result.at for result in before if not result.open}
    return tuple(
        result if result.open else replace(result, at=closed_since.get((result.service, result.port), result.at))
        for result in results
    )


# --- what to check ---------------------------------------------------------------------------------------------------


def _ports_to_check(service: Object, endpoints: Sequence[Object], pods: Sequence[Object]) -> list[_ServicePort]:
    metadata, spec = service["metadata"], service.get("spec") or {}
    if spec.get("clusterIP") == "None" or spec.get("type") == "ExternalName":
        return []
    slices = slices_of(service, endpoints)
    pods_by_name = {pod["metadata"]["name"]: pod for pod in pods}
    ports = []
    for port in spec.get("ports") or []:
        if port.get("protocol", "TCP") != "TCP":
            continue
        behind = _pods_behind(port, slices, pods_by_name)
        if behind and not any(_has_probe(pods_by_name[name], number) for name, number in behind):
            ports.append(_ServicePort(metadata["name"], port["port"], metadata["namespace"], behind[:_MAX_PODS]))
    return ports


def _pods_behind(
    port: Object, slices: Sequence[Object], pods_by_name: dict[str, Object]
) -> tuple[tuple[str, int], ...]:
    """Name and port number of the ready pods behind a Service's port, each once."""
    behind: dict[tuple[str, int], None] = {}  # a pod with addresses of two families is in two slices
    for endpoint_slice in slices:
        number = _port_number(endpoint_slice, port)
        for name in _ready_pods(endpoint_slice):
            if number and name in pods_by_name:
                behind[name, number] = None
    return tuple(behind)


def _port_number(endpoint_slice: Object, port: Object) -> int:
    """The number of a Service's port in one slice; 0 when the slice does not have it."""
    for entry in endpoint_slice.get("ports") or []:
        if (entry.get("name") or "") == (port.get("name") or ""):
            return int(entry.get("port") or 0)
    return 0


def _ready_pods(endpoint_slice: Object) -> list[str]:
    return [
        endpoint["targetRef"]["name"]
        for endpoint in endpoint_slice.get("endpoints") or []
        if endpoint_is_ready(endpoint) and (endpoint.get("targetRef") or {}).get("kind") == "Pod"
    ]


def _has_probe(pod: Object, number: int) -> bool:
    """Whether a readiness probe of the pod connects to this port."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        probe = container.get("readinessProbe") or {}
        action = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
        numbers = {port.get("name"): port.get("containerPort") for port in container.get("ports") or []}
        # with a host of its own, the probe does not connect to the pod
        if not action.get("host") and number in (action.get("port"), numbers.get(action.get("port"), 0)):
            return True
    return False


# --- connections -----------------------------------------------------------------------------------------------------


async def _check_port(cluster: Cluster, slots: asyncio.Semaphore, port: _ServicePort) -> str | None:
    """The error message when all pods refuse; empty when one accepts; None when it cannot be found out."""
    checks = (_check_pod(cluster, slots, port.namespace, pod, number) for pod, number in port.pods)
    errors = await asyncio.gather(*checks)
    if "" in errors:
        return ""
    return None if None in errors else errors[0]


async def _check_pod(cluster: Cluster, slots: asyncio.Semaphore, namespace: str, pod: str, port: int) -> str | None:
    """The error message when the pod refuses; empty when it accepts; None when it cannot be found out."""
    try:
        async with slots:
            with anyio.fail_after(_POD_SECONDS):
                return await _connect(cluster, namespace, pod, port)
    except (DeliveryError, ApiError, aiohttp.ClientError, OSError, asyncio.TimeoutError):
        return None


async def _connect(cluster: Cluster, namespace: str, pod: str, port: int) -> str:
    error = ""
    with anyio.move_on_after(_REFUSAL_SECONDS):  # one that accepts waits for a request
        error = await cluster.connection_refused(namespace, pod, port)
    if error and await _may_have_network_policy(cluster, namespace):
        return await _connect_to_loopback(cluster, namespace, pod, port)
    return error


async def _may_have_network_policy(cluster: Cluster, namespace: str) -> bool:
    """Whether a NetworkPolicy may refuse connections that the program would accept."""
    try:
        kind = await cluster.kind("networking.k8s.io/v1", "NetworkPolicy")
        return bool(await cluster.list(kind, namespace, only_metadata=True))
    except (Forbidden, InvalidManifest):
        return True


async def _connect_to_loopback(cluster: Cluster, namespace: str, pod: str, port: int) -> str:
    """The node's error message when it is refused; empty when its connection is open."""
    async with cluster.port_forward(namespace, pod, port) as websocket:
        while True:
            with anyio.move_on_after(_MESSAGE_SECONDS) as silence:
                message = await websocket.receive()
            if silence.cancelled_caught or message.type is not aiohttp.WSMsgType.BINARY:
                return ""
            text = str(message.data[1:].decode(errors="replace"))
            if message.data[0] == _ERROR_CHANNEL and _REFUSED in text:
                return text


__all__ = ["MAX_CONCURRENT", "check_ports", "keep_first_refusal"]
