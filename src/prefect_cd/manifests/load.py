"""Load the objects of a release from a folder of its commit: YAML and JSON files, or a kustomize overlay.

A commit's manifests are not trusted: what leads out of the commit, or out of memory, is refused with file:line.
"""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from prefect_cd.errors import Errored, InvalidManifest, MissingTool
from prefect_cd.kube.objects import Object
from prefect_cd.process import clean_environment

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_KUSTOMIZE_TIMEOUT = timedelta(minutes=2)
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_MOST_VALUES = 1_000_000  # of one document with its aliases written out
_API_VERSION = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[a-z]([-a-z0-9]*[a-z0-9])?")
_STR, _INT, _FLOAT = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_VALUE, _MERGE = "tag:yaml.org,2002:value", "tag:yaml.org,2002:merge"


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
        Errored: kustomize did not end in time.
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
        found = tuple(
            each for path in _files(folder, top) for each in _parse(_text(path, top), str(path.relative_to(top)))
        )
    if not found:
        raise InvalidManifest("no objects in this folder", where=shown, hint="put at least one manifest into it")
    refuse_duplicates(found)
    return found


def _files(folder: Path, top: Path) -> Iterator[Path]:
    """The files of manifests, in the order of their paths; a link that would be passed over silently is refused."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_dir():
            raise InvalidManifest(
                "a link to a folder; what is in there would be left out",
                where=str(path.relative_to(top)),
                hint="copy the files, or use a kustomize overlay",
            )
        if path.suffix in _SUFFIXES and (path.is_symlink() or path.is_file()):
            yield path


def _text(path: Path, top: Path) -> str:
    shown = str(path.relative_to(top))
    if not path.resolve().is_relative_to(top.resolve()):
        raise InvalidManifest("a link that leads out of the commit", where=shown)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"not UTF-8: {error.reason} at byte {error.start}", where=shown) from None
    except OSError as error:
        raise InvalidManifest(f"cannot be read: {error.strerror}", where=shown) from error


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
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_KUSTOMIZE_TIMEOUT.total_seconds(),
            env=clean_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise Errored(
            f"{command[0]} did not build this overlay within {_KUSTOMIZE_TIMEOUT.total_seconds():.0f} s",
            where=shown,
            hint="does it fetch remote bases? commit them instead",
        ) from error
    if done.returncode:
        raise InvalidManifest(
            f"{command[0]} cannot build this overlay",
            where=shown,
            detail=done.stderr,
            hint="correct the overlay",
        )
    return done.stdout


class _Refused(yaml.MarkedYAMLError):
    """YAML that is well formed, and means nothing to Kubernetes or something else than it seems."""


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it, except that every mistake has a line."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:  # noqa: ANN401  as in PyYAML
        """`22:22` and `=` are texts; in YAML 1.1, which PyYAML reads, they are 1342 and something special."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if kind is yaml.ScalarNode and (tag == _VALUE or (tag in {_INT, _FLOAT} and ":" in value)):
            return _STR
        return tag

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002
        """Values that PyYAML chokes on (a date in month 13, `!!int x`) and values that JSON does not have."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError):
            raise _Refused(None, None, "a value that cannot be read; quote it", node.start_mark) from None
        if isinstance(value, date | bytes | set) or (isinstance(value, float) and not math.isfinite(value)):
            what = f"a {type(value).__name__}, which JSON does not have; quote it"
            raise _Refused(None, None, what, node.start_mark)
        return value


if yaml.__with_libyaml__:

    class _Quick(yaml.cyaml.CParser, _Loader):  # type: ignore[name-defined,misc]  # its stubs leave it out
        """The same, five times faster: libyaml reads the words.

        PyYAML composes them all the same, because libyaml's own composer ends the process on what is nested deeply.
        """

        def __init__(self, text: str) -> None:
            yaml.cyaml.CParser.__init__(self, text)  # type: ignore[attr-defined]
            yaml.composer.Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

        check_node = yaml.composer.Composer.check_node
        get_node = yaml.composer.Composer.get_node

else:
    _Quick = _Loader  # type: ignore[assignment,misc]


def _parse(text: str, shown: str) -> Sequence[Manifest]:
    try:
        return tuple(_read(text, shown, _Quick))
    except InvalidManifest:  # PyYAML says better what is wrong and where
        return tuple(_read(text, shown, _Loader))


def _read(text: str, shown: str, how: "type[_Loader]") -> Iterator[Manifest]:
    try:
        loader = how(text)
        while loader.check_node():
            document = loader.get_node()
            if document is None:
                continue
            _check(document, {})
            for node in _items(document):
                where = f"{shown}:{node.start_mark.line + 1}"
                yield from _objects(loader.construct_document(node), where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context
        # the error itself shows the line, which may be a Secret's
        raise InvalidManifest(
            str(said) if isinstance(error, _Refused) else f"not YAML: {said}",
            where=f"{shown}:{mark.line + 1 if mark else 1}",
            hint="correct the file; `kubectl create --dry-run=client -o yaml -f FILE` reads it as Kubernetes does",
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidManifest(f"not YAML: {error.reason}", where=f"{shown}:{line}") from None
    except (RecursionError, UnicodeEncodeError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else "not YAML: half a character"
        raise InvalidManifest(said, where=f"{shown}:1") from None


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node has with its aliases written out; refuses what Kubernetes would read differently."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Refused(None, None, "an alias within what it stands for", node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(_check(value, sizes) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(value, sizes) for value in node.value)
    if size > _MOST_VALUES:
        raise _Refused(None, None, "too large with its aliases written out", node.start_mark)
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    """Keys are texts (numbers are taken for one, as kubectl does), and each is there once: of two, one is lost."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == _MERGE:
            continue
        if key.tag not in {_STR, _INT}:
            said = f"the key {key.value} is no text" if isinstance(key, yaml.ScalarNode) else "a key that is no text"
            raise _Refused(None, None, f"{said}; quote it", key.start_mark)
        if key.value in seen:
            raise _Refused(None, None, f"the key {key.value} stands in line {seen[key.value]} already", key.start_mark)
        seen[key.value] = key.start_mark.line + 1


