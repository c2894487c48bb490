"""EndpointSlices of Services with a selector: the addresses of their pods, and the conditions of each.

Rules: the documentation of EndpointSlices (conditions, management) and of Services. A terminating pod stays listed
(terminating, and serving while its readiness probe passes) but is not ready; a pod that has finished or has no address
is not listed. Pods whose named target ports differ are in different slices. Slices are not split at 100 endpoints,
because the node is smaller.
"""

from collections.abc import Iterable
from typing import Any

from prefect_cd_local.client import ENDPOINT_SLICES, PODS, SERVICES, ApiError, Client, Object, is_namespace_ending
from prefect_cd_local.controllers.loop import Caches, Queue
from prefect_cd_local.controllers.objects import (
    NODE_PORTS_SERVED,
    Key,
    is_ending,
    is_over,
    is_ready,
    is_withdrawn,
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
        """Queue all Services of the namespace, since the pod may have had other labels before."""
        for service in self._services.all(pod["metadata"]["namespace"]):
            self.queue.add(key_of(service))

    def _slice_changed(self, slice_: Object) -> None:
        if name := labels(slice_).get(_SERVICE_NAME):
            self.queue.add((slice_["metadata"]["namespace"], name))

    async def sync(self, key: Key) -> None:
        """Reconcile the slices of one Service; the garbage collector removes those of a deleted Service."""
        service = self._services.get(key)
        if service is None or is_ending(service) or not service["spec"].get("selector"):
            return
        if service["spec"].get("type") == "ExternalName":
            return
        existing = [slice_ for slice_ in self._slices.all(key[0]) if _is_of(slice_, service)]
        for desired in slices_of(service, self._pods.all(key[0])):
            same = next((slice_ for slice_ in existing if _ports(slice_) == _ports(desired)), None)
            existing = [slice_ for slice_ in existing if slice_ is not same]
            await self._write(desired, same)
        for slice_ in existing:
            await self._client.delete(ENDPOINT_SLICES, slice_["metadata"]["name"], key[0], uid=uid_of(slice_))
            self._slices.drop(slice_)

    async def _write(self, desired: Object, existing: Object | None) -> None:
        if existing is None:
            try:
                self._slices.put(await self._client.create(ENDPOINT_SLICES, desired))
            except ApiError as error:
                if not is_namespace_ending(error):
                    raise
        elif labels(existing) != labels(desired) or (existing.get("endpoints") or []) != desired["endpoints"]:
            meta = {**existing["metadata"], "labels": labels(desired)}
            changed = {**existing, "metadata": meta, "endpoints": desired["endpoints"], "ports": desired["ports"]}
            self._slices.put(await self._client.update(ENDPOINT_SLICES, changed))


def _is_of(slice_: Object, service: Object) -> bool:
    expected_labels = {_SERVICE_NAME: service["metadata"]["name"], _MANAGED_BY: _OURSELVES}
    return expected_labels.items() <= labels(slice_).items() and not is_ending(slice_)


def _ports(slice_: Object) -> Ports:
    return tuple(sorted(tuple(sorted(port.items())) for port in slice_.get("ports") or []))


def slices_of(service: Object, pods: Iterable[Object]) -> list[Object]:
    """Return the slices that a Service must have: one for each set of ports, and an empty one where there is no pod."""
    selector = service["spec"]["selector"].items()
    groups: dict[Ports, Object] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
        if selector <= labels(pod).items() and (pod.get("status") or {}).get("podIP") and not is_over(pod):
            desired = _slice(service, _ports_at(service, pod))
            groups.setdefault(_ports(desired), desired)["endpoints"].append(_endpoint(service, pod))
    return list(groups.values()) or [_slice(service, [])]


def _slice(service: Object, ports: list[Object]) -> Object:
    meta, spec = service["metadata"], service["spec"]
    headless = {_HEADLESS: ""} if spec.get("clusterIP") == "None" else {}
    slice_labels = {**labels(service), _SERVICE_NAME: meta["name"], _MANAGED_BY: _OURSELVES, **headless}
    named = {"generateName": f"{meta['name']}-", "namespace": meta["namespace"]}
    return {
        "metadata": {**named, "labels": slice_labels, "ownerReferences": [reference_to(service)]},
        "addressType": (spec.get("ipFamilies") or ["IPv4"])[0],
        "endpoints": [],
        "ports": ports,
    }


def _ports_at(service: Object, pod: Object) -> list[Object]:
    """Return a pod's ports for the Service's ports, without those that the pod does not name."""
    ports = []
    for port in service["spec"].get("ports") or []:
        protocol = port.get("protocol", "TCP")
        number = _target(port.get("targetPort") or port["port"], protocol, pod)
        if number is not None:
            entry = {"name": port.get("name", ""), "port": number, "protocol": protocol}
            ports.append({**entry, **({"appProtocol": port["appProtocol"]} if port.get("appProtocol") else {})})
    return ports


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
    welcome = welcome and not is_withdrawn(service, NODE_PORTS_SERVED)
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": welcome, "serving": serving, "terminating": ending},
        "targetRef": {"kind": "Pod", "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
        **({"nodeName": spec["nodeName"]} if spec.get("nodeName") else {}),
    }
