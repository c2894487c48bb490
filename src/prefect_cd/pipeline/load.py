"""Load a pipeline file, and report each mistake in it with file:line.

`models` decides what a mistake is, and `messages` phrases it. This module finds the line, and the mistakes that the
models cannot see: duplicate keys, keys that YAML does not read as text, and which of two equal entries is the second.
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
from prefect_cd.pipeline.messages import Loc, closest_key, error_message, quoted, yaml_type
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.pipeline.types import duration_text
from prefect_cd.pipeline.yaml_lines import MERGE_TAG, TEXT_TAG, PositionedLoader, line_of


@dataclass(frozen=True)
class Mistake:
    """One mistake in the pipeline file."""

    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def load(path: Path) -> Pipeline:
    """Read a pipeline file.

    Args:
        path: the file; its `repository`, `kubeconfig` and `record_key` are relative to its folder, and made absolute.

    Raises:
        InvalidPipeline: with all mistakes, one per line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidPipeline(f"cannot read {path}: {error}", hint="give the path of a pipeline file") from error
    pipeline, mistakes = parse(text, path)
    if mistakes or pipeline is None:
        raise InvalidPipeline(
            f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''} in {path}",
            detail="\n".join(map(str, mistakes)),
            hint="correct the lines above; `prefect-cd schema` prints the JSON schema of pipeline files",
        )
    return _absolute(pipeline, path.resolve().parent)


def parse(text: str, file: Path = Path("pipeline.yaml")) -> tuple[Pipeline | None, list[Mistake]]:
    """Read the text of a pipeline file.

    Returns:
        The pipeline, or None when there are mistakes; and all mistakes, ordered by line.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, [Mistake(file, 1, "the file is empty")]
        messages = set(_bad_keys(root))  # before construction, which rewrites nodes with merge keys
        data = loader.construct_document(root)
        pipeline, invalid = _validated(data, root)
    except yaml.YAMLError as error:
        return None, [Mistake(file, *_not_yaml(error, text))]
    except RecursionError:
        return None, [Mistake(file, 1, "nested too deeply for a pipeline file")]
    messages |= invalid
    return (None if messages else pipeline), [Mistake(file, line, message) for line, message in sorted(messages)]


def schema() -> dict[str, Any]:
    """The JSON schema of pipeline files, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Pipeline.model_json_schema(schema_generator=_SchemaGenerator),
        "title": "prefect-cd pipeline file",
    }


class _SchemaGenerator(GenerateJsonSchema):
    def encode_default(self, dft: object) -> Any:  # noqa: ANN401 - as declared by pydantic
        """Write durations as in the pipeline file; pydantic would write PT15M, which the file does not accept."""
        return duration_text(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def _absolute(pipeline: Pipeline, folder: Path) -> Pipeline:
    """Resolve the paths in the file relative to its folder."""
    source = pipeline.source
    is_url = "://" in source.repository or re.match(r"^[^/]+@[^/]+:", source.repository)  # git@host:path is ssh
    if not is_url:
        source = source.model_copy(update={"repository": _resolved(folder, source.repository)})
    environments = []
    for environment in pipeline.environments:
        cluster = environment.cluster
        if cluster.kubeconfig:
            cluster = cluster.model_copy(update={"kubeconfig": _resolved(folder, cluster.kubeconfig)})
        key = environment.record_key and _resolved(folder, environment.record_key)
        environments.append(environment.model_copy(update={"cluster": cluster, "record_key": key}))
    return pipeline.model_copy(update={"source": source, "environments": tuple(environments)})


def _resolved(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).resolve())


class _Loader(PositionedLoader):
    """YAML as PyYAML reads it, where every mistake has a line, and an alias a line of its own."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Give an alias a node of its own, so that mistakes are reported at its line and not at the anchor's."""
        if not self.check_event(yaml.AliasEvent):
            return super().compose_node(parent, index)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        node = copy.copy(super().compose_node(parent, index))
        if node is not None:
            node.start_mark = event.start_mark
        return node


