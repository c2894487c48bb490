"""Load the objects of a release from a folder of its commit: YAML and JSON files, or a kustomize overlay.

A commit's manifests are not trusted: links that leave the commit, and YAML that would exhaust the memory, are refused
with file:line.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from prefect_cd.errors import Errored, InvalidManifest, MissingTool
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.yaml_lines import MERGE_TAG, TEXT_TAG, PositionedLoader, Unreadable, line_of
from prefect_cd.process import clean_environment, run

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_KUSTOMIZE_TOOLS = (("kustomize", "build"), ("kubectl", "kustomize"))  # in the order of preference
_KUSTOMIZE_TIMEOUT = timedelta(minutes=2)
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_MAX_VALUES = 1_000_000  # in one document, counting what an alias stands for each time it is used
_API_VERSION = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[a-z]([-a-z0-9]*[a-z0-9])?")
_INT, _FLOAT, _VALUE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:value"


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
    location = str(folder.relative_to(top))
    if not folder.resolve().is_relative_to(top.resolve()):
        raise InvalidManifest("the folder of manifests is a link that leads out of the commit", where=location)
    if not folder.is_dir():
        raise InvalidManifest(
            "no such folder of manifests in this commit",
            where=location,
            hint="correct `manifests` in the pipeline file, or release a commit that has the folder",
        )
    if any((folder / name).is_file() for name in _KUSTOMIZATIONS):
        manifests = _parse(_kustomize(folder, top), f"{location} (kustomize)")
    else:
        manifests = []
        for path in _files(folder, top):
            manifests += _parse(_text(path, top), str(path.relative_to(top)))
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
                where=str(path.relative_to(top)),
                hint="copy the files, or use a kustomize overlay",
            )
        if path.suffix in _SUFFIXES and (path.is_symlink() or path.is_file()):
            yield path


def _text(path: Path, top: Path) -> str:
    location = str(path.relative_to(top))
    if not path.resolve().is_relative_to(top.resolve()):
        raise InvalidManifest("a link that leads out of the commit", where=location)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"not UTF-8: {error.reason} at byte {error.start}", where=location) from None
    except OSError as error:
        raise InvalidManifest(f"cannot be read: {error.strerror}", where=location) from error


def _kustomize(folder: Path, top: Path) -> str:
    """The YAML that an overlay builds."""
    location = str(folder.relative_to(top))
    tool = next((tool for tool in _KUSTOMIZE_TOOLS if shutil.which(tool[0])), None)
    if tool is None:
        raise MissingTool(
            "this folder is a kustomize overlay, and neither kustomize nor kubectl is on PATH",
            where=location,
            hint="install kustomize or kubectl where the release runs, or commit plain manifests",
        )
    finished = run(
        [*tool, str(folder.absolute())],
        cwd=top,
        env=clean_environment(),
        timeout=_KUSTOMIZE_TIMEOUT,
        separate_stdout=True,
    )
    if finished.timed_out:
        raise Errored(
            f"{tool[0]} did not build this overlay within {_KUSTOMIZE_TIMEOUT.total_seconds():.0f} s",
            where=location,
            hint="if it fetches remote bases, commit them instead",
        )
    if finished.code:
        raise InvalidManifest(
            f"{tool[0]} cannot build this overlay", where=location, detail=finished.output, hint="correct the overlay"
        )
    return finished.stdout


class _Refused(yaml.MarkedYAMLError):
    """Well-formed YAML that Kubernetes would reject, or read differently than it looks."""


class _Loader(PositionedLoader):
    """YAML as Kubernetes reads it, where every mistake has a line.

    Unlike in the pipeline file, an alias stays the node of its anchor: the size of a document with its aliases
    written out is counted node by node (`_count_values`), and a copy for each alias would take that much memory.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:  # noqa: ANN401  as in PyYAML
        """`22:22` and `=` are strings; PyYAML reads YAML 1.1, where they are 1342 and a special value."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if kind is yaml.ScalarNode and (tag == _VALUE or (tag in {_INT, _FLOAT} and ":" in value)):
            return TEXT_TAG
        return tag

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002
        """Refuse values that JSON does not have. An unreadable value is not quoted: it may be a Secret's."""
        try:
            value = super().construct_object(node, deep)
        except Unreadable:
            raise _Refused(None, None, "a value that cannot be read; quote it", node.start_mark) from None
        if isinstance(value, date | bytes | set) or (isinstance(value, float) and not math.isfinite(value)):
            problem = f"a {type(value).__name__}, which JSON does not have; quote it"
            raise _Refused(None, None, problem, node.start_mark)
        return value


