"""Read and write values by their types, as a server does.

Unknown fields are reported, values of other types refused. Null means absent; empty values are left out, or written
where the real server writes them (`Field.written`). Quantities and times get their canonical form. validation.py checks
values beyond their types.
"""

import base64
import binascii
import re
from datetime import datetime, timezone
from decimal import ROUND_UP, Decimal
from typing import Any, NamedTuple

from prefect_cd_local.apiserver.schema import ANY, Type

Value = Any
_ZEROS = {"string": "", "integer": 0, "boolean": False, "number": 0, "quantity": "0", "intstr": 0}
_SAID = {"string": "string", "integer": "int32", "boolean": "bool", "number": "float64", "bytes": "[]byte"}
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_MICRO = len(".000000")


class WrongType(ValueError):
    """A value that does not fit its field."""


class _Place(NamedTuple):
    """The place of a value: its paths in messages about unknown fields and about types, and its struct."""

    path: str = ""
    fields: str = ""
    struct: str = ""

    def field(self, struct: str, name: str) -> "_Place":
        path, fields = (f"{prefix}.{name}" if prefix else name for prefix in self[:2])
        return _Place(path, fields, struct)

    def part(self, name: str) -> "_Place":
        return self._replace(path=self.path + name)


def read(type_: Type, value: Value, complaints: list[str] | None = None, place: _Place = _Place()) -> Value:  # noqa: B008
    """Return the value in the form in which it is stored.

    Args:
        type_: the expected type.
        value: what was sent.
        complaints: collects fields that the schema does not have.
        place: where the value is, for messages.

    Raises:
        WrongType: the value is of another type.
    """
    if type_.what == "any":
        return value
    if type_.what == "scalar":
        return _scalar(type_.scalar, value, place)
    if type_.what == "list":
        if not isinstance(value, list):
            raise _wrong(value, f"[]{(type_.inner or ANY).name or 'string'}", place)
        return [
            _element(type_.part(""), element, complaints, place.part(f"[{at}]")) for at, element in enumerate(value)
        ]
    if not isinstance(value, dict):
        raise _wrong(value, f"v1.{type_.name}" if type_.what == "struct" else "map[string]string", place)
    if type_.what == "map":
        return {key: _element(type_.part(key), part, complaints, place.part(f".{key}")) for key, part in value.items()}
    return _struct(type_, value, complaints, place)


def _element(type_: Type, value: Value, complaints: list[str] | None, place: _Place) -> Value:
    return zero(type_) if value is None else read(type_, value, complaints, place)


def _struct(type_: Type, value: dict[str, Value], complaints: list[str] | None, place: _Place) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for key, part in value.items():
        where = place.field(type_.name, key)
        if key not in type_.fields and complaints is not None:
            complaints.append(f'unknown field "{where.path}"')
        elif key in type_.fields and part is not None:
            out[key] = read(type_.fields[key].type, part, complaints, where)
    for name, field in type_.fields.items():
        if name not in out:
            if field.written in {"always", "struct", "null"}:
                out[name] = None if field.written == "null" else zero(field.type)
        elif field.written == "unless-zero" and not out[name]:
            del out[name]
        elif field.written == "always" and out[name] in ([], {}):
            out[name] = None
    return out


def zero(type_: Type) -> Value:
    """Return what is written for a value of this type that was never set."""
    return _struct(type_, {}, None, _Place()) if type_.what == "struct" else _ZEROS.get(type_.scalar)


def _wrong(value: Value, wanted: str, place: _Place) -> WrongType:
    names: dict[type, str] = {str: "string", bool: "bool", list: "array", dict: "object"}
    type_name = names.get(type(value), f"number {value}" if isinstance(value, float) else "number")
    return WrongType(
        f"json: cannot unmarshal {type_name} into Go struct field {place.struct}.{place.fields} of type {wanted}"
    )


def _scalar(scalar: str, value: Value, place: _Place) -> Value:
    if scalar == "quantity":
        return quantity(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if scalar == "integer" and number and value == int(value):
        return int(value)
    if isinstance(value, str) and scalar in {"time", "microtime"}:
        return _time(value, micro=scalar == "microtime")
    if isinstance(value, str) and scalar == "bytes":
        try:
            return base64.b64encode(base64.b64decode(value, validate=True)).decode()
        except binascii.Error as error:
            raise WrongType(f"illegal base64 data at input byte {len(value) - len(value) % 4}") from error
    text = isinstance(value, str) and scalar in {"string", "intstr"}
    if text or (number and scalar in {"number", "intstr"}) or (isinstance(value, bool) and scalar == "boolean"):
        return value
    raise _wrong(value, _SAID.get(scalar, scalar), place)


def _time(value: str, *, micro: bool) -> str:
    """Return a time in UTC, to the second or the microsecond; the latter must have six digits after the point."""
    match = _TIME.fullmatch(value)
    if not match or (micro and len(match[3] or "") != _MICRO):
        shown = "2006-01-02T15:04:05" + (".000000" if micro else "") + "Z07:00"
        raise WrongType(f'parsing time "{value}" as "{shown}": cannot parse')
    try:
        moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{match[4].upper().replace('Z', '+00:00')}")
    except ValueError as error:
        raise WrongType(f'parsing time "{value}": out of range') from error
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S") + (match[3] if micro else "") + "Z"


_BINARY = {name: Decimal(1024**power) for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]?))")


def amount(value: Value) -> Decimal:
    """Return the number that a quantity stands for.

    Raises:
        WrongType: the value is no quantity.
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if isinstance(value, (bool, dict, list)) or not match:
        raise WrongType("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number, exponent, suffix = Decimal(match[1]), match[2], match[3] or ""
    if suffix in _BINARY:
        return number * _BINARY[suffix]
    return number.scaleb(int(exponent[1:]) if exponent else _DECIMAL[suffix])


def quantity(value: Value) -> str:
    """Return a quantity in canonical form: the largest suffix that leaves a whole number (1024Mi → 1Gi, 0.5 → 500m).

    Source: the documentation of resource quantities in the API reference.
    """
    number = amount(value).quantize(Decimal("1e-9"), ROUND_UP)
    text = str(value).strip()
    if text.endswith("i") and number % 1 == 0:
        units = ((name, unit) for name, unit in reversed(_BINARY.items()) if number and number % unit == 0)
        name, unit = next(units, ("", Decimal(1)))
        return f"{number / unit:.0f}{name}"
    scientific = re.search("[eE][+-]?[0-9]", text)
    for name, power in reversed(_DECIMAL.items()):
        if number and number.scaleb(-power) % 1 == 0:
            return f"{number.scaleb(-power):.0f}" + (f"e{power}" if scientific and power > 0 else name)
    return "0"
