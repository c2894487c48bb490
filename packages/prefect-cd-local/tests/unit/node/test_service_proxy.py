"""Which endpoints get connections."""

from typing import Any

import pytest

from prefect_cd_local.node.service_proxy import service_addresses

Object = dict[str, Any]


def service(**spec: object) -> Object:
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    return {"metadata": {"name": "shop", "namespace": "a"}, "spec": {"clusterIP": "127.96.0.9", "ports": ports, **spec}}


def endpoints(*conditions: Object) -> list[Object]:
    listed = [
        {"addresses": [f"127.1.0.{number}"], "conditions": condition} for number, condition in enumerate(conditions, 1)
    ]
    return [{"endpoints": listed, "ports": [{"name": "http", "port": 8080}]}]


READY = {"ready": True, "serving": True, "terminating": False}
STARTING = {"ready": False, "serving": False, "terminating": False}
LEAVING = {"ready": False, "serving": True, "terminating": True}
LEFT = {"ready": False, "serving": False, "terminating": True}


@pytest.mark.parametrize(
    ("conditions", "numbers"),
    [
        ((READY, STARTING, LEAVING), [1]),
        ((LEAVING, STARTING, LEFT), [1]),  # as in kube-proxy, where there is no other
        ((STARTING, LEFT), []),
        (({},), [1]),  # a missing condition means ready
    ],
)
def test_ready_endpoints_get_connections_and_terminating_ones_only_where_there_are_no_others(
    conditions: tuple[Object, ...], numbers: list[int]
) -> None:
    behind = [(f"127.1.0.{number}", 8080) for number in numbers]
    served = service_addresses(service(), "127.0.0.1", endpoints(*conditions))
    assert served == {("127.96.0.9", 80): behind, ("127.0.0.1", 30080): behind}


def test_an_address_of_another_network_is_not_served() -> None:
    served = service_addresses(service(clusterIP="10.96.0.9"), "127.0.0.1", endpoints(READY))
    assert list(served) == [("127.0.0.1", 30080)]


def test_ports_are_matched_by_name_and_udp_is_left_out() -> None:
    ports = [{"name": "other", "port": 81}, {"name": "http", "port": 53, "protocol": "UDP"}]
    assert service_addresses(service(ports=ports), "127.0.0.1", endpoints(READY)) == {("127.96.0.9", 81): []}
