"""From a folder of a commit to the objects of a release: load, pin, label, order, compare.

Pure but for reading files and running kustomize. What the cluster thinks of the objects is asked elsewhere.
"""

import copy
import difflib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from prefect_cd.errors import InvalidManifest, MissingTool
from prefect_cd.release import BuiltImage, Object

PREFIX = "prefect-cd.dev/"
APPLICATION = PREFIX + "application"
ENVIRONMENT = PREFIX + "environment"
RELEASE = PREFIX + "release"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "prefect-cd"
WORKLOADS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"})
HIDDEN = "(hidden)"
HIDDEN_CHANGED = "(hidden, changed)"
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_KUSTOMIZE_TIMEOUT = timedelta(minutes=2)

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
_SERVER_METADATA = (
    "managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds",
)  # fmt: skip
_SERVER_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
)


@dataclass(frozen=True)
class Manifest:
    """One object and where it was written."""

    item: Object
    where: str


def load(folder: Path, top: Path) -> tuple[Manifest, ...]:
    """All objects of a folder: its YAML files with those of its subfolders, or a kustomize overlay.

    Args:
        folder: the folder.
        top: the checkout, for saying where an object stands.

    Raises:
        InvalidManifest: with file:line.
        MissingTool: an overlay, and neither kustomize nor kubectl to build it with.
    """
    shown = str(folder.relative_to(top))
    if not folder.resolve().is_relative_to(top.resolve()):
        raise InvalidManifest("the folder of manifests leaves the commit through a link", where=shown)
    if not folder.is_dir():
        raise InvalidManifest(
            "there is no such folder of manifests in this commit",
            where=shown,
            hint="correct `manifests` in the pipeline file, or release a commit that has the folder",
        )
    if any((folder / name).is_file() for name in _KUSTOMIZATIONS):
        found = tuple(_parse(_kustomize(folder, shown), f"{shown} (kustomize)"))
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix in {".yaml", ".yml", ".json"})
        found = tuple(each for path in files for each in _parse(_text(path, top), str(path.relative_to(top))))
    if not found:
        raise InvalidManifest("no objects in this folder", where=shown, hint="put at least one manifest into it")
    _refuse_duplicates(found)
    return found


def _text(path: Path, top: Path) -> str:
    if not path.resolve().is_relative_to(top.resolve()):
        raise InvalidManifest("a link that leads out of the commit", where=str(path.relative_to(top)))
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"not UTF-8: {error}", where=str(path.relative_to(top))) from error


def _kustomize(folder: Path, shown: str) -> str:
    command = next(
        ([*tool, str(folder)] for tool in (("kustomize", "build"), ("kubectl", "kustomize")) if shutil.which(tool[0])),
        None,
    )
    if command is None:
        raise MissingTool(
            "a kustomize overlay, and neither kustomize nor kubectl on PATH",
            where=shown,
            hint="install kustomize or kubectl where the release runs, or commit plain manifests",
        )
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_KUSTOMIZE_TIMEOUT.total_seconds()
    )
    if done.returncode:
        raise InvalidManifest(
            f"{command[0]} cannot build this overlay",
            where=shown,
            detail=done.stderr,
            hint="correct the overlay",
        )
    return done.stdout


def _parse(text: str, shown: str) -> Iterator[Manifest]:
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield from _objects(loader.construct_document(node), f"{shown}:{node.start_mark.line + 1}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidManifest(
            f"not YAML: {error.problem or error.context}", where=f"{shown}:{mark.line + 1 if mark else 1}"
        ) from error
    except yaml.YAMLError as error:
        raise InvalidManifest(f"not YAML: {error}", where=shown) from error


def _objects(document: object, where: str) -> Iterator[Manifest]:
    if document is None:
        return
    if not isinstance(document, dict):
        raise InvalidManifest(
            f"a {type(document).__name__}, and not an object", where=where, hint="begin with apiVersion:"
        )
    missing = [key for key in ("apiVersion", "kind") if not isinstance(document.get(key), str)]
    if missing:
        raise InvalidManifest(f"no {' and no '.join(missing)}", where=where, hint="every object names both")
    if document["kind"] == "List" and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _objects(item, where)
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidManifest(
            f"a {document['kind']} without metadata.name",
            where=where,
            hint="generateName cannot be applied; name it",
        )
    yield Manifest(_json(document, where), where)


def _json(document: Object, where: str) -> Object:
    """The document as JSON has it: YAML dates and the like are refused, not guessed."""
    try:
        answer: Object = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidManifest(f"a value that JSON does not have: {error}", where=where, hint="quote dates") from error
    return answer


