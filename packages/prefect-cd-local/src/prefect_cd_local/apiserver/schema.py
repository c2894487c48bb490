"""The published schemas as types.

Source: the OpenAPI v3 documents of a server of 1.36 with its extensions: ownership of lists and maps
(`x-kubernetes-list-type`, `-list-map-keys`, `-map-type`), strategic merge patches (`-patch-strategy`,
`-patch-merge-key`), and what tools/extract_schemas.py adds. values.py reads values by a type.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from prefect_cd_local.apiserver.kinds import Kind

REF = "#/components/schemas/"
_SCALARS = {"Quantity": "quantity", "Time": "time", "MicroTime": "microtime", "IntOrString": "intstr"}


@dataclass(frozen=True, eq=False)
class Type:
    """The type of a value.

    Attributes:
        what: scalar, struct, map, list or any.
        name: of a struct.
        scalar: which scalar it is.
        fields: of a struct.
        required: the required fields of a struct.
        inner: of a map's values or a list's elements.
        granular: whether its parts are owned one by one.
        keys: the fields that identify a list's elements; a granular list without keys is a set.
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
        """Return the type of a field, a map's value or a list's element; type `any` where the schema has none."""
        if self.what == "struct":
            return self.fields[name].type if name in self.fields else ANY
        return self.inner or ANY


ANY = Type("any")


@dataclass(frozen=True, eq=False)
class Field:
    """A field of a struct; tools/extract_schemas.py explains `written` and `numbers`."""

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
    """Return schema name → schema, as published, without descriptions."""
    content: dict[str, Any] = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))
    return content


@cache
def named(name: str) -> Type:
    """Return the type of a schema by its full name."""
    short = name.rpartition(".")[2]
    if short in _SCALARS:
        return Type("scalar", scalar=_SCALARS[short])
    schema = documents()[name]
    if "properties" not in schema:
        return ANY
    fields = {key: _field(key, property_) for key, property_ in schema["properties"].items()}
    granular = schema.get("x-kubernetes-map-type") != "atomic"
    return Type("struct", short, fields=fields, required=tuple(schema.get("required", ())), granular=granular)


def of(kind: Kind) -> Type:
    """Return the type of a kind."""
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
    ref = schema.get("$ref") or next((part["$ref"] for part in schema.get("allOf", ())), None)
    atomic = schema.get("x-kubernetes-map-type") == "atomic"
    if ref:
        struct = named(ref.removeprefix(REF))
        return replace(struct, granular=False) if atomic else struct
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
    """Yield every struct in a value, outer before inner, with its type and path: spec.containers[0]."""
    if value is None:
        return
    if type_.what == "struct":
        yield type_, value, path
    if type_.what in {"struct", "map"}:
        for key, part in list(value.items()):
            where = f"{path}[{key}]" if type_.what == "map" else f"{path}.{key}" if path else key
            yield from walk(type_.part(key), part, where)
    elif type_.what == "list":
        for index, part in enumerate(value):
            yield from walk(type_.part(""), part, f"{path}[{index}]")


def canonical(value: Any) -> str:  # noqa: ANN401  any JSON
    """Format JSON with sorted keys: equal texts for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
