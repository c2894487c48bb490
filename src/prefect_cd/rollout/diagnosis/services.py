"""Why requests to a Service would find nobody, however well its pods are.

Decides from the Service, its EndpointSlices, the pod template, and what a connection through the API server answered,
if somebody tried one. A Service is matched by its selector; one without selector, or an ExternalName, is not ours to
judge.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object, as_objects, as_text, dig, kind_and_name, namespace_of
from prefect_cd.kube.selectors import matches_labels
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.port_result import PortResult

_DEAF = timedelta(minutes=1)
"""So long a controller may hear of nothing after its API server was away, through no fault of what was applied.

client-go's reflectors double their pauses from 0.8 s to 30 s, each up to twice as long by chance (`tools/cache`,
`reflector.go`). A Service that its controller has looked at has a slice, were it an empty one.
"""
_NOT_LOOKED_AT = "no EndpointSlice: its controller has not looked at it"


def matches(service: Object, labels: object) -> bool:
    """Whether a Service sends requests to pods with these labels."""
    return has_selector(service) and matches_labels(dig(service, "spec", "selector"), labels)


def has_selector(service: Object) -> bool:
    """Whether a Service finds its endpoints by itself; otherwise they are somebody else's to write."""
    return dig(service, "spec", "type") != "ExternalName" and bool(dig(service, "spec", "selector"))


def unserved(
    service: Object,
    slices: Sequence[Object],
    bearers: Sequence[Object],
    knocks: Sequence[PortResult] = (),
    *,
    since: datetime | None,
) -> Cause | None:
    """Why a Service that selects the pods of a template, all of them up, would answer nobody; None when it does.

    Args:
        service: with a selector that takes the template's labels.
        slices: any EndpointSlices; those of other Services are ignored.
        bearers: the pod template of the new revision, and its pods.
        knocks: connections that somebody tried.
        since: when the last of its pods became ready.
    """
    endpoints = list(_endpoints(service, slices))
    known = {name for _, names in endpoints for name in names}
    served = _served(endpoints)
    behind: Cause | None = None
    for port in as_objects(dig(service, "spec", "ports")):
        name, target = as_text(port.get("name")), port.get("targetPort", port.get("port"))
        if name in served:
            continue
        if not isinstance(target, str) or not target or _names(port, target, bearers):
            behind = behind or _no_endpoints(service, slices, sum(name in names for _, names in endpoints), since)
        elif name not in known:  # else pods of another workload have it, and are coming up
            return _port_without_name(service, port, bearers, since)
    if behind:
        return behind
    refused = [each for each in knocks if each.service == dig(service, "metadata", "name") and not each.open]
    return _nobody_listens(service, refused[0], bearers, since) if refused else None


def unselected(service: Object, slices: Sequence[Object], *, since: datetime | None) -> Cause:
    """A Service whose selector takes no pod at all."""
    pairs = ",".join(f"{key}={value}" for key, value in sorted((dig(service, "spec", "selector") or {}).items()))
    looked = bool(slices_of(service, slices))
    found = "no ready endpoint" if looked else _NOT_LOOKED_AT
    return Cause(
        category=Category.SERVICE,
        summary=f"{kind_and_name(service)} selects no pod: none bears {pairs}",
        evidence=f"{found}; selector {pairs}",
        hint="correct spec.selector of the Service, or the labels of the pod template",
        object=kind_and_name(service),
        since=since,
        allowed=timedelta() if looked else _DEAF,
    )


def answering(service: Object, slices: Sequence[Object]) -> bool:
    """Whether a Service has a ready endpoint for each of its ports."""
    wanted = {as_text(port.get("name")) for port in as_objects(dig(service, "spec", "ports"))}
    return wanted <= _served(_endpoints(service, slices))


def slices_of(service: Object, slices: Sequence[Object]) -> list[Object]:
    """The EndpointSlices that belong to a Service."""
    name = dig(service, "metadata", "name")
    return [each for each in slices if dig(each, "metadata", "labels", SERVICE_NAME_LABEL) == name]


