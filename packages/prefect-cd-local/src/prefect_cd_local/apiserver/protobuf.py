"""Decode bodies in protobuf by the field numbers of the schemas. Answers are JSON, which every client accepts.

`kubectl create` and controllers send new objects in protobuf. Sources: the API concepts page ("Kubernetes Protobuf
encoding") for the envelope, and the protocol buffers encoding guide for the wire format.
"""

import base64
import json
import struct
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from prefect_cd_local.apiserver import schema
from prefect_cd_local.apiserver.errors import bad_request
from prefect_cd_local.apiserver.kinds import BY_NAME
from prefect_cd_local.apiserver.schema import Type

_MAGIC = b"k8s\x00"
_ALSO = {
    "DeleteOptions": "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "Scale": "io.k8s.api.autoscaling.v1.Scale",
    "Binding": "io.k8s.api.core.v1.Binding",
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BITS, _MORE = 0x7F, 0x80
Raw = Any  # an int of a varint, or the bytes of a length-delimited field


def decode(body: bytes) -> dict[str, Any]:
    """Return the object in a protobuf body.

    Raises:
        Refusal: 400, the body cannot be decoded, or its kind is not served.
    """
    try:
        if not body.startswith(_MAGIC):
            raise ValueError("no envelope")
        envelope = dict(_fields(body[len(_MAGIC) :]))
        about = dict(_fields(envelope.get(1, b"")))
        version, kind = about.get(1, b"").decode(), about.get(2, b"").decode()
        known = BY_NAME.get((version, kind))
        name = known.schema if known else _ALSO.get(kind)
        if not name:
            raise ValueError(f'no kind "{kind}" is registered for version "{version}"')
        return {**_struct(schema.named(name), envelope.get(2, b"")), "apiVersion": version, "kind": kind}
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise bad_request(f"couldn't read the protobuf body: {error}") from error


def _fields(data: bytes) -> Iterator[tuple[int, Raw]]:
    """Yield field numbers and values of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        value: Raw
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in {_FIXED64, _FIXED32}:
            size, code = (8, "<d") if kind == _FIXED64 else (4, "<f")
            value, at = struct.unpack(code, data[at : at + size])[0], at + size
        else:
            raise ValueError(f"wire type {kind}")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number, seven bits a byte, as signed 64 bits; returns it and the position after it."""
    value = shift = 0
    while True:
        value |= (data[at] & _BITS) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & _MORE:
            return (value - (1 << 64) if value >> 63 else value), at


def _struct(type_: Type, data: bytes, within: tuple[int, ...] = ()) -> dict[str, Any]:
    """Decode a message as an object; fields of embedded structs are in messages of their own (`within`)."""
    numbers = {field.numbers: field for field in type_.fields.values() if field.numbers}
    out: dict[str, Any] = {}
    for number, raw in _fields(data):
        path = (*within, number)
        field = numbers.get(path)
        if field is None:
            if any(other[: len(path)] == path for other in numbers):
                out |= _struct(type_, raw, path)
        elif field.type.what == "list":
            out.setdefault(field.name, []).append(_value(field.type.part(""), raw))
        elif field.type.what == "map":
            entry = dict(_fields(raw))
            key = entry.get(1, b"").decode()
            out.setdefault(field.name, {})[key] = _value(field.type.part(key), entry.get(2, b""))
        else:
            out[field.name] = _value(field.type, raw)
    return out


def _value(type_: Type, raw: Raw) -> Any:  # noqa: ANN401, PLR0911  any JSON; one line per type
    if type_.what == "struct":
        return _struct(type_, raw)
    if type_.what == "any":
        return json.loads(dict(_fields(raw)).get(1, b"") or b"{}")
    if type_.scalar == "quantity":
        return dict(_fields(raw)).get(1, b"0").decode() or "0"
    if type_.scalar == "intstr":
        fields = dict(_fields(raw))
        return fields.get(3, b"").decode() if fields.get(1) else fields.get(2, 0)
    if type_.scalar in {"time", "microtime"}:
        return _time(dict(_fields(raw)), micro=type_.scalar == "microtime")
    if type_.scalar == "bytes":
        return base64.b64encode(raw).decode()
    if type_.scalar == "boolean":
        return bool(raw)
    return raw.decode() if isinstance(raw, bytes) else raw


def _time(fields: dict[int, int], *, micro: bool) -> str | None:
    if not fields:
        return None
    moment = datetime.fromtimestamp(fields.get(1, 0), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{fields.get(2, 0) // 1000:06d}Z" if micro else f"{moment}Z"
