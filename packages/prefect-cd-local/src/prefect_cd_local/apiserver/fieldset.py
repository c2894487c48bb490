"""Sets of fields, and the operations of server-side apply on objects with them: compare, merge, remove.

A field is a path of elements as FieldsV1 writes them: `f:name`, `k:{"name":"x"}` and `v:"value"`. Source of the rules:
"Server-Side Apply" in the Kubernetes documentation ("Merge strategy", "Field management") and answers of a server of
1.36: granular maps and lists are owned part by part, everything else as a whole.
"""

import json
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from prefect_cd_local.apiserver.schema import Type, canonical

Path = tuple[str, ...]
Fields = frozenset[Path]
Value = Any
NOTHING: Fields = frozenset()
_ABSENT: Value = ()  # no JSON value is a tuple
_H = TypeVar("_H", bound=Hashable)


class SchemaMismatch(ValueError):
    """Values that do not fit the schema; one message with a path for each."""

    def __str__(self) -> str:
        lines = list(dict.fromkeys(self.args))
        return lines[0] if len(lines) == 1 else "errors:\n  " + "\n  ".join(lines)


class Difference(NamedTuple):
    """The difference to an older object: fields that were added or changed, and fields that were removed."""

    written: Fields
    removed: Fields


def to_fields_v1(fields: Fields) -> dict[str, Any]:
    """Convert a set to the tree of managedFields, in which "." stands for a field that has others below it."""
    tree: dict[str, Any] = {}
    for path in sorted(fields):
        node = tree
        for element in path:
            node = node.setdefault(element, {})
    for path in fields:
        node = tree
        for element in path:
            node = node[element]
        if node:
            node["."] = {}
    return tree


def from_fields_v1(tree: dict[str, Any], path: Path = ()) -> Fields:
    """Read a set from the tree of managedFields."""
    fields: set[Path] = set()
    for key, below in tree.items():
        here = path if key == "." else (*path, key)
        fields |= from_fields_v1(below, here) if below else {here}
    return frozenset(fields)


