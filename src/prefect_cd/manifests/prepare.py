"""From a folder of a commit to the objects of a release: load, pin, label, order, compare.

Pure but for reading files and running kustomize. What the cluster thinks of the objects is asked elsewhere.
A commit's manifests are not trusted: what could lead out of the commit, out of the environment or out of memory is
refused here, with file:line.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.load import Manifest, display_name, name_of, refuse_duplicates
from prefect_cd.release.model import BuiltImage

# Earlier waves exist before later ones are written; what is not named here comes with the workloads.
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
    found: Sequence[Manifest], namespace: str, namespaced: Mapping[tuple[str, str], bool], allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The objects with their namespace filled in.

    Args:
        found: the manifests.
        namespace: the environment's.
        namespaced: (apiVersion, kind) -> whether its objects live in a namespace.
        allowed: kinds of cluster-scoped objects that the pipeline file permits.

    Raises:
        InvalidManifest: an object that belongs elsewhere, or that is there twice once the namespace is filled in.
    """
    placed = [
        Manifest(_placed(each, namespace, namespaced[each.item["apiVersion"], each.item["kind"]], allowed), each.where)
        for each in found
    ]
    refuse_duplicates(placed)
    return tuple(each.item for each in placed)


def _placed(manifest: Manifest, namespace: str, namespaced: bool, allowed: Sequence[str]) -> Object:  # noqa: FBT001
    item = manifest.item
    said = item["metadata"].get("namespace") or ""
    if namespaced and said not in {"", namespace}:
        raise InvalidManifest(
            f"{display_name(item)} is in namespace {said!r}, the environment's is {namespace!r}",
            where=manifest.where,
            hint="leave metadata.namespace out; the environment fills it in",
        )
    if namespaced:
        return {**item, "metadata": {**item["metadata"], "namespace": namespace}}
    own_namespace = item["kind"] == "Namespace" and name_of(item) == namespace
    if not own_namespace and item["kind"] not in allowed:
        raise InvalidManifest(
            f"{display_name(item)} belongs to the whole cluster, and the pipeline file does not allow that",
            where=manifest.where,
            hint=f"add {item['kind']} to the environment's cluster_scoped, if every release may change it",
        )
    return item


def pin_image(objects: Sequence[Object], image: BuiltImage, *, where: str) -> tuple[Object, ...]:
    """The objects with the image's name, under any tag or digest, replaced by name@digest.

    Raises:
        InvalidManifest: no container uses the image.
    """
    pinned = tuple(_pinned(item, image) for item in objects)
    if not any(image.reference in images_of(item) for item in pinned):
        others = sorted({name for item in objects for name in images_of(item)})
        raise InvalidManifest(
            f"no container uses the image {image.name}; there are: {', '.join(others) or 'none'}",
            where=where,
            hint="write the image's name of the pipeline file, without a tag, into a container",
        )
    return pinned


def images_of(item: Object) -> list[str]:
    """All images that the object's containers name."""
    return [container["image"] for container in _containers(item) if isinstance(container.get("image"), str)]


def _pinned(item: Object, image: BuiltImage) -> Object:
    pinned = copy.deepcopy(item)
    for container in _containers(pinned):
        if _repository(str(container.get("image", ""))) == image.name:
            container["image"] = image.reference
    return pinned


def _containers(value: object) -> Iterator[dict[str, Any]]:
    """Every container below `value`, wherever a kind keeps its pod template."""
    if isinstance(value, list):
        for each in value:
            yield from _containers(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key in {"containers", "initContainers", "ephemeralContainers"} and isinstance(each, list):
                yield from (container for container in each if isinstance(container, dict))
            else:
                yield from _containers(each)


def _repository(reference: str) -> str:
    """`host:5000/name:tag@sha256:…` -> `host:5000/name` (distribution/reference grammar)."""
    without_digest = reference.partition("@")[0]
    head, slash, last = without_digest.rpartition("/")
    return head + slash + last.partition(":")[0]


def waves(objects: Sequence[Object]) -> list[list[Object]]:
    """The objects in the order of writing; those of one wave may be written at the same time."""
    ordered: list[list[Object]] = [[] for _ in range(len(_WAVES) + 2)]
    for item in objects:
        kind = item["kind"]
        named_wave = next((number for number, kinds in enumerate(_WAVES) if kind in kinds), len(_WAVES))
        ordered[len(_WAVES) + 1 if kind in _LAST else named_wave].append(item)
    return [wave for wave in ordered if wave]
