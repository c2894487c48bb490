"""Prepare the objects of a release for an environment: set namespaces, pin the image, order the writes. Pure.

A commit's manifests are not trusted: objects outside of the environment's namespace are refused with file:line.
"""

import base64
import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object, dig_mapping
from prefect_cd.manifests.image_references import ImagePattern, places
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
_POD_SECURITY = "pod-security.kubernetes.io/"
_CONTAINERS = frozenset({"containers", "initContainers", "ephemeralContainers"})


def set_namespaces(
    manifests: Sequence[Manifest], namespace: str, namespaced: Mapping[tuple[str, str], bool], allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The objects as they are applied: with their namespace filled in, and Secrets without `stringData`.

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
        refuse_out_of_scope(manifest, namespace, namespaced, allowed)
        if namespaced[item["apiVersion"], item["kind"]]:
            item = {**item, "metadata": {**item["metadata"], "namespace": namespace}}
        else:
            # The server ignores it. With it, the object would not be the one that the server lists.
            item = {**item, "metadata": {key: value for key, value in item["metadata"].items() if key != "namespace"}}
        placed.append(Manifest(encode_string_data(item), manifest.where))
    refuse_duplicates(placed)
    return tuple(manifest.item for manifest in placed)


def refuse_out_of_scope(
    manifest: Manifest, namespace: str, namespaced: Mapping[tuple[str, str], bool], allowed: Sequence[str]
) -> None:
    """Return where an object may be written to an environment: see `set_namespaces`, which has the same arguments.

    Raises:
        InvalidManifest: it may not; it is in another namespace, or cluster-scoped and not allowed.
    """
    item = manifest.item
    if not namespaced[item["apiVersion"], item["kind"]]:
        _check_cluster_scoped(manifest, namespace, allowed)
        return
    own = item["metadata"].get("namespace") or ""
    if own not in {"", namespace}:
        raise InvalidManifest(
            f"{display_name(item)} is in namespace {own!r}, the environment's is {namespace!r}",
            where=manifest.where,
            hint="leave metadata.namespace out: it is set to the environment's",
        )


def _check_cluster_scoped(manifest: Manifest, namespace: str, allowed: Sequence[str]) -> None:
    item = manifest.item
    if item["kind"] in allowed:
        return
    if item["kind"] != "Namespace" or name_of(item) != namespace:
        raise InvalidManifest(
            f"{display_name(item)} is cluster-scoped, and the pipeline file does not allow this kind",
            where=manifest.where,
            hint=f"add {item['kind']} to the environment's cluster_scoped, if every release may change it",
        )
    # These labels limit what pods may do to the node, so that a commit would decide about its own limits.
    labels = sorted(key for key in dig_mapping(item, "metadata", "labels") if str(key).startswith(_POD_SECURITY))
    if labels:
        raise InvalidManifest(
            f"{display_name(item)} sets {', '.join(labels)}, and the pipeline file does not allow it",
            where=manifest.where,
            hint=f"remove it, and let an operator set it: `kubectl label namespace {namespace} {labels[0]}=…`; "
            "or add Namespace to the environment's cluster_scoped, if every release may change namespaces",
        )


def encode_string_data(item: Object) -> Object:
    """A Secret whose `stringData` is written as `data`; any other object as it is.

    The server does the same when it stores the Secret, but server-side apply then knows nothing of the keys: one that
    leaves `stringData` would stay in `data` for ever. A value that is not a string is left to the server to refuse.
    """
    if (item["apiVersion"], item["kind"]) != ("v1", "Secret") or "stringData" not in item:
        return item
    plain, data = item["stringData"] or {}, item.get("data") or {}
    if not isinstance(data, dict) or not isinstance(plain, dict) or not all(isinstance(v, str) for v in plain.values()):
        return item
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
    others = {key: value for key, value in item.items() if key != "stringData"}
    return {**others, "data": {**data, **encoded}}


def pin_image(
    objects: Sequence[Object], image: BuiltImage, *, where: str, fields: Sequence[str] = ()
) -> tuple[Object, ...]:
    """The objects with every reference to the image, under any tag or digest, replaced by name@digest.

    References are replaced where Kubernetes expects an image, which is in containers and in volumes, and in `fields`.
    Where none has the whole name, the last part of it alone (`image: shop`) is a reference, too, so that manifests need
    not know the registry.

    Args:
        objects: the objects of one environment.
        image: the image of the release.
        where: the folder of the manifests, for the error.
        fields: paths of more fields, as in `image.fields` of the pipeline file.

    Raises:
        InvalidManifest: no container uses the image.
    """
    pattern = ImagePattern(image.name)
    names_it: Callable[[str], bool] = pattern.is_reference
    if not any(names_it(name) for item in objects for name in images_of(item)):
        names_it = partial(operator.eq, image.name.rpartition("/")[2])
    pinned, uses = [], 0
    for item in objects:
        result = copy.deepcopy(item)
        for holder, key in _image_fields(result):
            if names_it(holder[key]):
                holder[key] = image.reference
                uses += 1
        for place in places(result, fields):
            text = pattern.replace(place.value, image.reference)
            uses += text != place.value or image.reference in text
            place.write(text)
        pinned.append(result)
    if not uses:
        others = sorted({name for item in objects for name in images_of(item)})
        raise InvalidManifest(
            f"no container uses the image {image.name}; images: {', '.join(others) or 'none'}",
            where=where,
            hint="use `image.name` of the pipeline file, or its last part, without a tag, as the image of a container",
        )
    return tuple(pinned)


def replace_images(objects: Sequence[Object], replacements: Mapping[str, str]) -> tuple[Object, ...]:
    """The objects with references of containers and volumes replaced.

    Args:
        objects: of one environment.
        replacements: the whole reference as it is -> as it shall be.
    """
    replaced = copy.deepcopy(tuple(objects))
    for holder, key in _image_fields(list(replaced)):
        holder[key] = replacements.get(holder[key], holder[key])
    return replaced


def images_of(item: Object) -> list[str]:
    """The image references of all containers and volumes of an object."""
    return [holder[key] for holder, key in _image_fields(item)]


def _image_fields(value: object) -> Iterator[tuple[dict[str, Any], str]]:
    """Where images stand below `value`, as (map, key): a custom resource may have its pod template anywhere."""
    if isinstance(value, list):
        for item in value:
            yield from _image_fields(item)
    elif isinstance(value, dict):
        for key, child in value.items():
            entries = [entry for entry in child if isinstance(entry, dict)] if isinstance(child, list) else []
            if key in _CONTAINERS and entries:
                yield from ((entry, "image") for entry in entries if isinstance(entry.get("image"), str))
                continue
            if key == "volumes":
                sources = [entry["image"] for entry in entries if isinstance(entry.get("image"), dict)]
                yield from ((source, "reference") for source in sources if isinstance(source.get("reference"), str))
            yield from _image_fields(child)


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
