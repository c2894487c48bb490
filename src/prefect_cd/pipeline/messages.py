"""Turn a pydantic error about the pipeline file into a sentence that says how to correct it.

This module knows the models' keys, so that it can suggest the closest key for an unknown one, or the level where it
belongs. It knows nothing of files and lines.
"""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import get_args

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from prefect_cd.pipeline.models import Pipeline

Loc = tuple[str | int, ...]
"""The location of a value, as in pydantic: the keys and indexes that lead to it from the top of the file."""

_YAML_TYPES = {
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "null": "null",
    "timestamp": "a date",
}
# By pydantic's error type, https://docs.pydantic.dev/latest/errors/validation_errors/
_MUST_BE = {
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
_WITHOUT_VALUE = {
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_unicode": "has characters that are not Unicode",
}
_TYPO_SIMILARITY = 0.85  # from here on a key is taken for a typo, even if another level has a key of that name
_LONGEST_VALUE = 80  # characters


def yaml_type(node: yaml.ScalarNode) -> str:
    """The type that YAML gives a plain scalar: `on` is a boolean."""
    tag = node.tag.rpartition(":")[2]
    return _YAML_TYPES.get(tag, tag)


def quoted(text: str) -> str:
    """The text as a YAML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def error_message(error: ErrorDetails, node: yaml.Node | None) -> str:
    """One pydantic error in words.

    Args:
        error: an item of `ValidationError.errors()`.
        node: the YAML node at its location, if there is one.
    """
    loc, kind = error["loc"], error["type"]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")
    if kind == "extra_forbidden":
        return f"unknown key {where!r}; {_advice(loc)}"
    if kind == "missing":
        return f"{where!r} is missing"
    problem = _problem(error, node)
    return f"{where}: {problem}" if where else problem


def _problem(error: ErrorDetails, node: yaml.Node | None) -> str:
    """The expected value, the actual one, and how to correct it."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if value is None and kind.endswith("_type"):
        return "has no value; write one or leave the key out" if error["loc"] else "the file is empty"
    if kind == "string_pattern_mismatch":
        return f"{_shown(value)} is not valid; expected: {_expected_value(error['loc'])}"
    if kind in _WITHOUT_VALUE:
        return _WITHOUT_VALUE[kind].format(**context)
    if kind in _MUST_BE:
        return f"must be {_MUST_BE[kind].format(**context)}, not {_shown(value, node)}{_correction(error, node)}"
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _correction(error: ErrorDetails, node: yaml.Node | None) -> str:
    kind, value = error["type"], error["input"]
    if kind == "string_type" and isinstance(node, yaml.ScalarNode):
        return f" ({yaml_type(node)} in YAML); write it in quotes: {quoted(node.value)}"
    if kind == "tuple_type":
        return _as_list(value)
    if kind == "model_type":
        return f"; possible keys: {', '.join(sorted(_model_at(error['loc']).model_fields))}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']+)'", error["ctx"]["expected"])  # pydantic's text: 'automatic' or 'never'
        matches = difflib.get_close_matches(str(value), choices, n=1)
        return f"; did you mean {matches[0]!r}?" if matches else ""
    return ""


def _shown(value: object, node: yaml.Node | None = None) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = node.value if isinstance(node, yaml.ScalarNode) and not isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _as_list(value: object) -> str:
    """How to write the value as a list: `pytest -q` -> `; write [pytest, -q]`."""
    if isinstance(value, dict):
        return "; begin each entry with `- `"
    if not isinstance(value, str):
        return ""
    try:
        words = shlex.split(value)
    except ValueError:
        return ""
    line = yaml.safe_dump(words, default_flow_style=True, width=1000, allow_unicode=True).strip()
    return f"; write {line}" if words else ""


def closest_key(loc: Loc) -> str | None:
    """The key of the same level that is most similar to the unknown key at `loc`."""
    matches = difflib.get_close_matches(str(loc[-1]), list(_model_at(loc[:-1]).model_fields), n=1)
    return matches[0] if matches else None


def _advice(loc: Loc) -> str:
    """What to write instead of an unknown key: a similar key of this level, or the level where the key belongs."""
    key, here, similar = str(loc[-1]), _path(loc[:-1]), closest_key(loc)
    if similar and difflib.SequenceMatcher(None, key, similar).ratio() >= _TYPO_SIMILARITY:
        return f"did you mean {similar!r}?"
    levels = {path: list(model.model_fields) for path, model in _levels(Pipeline) if path != here}
    with_key = [path for path, keys in levels.items() if key in keys]
    if with_key:
        shortest = min(_distance(here, path) for path in with_key)
        return f"it belongs {_levels_text([path for path in with_key if _distance(here, path) == shortest], here)}"
    if similar:
        return f"did you mean {similar!r}?"
    for path, keys in sorted(levels.items(), key=lambda level: _distance(here, level[0])):
        matches = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
        if matches:
            return f"did you mean {matches[0]!r}? It belongs {_levels_text([path], here)}"
    return f"possible keys: {', '.join(sorted(_model_at(loc[:-1]).model_fields))}"


def _levels_text(paths: Sequence[tuple[str, ...]], here: tuple[str, ...]) -> str:
    """The levels in words, with the direction if all of them are below or all above this one."""
    names = [f"in {'.'.join(path)!r}" if path else "at the top level" for path in paths]
    direction = ""
    if all(path[: len(here)] == here for path in paths):
        direction = ", one level lower" if len(paths[0]) == len(here) + 1 else ", further down"
    elif all(here[: len(path)] == path for path in paths):
        direction = ", one level higher" if len(paths[0]) == len(here) - 1 else ", further up"
    text = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    return text + direction


def _distance(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many levels up and down one has to go from one level to the other."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return len(one) + len(other) - 2 * shared


def _levels(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every level of the file by its path without indexes, with its model."""
    yield path, model
    for name, field in model.model_fields.items():
        for child in _models_in(field.annotation):
            yield from _levels(child, (*path, name))


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models inside a type such as `tuple[Gate, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _path(loc: Loc) -> tuple[str, ...]:
    return tuple(step for step in loc if isinstance(step, str))


def _model_at(loc: Loc) -> type[BaseModel]:
    return dict(_levels(Pipeline)).get(_path(loc), Pipeline)


def _expected_value(loc: Loc) -> str:
    """The description of the field at `loc`, with an example."""
    last = max(index for index, step in enumerate(loc) if isinstance(step, str))
    field = _model_at(loc[:last]).model_fields[str(loc[last])]
    examples = "".join(f", for example {example}" for example in (field.examples or [])[:1])
    return f"{field.description or 'another format'}{examples}"


__all__ = ["Loc", "closest_key", "error_message", "quoted", "yaml_type"]
