"""EndpointSlices of Services with a selector: which pods can be reached where, and in which condition each is.

Rules: the documentation of EndpointSlices (conditions, management) and of Services. A pod that was asked to end stays
listed (terminating, serving while its readiness holds) but is not ready; a pod that is over or has no address is not
listed. Pods whose named target ports differ stand in different slices; slices are not split at 100 endpoints, the node
is smaller.
"""

from collections.abc import Iterable
from typing import Any

from prefect_cd.local.client import ENDPOINT_SLICES, PODS, SERVICES, ApiError, Client, Object, is_namespace_ending
from prefect_cd.local.controllers.loop import Caches, Queue
from prefect_cd.local.controllers.objects import (
    Key,
    is_ending,
    is_over,
    is_ready,
    key_of,
    labels,
    reference_to,
    uid_of,
)

_MANAGED_BY, _OURSELVES = "endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"
_SERVICE_NAME = "kubernetes.io/service-name"
_HEADLESS = "service.kubernetes.io/headless"

Ports = tuple[tuple[tuple[str, Any], ...], ...]


class EndpointsController:
    """Keeps the slices of every Service that selects pods."""

    def __init__(self, client: Client, caches: Caches) -> None:
        self._client = client
        self._services, self._pods, self._slices = caches[SERVICES], caches[PODS], caches[ENDPOINT_SLICES]
        self.queue: Queue[Key] = Queue("endpoints", self.sync)
        self._services.listen(lambda service: self.queue.add(key_of(service)))
        self._pods.listen(self._pod_changed)
        self._slices.listen(self._slice_changed)

    def _pod_changed(self, pod: Object) -> None:
        """Look at all Services of the namespace: the pod may have worn other labels before."""
        for service in self._services.all(pod["metadata"]["namespace"]):
            self.queue.add(key_of(service))

    def _slice_changed(self, found: Object) -> None:
        if name := labels(found).get(_SERVICE_NAME):
            self.queue.add((found["metadata"]["namespace"], name))

    async def sync(self, key: Key) -> None:
        """Bring the slices of one Service to what its pods say; slices of a Service that is gone go with it."""
        service = self._services.get(key)
        if service is None or is_ending(service) or not service["spec"].get("selector"):
            return
        if service["spec"].get("type") == "ExternalName":
            return
        there = [found for found in self._slices.all(key[0]) if _is_of(found, service)]
        for wish in slices_of(service, self._pods.all(key[0])):
            same = next((found for found in there if _ports(found) == _ports(wish)), None)
            there = [found for found in there if found is not same]
            await self._write(wish, same)
        for found in there:
            await self._client.delete(ENDPOINT_SLICES, found["metadata"]["name"], key[0], uid=uid_of(found))
            self._slices.drop(found)

    async def _write(self, wish: Object, there: Object | None) -> None:
        if there is None:
            try:
                self._slices.put(await self._client.create(ENDPOINT_SLICES, wish))
            except ApiError as error:
                if not is_namespace_ending(error):
                    raise
        elif labels(there) != labels(wish) or (there.get("endpoints") or []) != wish["endpoints"]:
            meta = {**there["metadata"], "labels": labels(wish)}
            changed = {**there, "metadata": meta, "endpoints": wish["endpoints"], "ports": wish["ports"]}
            self._slices.put(await self._client.update(ENDPOINT_SLICES, changed))


def _is_of(found: Object, service: Object) -> bool:
    said = {_SERVICE_NAME: service["metadata"]["name"], _MANAGED_BY: _OURSELVES}
    return said.items() <= labels(found).items() and not is_ending(found)


def _ports(found: Object) -> Ports:
    return tuple(sorted(tuple(sorted(port.items())) for port in found.get("ports") or []))


def slices_of(service: Object, pods: Iterable[Object]) -> list[Object]:
    """Give the slices that a Service must have: one for each set of ports, and one also where there is no pod."""
    selector = service["spec"]["selector"].items()
    groups: dict[Ports, Object] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
        if selector <= labels(pod).items() and (pod.get("status") or {}).get("podIP") and not is_over(pod):
            wish = _slice(service, _ports_at(service, pod))
            groups.setdefault(_ports(wish), wish)["endpoints"].append(_endpoint(service, pod))
    return list(groups.values()) or [_slice(service, [])]


def _slice(service: Object, ports: list[Object]) -> Object:
    meta, spec = service["metadata"], service["spec"]
    headless = {_HEADLESS: ""} if spec.get("clusterIP") == "None" else {}
    worn = {**labels(service), _SERVICE_NAME: meta["name"], _MANAGED_BY: _OURSELVES, **headless}
    named = {"generateName": f"{meta['name']}-", "namespace": meta["namespace"]}
    return {
        "metadata": {**named, "labels": worn, "ownerReferences": [reference_to(service)]},
        "addressType": (spec.get("ipFamilies") or ["IPv4"])[0],
        "endpoints": [],
        "ports": ports,
    }


def _ports_at(service: Object, pod: Object) -> list[Object]:
    """Give where a pod serves the Service's ports; a port that the pod does not name is left out."""
    found = []
    for port in service["spec"].get("ports") or []:
        protocol = port.get("protocol", "TCP")
        number = _target(port.get("targetPort") or port["port"], protocol, pod)
        if number is not None:
            entry = {"name": port.get("name", ""), "port": number, "protocol": protocol}
            found.append({**entry, **({"appProtocol": port["appProtocol"]} if port.get("appProtocol") else {})})
    return found


def _target(target: int | str, protocol: str, pod: Object) -> int | None:
    if isinstance(target, int):
        return target
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
    fits = [port for port in ports if (port.get("name"), port.get("protocol", "TCP")) == (target, protocol)]
    return fits[0]["containerPort"] if fits else None


def _endpoint(service: Object, pod: Object) -> Object:
    meta, spec = pod["metadata"], pod["spec"]
    serving, ending = is_ready(pod), is_ending(pod)
    welcome = bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not ending)
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": welcome, "serving": serving, "terminating": ending},
        "targetRef": {"kind": "Pod", "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
        **({"nodeName": spec["nodeName"]} if spec.get("nodeName") else {}),
    }
