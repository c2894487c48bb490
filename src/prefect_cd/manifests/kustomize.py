"""Build a kustomize overlay, once everything that it refers to is known to lie in the commit.

kustomize refuses files outside of an overlay's folder, but follows folders anywhere on the disk and downloads URLs. So
each kustomization is read before the build, with those that it refers to: what they name must be in the checkout.
The build itself has no network, where the machine allows to take it away, and a folder that is included again and
again, which would fill the memory, is refused.
kustomize itself refuses keys that it does not know, so that the keys below are all that can name a file or folder
(`api/types/kustomization.go` of kubernetes-sigs/kustomize).
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from prefect_cd.errors import Errored, InvalidManifest, MissingTool
from prefect_cd.manifests.files import is_inside, printable, read_text, refuse_too_large, shown
from prefect_cd.manifests.yaml_reader import Document, read
from prefect_cd.process import Finished, Isolation, clean_environment, run

_NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_TOOLS = (("kustomize", "build"), ("kubectl", "kustomize"))  # in the order of preference
_TIMEOUT = timedelta(minutes=2)
_MOST_FOLDERS = 500  # of an overlay, counted as often as they are included
_DEEPEST = 50  # from an overlay to the last of its bases
# Where the machine allows no isolation, most of what is not known here fails nevertheless.
_OFFLINE = {
    "GIT_ALLOW_PROTOCOL": "none",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
}
# What kustomize takes for a repository, unless a file has this name: a host, with or without a scheme.
_REMOTE = re.compile(r"git::|gh:|github\.com[/:]|[^/]*[@:]", re.IGNORECASE)


def is_overlay(folder: Path) -> bool:
    """Whether a folder holds a kustomization."""
    return any((folder / name).is_file() for name in _NAMES)


def build(folder: Path, top: Path) -> str:
    """The YAML that an overlay builds.

    Args:
        folder: the overlay.
        top: the checkout, which nothing that it refers to may leave.

    Raises:
        InvalidManifest: it refers to something outside of the commit, with file:line; or it cannot be built.
        MissingTool: neither kustomize nor kubectl is installed.
        Errored: kustomize did not end in time.
    """
    location = shown(folder, top)
    _Walk(top).check_folder(folder.resolve(), lambda: location)
    tool = next((tool for tool in _TOOLS if shutil.which(tool[0])), None)
    if tool is None:
        raise MissingTool(
            "this folder is a kustomize overlay, and neither kustomize nor kubectl is on PATH",
            where=location,
            hint="install kustomize or kubectl where the release runs, or commit plain manifests",
        )
    finished = _isolated([*tool, str(folder.absolute())], top)
    if finished.timed_out:
        raise Errored(
            f"{tool[0]} did not build this overlay within {_TIMEOUT.total_seconds():.0f} s",
            where=location,
            hint=f"try it in a checkout: {' '.join(tool)} {location}",
        )
    if finished.code:
        raise InvalidManifest(
            f"{tool[0]} cannot build this overlay", where=location, detail=finished.output, hint="correct the overlay"
        )
    refuse_too_large(len(finished.stdout), location)
    return finished.stdout


def _isolated(command: list[str], top: Path) -> Finished:
    """Run a command without a network where the machine allows that; elsewhere as it is."""
    for level in ("network", "none"):
        with suppress(MissingTool):
            return run(
                command,
                cwd=top,
                env=clean_environment(_OFFLINE),
                timeout=_TIMEOUT,
                separate_stdout=True,
                isolation=Isolation(level, writable=(top,)),
            )
    raise MissingTool(f"{command[0]} cannot be started", hint="correct its installation")


@dataclass(frozen=True)
class _Entry:
    """A text in a kustomization that names a file or folder."""

    text: str
    may_be_folder: bool = False
    is_plugin: bool = False


@dataclass
class _Walk:
    """Reads kustomizations and those that they refer to, each once.

    Attributes:
        top: the checkout.
        visited: folders that were read, and how many folders kustomize reads for each, itself included.
        depth: of the folder that is being read.
    """

    top: Path
    visited: dict[Path, int] = field(default_factory=dict)
    depth: int = 0

    def check_folder(self, folder: Path, where: Callable[[], str]) -> int:
        """Refuse an overlay's folder that refers to anything outside of the checkout, or to too much in it.

        Args:
            folder: without links in its path, as kustomize resolves it.
            where: gives the file:line that refers to it; called for an error only, because it takes time.

        Returns:
            How many folders kustomize reads for it.
        """
        if folder in self.visited:
            return self.visited[folder]
        self.visited[folder] = 0  # of a circle, which kustomize refuses
        self.depth += 1
        count = 1
        if self.depth <= _DEEPEST:
            for path in (folder / name for name in _NAMES):
                if path.is_file():
                    count += self._check_file(path, _entries, folder)
        if self.depth > _DEEPEST or count > _MOST_FOLDERS:
            raise InvalidManifest(
                f"the overlay includes more than {_MOST_FOLDERS} folders, or deeper than {_DEEPEST}",
                where=where(),
                hint="include each base once",
            )
        self.depth -= 1
        self.visited[folder] = count
        return count

    def _check_file(self, path: Path, entries: Callable[[object], Iterator[_Entry]], folder: Path) -> int:
        """Refuse a file of which an entry is not in the checkout; returns how many folders it includes."""
        file = shown(path, self.top.resolve())

        def where(document: Document, entry: _Entry) -> str:
            return f"{file}:{_line(document, entry.text)}"

        return sum(
            self._check(entry, folder, partial(where, document, entry))
            for document in read(read_text(path, self.top), file)
            for entry in entries(document.value)
        )

    def _check(self, entry: _Entry, folder: Path, where: Callable[[], str]) -> int:
        """Refuse an entry that is not in the checkout; read what a folder refers to in turn, and count the folders."""
        if "://" in entry.text:
            raise _outside(entry, "a URL", where())
        path = Path(os.path.normpath(folder / entry.text))  # as kustomize joins them, before links are followed
        if not (path.is_relative_to(self.top.resolve()) and is_inside(path, self.top)):
            raise _outside(entry, "a path that leaves the commit", where())
        is_file = os.path.isfile(path)  # noqa: PTH113  Path.is_file raises for a name that is too long
        if entry.is_plugin and is_file:
            self._check_file(path, _plugin_entries, folder)
        if not entry.may_be_folder or is_file:
            return 0
        if _REMOTE.match(entry.text):
            raise _outside(entry, "a repository", where())
        if not os.path.isdir(path):  # noqa: PTH112  likewise
            raise InvalidManifest(
                f"{printable(entry.text)} is not in the commit", where=where(), hint="correct the path"
            )
        return self.check_folder(path.resolve(), where)


def _outside(entry: _Entry, kind: str, where: str) -> InvalidManifest:
    return InvalidManifest(
        f"the overlay refers to {printable(entry.text)}, {kind}",
        where=where,
        hint="commit what it refers to, and name that: a release is made of its commit only",
    )


def _line(document: Document, text: str) -> int:
    """The line of the first value that is this text, or contains it as `key=text`; the document's where none is."""
    nodes, lines = [document.node], []
    visited = set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node.value == text or node.value.endswith(f"={text}"):
            lines.append(node.start_mark.line + 1)
    return min(lines, default=document.line)


