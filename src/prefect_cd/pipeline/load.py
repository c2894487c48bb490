"""The pipeline file: from text to a Pipeline, and what is wrong with it, each complaint with file:line.

What is a mistake is decided by the models in `pipeline`, and how it is told by `complaints`. This module
finds the lines, and what the models cannot see: keys that are there twice, keys that YAML does not read
as text, and which of two equal entries is the second.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from prefect_cd.errors import InvalidPipeline
from prefect_cd.pipeline.messages import Loc, kind_of, meant, message_of, quoted
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.pipeline.types import duration_text

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Complaint:
    """One mistake in the pipeline file."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def load(path: Path) -> Pipeline:
    """Read a pipeline file.

    Args:
        path: the file; `repository` and `kubeconfig` paths in it are made absolute, seen from its folder.

    Raises:
        InvalidPipeline: with all complaints, one per line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidPipeline(f"cannot read {path}: {error}", hint="give the path of a pipeline file") from error
    pipeline, complaints = parse(text, path)
    if complaints or pipeline is None:
        raise InvalidPipeline(
            f"{len(complaints)} mistake{'s' if len(complaints) != 1 else ''} in {path}",
            detail="\n".join(map(str, complaints)),
            hint="correct the lines above; `prefect-cd schema` prints what a pipeline file may say",
        )
    return _absolute(pipeline, path.resolve().parent)


def parse(text: str, file: Path = Path("pipeline.yaml")) -> tuple[Pipeline | None, list[Complaint]]:
    """The pipeline that `text` describes, or None, and everything that is wrong with it, by line."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, [Complaint(file, 1, "the file is empty")]
        said = set(_bad_keys(root))  # before construction, which rewrites nodes with merge keys
        data = loader.construct_document(root)
        pipeline, more = _validated(data, root)
    except yaml.YAMLError as error:
        return None, [Complaint(file, *_not_yaml(error, text))]
    except RecursionError:
        return None, [Complaint(file, 1, "nested too deeply for a pipeline file")]
    said |= more
    return (None if said else pipeline), [Complaint(file, line, what) for line, what in sorted(said)]


def schema() -> dict[str, Any]:
    """The JSON schema of pipeline files, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prefect-cd pipeline file",
        **Pipeline.model_json_schema(schema_generator=_SchemaGenerator),
    }


class _SchemaGenerator(GenerateJsonSchema):
    def encode_default(self, dft: object) -> Any:  # noqa: ANN401 - as declared by pydantic
        """Durations as the file writes them; pydantic writes PT15M, which the file does not take."""
        return duration_text(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def _absolute(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Paths in the file mean: seen from the file."""
    source = pipeline.source
    if "://" not in source.repository and not re.match(r"^[^/]+@[^/]+:", source.repository):
        source = source.model_copy(update={"repository": _from(folder, source.repository)})
    environments = []
    for environment in pipeline.environments:
        cluster = environment.cluster
        if cluster.kubeconfig:
            cluster = cluster.model_copy(update={"kubeconfig": _from(folder, cluster.kubeconfig)})
        environments.append(environment.model_copy(update={"cluster": cluster}))
    return pipeline.model_copy(update={"source": source, "environments": tuple(environments)})


def _from(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).resolve())