def path_text(path: Path) -> str:
    """Format a path as messages do: .spec.containers[name="x"].image."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "k":
            pairs = sorted(json.loads(rest).items())
            rest = ",".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in pairs)
        text += {"f": f".{rest}", "v": f"[={rest}]"}.get(kind, f"[{rest}]")
    return text


def owned(type_: Type, value: Value, path: Path = ()) -> Fields:
    """Return the fields that an applied configuration claims.

    Raises:
        SchemaMismatch: the schema has no such field, a value has another type, or a list has an element twice.
    """
    if value is None:
        return frozenset({path}) if path else NOTHING
    _refuse_other_type(type_, value, path)
    paths: set[Path] = set()
    wrong: list[str] = []
    seen: set[str] = set()
    for element, part in _parts(type_, value, path):
        here = (*path, element)
        if type_.what == "struct" and element[2:] not in type_.fields:
            wrong.append(f"{path_text(here)}: field not declared in schema")
            continue
        if element in seen:
            wrong.append(f"{path_text(path)}: duplicate entries for key {path_text((element,))}")
        seen.add(element)
        try:
            paths |= owned(_below(type_, element), part, here)
        except SchemaMismatch as error:
            wrong += error.args
        if type_.what != "struct" or part == {}:
            paths.add(here)
    if wrong:
        raise SchemaMismatch(*wrong)
    return frozenset(paths) if type_.granular else frozenset({path})


def _refuse_other_type(type_: Type, value: Value, path: Path) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wanted, fits = {
        "list": ("list", isinstance(value, list)),
        "struct": ("map", isinstance(value, dict)),
        "map": ("map", isinstance(value, dict)),
        "integer": ("numeric (int or float)", number),
        "number": ("numeric (int or float)", number),
        "boolean": ("boolean", isinstance(value, bool)),
        "string": ("string", isinstance(value, str)),
    }.get(type_.scalar or type_.what, ("", True))
    if not fits:
        raise SchemaMismatch(
            f"{path_text(path)}: expected {wanted}, got &value.valueUnstructured{{Value:{canonical(value)}}}"
        )


def _below(type_: Type, element: str) -> Type:
    return type_.part(element[2:])


def _parts(type_: Type, value: Value, path: Path = ()) -> Iterator[tuple[str, Value]]:
    """Yield the parts of a value, each with its path element."""
    if type_.what in {"struct", "map"}:
        yield from (("f:" + key, item) for key, item in (value or {}).items())
    elif type_.what == "list":
        for index, item in enumerate(value or ()):
            if not type_.keys:
                yield ("v:" + canonical(item) if type_.granular else f"i:{index}"), item
                continue
            where = f"{path_text(path)}: element {index}: associative list with keys"
            if not isinstance(item, dict):
                raise SchemaMismatch(f"{where} may not have non-map elements")
            names = {key: _key(type_, item, key) for key in type_.keys}
            missing = next((key for key, name in names.items() if name is None), None)
            if missing:
                why = f'has an element that omits key field "{missing}" (and doesn\'t have default value)'
                raise SchemaMismatch(f"{where} {why}")
            yield "k:" + canonical(names), item


def _key(type_: Type, element: dict[str, Value], key: str) -> Value:
    name = element.get(key)
    return type_.part("").fields[key].default if name is None else name


def compare(type_: Type, old: Value, new: Value) -> Difference:
    """Compare two objects of one type; a field that is null counts as present."""
    written: set[Path] = set()
    removed: set[Path] = set()

    def look(type_: Type, old: Value, new: Value, path: Path) -> None:
        if type_.granular and (old or new):
            before, after = dict(_parts(type_, old)), dict(_parts(type_, new))
            for element in {**before, **after}:
                both = before.get(element, _ABSENT), after.get(element, _ABSENT)
                look(_below(type_, element), *both, (*path, element))
        elif _ABSENT not in (old, new) and old != new:
            written.add(path)
        if path and old == _ABSENT:
            written.add(path)
        elif path and new == _ABSENT:
            removed.add(path)

    look(type_, old, new, ())
    return Difference(frozenset(written), frozenset(removed))


def merge(type_: Type, live: Value, applied: Value) -> Value:
    """Put an applied value over the live one; nothing is removed."""
    if live is None or not type_.granular:
        return applied
    if applied is None:
        return live
    theirs, ours = dict(_parts(type_, live)), dict(_parts(type_, applied))
    merged = {
        element: merge(_below(type_, element), theirs[element], part) if element in theirs else part
        for element, part in ours.items()
    }
    if type_.what == "list":
        return [{**theirs, **merged}[element] for element in interleaved(list(theirs), list(ours))]
    return {element[2:]: part for element, part in {**theirs, **merged}.items()}


def interleaved(present: Sequence[_H], wanted: Sequence[_H], *, new_last: bool = True) -> list[_H]:
    """Return the wanted names in their order; other names keep their place between them.

    Args:
        present: the names in their present order.
        wanted: the names whose order is given.
        new_last: whether a wanted name that is new comes after other names at that place, or before them.
    """
    out: list[_H] = []
    at = 0
    for number, name in enumerate(wanted):
        stop = at
        if name in present[at:]:
            stop = present.index(name, at)
        elif new_last:
            stop = next((index for index in range(at, len(present)) if present[index] in wanted[number:]), len(present))
        out += [other for other in present[at:stop] if other not in wanted]
        out.append(name)
        at = stop
    return out + [other for other in present[at:] if other not in wanted]


def remove(type_: Type, value: Value, gone: Fields, path: Path = ()) -> Value:
    """Remove fields from a value; returns None when nothing is left."""
    below = frozenset(field for field in gone if len(field) > len(path) and field[: len(path)] == path)
    if not type_.granular or not value or not below:
        return value
    kept = {
        element: remove(_below(type_, element), part, below, (*path, element))
        for element, part in _parts(type_, value)
        if (*path, element) not in below
    }
    if type_.what == "list":
        return list(kept.values()) or None
    return {element[2:]: part for element, part in kept.items()} or None


def with_structs(type_: Type, fields: Fields) -> Fields:
    """Return the set with the structs on the way to its members: the owner of a.b owns a, where a is a struct."""
    result = set(fields)
    for path in fields:
        at = type_
        for depth, element in enumerate(path[:-1], 1):
            if at.what == "struct":
                result.add(path[:depth])
            at = _below(at, element)
    return frozenset(result)