def _endpoints(service: Object, slices: Sequence[Object]) -> Iterable[tuple[bool, set[str]]]:
    """Each endpoint: whether it is ready, and the names of the Service's ports that it has."""
    for each in slices_of(service, slices):
        ports = {as_text(port.get("name")) for port in as_objects(each.get("ports"))}
        for endpoint in as_objects(each.get("endpoints")):
            yield dig(endpoint, "conditions", "ready") is not False, ports


def _served(endpoints: Iterable[tuple[bool, set[str]]]) -> set[str]:
    """The names of the Service's ports that a ready endpoint has."""
    return {name for is_ready, names in endpoints if is_ready for name in names}


def _ports(bearers: Sequence[Object]) -> Iterable[Object]:
    for bearer in bearers:
        for kind in ("containers", "initContainers"):
            for container in as_objects(dig(bearer, "spec", kind)):
                yield from as_objects(container.get("ports"))


def _names(port: Object, target: str, bearers: Sequence[Object]) -> bool:
    """Whether a container has a port of this name, and of the protocol that the Service's port has."""
    return any(each.get("name") == target and _protocol(each) == _protocol(port) for each in _ports(bearers))


def _protocol(port: Object) -> str:
    return as_text(port.get("protocol")) or "TCP"


def _port_without_name(service: Object, port: Object, bearers: Sequence[Object], since: datetime | None) -> Cause:
    protocol = _protocol(port)
    there = ", ".join(sorted({_port_name(each, protocol) for each in _ports(bearers) if each.get("name")})) or "none"
    return Cause(
        category=Category.PORT,
        summary=f"{kind_and_name(service)} sends to a port named {port.get('targetPort')}, which no container has",
        evidence=f"targetPort: {port.get('targetPort')}; names of container ports: {there}",
        hint="correct targetPort of the Service, or name the port of the container",
        object=kind_and_name(service),
        proven=True,
        since=since,
    )


def _port_name(port: Object, wanted: str) -> str:
    """A container's port by its name, with its protocol where that is not the wanted one."""
    name, protocol = as_text(port.get("name")), _protocol(port)
    return name if protocol == wanted else f"{name} ({protocol})"


def _no_endpoints(service: Object, slices: Sequence[Object], unready: int, since: datetime | None) -> Cause:
    """The pods are ready, but their controller has not told so, or has no addresses of theirs that fit."""
    evidence = "no endpoints" if slices_of(service, slices) else _NOT_LOOKED_AT
    return Cause(
        category=Category.SERVICE,
        summary=f"{kind_and_name(service)} has no ready endpoint, though its pods are ready",
        evidence=f"{unready} endpoints, none of them ready" if unready else evidence,
        hint=f"kubectl -n {namespace_of(service)} get endpointslices -l {SERVICE_NAME_LABEL}="
        f"{as_text(dig(service, 'metadata', 'name'))}",
        object=kind_and_name(service),
        since=since,
        allowed=_DEAF,
    )


def _nobody_listens(service: Object, knock: PortResult, bearers: Sequence[Object], since: datetime | None) -> Cause:
    target = next(
        (each.get("targetPort", knock.port) for each in as_objects(dig(service, "spec", "ports"))
         if each.get("port") == knock.port), knock.port)  # fmt: skip
    declared = sorted({str(port.get("containerPort")) for port in _ports(bearers)})
    told = f"; the containers declare {', '.join(declared)}" if declared else ""
    return Cause(
        category=Category.PORT,
        summary=f"{kind_and_name(service)}: nobody listens on the pods' port {target}{told}",
        evidence=knock.said or "connection refused",
        hint="correct targetPort of the Service, or the address and port that the program listens on",
        object=kind_and_name(service),
        since=max(filter(None, (since, knock.at)), default=None),
        seen=knock.at,
    )
