"""A port is closed when all pods refuse at their own address; without permission to connect, nothing is concluded."""

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


class FakeCluster:
    """A cluster in which only port 8000 of some pods is used.

    Args:
        server: the result of a connection from the API server to a pod's address, by pod or for all of them.
        node: the result of a connection from the node to a pod's loopback address.
        policies: the NetworkPolicies, or why they cannot be read.
    """

    def __init__(
        self,
        server: str | Exception | Mapping[str, str | Exception] = "",
        node: str | Exception = "",
        policies: list[Object] | Exception = [],  # noqa: B006  never changed
    ) -> None:
        self.connections: list[tuple[str, str, int]] = []
        self._server, self._node, self._policies = server, node, policies
        self._frames = [
            Frame(0, "\x40\x1f"),
            Frame(1, "\x40\x1f"),
            *([Frame(1, node)] if isinstance(node, str) else []),
        ]

    async def connection_refused(self, namespace: str, pod: str, port: int) -> str:
        self.connections.append((namespace, pod, port))
        answer = self._server[pod] if isinstance(self._server, Mapping) else self._server
        if answer == "silence":
            await asyncio.sleep(9)
        return result(answer)

    async def kind(self, *_: str) -> str:
        return "NetworkPolicy"

    async def list(self, *_: object, **__: object) -> list[Object]:
        if isinstance(self._policies, Exception):
            raise self._policies
        return self._policies

    @asynccontextmanager
    async def port_forward(self, *_: object) -> AsyncIterator[Any]:
        result(self._node)
        yield self

    async def receive(self) -> Frame:
        if not self._frames or self._frames[0].data == b"\x01":
            await asyncio.sleep(9)
        return self._frames.pop(0)


def result(answer: str | Exception) -> str:
    if isinstance(answer, Exception):
        raise answer
    return answer


def check(
    cluster: FakeCluster, *slices: Object, service: Object = SERVICE, pods: str = "shop-1", probe: Object | None = None
) -> tuple[PortResult, ...]:
    container = {"ports": [{"name": "http", "containerPort": 8000}], "readinessProbe": probe or {}}
    checked = [{"metadata": {"name": name}, "spec": {"containers": [container]}} for name in pods.split()]
    return asyncio.run(check_ports(cast("Cluster", cluster), [service], slices, checked))


POLICY = [{"metadata": {"name": "deny"}}]


@pytest.mark.parametrize(
    ("cluster", "is_open"),
    [
        (FakeCluster(REFUSED, REFUSED), False),
        (FakeCluster(REFUSED), False),  # it listens on 127.0.0.1 only
        (FakeCluster("", REFUSED), True),
        (FakeCluster(REFUSED, "", POLICY), True),
        (FakeCluster(REFUSED, "no such network", POLICY), True),
        (FakeCluster(REFUSED, REFUSED, POLICY), False),
        (FakeCluster(REFUSED, "", Forbidden("no")), True),
        (FakeCluster(REFUSED, "", InvalidManifest("no such kind")), True),
        (FakeCluster(REFUSED, REFUSED, Forbidden("no")), False),
    ],
)
def test_the_address_of_the_pod_decides_unless_a_network_policy_may_refuse(cluster: FakeCluster, is_open: bool) -> None:  # noqa: FBT001
    (port,) = check(cluster, slice_of())
    assert (port.service, port.port, port.open) == ("shop", 80, is_open)
    assert port.error == ("" if is_open else REFUSED)
    assert port.at


@pytest.mark.parametrize("error", [Forbidden("no"), ApiError("gone", status=404), OSError("lost")])
def test_without_a_clear_answer_no_port_is_reported(error: Exception) -> None:
    assert check(FakeCluster(error), slice_of()) == ()
    assert check(FakeCluster(REFUSED, error, POLICY), slice_of()) == ()
    assert check(FakeCluster(REFUSED, policies=ClusterUnreachable("away")), slice_of()) == ()


def test_a_connection_without_an_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_check, "_POD_SECONDS", 0.05)
    assert check(FakeCluster("silence"), slice_of()) == ()


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
    assert [port.open for port in check(FakeCluster(answers), slice_of("shop", *answers), pods="a b")] == is_open


def test_a_few_pods_of_the_workload_are_checked_and_no_others() -> None:
    cluster = FakeCluster({"other": "", "own": REFUSED})
    (port,) = check(cluster, slice_of("shop", "other", "own"), pods="own old")
    assert not port.open
    assert cluster.connections == [("shop", "own", 8000)]
    many = [f"shop-{n}" for n in range(9)]
    check(cluster := FakeCluster(), slice_of("shop", *many), pods=" ".join(many))
    assert len(cluster.connections) == 5


def test_only_ports_with_a_ready_pod_behind_them_are_checked() -> None:
    cluster = FakeCluster()
    assert check(cluster, slice_of("other"), slice_of(ready=False), slice_of(port="admin")) == ()
    assert cluster.connections == []
    check(cluster, slice_of(), slice_of())
    assert cluster.connections == [("shop", "shop-1", 8000)]


@pytest.mark.parametrize("conditions", [{}, {"ready": None}, None])
def test_an_endpoint_that_does_not_say_whether_it_is_ready_is_ready(conditions: Object | None) -> None:
    endpoint_slice = slice_of()
    endpoint_slice["endpoints"][0]["conditions"] = conditions
    assert [port.open for port in check(FakeCluster(REFUSED), endpoint_slice)] == [False]


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"type": "ExternalName"}])
def test_services_whose_ports_get_no_requests_are_not_checked(spec: Object) -> None:
    service = {**SERVICE, "spec": {**SERVICE["spec"], **spec}}
    assert check(FakeCluster(REFUSED), slice_of(), service=service) == ()


@pytest.mark.parametrize(
    ("probe", "checks"),
    [
        ({"httpGet": {"path": "/", "port": "http"}}, 0),
        ({"tcpSocket": {"port": 8000}}, 0),
        ({"grpc": {"port": 8000}}, 0),
        ({"tcpSocket": {"port": 9000}}, 1),
        ({"tcpSocket": {"port": 8000, "host": "127.0.0.1"}}, 1),
        ({"exec": {"command": ["true"]}}, 1),
    ],
)
def test_a_port_with_a_readiness_probe_is_not_checked(probe: Object, checks: int) -> None:
    cluster = FakeCluster()
    check(cluster, slice_of(), probe=probe)
    assert len(cluster.connections) == checks