def _not_yaml(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    line = line_of(error, text)
    if isinstance(error, yaml.MarkedYAMLError):
        if error.problem == "but found another document":
            return (
                line,
                "a second YAML document starts here; a pipeline file is one document, without `---` in between",
            )
        return line, f"not YAML: {error.problem or error.context}"
    return line, f"not YAML: {str(error).splitlines()[0]}"


def _bad_keys(root: yaml.Node) -> Iterator[tuple[int, str]]:
    """Duplicate keys and keys that are not text; each node is visited once, so that nested aliases cost nothing."""
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
        if key.tag not in (TEXT_TAG, MERGE_TAG):
            problem = f"the key {key.value} is {yaml_type(key)} in YAML, not text"
            yield line, f"{problem}; write it in quotes: {quoted(key.value)}"
        if key.value in seen:
            yield line, f"duplicate key {key.value!r}; YAML would use the last one only"
        seen.add(key.value)


def _locate(root: yaml.Node, loc: Loc) -> tuple[int, yaml.Node | None]:
    """The line of the deepest part of `loc` that exists in the file, and the node at `loc` if that exists."""
    node, line = root, root.start_mark.line
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            items = [(key, value) for key, value in node.value if key.value == str(step)]
            if not items:
                return line + 1, None
            key, value = items[-1]
            # A key that comes from an earlier line was merged in with `<<`; report the line of the merge.
            line = max(key.start_mark.line, line)
            node = value
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            return line + 1, None
    return line + 1, node


def _validated(data: object, root: yaml.Node) -> tuple[Pipeline | None, set[tuple[int, str]]]:
    messages = {(_locate(root, loc)[0], message) for loc, message in _duplicates(data, root)}
    try:
        return Pipeline.model_validate(data), messages
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
        unknown_keys = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
        # A key that is missing only because it is misspelt is reported once, as the unknown key.
        misspelt = {(*loc[:-1], closest_key(loc)) for loc in unknown_keys}
        for error in errors:
            is_misspelt = error["type"] == "missing" and error["loc"] in misspelt
            if not is_misspelt and not _is_reported_elsewhere(error):
                line, node = _locate(root, error["loc"])
                messages.add((line, error_message(error, node)))
        return None, messages


def _is_reported_elsewhere(error: ErrorDetails) -> bool:
    """Whether the error follows from another one, or is also found in the YAML nodes or data, with a better line."""
    if error["type"] == "too_short":  # pydantic counts valid items only; invalid ones have errors of their own
        return len(error["input"]) >= cast("int", error["ctx"]["min_length"])
    return error["type"] in ("duplicate", "invalid_key") or error["loc"][-1:] == ("[key]",)


def _duplicates(data: object, root: yaml.Node) -> Iterator[tuple[Loc, str]]:
    """Entries with the same name, and environments with the same namespace of the same cluster.

    They are searched in the data, because pydantic does not compare entries while one of them is invalid.
    """
    yield from _same_names(data, ("checks",), "check", root)
    yield from _same_names(data, ("environments",), "environment", root)
    first_by_location: dict[str, int] = {}
    for index, environment in _entries(data, "environments"):
        yield from _same_names(environment, ("environments", index, "gates"), "gate", root)
        if isinstance(environment.get("namespace"), str):
            location = f"{environment['namespace']} {_access(environment.get('cluster'))!r}"
            first = first_by_location.setdefault(location, index)
            if first != index:
                line, _ = _locate(root, ("environments", first, "namespace"))
                yield (
                    ("environments", index, "namespace"),
                    f"the same namespace of the same cluster as in line {line}; each environment needs its own",
                )


def _access(cluster: object) -> object:
    """The settings of a `cluster` in comparable form: in any order, and a missing one equal to an empty one."""
    if isinstance(cluster, dict):
        return sorted((key, value) for key, value in cluster.items() if value)
    return cluster or []


def _same_names(data: object, loc: Loc, kind: str, root: yaml.Node) -> Iterator[tuple[Loc, str]]:
    first: dict[str, int] = {}
    for index, entry in _entries(data, str(loc[-1])):
        name = entry.get("name")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            line, _ = _locate(root, (*loc, first[name], "name"))
            yield (*loc, index, "name"), f"a second {kind} called {name!r}; the first is in line {line}"


def _entries(data: object, key: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    entries = data.get(key) if isinstance(data, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict):
            yield index, entry


__all__ = ["Mistake", "load", "parse", "schema"]
