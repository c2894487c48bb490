"""Why requests to a Service would not reach any pod, although the pods are ready.

The Service, its EndpointSlices, the pod template and the result of a connection to the port, if one was tried, decide.
A Service without selector, or of type ExternalName, is not checked: its endpoints are managed elsewhere.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from prefect_cd.kube.objects import (
    SERVICE_NAME_LABEL,
    Object,
    as_objects,
    as_text,
    dig,
    dig_mapping,
    endpoint_is_ready,
    kind_and_name,
    namespace_of,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.port_result import PortResult

_CONTROLLER_GRACE = timedelta(minutes=1)
"""Grace period for controllers to reconnect after the API server was unavailable.

client-go's reflectors double their pauses from 0.8 s to 30 s, each up to twice as long by jitter (`tools/cache`,
`reflector.go`). The endpoint slice controller writes a slice for every Service with a selector, even an empty one, so a
Service without slices has not been processed yet.
"""
_NOT_PROCESSED = "no EndpointSlice: the controller has not processed the Service yet"


class _Endpoint(NamedTuple):
    """One endpoint of a Service: whether it is ready, and the names of the Service's ports that it serves."""

    ready: bool
    port_names: set[str]


def endpoint_problem(
    service: Object,
    slices: Sequence[Object],
    pods: Sequence[Object],
    port_results: Sequence[PortResult] = (),
    *,
    since: datetime | None,
) -> Cause | None:
    """Why requests to a Service that selects ready pods would fail; None when they would not.

    Args:
        service: whose selector matches the labels of the pod template.
        slices: any EndpointSlices; those of other Services are ignored.
        pods: the pod template of the new revision, and its pods: their container ports are read.
        port_results: connections that were tried, to any Services.
        since: when the last of the pods became ready.
    """
    endpoints = list(_endpoints(service, slices))
    assigned = {name for endpoint in endpoints for name in endpoint.port_names}
    served = _served(endpoints)
    unserved_port: Cause | None = None
    for port in as_objects(dig(service, "spec", "ports")):
        name, target = as_text(port.get("name")), port.get("targetPort", port.get("port"))
        if name in served:
            continue
        # A port by number needs no declaration in the container.
        if not isinstance(target, str) or not target or _is_declared(port, target, pods):
            unready = sum(name in endpoint.port_names for endpoint in endpoints)
            unserved_port = unserved_port or _no_ready_endpoint(service, slices, unready, since)
        elif name not in assigned:  # otherwise pods of another workload have the port, and are still starting
            return _undeclared_port(service, port, pods, since)
    if unserved_port:
        return unserved_port
    service_name = dig(service, "metadata", "name")
    refused = [result for result in port_results if result.service == service_name and not result.open]
    return _closed_port(service, refused[0], pods, since) if refused else None


def selector_problem(service: Object, slices: Sequence[Object], *, since: datetime | None) -> Cause:
    """A Service whose selector matches no pods."""
    selector = ",".join(f"{key}={value}" for key, value in sorted(dig_mapping(service, "spec", "selector").items()))
    processed = bool(slices_of(service, slices))
    return Cause(
        category=Category.SERVICE,
        fact=f"{kind_and_name(service)}: selector {selector} matches no pods",
        evidence=f"{'no ready endpoint' if processed else _NOT_PROCESSED}; selector {selector}",
        hint="correct spec.selector of the Service, or the labels of the pod template; if the program sets the label "
        "itself (on its leader only), raise `rollout.patience.service` in the pipeline file",
        object=kind_and_name(service),
        since=since,
        grace=timedelta() if processed else _CONTROLLER_GRACE,
    )


def all_ports_served(service: Object, slices: Sequence[Object]) -> bool:
    """Whether a Service has a ready endpoint for each of its ports."""
    names = {as_text(port.get("name")) for port in as_objects(dig(service, "spec", "ports"))}
    return names <= _served(_endpoints(service, slices))


def slices_of(service: Object, slices: Sequence[Object]) -> list[Object]:
    """The EndpointSlices that belong to a Service."""
    name = dig(service, "metadata", "name")
    return [item for item in slices if dig(item, "metadata", "labels", SERVICE_NAME_LABEL) == name]


