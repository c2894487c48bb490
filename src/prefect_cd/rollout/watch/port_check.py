"""Whether anybody listens where a Service leads: a connection to each of its ports, with nothing sent.

Asked only of rollouts that are complete otherwise, and only at their own pods. What decides is a connection from the
API server to the pod's address, for that is where requests arrive: a program that listens on 127.0.0.1 gets none of
them. Under a NetworkPolicy something else than the program may refuse; then the node, which knocks at the pod's
loopback address, must say so, too. Where we may not knock, or nobody can tell, nothing is concluded.

A ready pod whose readiness probe asks that very port has answered already, and is left alone.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import aiohttp

from prefect_cd.errors import DeliveryError, Forbidden, InvalidManifest
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.responses import ApiError
from prefect_cd.rollout.assess import PortResult
from prefect_cd.rollout.diagnosis.services import slices_of

MAX_CONCURRENT = 16
_MOST_PODS = 5
"""Asked behind one port: one of many that refuses may be a standby."""
_KNOCK_SECONDS = 3
_REFUSAL_SECONDS = 1.0
_ANSWER_SECONDS = 0.5
_FRAME_OF_ERRORS = 1
_REFUSED = "connection refused"


@dataclass(frozen=True)
class _Door:
    """A Service's port, and the pods with their port numbers behind it."""

    service: str
    port: int
    namespace: str
    behind: tuple[tuple[str, int], ...]


async def check_ports(
    cluster: Cluster,
    services: Sequence[Object],
    endpoints: Sequence[Object],
    pods: Sequence[Object],
    slots: asyncio.Semaphore | None = None,
) -> tuple[PortResult, ...]:
    """A connection to every TCP port of every Service that has a ready pod of ours behind it.

    Args:
        cluster: where they are.
        services: which Services; the headless are left out, since requests to them do not pass through their ports.
        endpoints: any EndpointSlices.
        pods: the pods that are judged; those of others behind the same Service say nothing about them.
        slots: how many knock at once; shared where several workloads are judged.
    """
    slots = slots or asyncio.Semaphore(MAX_CONCURRENT)
    doors = [door for service in services for door in _doors(service, endpoints, pods)]
    answers = await asyncio.gather(*(_answer(cluster, slots, door) for door in doors))
    now = datetime.now(timezone.utc)
    return tuple(
        PortResult(service=door.service, port=door.port, open=not said, said=said, at=now)
        for door, said in zip(doors, answers, strict=True)
        if said is not None
    )


def keep_first_refusal(told: Sequence[PortResult], before: Sequence[PortResult]) -> tuple[PortResult, ...]:
    """Knocks with the time since when they have found nobody: of several refusals in a row, that of the first."""
    first = {(each.service, each.port): each.at for each in before if not each.open}
    return tuple(
        each if each.open else replace(each, at=first.get((each.service, each.port), each.at)) for each in told
    )


def _doors(service: Object, endpoints: Sequence[Object], pods: Sequence[Object]) -> list[_Door]:
    metadata, spec = service["metadata"], service.get("spec") or {}
    if spec.get("clusterIP") == "None" or spec.get("type") == "ExternalName":
        return []
    slices = slices_of(service, endpoints)
    ours = {each["metadata"]["name"]: each for each in pods}
    found = []
    for port in spec.get("ports") or []:
        # a pod with addresses of two families is in two slices
        behind = dict.fromkeys(
            (pod, number)
            for each in slices
            for number in [_number(each, port)]
            for pod in _ready_pods(each)
            if number and pod in ours and port.get("protocol", "TCP") == "TCP"
        )
        if behind and not any(_probed(ours[pod], number) for pod, number in behind):
            found.append(_Door(metadata["name"], port["port"], metadata["namespace"], tuple(behind)[:_MOST_PODS]))
    return found


def _number(slice_: Object, port: Object) -> int:
    """The number behind a Service's port in one slice; 0 when the slice does not have it."""
    named = [each for each in slice_.get("ports") or [] if (each.get("name") or "") == (port.get("name") or "")]
    return int(named[0].get("port") or 0) if named else 0


def _probed(pod: Object, number: int) -> bool:
    """Whether the kubelet asks this port before it calls the pod ready."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        probe = container.get("readinessProbe") or {}
        ask = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
        named = {each.get("name"): each.get("containerPort") for each in container.get("ports") or []}
        if not ask.get("host") and number in (ask.get("port"), named.get(ask.get("port"), 0)):
            return True
    return False


def _ready_pods(slice_: Object) -> list[str]:
    return [
        each["targetRef"]["name"]
        for each in slice_.get("endpoints") or []
        if (each.get("conditions") or {}).get("ready") and (each.get("targetRef") or {}).get("kind") == "Pod"
    ]


async def _answer(cluster: Cluster, slots: asyncio.Semaphore, door: _Door) -> str | None:
    """The words of a refusal when all pods refuse; empty when one accepts; None when nobody can tell."""
    asked = (_refusal(cluster, slots, door.namespace, pod, number) for pod, number in door.behind)
    answers = await asyncio.gather(*asked)
    if "" in answers:
        return ""
    return None if None in answers else answers[0]


async def _refusal(cluster: Cluster, slots: asyncio.Semaphore, namespace: str, pod: str, port: int) -> str | None:
    """The words of a refusal of one pod; empty when somebody accepts; None when nobody can tell."""
    try:
        async with slots:
            return await asyncio.wait_for(_refused(cluster, namespace, pod, port), _KNOCK_SECONDS)
    except (DeliveryError, ApiError, aiohttp.ClientError, OSError, asyncio.TimeoutError):
        return None


async def _refused(cluster: Cluster, namespace: str, pod: str, port: int) -> str:
    try:
        said = await asyncio.wait_for(cluster.refusal(namespace, pod, port), _REFUSAL_SECONDS)
    except asyncio.TimeoutError:
        return ""  # a refusal comes at once: somebody has accepted, and waits for words
    if said and await _may_be_kept_out(cluster, namespace):
        return await _at_loopback(cluster, namespace, pod, port)
    return said


async def _may_be_kept_out(cluster: Cluster, namespace: str) -> bool:
    """Whether a NetworkPolicy may refuse what the program would accept."""
    try:
        kind = await cluster.kind("networking.k8s.io/v1", "NetworkPolicy")
        return bool(await cluster.list(kind, namespace, only_metadata=True))
    except (Forbidden, InvalidManifest):
        return True


async def _at_loopback(cluster: Cluster, namespace: str, pod: str, port: int) -> str:
    """What the node says when it cannot connect; a connection that stays silent is one."""
    async with cluster.port_forward(namespace, pod, port) as websocket:
        while True:
            try:
                message = await asyncio.wait_for(websocket.receive(), _ANSWER_SECONDS)
            except asyncio.TimeoutError:
                return ""
            if message.type is not aiohttp.WSMsgType.BINARY:
                return ""
            text = str(message.data[1:].decode(errors="replace"))
            if message.data[0] == _FRAME_OF_ERRORS and _REFUSED in text:
                return text


__all__ = ["MAX_CONCURRENT", "check_ports", "keep_first_refusal"]
