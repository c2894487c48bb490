"""Whether anybody listens: the pods' own address decides, all pods must refuse, and who may not ask says nothing."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest

from prefect_cd.errors import ClusterUnreachable, Forbidden, InvalidManifest
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.responses import ApiError
from prefect_cd.rollout.assess import PortResult
from prefect_cd.rollout.watch import port_check
from prefect_cd.rollout.watch.port_check import check_ports

REFUSED = "dial tcp4 127.0.0.1:8000: connect: connection refused"
SERVICE = {
    "metadata": {"name": "shop", "namespace": "shop", "uid": "s"},
    "spec": {
        "ports": [{"name": "web", "port": 80, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    },
}


def slice_of(service: str = "shop", *pods: str, ready: bool = True, port: str = "web") -> Object:
    endpoints = [
        {"conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": pod}} for pod in pods or ("shop-1",)
    ]
    labels = {"kubernetes.io/service-name": service}
    return {"metadata": {"labels": labels}, "ports": [{"name": port, "port": 8000}], "endpoints": endpoints}


class Frame:
    def __init__(self, channel: int, text: str) -> None:
        self.type = aiohttp.WSMsgType.BINARY
        self.data = bytes([channel]) + text.encode()


class Door:
    """A cluster of which only port 8000 of some pods is of interest.

    Args:
        server: what the API server is told at the pods' address, by pod or for all of them.
        node: what the node is told at their loopback address.
        policies: the NetworkPolicies, or why they cannot be read.
    """

    def __init__(
        self,
        server: str | Exception | Mapping[str, str | Exception] = "",
        node: str | Exception = "",
        policies: list[Object] | Exception = [],  # noqa: B006  nobody adds to it
    ) -> None:
        self.knocks: list[tuple[str, str, int]] = []
        self._server, self._node, self._policies = server, node, policies
        self._frames = [
            Frame(0, "\x40\x1f"),
            Frame(1, "\x40\x1f"),
            *([Frame(1, node)] if isinstance(node, str) else []),
        ]

    async def refusal(self, namespace: str, pod: str, port: int) -> str:
        self.knocks.append((namespace, pod, port))
        answer = self._server[pod] if isinstance(self._server, Mapping) else self._server
        if answer == "silence":
            await asyncio.sleep(9)
        return said(answer)

    async def kind(self, *_: str) -> str:
        return "NetworkPolicy"

    async def list(self, *_: object, **__: object) -> list[Object]:
        if isinstance(self._policies, Exception):
            raise self._policies
        return self._policies

    @asynccontextmanager
    async def port_forward(self, *_: object) -> AsyncIterator[Any]:
        said(self._node)
        yield self

    async def receive(self) -> Frame:
        if not self._frames or self._frames[0].data == b"\x01":
            await asyncio.sleep(9)
        return self._frames.pop(0)


def said(answer: str | Exception) -> str:
    if isinstance(answer, Exception):
        raise answer
    return answer


def knocked(
    door: Door, *slices: Object, service: Object = SERVICE, pods: str = "shop-1", probe: Object | None = None
) -> tuple[PortResult, ...]:
    container = {"ports": [{"name": "http", "containerPort": 8000}], "readinessProbe": probe or {}}
    ours = [{"metadata": {"name": name}, "spec": {"containers": [container]}} for name in pods.split()]
    return asyncio.run(check_ports(cast("Cluster", door), [service], slices, ours))


POLICY = [{"metadata": {"name": "deny"}}]


@pytest.mark.parametrize(
    ("door", "is_open"),
    [
        (Door(REFUSED, REFUSED), False),
        (Door(REFUSED), False),  # it listens on 127.0.0.1 only
        (Door("", REFUSED), True),
        (Door(REFUSED, "", POLICY), True),
        (Door(REFUSED, "no such network", POLICY), True),
        (Door(REFUSED, REFUSED, POLICY), False),
        (Door(REFUSED, "", Forbidden("no")), True),
        (Door(REFUSED, "", InvalidManifest("no such kind")), True),
        (Door(REFUSED, REFUSED, Forbidden("no")), False),
    ],
)
def test_the_address_of_the_pod_decides_unless_a_policy_may_stand_before_it(door: Door, is_open: bool) -> None:  # noqa: FBT001
    (told,) = knocked(door, slice_of())
    assert (told.service, told.port, told.open) == ("shop", 80, is_open)
    assert told.said == ("" if is_open else REFUSED)
    assert told.at


@pytest.mark.parametrize("error", [Forbidden("no"), ApiError("gone", status=404), OSError("lost")])
def test_where_nobody_may_knock_nothing_is_concluded(error: Exception) -> None:
    assert knocked(Door(error), slice_of()) == ()
    assert knocked(Door(REFUSED, error, POLICY), slice_of()) == ()
    assert knocked(Door(REFUSED, policies=ClusterUnreachable("away")), slice_of()) == ()


def test_who_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_check, "_KNOCK_SECONDS", 0.05)
    assert knocked(Door("silence"), slice_of()) == ()


@pytest.mark.parametrize(
    ("answers", "is_open"),
    [
        ({"a": REFUSED, "b": REFUSED}, [False]),
        ({"a": REFUSED, "b": ""}, [True]),  # a standby
        ({"a": REFUSED, "b": OSError("lost")}, []),
        ({"a": OSError("lost"), "b": ""}, [True]),
    ],
)
def test_a_port_is_closed_when_all_pods_refuse(answers: dict[str, str | Exception], is_open: list[bool]) -> None:
    assert [each.open for each in knocked(Door(answers), slice_of("shop", *answers), pods="a b")] == is_open


def test_a_few_pods_of_the_workload_are_asked_and_no_others() -> None:
    door = Door({"theirs": "", "mine": REFUSED})
    (told,) = knocked(door, slice_of("shop", "theirs", "mine"), pods="mine old")
    assert not told.open
    assert door.knocks == [("shop", "mine", 8000)]
    many = [f"shop-{n}" for n in range(9)]
    knocked(door := Door(), slice_of("shop", *many), pods=" ".join(many))
    assert len(door.knocks) == 5


def test_only_ports_with_a_ready_pod_behind_them_are_tried() -> None:
    door = Door()
    assert knocked(door, slice_of("other"), slice_of(ready=False), slice_of(port="admin")) == ()
    assert door.knocks == []
    knocked(door, slice_of(), slice_of())
    assert door.knocks == [("shop", "shop-1", 8000)]


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"type": "ExternalName"}])
def test_services_through_whose_ports_no_request_passes_have_no_door(spec: Object) -> None:
    service = {**SERVICE, "spec": {**SERVICE["spec"], **spec}}
    assert knocked(Door(REFUSED), slice_of(), service=service) == ()


@pytest.mark.parametrize(
    ("probe", "asked"),
    [
        ({"httpGet": {"path": "/", "port": "http"}}, 0),
        ({"tcpSocket": {"port": 8000}}, 0),
        ({"grpc": {"port": 8000}}, 0),
        ({"tcpSocket": {"port": 9000}}, 1),
        ({"tcpSocket": {"port": 8000, "host": "127.0.0.1"}}, 1),
        ({"exec": {"command": ["true"]}}, 1),
    ],
)
def test_a_port_that_the_kubelet_asks_before_a_pod_is_ready_needs_no_knock(probe: Object, asked: int) -> None:
    door = Door()
    knocked(door, slice_of(), probe=probe)
    assert len(door.knocks) == asked