def _items(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes of a document's objects: itself, or what a List lists."""
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
            f"a {type(document).__name__}, and not an object", where=where, hint="begin with apiVersion:"
        )
    missing = [key for key in ("apiVersion", "kind") if not isinstance(document.get(key), str)]
    if missing:
        raise InvalidManifest(f"no {' and no '.join(missing)}", where=where, hint="every object names both")
    if not _API_VERSION.fullmatch(document["apiVersion"]):
        raise InvalidManifest(
            f"{document['apiVersion']!r} is no apiVersion", where=where, hint="write `v1`, or a group as in `apps/v1`"
        )
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise InvalidManifest(
            f"a {document['kind']} without metadata.name",
            where=where,
            hint="generateName cannot be applied; name it",
        )
    # the name becomes a part of the URL (IsValidPathSegmentName in k8s.io/apimachinery)
    if metadata["name"] in {".", ".."} or re.search("[/%]", metadata["name"]):
        raise InvalidManifest(f"{metadata['name']!r} cannot be a name", where=where, hint="leave out / and %")
    for key in ("labels", "annotations"):
        if not isinstance(metadata.get(key) or {}, dict):
            raise InvalidManifest(f"metadata.{key} of {document['kind']} {metadata['name']} is no map", where=where)
    yield Manifest(_json(document, where), where)


def _json(document: Object, where: str) -> Object:
    """The document as JSON has it."""
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidManifest("a value that JSON does not have", where=where, hint="quote it") from error
    answer: Object = json.loads(text)
    return answer


def refuse_duplicates(found: Sequence[Manifest]) -> None:
    """Refuse two manifests of one object, in whatever version of its group.

    Raises:
        InvalidManifest: with the file:line of both.
    """
    seen: dict[tuple[str, ...], str] = {}
    for each in found:
        key = (
            each.item["apiVersion"].rpartition("/")[0],  # autoscaling/v1 and autoscaling/v2 are one object
            each.item["kind"],
            each.item["metadata"].get("namespace") or "",
            name_of(each.item),
        )
        if key in seen:
            raise InvalidManifest(f"{display_name(each.item)} stands in {seen[key]} already", where=each.where)
        seen[key] = each.where


def name_of(item: Object) -> str:
    """metadata.name."""
    return str(item["metadata"]["name"])


def display_name(item: Object) -> str:
    """`Deployment shop`, as people say it."""
    return f"{item['kind']} {name_of(item)}"