def _entries(kustomization: object) -> Iterator[_Entry]:
    """Everything in a kustomization that names a file or folder."""
    for key, value in _members(kustomization):
        if key in _READERS:
            yield from _READERS[key](value)


def _folders(value: object) -> Iterator[_Entry]:
    """Files, folders, and what kustomize would download."""
    return (_Entry(text, may_be_folder=True) for text in _texts(value))


def _plugins(value: object) -> Iterator[_Entry]:
    """Files and folders, and the objects that are written in their place."""
    for text in _texts(value):
        inline = _inline_objects(text)
        yield from (entry for item in inline for entry in _plugin_entries(item))
        if not inline:
            yield _Entry(text, may_be_folder=True, is_plugin=True)


def _plain_files(value: object) -> Iterator[_Entry]:
    """Files, and patches that are written in their place."""
    return (_Entry(text) for text in _texts(value) if not _inline_objects(text))


def _plugin_entries(plugin: object) -> Iterator[_Entry]:
    """What the settings of a generator or transformer name: also those of a file or object of its own."""
    for item in _maps(plugin):
        for key, value in _members(item):
            if key == "files":  # `path`, or `key=path`
                yield from (_Entry(text.partition("=")[2] or text) for text in _texts(value))
            elif key in _PLUGIN_PATHS:
                yield from (_Entry(text) for text in _texts(value))


def _inline_objects(text: str) -> list[Any]:
    """The objects that a text contains; none when it is a path."""
    try:
        return [document.value for document in read(text, "") if isinstance(document.value, dict)]
    except InvalidManifest:
        return []


def _members(value: object) -> list[tuple[str, Any]]:
    return [(key.casefold(), child) for key, child in value.items()] if isinstance(value, dict) else []


def _maps(value: object) -> list[Any]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def _texts(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


_PLUGIN_PATHS = {
    "path", "paths", "env", "envs", "values", "valuesfile", "additionalvaluesfiles", "charthome", "confighome", "repo",
}  # fmt: skip
# Keys as encoding/json compares them: without regard to case.
_READERS: dict[str, Callable[[object], Iterator[_Entry]]] = {
    **dict.fromkeys(("resources", "bases", "components"), _folders),
    **dict.fromkeys(("generators", "transformers", "validators"), _plugins),
    **dict.fromkeys(("crds", "configurations", "patchesstrategicmerge"), _plain_files),
    **dict.fromkeys(("patches", "patchesjson6902", "replacements", "openapi"), _plugin_entries),
    **dict.fromkeys(("configmapgenerator", "secretgenerator"), _plugin_entries),
    **dict.fromkeys(("helmcharts", "helmchartinflationgenerator", "helmglobals"), _plugin_entries),
}