class _Loader(yaml.SafeLoader):
    """YAML as PyYAML reads it, except that every mistake has a line."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """An alias is a node of its own, so that complaints point at its line and not at the anchor's."""
        if not self.check_event(yaml.AliasEvent):
            return super().compose_node(parent, index)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        node = copy.copy(super().compose_node(parent, index))
        if node is not None:
            node.start_mark = event.start_mark
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002
        """Values that PyYAML chokes on (a date in month 13, `!!int x`) are mistakes with a line, too."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError) as error:
            raise yaml.MarkedYAMLError(None, None, f"cannot read this value: {error}", node.start_mark) from error


def _not_yaml(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if error.problem == "but found another document":
            return (
                line,
                "a second document begins here; a pipeline file is one document, without `---` inside",
            )
        return line, f"not YAML: {error.problem or error.context}"
    # Only the reader complains without a mark: a character that YAML does not allow.
    position = getattr(error, "position", 0)
    return text.count("\n", 0, position) + 1, f"not YAML: {str(error).splitlines()[0]}"


def _bad_keys(root: yaml.Node) -> Iterator[tuple[int, str]]:
    """Keys that are there twice and keys that are not text; every node once, however often it is aliased."""
    nodes, visited = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node.value) in visited:
            continue
        visited.add(id(node.value))
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            yield from _bad_keys_of(keys)
            nodes += [value for _, value in node.value]
        else:
            nodes += node.value


def _bad_keys_of(keys: Sequence[yaml.ScalarNode]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for key in keys:
        line = key.start_mark.line + 1
        if key.tag not in (_TEXT, _MERGE):
            said = f"the key {key.value} is {kind_of(key)} in YAML, not text"
            yield line, f"{said}; write it in quotes: {quoted(key.value)}"
        if key.value in seen:
            yield line, f"the key {key.value!r} is there twice; the second would win"
        seen.add(key.value)


def _find(root: yaml.Node, loc: Loc) -> tuple[int, yaml.Node | None]:
    """The line of the deepest part of `loc` that the file has, and the node at `loc` when it is there."""
    node, line = root, root.start_mark.line
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(step)]
            if not found:
                return line + 1, None
            key, value = found[-1]
            # A key from before its own mapping was merged in with `<<`: the mistake is where it is merged.
            line = max(key.start_mark.line, line)
            node = value
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            return line + 1, None
    return line + 1, node


def _validated(data: object, root: yaml.Node) -> tuple[Pipeline | None, set[tuple[int, str]]]:
    said = {(_find(root, loc)[0], text) for loc, text in _duplicates(data, root)}
    try:
        return Pipeline.model_validate(data), said
    except ValidationError as error:
        errors = error.errors(include_url=False)
        misspelt = {(*e["loc"][:-1], meant(e["loc"])) for e in errors if e["type"] == "extra_forbidden"}
        for each in errors:
            follows = each["type"] == "missing" and each["loc"] in misspelt
            if not follows and not _said_elsewhere(each):
                line, node = _find(root, each["loc"])
                said.add((line, message_of(each, node)))
        return None, said


def _said_elsewhere(error: ErrorDetails) -> bool:
    """Complaints that follow from others, or that the checks on nodes and data say with a better line."""
    if error["type"] == "too_short":  # pydantic counts valid items only; the invalid ones are told by themselves
        return len(error["input"]) >= cast("int", error["ctx"]["min_length"])
    return error["type"] in ("duplicate", "invalid_key") or error["loc"][-1:] == ("[key]",)


def _duplicates(data: object, root: yaml.Node) -> Iterator[tuple[Loc, str]]:
    """Second entries with the same name, and second environments in the same place.

    On the data and not on the models, because pydantic does not come to compare entries while one is invalid.
    """
    yield from _same_names(data, ("checks",), "check", root)
    yield from _same_names(data, ("environments",), "environment", root)
    places: dict[str, int] = {}
    for index, environment in _entries(data, "environments"):
        yield from _same_names(environment, ("environments", index, "gates"), "gate", root)
        if isinstance(environment.get("namespace"), str):
            cluster = environment.get("cluster")
            access = sorted((k, v) for k, v in cluster.items() if v) if isinstance(cluster, dict) else cluster or []
            first = places.setdefault(f"{environment['namespace']} {access!r}", index)
            if first != index:
                line, _ = _find(root, ("environments", first, "namespace"))
                yield (
                    ("environments", index, "namespace"),
                    f"the same namespace of the same cluster as in line {line}; environments are kept apart",
                )


def _same_names(data: object, loc: Loc, what: str, root: yaml.Node) -> Iterator[tuple[Loc, str]]:
    first: dict[str, int] = {}
    for index, entry in _entries(data, str(loc[-1])):
        name = entry.get("name")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            line, _ = _find(root, (*loc, first[name], "name"))
            yield (*loc, index, "name"), f"a second {what} called {name!r}; the first is in line {line}"


def _entries(data: object, key: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    entries = data.get(key) if isinstance(data, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict):
            yield index, entry


__all__ = ["Complaint", "load", "parse", "schema"]