if yaml.__with_libyaml__:

    class _FastLoader(yaml.cyaml.CParser, _Loader):  # type: ignore[name-defined,misc]  # missing in its stubs
        """The same, five times faster: libyaml parses.

        PyYAML still composes, because the recursion of libyaml's composer overflows the stack on deep nesting, which
        ends the process.
        """

        def __init__(self, text: str) -> None:
            yaml.cyaml.CParser.__init__(self, text)  # type: ignore[attr-defined]
            yaml.composer.Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

        check_node = yaml.composer.Composer.check_node
        get_node = yaml.composer.Composer.get_node

else:
    _FastLoader = _Loader  # type: ignore[assignment,misc]


def _parse(text: str, file: str) -> list[Manifest]:
    try:
        return list(_read(text, file, _FastLoader))
    except InvalidManifest:  # the messages and lines of PyYAML's own parser are better
        return list(_read(text, file, _Loader))


def _read(text: str, file: str, loader_class: "type[_Loader]") -> Iterator[Manifest]:
    try:
        loader = loader_class(text)
        while loader.check_node():
            document = loader.get_node()
            if document is None:
                continue
            _count_values(document, {})
            for node in _items(document):
                where = f"{file}:{node.start_mark.line + 1}"
                yield from _objects(loader.construct_document(node), where)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context
        # `from None`: the error of PyYAML quotes the line, which may be a Secret's.
        raise InvalidManifest(
            str(problem) if isinstance(error, _Refused) else f"not YAML: {problem}",
            where=f"{file}:{line_of(error, text)}",
            hint="correct the file; `kubectl create --dry-run=client -o yaml -f FILE` reads it as Kubernetes does",
        ) from None
    except yaml.reader.ReaderError as error:
        raise InvalidManifest(f"not YAML: {error.reason}", where=f"{file}:{line_of(error, text)}") from None
    except (RecursionError, UnicodeEncodeError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else "not YAML: half of a surrogate pair"
        raise InvalidManifest(problem, where=f"{file}:1") from None


def _count_values(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values in a node, counting what an alias stands for each time it is used; checks keys on the way.

    Args:
        node: where to count.
        sizes: the counts of nodes that were visited already, by id; 0 while the node is being counted.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Refused(None, None, "an alias inside its own anchor", node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(_count_values(value, sizes) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_count_values(value, sizes) for value in node.value)
    if size > _MAX_VALUES:
        raise _Refused(None, None, "too large once its aliases are expanded", node.start_mark)
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are not strings, and duplicate keys, of which YAML would keep one.

    Integers count as strings, as kubectl reads them.
    """
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == MERGE_TAG:
            continue
        if key.tag not in {TEXT_TAG, _INT}:
            problem = (
                f"key {key.value} is not a string" if isinstance(key, yaml.ScalarNode) else "a key is not a string"
            )
            raise _Refused(None, None, f"{problem}; quote it", key.start_mark)
        if key.value in lines:
            problem = f"duplicate key {key.value}, first in line {lines[key.value]}"
            raise _Refused(None, None, problem, key.start_mark)
        lines[key.value] = key.start_mark.line + 1


def _items(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes of a document's objects: the document itself, or the items of a List."""
    members = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    items = members.get("items")
    if "kind" in members and members["kind"].value == "List" and isinstance(items, yaml.SequenceNode):
        for item in items.value:
            yield from _items(item)
    else:
        yield node


def _objects(document: object, where: str) -> Iterator[Manifest]:
    if document is None:
        return
    if not isinstance(document, dict):
        raise InvalidManifest(
            f"a {type(document).__name__}, not an object", where=where, hint="begin with `apiVersion:`"
        )
    missing = [key for key in ("apiVersion", "kind") if not isinstance(document.get(key), str)]
    if missing:
        raise InvalidManifest(f"no {' and no '.join(missing)}", where=where, hint="every object needs both")
    if not _API_VERSION.fullmatch(document["apiVersion"]):
        raise InvalidManifest(
            f"{document['apiVersion']!r} is not an apiVersion", where=where, hint="for example `v1` or `apps/v1`"
        )
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise InvalidManifest(
            f"a {document['kind']} without metadata.name",
            where=where,
            hint="set a name; server-side apply does not support generateName",
        )
    # The name becomes a segment of a URL path (IsValidPathSegmentName in k8s.io/apimachinery).
    if metadata["name"] in {".", ".."} or re.search("[/%]", metadata["name"]):
        raise InvalidManifest(f"{metadata['name']!r} is not a valid name", where=where, hint="remove / and %")
    for key in ("labels", "annotations"):
        if not isinstance(metadata.get(key) or {}, dict):
            raise InvalidManifest(f"metadata.{key} of {document['kind']} {metadata['name']} is not a map", where=where)
    yield Manifest(_json(document, where), where)


def _json(document: Object, where: str) -> Object:
    """The document with the types that JSON has: keys become strings, and aliased values become copies."""
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidManifest("a value that JSON does not have", where=where, hint="quote it") from error
    item: Object = json.loads(text)
    return item


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
