"""Where Services get their addresses: a cluster IP of the server's network for each, a node port where one is due.

Source: "Virtual IPs and Service Proxies" (IP and port ranges) in the Kubernetes documentation, and answers of a server
of 1.36. One address family, IPv4.
"""

import ipaddress
from collections.abc import Iterator
from typing import Any

from prefect_cd.local.apiserver.errors import Cause, bad_value, forbidden_field, invalid
from prefect_cd.local.apiserver.kinds import BY_NAME
from prefect_cd.local.apiserver.schema import canonical
from prefect_cd.local.apiserver.storage import Store

Object = dict[str, Any]
_SERVICES = BY_NAME["v1", "Service"]
_NODE_PORTS = range(30000, 32768)
_WITH_NODE_PORTS = {"NodePort", "LoadBalancer"}


def addressed(store: Store, item: Object, old: Object | None, network: ipaddress.IPv4Network) -> Object:
    """The Service with its addresses.

    Raises:
        Refusal: 422, an address that is asked for is taken, out of range, or not the one it has.
    """
    spec, before = dict(item["spec"]), old["spec"] if old else {}
    if spec["type"] == "ExternalName":
        return item
    others = [each["spec"] for each in store.all(_SERVICES) if each["metadata"]["uid"] != item["metadata"].get("uid")]
    asked = spec.get("clusterIP") or (spec.get("clusterIPs") or [""])[0]
    had = before.get("clusterIP", "")
    taken = {each.get("clusterIP") for each in others}
    ip = asked or had or next(str(host) for host in network.hosts() if str(host) not in taken)
    causes = [] if ip == had else list(_refuse_address(ip, had, taken, network))
    spec |= {"clusterIP": ip, "clusterIPs": [ip], "ipFamilyPolicy": spec.get("ipFamilyPolicy") or "SingleStack"}
    spec["ipFamilies"] = spec.get("ipFamilies") or ["IPv4"]
    ports = {port.get("nodePort") for each in others for port in each.get("ports") or ()}
    causes += _add_node_ports(spec, before, ports)
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


def _add_node_ports(spec: Object, before: Object, taken: set[int | None]) -> Iterator[Cause]:
    """Set the node ports of a spec: those asked for, those it had, or free ones."""
    known = {(each["port"], each["protocol"]): each.get("nodePort") for each in before.get("ports") or ()}
    spec["ports"] = [dict(each) for each in spec.get("ports") or ()]
    for index, port in enumerate(spec["ports"]):
        where, had = f"spec.ports[{index}].nodePort", known.get((port["port"], port["protocol"]))
        asked = port.pop("nodePort", None)
        if spec["type"] in _WITH_NODE_PORTS:
            port["nodePort"] = asked or had or next(each for each in _NODE_PORTS if each not in taken)
            if asked in taken and asked:
                yield bad_value(where, str(asked), "provided port is already allocated")
            elif port["nodePort"] not in _NODE_PORTS:
                ends = f"{_NODE_PORTS[0]}-{_NODE_PORTS[-1]}"
                why = f"provided port is not in the valid range. The range of valid ports is {ends}"
                yield bad_value(where, str(asked), why)
            taken.add(port["nodePort"])
        elif asked and asked != had:
            yield forbidden_field(where, f"may not be used when `type` is '{spec['type']}'")
    if not spec["ports"]:
        del spec["ports"]