def _endpoints(service: Object, slices: Sequence[Object]) -> Iterable[_Endpoint]:
    for endpoint_slice in slices_of(service, slices):
        port_names = {as_text(port.get("name")) for port in as_objects(endpoint_slice.get("ports"))}
        for endpoint in as_objects(endpoint_slice.get("endpoints")):
            yield _Endpoint(endpoint_is_ready(endpoint), port_names)


def _served(endpoints: Iterable[_Endpoint]) -> set[str]:
    """The names of the Service's ports that a ready endpoint serves."""
    return {name for endpoint in endpoints if endpoint.ready for name in endpoint.port_names}


def _container_ports(pods: Sequence[Object]) -> Iterable[Object]:
    for pod in pods:
        for kind in ("containers", "initContainers"):
            for container in as_objects(dig(pod, "spec", kind)):
                yield from as_objects(container.get("ports"))


def _is_declared(port: Object, target: str, pods: Sequence[Object]) -> bool:
    """Whether a container declares a port of the name `target` with the protocol of the Service's port."""
    return any(
        declared.get("name") == target and _protocol(declared) == _protocol(port) for declared in _container_ports(pods)
    )


def _protocol(port: Object) -> str:
    return as_text(port.get("protocol")) or "TCP"


def _undeclared_port(service: Object, port: Object, pods: Sequence[Object], since: datetime | None) -> Cause:
    """The Service's port has a target name that no container declares: permanent, since the template is known."""
    protocol, target = _protocol(port), port.get("targetPort")
    declared = {_port_name(item, protocol) for item in _container_ports(pods) if item.get("name")}
    return Cause(
        category=Category.PORT,
        fact=f"{kind_and_name(service)} sends to a port named {target}, which no container declares",
        evidence=f"targetPort: {target}; names of container ports: {', '.join(sorted(declared)) or 'none'}",
        hint="correct targetPort of the Service, or name the port of the container",
        object=kind_and_name(service),
        permanent=True,
        since=since,
    )


def _port_name(port: Object, protocol: str) -> str:
    """The name of a container's port, with its protocol where that differs from the Service's `protocol`."""
    name = as_text(port.get("name"))
    return name if _protocol(port) == protocol else f"{name} ({_protocol(port)})"


def _no_ready_endpoint(service: Object, slices: Sequence[Object], unready: int, since: datetime | None) -> Cause:
    """The pods are ready, but the controller has not published a ready endpoint for a port."""
    evidence = "no endpoints" if slices_of(service, slices) else _NOT_PROCESSED
    return Cause(
        category=Category.SERVICE,
        fact=f"{kind_and_name(service)} has no ready endpoint, although its pods are ready",
        evidence=f"{unready} endpoints, none of them ready" if unready else evidence,
        hint=f"kubectl -n {namespace_of(service)} get endpointslices -l {SERVICE_NAME_LABEL}="
        f"{as_text(dig(service, 'metadata', 'name'))}",
        object=kind_and_name(service),
        since=since,
        grace=_CONTROLLER_GRACE,
    )


def _closed_port(service: Object, result: PortResult, pods: Sequence[Object], since: datetime | None) -> Cause:
    """The pods refuse connections on the port that the Service sends to."""
    ports = [port for port in as_objects(dig(service, "spec", "ports")) if port.get("port") == result.port]
    target = ports[0].get("targetPort", result.port) if ports else result.port
    declared = sorted({str(port.get("containerPort")) for port in _container_ports(pods)})
    containers_declare = f"; the containers declare {', '.join(declared)}" if declared else ""
    return Cause(
        category=Category.PORT,
        fact=f"{kind_and_name(service)}: nothing listens on port {target} of the pods{containers_declare}",
        evidence=result.error or "connection refused",
        hint="correct targetPort of the Service, or the address and port that the program listens on",
        object=kind_and_name(service),
        since=max(filter(None, (since, result.at)), default=None),
        last_seen=result.at,
    )
