"""Load the objects of a release from a folder of its commit: YAML and JSON files, or a kustomize overlay.

A commit's manifests are not trusted: links that leave the commit, and YAML that would exhaust the memory, are refused
with file:line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests import kustomize
from prefect_cd.manifests.diff import SERVER_METADATA
from prefect_cd.manifests.files import is_inside, read_text, refuse_too_large, shown
from prefect_cd.manifests.reserved import reserved
from prefect_cd.manifests.yaml_reader import Document, line_below, read
from prefect_cd.untrusted_text import has_controls

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_API_VERSION = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class Manifest:
    """One object and the file:line where it begins."""

    item: Object
    where: str


def load(folder: Path, top: Path) -> tuple[Manifest, ...]:
    """All objects of a folder: its YAML files with those of its subfolders, or a kustomize overlay.

    Args:
        folder: the folder.
        top: the checkout; locations are relative to it.

    Raises:
        InvalidManifest: with file:line.
        MissingTool: the folder is an overlay, and neither kustomize nor kubectl is installed.
        Errored: kustomize did not end in time.
    """
    location = shown(folder, top)
    if not is_inside(folder, top):
        raise InvalidManifest("the folder of manifests is a link that leads out of the commit", where=location)
    if not folder.is_dir():
        raise InvalidManifest(
            "no such folder of manifests in this commit",
            where=location,
            hint="correct `manifests` in the pipeline file, or release a commit that has the folder",
        )
    if kustomize.is_overlay(folder):
        manifests = _parse(kustomize.build(folder, top), f"{location} (kustomize)")
    else:
        manifests, size = [], 0
        for path in _files(folder, top):
            text = read_text(path, top)
            size += len(text)
            refuse_too_large(size, location)
            manifests += _parse(text, shown(path, top))
    if not manifests:
        raise InvalidManifest("no objects in this folder", where=location, hint="put at least one manifest into it")
    refuse_duplicates(manifests)
    return tuple(manifests)


def _files(folder: Path, top: Path) -> Iterator[Path]:
    """The files of manifests, in the order of their paths."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_dir():  # rglob does not follow it
            raise InvalidManifest(
                "a link to a folder, which would be left out",
                where=shown(path, top),
                hint="copy the files, or use a kustomize overlay",
            )
        if path.suffix in _SUFFIXES and (path.is_symlink() or path.is_file()):
            yield path


def _parse(text: str, file: str) -> list[Manifest]:
    return [_manifest(document, file) for document in read(text, file)]


def _manifest(document: Document, file: str) -> Manifest:
    item, where = document.value, f"{file}:{document.line}"
    refuse_malformed(item, where)
    _refuse_exported(document, file)
    if problem := reserved(item):
        line = line_below(document.node, *problem.path)
        raise InvalidManifest(problem.problem, where=f"{file}:{line}", hint=problem.hint)
    return Manifest(item, where)


def refuse_malformed(item: object, where: str) -> None:
    """Return where a value has what every object has: apiVersion, kind and a name.

    Args:
        item: the value.
        where: file:line, for the error.

    Raises:
        InvalidManifest: it has not.
    """
    if not isinstance(item, dict):
        raise InvalidManifest(f"a {type(item).__name__}, not an object", where=where, hint="begin with `apiVersion:`")
    missing = [key for key in ("apiVersion", "kind") if not isinstance(item.get(key), str)]
    if missing:
        raise InvalidManifest(f"no {' and no '.join(missing)}", where=where, hint="every object needs both")
    if not _API_VERSION.fullmatch(item["apiVersion"]):
        raise InvalidManifest(
            f"{item['apiVersion']!r} is not an apiVersion", where=where, hint="for example `v1` or `apps/v1`"
        )
    metadata = item.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise InvalidManifest(
            f"a {item['kind']} without metadata.name",
            where=where,
            hint="set a name; server-side apply does not support generateName",
        )
    _refuse_controls(item, where)
    # The name becomes a segment of a URL path (IsValidPathSegmentName in k8s.io/apimachinery).
    if metadata["name"] in {".", ".."} or re.search("[/%]", metadata["name"]):
        raise InvalidManifest(f"{metadata['name']!r} is not a valid name", where=where, hint="remove / and %")
    if not isinstance(metadata.get("namespace") or "", str):
        raise InvalidManifest(f"metadata.namespace of {item['kind']} {metadata['name']} is not text", where=where)
    for key in ("labels", "annotations"):
        if not isinstance(metadata.get(key) or {}, dict):
            raise InvalidManifest(f"metadata.{key} of {item['kind']} {metadata['name']} is not a map", where=where)


def _refuse_controls(item: Object, where: str) -> None:
    """Refuse names that would steer a terminal or begin a line: Kubernetes allows them for some kinds, such as Role."""
    names = {"kind": item["kind"], **{f"metadata.{key}": item["metadata"].get(key) for key in ("name", "namespace")}}
    for field, name in names.items():
        if isinstance(name, str) and has_controls(name):
            raise InvalidManifest(
                f"{field} {name!r} has control characters",
                where=where,
                hint="remove them: they would change how the name is shown to people",
            )


def _refuse_exported(document: Document, file: str) -> None:
    """Refuse what only the server writes: the manifest is a copy of a live object, and may never be applied again.

    Generators write `creationTimestamp: null` and `status: {}`, which say nothing and are accepted.
    """
    item = document.value
    fields = [f"metadata.{key}" for key in SERVER_METADATA if not _is_empty(item["metadata"].get(key))]
    fields += ["status"] * (not _is_empty(item.get("status")))
    lines = {field: line_below(document.node, *field.split(".")) for field in fields}
    if lines:
        to_remove = ", ".join(
            f"{field} (line {line})" for field, line in sorted(lines.items(), key=lambda entry: entry[1])
        )
        raise InvalidManifest(
            f"{display_name(item)} was exported from a cluster: it has fields that only the server writes",
            where=f"{file}:{min(lines.values())}",
            hint=f"remove {to_remove}",
        )


def _is_empty(value: object) -> bool:
    """Whether a value says nothing: null, or text, lists and maps without any content."""
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return value is None or value == ""


def refuse_duplicates(manifests: Sequence[Manifest]) -> None:
    """Refuse two manifests of the same object, also in different versions of its group.

    Raises:
        InvalidManifest: with the file:line of both.
    """
    locations: dict[tuple[str, ...], str] = {}
    for manifest in manifests:
        item = manifest.item
        group = item["apiVersion"].rpartition("/")[0]  # autoscaling/v1 and autoscaling/v2 name the same object
        identity = (group, item["kind"], item["metadata"].get("namespace") or "", name_of(item))
        if identity in locations:
            raise InvalidManifest(
                f"{display_name(item)} is already defined in {locations[identity]}", where=manifest.where
            )
        locations[identity] = manifest.where


def name_of(item: Object) -> str:
    """metadata.name."""
    return str(item["metadata"]["name"])


def display_name(item: Object) -> str:
    """Kind and name for messages: `Deployment shop`."""
    return f"{item['kind']} {name_of(item)}"
