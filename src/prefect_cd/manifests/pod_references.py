"""What pods refer to by name: ConfigMaps, Secrets, claims, the service account and classes. Pure.

It knows where a pod names another object, and that an optional reference needs nothing. Whether the object exists, and
what follows from it, is decided in `environment`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping

API_VERSIONS = {
    "ConfigMap": "v1",
    "Secret": "v1",
    "ServiceAccount": "v1",
    "PersistentVolumeClaim": "v1",
    "PriorityClass": "scheduling.k8s.io/v1",
    "RuntimeClass": "node.k8s.io/v1",
}
"""The kinds that pods refer to, and how they are served."""
CLUSTER_SCOPED = frozenset({"PriorityClass", "RuntimeClass"})


class PodReference(NamedTuple):
    """One name in a pod's spec.

    Attributes:
        kind: of the object.
        name: of the object.
        keys: those that must be in it.
        place: where the pod names it, for people: `container app, env DB_URL`.
        needed: whether no pod starts without it; a missing secret for pulling images only makes a pull anonymous.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    place: str
    needed: bool = True


def pod_references(spec: Object, *, own_claims: frozenset[str] = frozenset()) -> Iterator[PodReference]:
    """Everything that a pod's spec refers to; nothing that is optional.

    Args:
        spec: of the pods.
        own_claims: volumes that get a claim of their own, from a StatefulSet's `volumeClaimTemplates`.
    """
    for container, label in _containers(spec):
        for source in as_objects(container.get("envFrom")):
            yield from _contents(source, "configMapRef", "secretRef", f"{label}, envFrom")
        for variable in as_objects(container.get("env")):
            place = f"{label}, env {as_text(variable.get('name'))}"
            yield from _contents(dig_mapping(variable, "valueFrom"), "configMapKeyRef", "secretKeyRef", place)
    for volume in as_objects(spec.get("volumes")):
        yield from _of_volume(volume, own_claims)
    for field, kind in (
        ("serviceAccountName", "ServiceAccount"),
        ("priorityClassName", "PriorityClass"),
        ("runtimeClassName", "RuntimeClass"),
    ):
        if name := as_text(spec.get(field)):
            yield PodReference(kind, name, (), field)
    for secret in as_objects(spec.get("imagePullSecrets")):
        if name := as_text(secret.get("name")):
            yield PodReference("Secret", name, (), "imagePullSecrets", needed=False)


def _of_volume(volume: Object, own_claims: frozenset[str]) -> Iterator[PodReference]:
    place = f"volume {as_text(volume.get('name'))}"
    yield from _contents(volume, "configMap", "secret", place)
    for source in as_objects(dig(volume, "projected", "sources")):
        yield from _contents(source, "configMap", "secret", place)
    claim = as_text(dig(volume, "persistentVolumeClaim", "claimName"))
    if claim and volume.get("name") not in own_claims:
        yield PodReference("PersistentVolumeClaim", claim, (), place)


def _containers(spec: Object) -> Iterator[tuple[Object, str]]:
    for field, label in (("initContainers", "init container"), ("containers", "container")):
        for container in as_objects(spec.get(field)):
            yield container, f"{label} {as_text(container.get('name'))}"


def _contents(source: Object, config_map: str, secret: str, place: str) -> Iterator[PodReference]:
    """What a source of variables or files names."""
    for field, kind in ((config_map, "ConfigMap"), (secret, "Secret")):
        value = dig_mapping(source, field)
        name = as_text(value.get("name") or value.get("secretName"))
        if not name or value.get("optional") is True:
            continue
        items = (as_text(item.get("key")) for item in as_objects(value.get("items")))
        keys = tuple(key for key in (as_text(value.get("key")), *items) if key)
        yield PodReference(kind, name, keys, place)


__all__ = ["API_VERSIONS", "CLUSTER_SCOPED", "PodReference", "pod_references"]