def _refuse_duplicates(found: Sequence[Manifest]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for each in found:
        key = (
            each.item["apiVersion"],
            each.item["kind"],
            each.item["metadata"].get("namespace", ""),
            name_of(each.item),
        )
        if key in seen:
            raise InvalidManifest(f"{named(each.item)} stands in {seen[key]} already", where=each.where)
        seen[key] = each.where


def place(
    found: Sequence[Manifest], namespace: str, namespaced: Mapping[tuple[str, str], bool], allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The objects with their namespace filled in.

    Args:
        found: the manifests.
        namespace: the environment's.
        namespaced: (apiVersion, kind) -> whether its objects live in a namespace.
        allowed: kinds of cluster-scoped objects that the pipeline file permits.

    Raises:
        InvalidManifest: an object that belongs elsewhere.
    """
    return tuple(
        _placed(each, namespace, namespaced[each.item["apiVersion"], each.item["kind"]], allowed) for each in found
    )


def _placed(manifest: Manifest, namespace: str, namespaced: bool, allowed: Sequence[str]) -> Object:  # noqa: FBT001
    item = manifest.item
    said = item["metadata"].get("namespace", "")
    if namespaced and said not in {"", namespace}:
        raise InvalidManifest(
            f"{named(item)} is in namespace {said!r}, the environment's is {namespace!r}",
            where=manifest.where,
            hint="leave metadata.namespace out; the environment fills it in",
        )
    if namespaced:
        return {**item, "metadata": {**item["metadata"], "namespace": namespace}}
    own_namespace = item["kind"] == "Namespace" and name_of(item) == namespace
    if not own_namespace and item["kind"] not in allowed:
        raise InvalidManifest(
            f"{named(item)} belongs to the whole cluster, and the pipeline file does not allow that",
            where=manifest.where,
            hint=f"add {item['kind']} to the environment's cluster_scoped, if every release may change it",
        )
    return item


def pin(objects: Sequence[Object], image: BuiltImage, *, where: str) -> tuple[Object, ...]:
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


def label(item: Object, application: str, environment: str, release: str = "") -> Object:
    """The object as ours: labels on every object, the release's id on workloads' own metadata only.

    The environment is a label because cluster-scoped objects of two environments may live in one cluster. The pod
    template stays as it is, so that pods which did not change are not restarted.
    """
    metadata = dict(item["metadata"])
    ours = {MANAGED_BY: MANAGER, APPLICATION: application, ENVIRONMENT: environment}
    metadata["labels"] = {**(metadata.get("labels") or {}), **ours}
    if release and item["kind"] in WORKLOADS:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), RELEASE: release}
    return {**item, "metadata": metadata}


def waves(objects: Sequence[Object]) -> list[list[Object]]:
    """The objects in the order of writing; those of one wave may be written at the same time."""
    ordered: list[list[Object]] = [[] for _ in range(len(_WAVES) + 2)]
    for item in objects:
        kind = item["kind"]
        named_wave = next((number for number, kinds in enumerate(_WAVES) if kind in kinds), len(_WAVES))
        ordered[len(_WAVES) + 1 if kind in _LAST else named_wave].append(item)
    return [wave for wave in ordered if wave]


def strip(item: Object) -> Object:
    """The object without what only the server writes: fit for comparing and for applying again."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in _SERVER_METADATA}
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in _SERVER_ANNOTATIONS}
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def diff(before: Object | None, after: Object | None) -> str:
    """What changes from `before` to `after`, as a unified diff of YAML; values of Secrets are hidden."""
    shown_before, shown_after = _hide(before, None), _hide(after, before)
    lines = difflib.unified_diff(_yaml(shown_before), _yaml(shown_after), "now", "then", lineterm="", n=2)
    return "\n".join(list(lines)[2:])


def _hide(item: Object | None, earlier: Object | None) -> Object | None:
    if item is None or item["kind"] != "Secret":
        return item
    hidden = dict(item)
    for key in ("data", "stringData"):
        if isinstance(item.get(key), dict):
            known = (earlier or {}).get(key) or {}
            hidden[key] = {
                name: HIDDEN if earlier is None or known.get(name) == value else HIDDEN_CHANGED
                for name, value in item[key].items()
            }
    return hidden


def _yaml(item: Object | None) -> list[str]:
    return [] if item is None else yaml.safe_dump(item, sort_keys=True, width=120).splitlines()


def name_of(item: Object) -> str:
    """metadata.name."""
    return str(item["metadata"]["name"])


def named(item: Object) -> str:
    """`Deployment shop`, as people say it."""
    return f"{item['kind']} {name_of(item)}"
