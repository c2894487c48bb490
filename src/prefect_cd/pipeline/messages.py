"""How a mistake in the pipeline file is told: in plain words, with the edit that mends it.

A pydantic error goes in, a sentence comes out. It knows the models' keys, so that a wrong key is
answered with the nearest right one, or with the level where it belongs. It knows nothing of files and
lines.
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
"""Where a value stands: keys and indexes from the top."""

_YAML_KINDS = {
    "bool": "a truth value",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
}
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
_SIMPLY = {
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_unicode": "has characters that are not Unicode",
}
_A_SLIP = 0.85  # so similar that a key is mistyped rather than misplaced
_LINE = 80


def kind_of(node: yaml.ScalarNode) -> str:
    """What YAML takes a plain scalar for: `on` is a truth value."""
    tag = node.tag.rpartition(":")[2]
    return _YAML_KINDS.get(tag, tag)


def quoted(text: str) -> str:
    """The text as a YAML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def message_of(error: ErrorDetails, node: yaml.Node | None) -> str:
    """One pydantic error in words.

    Args:
        error: as `ValidationError.errors()` lists it.
        node: what the file has there, if anything.
    """
    loc, kind = error["loc"], error["type"]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")
    if kind == "extra_forbidden":
        return f"unknown key {where!r}; {_advice(loc)}"
    if kind == "missing":
        return f"{where!r} is missing"
    said = _expected(error, node)
    return f"{where}: {said}" if where else said


def _expected(error: ErrorDetails, node: yaml.Node | None) -> str:
    """What should stand there, what stands there instead, and the edit."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if value is None and kind.endswith("_type"):
        return "has no value; write one or leave the key out" if error["loc"] else "the file is empty"
    if kind == "string_pattern_mismatch":
        return f"{_shown(value)} does not fit: {_form(error['loc'])}"
    if kind in _SIMPLY:
        return _SIMPLY[kind].format(**context)
    if kind in _MUST_BE:
        return f"must be {_MUST_BE[kind].format(**context)}, not {_shown(value, node)}{_edit(error, node)}"
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _edit(error: ErrorDetails, node: yaml.Node | None) -> str:
    kind, value = error["type"], error["input"]
    if kind == "string_type" and isinstance(node, yaml.ScalarNode):
        return f" ({kind_of(node)} in YAML); write it in quotes: {quoted(node.value)}"
    if kind == "tuple_type":
        return _as_list(value)
    if kind == "model_type":
        return f"; possible: {', '.join(sorted(_model_at(error['loc']).model_fields))}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']+)'", error["ctx"]["expected"]), n=1)
        return f"; did you mean {near[0]!r}?" if near else ""
    return ""


def _shown(value: object, node: yaml.Node | None = None) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = node.value if isinstance(node, yaml.ScalarNode) and not isinstance(value, str) else repr(value)
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"


def _as_list(value: object) -> str:
    """The edit: `pytest -q` -> `; write [pytest, -q]`."""
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


def meant(loc: Loc) -> str | None:
    """The key of the same level that the unknown key at `loc` most resembles."""
    near = difflib.get_close_matches(str(loc[-1]), list(_model_at(loc[:-1]).model_fields), n=1)
    return near[0] if near else None


def _advice(loc: Loc) -> str:
    """What to write instead of an unknown key: a key of this level, or the level where the key belongs."""
    key, here, near = str(loc[-1]), _path(loc[:-1]), meant(loc)
    if near and difflib.SequenceMatcher(None, key, near).ratio() >= _A_SLIP:
        return f"did you mean {near!r}?"
    homes = {path: list(model.model_fields) for path, model in _levels(Pipeline) if path != here}
    exact = [path for path, keys in homes.items() if key in keys]
    if exact:
        nearest = min(_distance(here, path) for path in exact)
        return f"it belongs {_places([path for path in exact if _distance(here, path) == nearest], here)}"
    if near:
        return f"did you mean {near!r}?"
    for path, keys in sorted(homes.items(), key=lambda home: _distance(here, home[0])):
        other = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
        if other:
            return f"did you mean {other[0]!r}? It belongs {_places([path], here)}"
    return f"possible: {', '.join(sorted(_model_at(loc[:-1]).model_fields))}"


def _places(paths: Sequence[tuple[str, ...]], here: tuple[str, ...]) -> str:
    names = [f"in {'.'.join(path)!r}" if path else "at the top level" for path in paths]
    level = ""
    if all(path[: len(here)] == here for path in paths):
        level = ", one level lower" if len(paths[0]) == len(here) + 1 else ", further down"
    elif all(here[: len(path)] == path for path in paths):
        level = ", one level higher" if len(paths[0]) == len(here) - 1 else ", further up"
    return (" or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]) + level


def _distance(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return len(one) + len(other) - 2 * shared


def _levels(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for child in _models_in(field.annotation):
            yield from _levels(child, (*path, name))


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _path(loc: Loc) -> tuple[str, ...]:
    return tuple(step for step in loc if isinstance(step, str))


def _model_at(loc: Loc) -> type[BaseModel]:
    return dict(_levels(Pipeline)).get(_path(loc), Pipeline)


def _form(loc: Loc) -> str:
    """The description and an example of the field at `loc`."""
    last = max(index for index, step in enumerate(loc) if isinstance(step, str))
    field = _model_at(loc[:last]).model_fields[str(loc[last])]
    examples = "".join(f", for example {example}" for example in (field.examples or [])[:1])
    return f"{field.description or 'another form is expected'}{examples}"


__all__ = ["Loc", "kind_of", "meant", "message_of", "quoted"]
