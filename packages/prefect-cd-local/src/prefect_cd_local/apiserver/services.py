"""Addresses of Services: a cluster IP for each, and node ports for those of type NodePort or LoadBalancer.

Source: "Virtual IPs and Service Proxies" (IP and port ranges) in the Kubernetes documentation, and answers of a server
of 1.36. One address family, IPv4.
"""

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prefect_cd_local.apiserver.errors import Cause, bad_value, forbidden_field, invalid
from prefect_cd_local.apiserver.kinds import BY_NAME
from prefect_cd_local.apiserver.schema import canonical
from prefect_cd_local.apiserver.storage import Store

Object = dict[str, Any]
_SERVICES = BY_NAME["v1", "Service"]
_NODE_PORTS = range(30000, 32768)
_WITH_NODE_PORTS = {"NodePort", "LoadBalancer"}


@dataclass(frozen=True)
class Ranges:
    """The addresses for Services.

    Attributes:
        network: for cluster IPs.
        is_free: whether the node can serve a node port; another program of its machine may have it.
    """

    network: ipaddress.IPv4Network
    is_free: Callable[[int], bool] = lambda _: True


def with_addresses(store: Store, item: Object, old: Object | None, ranges: Ranges) -> Object:
    """Return the Service with its addresses.

    Raises:
        Refusal: 422, a requested address is in use, out of range, or not the one that the Service has.
    """
    spec, before, network = dict(item["spec"]), old["spec"] if old else {}, ranges.network
    if spec["type"] == "ExternalName":
        return item
    others = [
        service["spec"] for service in store.all(_SERVICES) if service["metadata"]["uid"] != item["metadata"].get("uid")
    ]
    requested = spec.get("clusterIP") or (spec.get("clusterIPs") or [""])[0]
    had = before.get("clusterIP", "")
    taken = {other.get("clusterIP") for other in others}
    ip = requested or had or next(str(host) for host in network.hosts() if str(host) not in taken)
    causes = [] if ip == had else list(_refuse_address(ip, had, taken, network))
    spec |= {"clusterIP": ip, "clusterIPs": [ip], "ipFamilyPolicy": spec.get("ipFamilyPolicy") or "SingleStack"}
    spec["ipFamilies"] = spec.get("ipFamilies") or ["IPv4"]
    ports = {port.get("nodePort") for other in others for port in other.get("ports") or ()}
    causes += _add_node_ports(spec, before, ports, ranges.is_free)
    if causes:
        raise invalid("Service", "", item["metadata"].get("name", ""), causes)
    return {**item, "spec": spec}


def _refuse_address(ip: str, had: str, taken: set[str], network: ipaddress.IPv4Network) -> Iterator[Cause]:
    if had:
        yield bad_value("spec.clusterIPs[0]", canonical([ip]), "may not change once set")
        return
    if ip == "None":
        return
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
        yield bad_value("spec.clusterIPs[0]", canonical(ip), why)
        return
    why = "provided IP is already allocated" if ip in taken else ""
    why = why if address in network else "the provided network does not match the current range"
    if why:
        yield bad_value("spec.clusterIPs", canonical([ip]), f"failed to allocate IP {ip}: {why}")


def _add_node_ports(
    spec: Object, before: Object, taken: set[int | None], is_free: Callable[[int], bool]
) -> Iterator[Cause]:
    """Set the node ports of a spec: the requested ones, the present ones, or free ones."""
    known = {(port["port"], port["protocol"]): port.get("nodePort") for port in before.get("ports") or ()}
    spec["ports"] = [dict(port) for port in spec.get("ports") or ()]
    for index, port in enumerate(spec["ports"]):
        where, had = f"spec.ports[{index}].nodePort", known.get((port["port"], port["protocol"]))
        requested = port.pop("nodePort", None)
        if spec["type"] in _WITH_NODE_PORTS:
            port["nodePort"] = (
                requested or had or next(number for number in _NODE_PORTS if number not in taken and is_free(number))
            )
            if requested and (
                requested in taken or (requested != had and requested in _NODE_PORTS and not is_free(requested))
            ):
                yield bad_value(where, str(requested), "provided port is already allocated")
            elif port["nodePort"] not in _NODE_PORTS:
                ends = f"{_NODE_PORTS[0]}-{_NODE_PORTS[-1]}"
                why = f"provided port is not in the valid range. The range of valid ports is {ends}"
                yield bad_value(where, str(requested), why)
            taken.add(port["nodePort"])
        elif requested and requested != had:
            yield forbidden_field(where, f"may not be used when `type` is '{spec['type']}'")
    if not spec["ports"]:
        del spec["ports"]
