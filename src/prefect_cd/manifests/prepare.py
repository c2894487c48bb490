"""Prepare the objects of a release for an environment: set namespaces, pin the image, order the writes. Pure.

A commit's manifests are not trusted: objects outside of the environment's namespace are refused with file:line.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.load import Manifest, display_name, name_of, refuse_duplicates
from prefect_cd.release.model import BuiltImage

# A wave is written when the objects of earlier waves exist. Kinds that are not listed are written with the workloads,
# between the last of these waves and `_LAST`.
_WAVES: tuple[frozenset[str], ...] = (
    frozenset({"Namespace"}),
    frozenset({"CustomResourceDefinition", "PriorityClass", "StorageClass", "RuntimeClass", "IngressClass"}),
    frozenset({
        "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ResourceQuota", "LimitRange",
        "NetworkPolicy", "ConfigMap", "Secret", "PersistentVolume", "PersistentVolumeClaim",
    }),
    frozenset({"Service", "PodDisruptionBudget"}),
)  # fmt: skip
_LAST = frozenset(
    {"HorizontalPodAutoscaler", "Ingress", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}
)


def set_namespaces(
    manifests: Sequence[Manifest], namespace: str, namespaced: Mapping[tuple[str, str], bool], allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The objects with their namespace filled in.

    Args:
        manifests: the objects of the commit, and where they are defined.
        namespace: the environment's.
        namespaced: (apiVersion, kind) -> whether its objects live in a namespace.
        allowed: kinds of cluster-scoped objects that the pipeline file allows.

    Raises:
        InvalidManifest: an object of another namespace, a cluster-scoped one that is not allowed, or two manifests of
            one object once the namespace is set.
    """
    placed = []
    for manifest in manifests:
        item = manifest.item
        if namespaced[item["apiVersion"], item["kind"]]:
            item = _in_namespace(manifest, namespace)
        else:
            _check_cluster_scoped(manifest, namespace, allowed)
        placed.append(Manifest(item, manifest.where))
    refuse_duplicates(placed)
    return tuple(manifest.item for manifest in placed)


def _in_namespace(manifest: Manifest, namespace: str) -> Object:
    item = manifest.item
    own = item["metadata"].get("namespace") or ""
    if own not in {"", namespace}:
        raise InvalidManifest(
            f"{display_name(item)} is in namespace {own!r}, the environment's is {namespace!r}",
            where=manifest.where,
            hint="leave metadata.namespace out: it is set to the environment's",
        )
    return {**item, "metadata": {**item["metadata"], "namespace": namespace}}


def _check_cluster_scoped(manifest: Manifest, namespace: str, allowed: Sequence[str]) -> None:
    item = manifest.item
    is_own_namespace = item["kind"] == "Namespace" and name_of(item) == namespace
    if not is_own_namespace and item["kind"] not in allowed:
        raise InvalidManifest(
            f"{display_name(item)} is cluster-scoped, and the pipeline file does not allow this kind",
            where=manifest.where,
            hint=f"add {item['kind']} to the environment's cluster_scoped, if every release may change it",
        )


def pin_image(objects: Sequence[Object], image: BuiltImage, *, where: str) -> tuple[Object, ...]:
    """The objects with every reference to the image, under any tag or digest, replaced by name@digest.

    Raises:
        InvalidManifest: no container uses the image.
    """
    pinned = tuple(_pinned(item, image) for item in objects)
    if not any(image.reference in images_of(item) for item in pinned):
        others = sorted({name for item in objects for name in images_of(item)})
        raise InvalidManifest(
            f"no container uses the image {image.name}; images: {', '.join(others) or 'none'}",
            where=where,
            hint="use `image.name` of the pipeline file, without a tag, as the image of a container",
        )
    return pinned


def images_of(item: Object) -> list[str]:
    """The image references of all containers of an object."""
    return [container["image"] for container in _containers(item) if isinstance(container.get("image"), str)]


def _pinned(item: Object, image: BuiltImage) -> Object:
    pinned = copy.deepcopy(item)
    for container in _containers(pinned):
        if _repository(str(container.get("image", ""))) == image.name:
            container["image"] = image.reference
    return pinned


def _containers(value: object) -> Iterator[dict[str, Any]]:
    """Every container below `value`: a custom resource may have its pod template anywhere."""
    if isinstance(value, list):
        for item in value:
            yield from _containers(item)
    elif isinstance(value, dict):
        for key, child in value.items():
            if key in {"containers", "initContainers", "ephemeralContainers"} and isinstance(child, list):
                yield from (container for container in child if isinstance(container, dict))
            else:
                yield from _containers(child)


def _repository(reference: str) -> str:
    """`host:5000/name:tag@sha256:…` -> `host:5000/name` (distribution/reference grammar)."""
    without_digest = reference.partition("@")[0]
    head, slash, last = without_digest.rpartition("/")
    return head + slash + last.partition(":")[0]


def waves(objects: Sequence[Object]) -> list[list[Object]]:
    """The objects in the order of writing; the objects of one wave may be written at the same time."""
    ordered: list[list[Object]] = [[] for _ in range(len(_WAVES) + 2)]
    for item in objects:
        ordered[_wave_of(item["kind"])].append(item)
    return [wave for wave in ordered if wave]


def _wave_of(kind: str) -> int:
    if kind in _LAST:
        return len(_WAVES) + 1
    return next((number for number, kinds in enumerate(_WAVES) if kind in kinds), len(_WAVES))
