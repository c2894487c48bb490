"""The published schemas as types to walk along.

Source: the OpenAPI v3 documents of a server of 1.36 with its extensions: what lists and maps are owned by
(`x-kubernetes-list-type`, `-list-map-keys`, `-map-type`), how a strategic merge patch treats them
(`-patch-strategy`, `-patch-merge-key`), and what extract.py adds. Reading values by a type is values.py's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from prefect_cd.local.apiserver.kinds import Kind

REF = "#/components/schemas/"
_SCALARS = {"Quantity": "quantity", "Time": "time", "MicroTime": "microtime", "IntOrString": "intstr"}


@dataclass(frozen=True, eq=False)
class Type:
    """What may stand in one place.

    Attributes:
        what: scalar, struct, map, list or any.
        name: of a struct.
        scalar: which scalar it is.
        fields: of a struct.
        required: fields of a struct that must say something.
        inner: of a map's values or a list's elements.
        granular: whether parts of it are owned one by one.
        keys: the fields that tell a list's elements apart; a granular list without keys is a set.
    """

    what: str
    name: str = ""
    scalar: str = ""
    fields: dict[str, "Field"] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    inner: "Type | None" = None
    granular: bool = False
    keys: tuple[str, ...] = ()

    def part(self, name: str) -> "Type":
        """The type of a field, a map's value or a list's element; anything where the schema knows none."""
        if self.what == "struct":
            return self.fields[name].type if name in self.fields else ANY
        return self.inner or ANY


ANY = Type("any")


@dataclass(frozen=True, eq=False)
class Field:
    """A named place in a struct; `written` and `numbers` are explained in extract.py."""

    name: str
    type: Type
    written: str
    numbers: tuple[int, ...]
    default: Any
    enum: tuple[str, ...]
    merge_key: str
    strategies: tuple[str, ...]


@cache
def documents() -> dict[str, Any]:
    """Schema name → schema, as published, less descriptions."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))
    return found


@cache
def named(name: str) -> Type:
    """The type of a schema by its full name."""
    short = name.rpartition(".")[2]
    if short in _SCALARS:
        return Type("scalar", scalar=_SCALARS[short])
    schema = documents()[name]
    if "properties" not in schema:
        return ANY
    fields = {key: _field(key, each) for key, each in schema["properties"].items()}
    granular = schema.get("x-kubernetes-map-type") != "atomic"
    return Type("struct", short, fields=fields, required=tuple(schema.get("required", ())), granular=granular)


def of(kind: Kind) -> Type:
    """The type of a kind."""
    return named(kind.schema)


def _field(name: str, schema: dict[str, Any]) -> Field:
    return Field(
        name,
        _type(schema),
        schema.get("x-written", ""),
        tuple(schema.get("x-numbers", ())),
        schema.get("default"),
        tuple(schema.get("enum", ())),
        schema.get("x-kubernetes-patch-merge-key", ""),
        tuple(schema.get("x-kubernetes-patch-strategy", "").split(",")),
    )


def _type(schema: dict[str, Any]) -> Type:
    ref = schema.get("$ref") or next((each["$ref"] for each in schema.get("allOf", ())), None)
    atomic = schema.get("x-kubernetes-map-type") == "atomic"
    if ref:
        found = named(ref.removeprefix(REF))
        return replace(found, granular=False) if atomic else found
    if schema.get("type") == "array":
        keys = tuple(sorted(schema.get("x-kubernetes-list-map-keys", ())))
        granular = schema.get("x-kubernetes-list-type") in {"map", "set"}
        return Type("list", inner=_type(schema["items"]), granular=granular, keys=keys)
    if schema.get("type") == "object":
        values = _type(schema["additionalProperties"]) if "additionalProperties" in schema else ANY
        return Type("map", inner=values, granular=not atomic)
    if "type" not in schema:
        return ANY
    return Type("scalar", scalar="bytes" if schema.get("format") == "byte" else schema["type"])


def walk(type_: Type, value: Any, path: str = "") -> Iterator[tuple[Type, dict[str, Any], str]]:  # noqa: ANN401
    """Every struct in a value, outer before inner, with its type and where it stands: spec.containers[0]."""
    if value is None:
        return
    if type_.what == "struct":
        yield type_, value, path
    if type_.what in {"struct", "map"}:
        for key, each in list(value.items()):
            where = f"{path}[{key}]" if type_.what == "map" else f"{path}.{key}" if path else key
            yield from walk(type_.part(key), each, where)
    elif type_.what == "list":
        for index, each in enumerate(value):
            yield from walk(type_.part(""), each, f"{path}[{index}]")


def canonical(value: Any) -> str:  # noqa: ANN401  any JSON
    """JSON text with sorted keys: equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
