"""Sets of fields, and what the merge of server-side apply does with objects by them: compare, merge, remove.

A field is a path of elements as FieldsV1 writes them: `f:name`, `k:{"name":"x"}` and `v:"value"`. Source of the rules:
"Server-Side Apply" in the Kubernetes documentation ("Merge strategy", "Field management") and answers of a server of
1.36: granular maps and lists are owned part by part, everything else as a whole.
"""

import json
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from prefect_cd.local.apiserver.schema import Type, canonical

Path = tuple[str, ...]
Fields = frozenset[Path]
Value = Any
NOTHING: Fields = frozenset()
_ABSENT: Value = ()  # no JSON value is a tuple
_H = TypeVar("_H", bound=Hashable)


class Untypable(ValueError):
    """Values that the schema does not have room for, each said with its path."""

    def __str__(self) -> str:
        lines = list(dict.fromkeys(self.args))
        return lines[0] if len(lines) == 1 else "errors:\n  " + "\n  ".join(lines)


class Difference(NamedTuple):
    """What is different in a newer object: fields that came or changed, and fields that went."""

    written: Fields
    removed: Fields


def to_fields_v1(fields: Fields) -> dict[str, Any]:
    """The set as it stands in managedFields: a tree, in which "." is a field that has others below it."""
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
    """The set that stands in managedFields."""
    found: set[Path] = set()
    for key, below in tree.items():
        here = path if key == "." else (*path, key)
        found |= from_fields_v1(below, here) if below else {here}
    return frozenset(found)


def spoken(path: Path) -> str:
    """The path as messages say it: .spec.containers[name="x"].image."""
    said = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "k":
            pairs = sorted(json.loads(rest).items())
            rest = ",".join(f"{key}={json.dumps(each, ensure_ascii=False)}" for key, each in pairs)
        said += {"f": f".{rest}", "v": f"[={rest}]"}.get(kind, f"[{rest}]")
    return said


def owned(type_: Type, value: Value, path: Path = ()) -> Fields:
    """The fields that an applied configuration claims.

    Raises:
        Untypable: the schema has no such field, a value has another type, or a list has an element twice.
    """
    if value is None:
        return frozenset({path}) if path else NOTHING
    _refuse_other_type(type_, value, path)
    found: set[Path] = set()
    wrong: list[str] = []
    seen: set[str] = set()
    for element, each in _parts(type_, value, path):
        here = (*path, element)
        if type_.what == "struct" and element[2:] not in type_.fields:
            wrong.append(f"{spoken(here)}: field not declared in schema")
            continue
        if element in seen:
            wrong.append(f"{spoken(path)}: duplicate entries for key {spoken((element,))}")
        seen.add(element)
        try:
            found |= owned(_below(type_, element), each, here)
        except Untypable as error:
            wrong += error.args
        if type_.what != "struct" or each == {}:
            found.add(here)
    if wrong:
        raise Untypable(*wrong)
    return frozenset(found) if type_.granular else frozenset({path})


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
        raise Untypable(f"{spoken(path)}: expected {wanted}, got &value.valueUnstructured{{Value:{canonical(value)}}}")


def _below(type_: Type, element: str) -> Type:
    return type_.part(element[2:])


def _parts(type_: Type, value: Value, path: Path = ()) -> Iterator[tuple[str, Value]]:
    """The parts of a value, each with the element of a path that names it."""
    if type_.what in {"struct", "map"}:
        yield from (("f:" + key, each) for key, each in (value or {}).items())
    elif type_.what == "list":
        for index, each in enumerate(value or ()):
            if not type_.keys:
                yield ("v:" + canonical(each) if type_.granular else f"i:{index}"), each
                continue
            where = f"{spoken(path)}: element {index}: associative list with keys"
            if not isinstance(each, dict):
                raise Untypable(f"{where} may not have non-map elements")
            names = {key: _key(type_, each, key) for key in type_.keys}
            missing = next((key for key, name in names.items() if name is None), None)
            if missing:
                why = f'has an element that omits key field "{missing}" (and doesn\'t have default value)'
                raise Untypable(f"{where} {why}")
            yield "k:" + canonical(names), each


def _key(type_: Type, element: dict[str, Value], key: str) -> Value:
    name = element.get(key)
    return type_.part("").fields[key].default if name is None else name


def compare(type_: Type, old: Value, new: Value) -> Difference:
    """What differs between two objects of one type; a field that is null counts as being there."""
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
    """The live value with the applied one over it; nothing is removed."""
    if live is None or not type_.granular:
        return applied
    if applied is None:
        return live
    theirs, ours = dict(_parts(type_, live)), dict(_parts(type_, applied))
    merged = {
        element: merge(_below(type_, element), theirs[element], each) if element in theirs else each
        for element, each in ours.items()
    }
    if type_.what == "list":
        return [{**theirs, **merged}[element] for element in interleaved(list(theirs), list(ours))]
    return {element[2:]: each for element, each in {**theirs, **merged}.items()}


def interleaved(there: Sequence[_H], wanted: Sequence[_H], *, new_last: bool = True) -> list[_H]:
    """The wanted names in their order; what else is there keeps its place between them.

    Args:
        there: the names in their order.
        wanted: the names that somebody orders.
        new_last: whether a wanted name that is new comes after others that stand there, or before them.
    """
    out: list[_H] = []
    at = 0
    for number, name in enumerate(wanted):
        stop = at
        if name in there[at:]:
            stop = there.index(name, at)
        elif new_last:
            stop = next((index for index in range(at, len(there)) if there[index] in wanted[number:]), len(there))
        out += [each for each in there[at:stop] if each not in wanted]
        out.append(name)
        at = stop
    return out + [each for each in there[at:] if each not in wanted]


def remove(type_: Type, value: Value, gone: Fields, path: Path = ()) -> Value:
    """The value without these fields; None when nothing is left of something."""
    below = frozenset(each for each in gone if len(each) > len(path) and each[: len(path)] == path)
    if not type_.granular or not value or not below:
        return value
    kept = {
        element: remove(_below(type_, element), each, below, (*path, element))
        for element, each in _parts(type_, value)
        if (*path, element) not in below
    }
    if type_.what == "list":
        return list(kept.values()) or None
    return {element[2:]: each for element, each in kept.items()} or None


def with_structs(type_: Type, fields: Fields) -> Fields:
    """The set, and the fields on the way to its members: owning a.b is owning a, where a is a struct's."""
    found = set(fields)
    for path in fields:
        at = type_
        for depth, element in enumerate(path[:-1], 1):
            if at.what == "struct":
                found.add(path[:depth])
            at = _below(at, element)
    return frozenset(found)
