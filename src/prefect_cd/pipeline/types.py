"""The types of single values in the pipeline file: durations, names, paths, commands."""

import re
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
DURATION = re.compile(r"(?:[0-9]{1,15}(?:ms|d|h|m|s))+")
_PART = re.compile(r"([0-9]+)(ms|d|h|m|s)")
_LONGEST = timedelta(days=366)


def parse_duration(value: object) -> timedelta:
    """Read a duration as the pipeline file writes it: '1h30m' -> timedelta(minutes=90).

    Raises:
        ValueError: it is not a duration, or longer than a year.
    """
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not DURATION.fullmatch(value):
        raise ValueError(f"{value!r} is not a duration: write a number with a unit, for example 90s, 10m, 24h or 1h30m")
    try:
        duration = sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in _PART.findall(value)), timedelta())
    except OverflowError:  # longer than timedelta can hold
        duration = timedelta.max
    if duration > _LONGEST:
        raise ValueError(f"{value!r} is longer than a year")
    return duration


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta():
        raise ValueError("must be longer than 0s")
    return value


def duration_text(value: timedelta) -> str:
    """A duration as the pipeline file writes it: timedelta(minutes=90) -> '1h30m'."""
    remaining, parts = round(value.total_seconds() * 1000), []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, remaining = divmod(remaining, milliseconds)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def _relative(value: str) -> str:
    if value.startswith("/") or ".." in PurePosixPath(value).parts:
        raise ValueError(f"{value!r} is not inside the repository: write a relative path without ..")
    if "\0" in value:
        raise ValueError("a path cannot contain NUL")
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(duration_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{DURATION.pattern}$", "examples": ["90s", "10m", "24h"]}),
]
Timeout = Annotated[Duration, AfterValidator(_positive)]
Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="a DNS label: at most 63 lowercase letters, digits and hyphens",
        examples=["shop-staging"],
    ),
]
Label = Annotated[str, Field(min_length=1, max_length=60, description="a short name for logs and reports")]
RelativePath = Annotated[
    str, AfterValidator(_relative), Field(min_length=1, description="a path relative to the root of the repository")
]
FieldPath = Annotated[
    str,
    Field(
        pattern=r'^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+|\[\]|\["[^"\]]+"\])*$',
        description="a path of fields; [] stands for every item of a list or map",
        examples=["spec.image", "spec.template.spec.containers[].env[].value"],
    ),
]
Command = Annotated[tuple[str, ...], Field(min_length=1)]


__all__ = [
    "DURATION",
    "Command",
    "Duration",
    "FieldPath",
    "Label",
    "Name",
    "RelativePath",
    "Timeout",
    "duration_text",
    "parse_duration",
]
