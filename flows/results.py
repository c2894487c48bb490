"""Refuses stored results that would execute something when a run reads them.

Prefect stores a result together with the name and the options of its serializer, and reads it with that one. `pickle`
executes what it reads, and so do options of `json` that name functions. The flows of this package store JSON in
Prefect's own form only; anything else was not written by them. Prefect takes a result that it cannot read for absent,
so the stage runs again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.exceptions import SerializationError
from prefect.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, Serializer

from prefect_cd.tasks.stage import log

_KINDS: "tuple[type[Serializer[Any]], ...]" = (PickleSerializer, CompressedSerializer, JSONSerializer)
_read_json = JSONSerializer.loads


def _refuse(serializer: "Serializer[Any]", _blob: bytes) -> Any:  # noqa: ANN401  as the method that it replaces
    message = (
        f"a stored result of this run was changed: it names the serializer {serializer.type!r}, which this flow does "
        "not use. It is ignored. Find out who can write to the storage of Prefect's results"
    )
    log().warning("%s", message)
    raise SerializationError(message)


def _read(serializer: "JSONSerializer[Any]", blob: bytes) -> Any:  # noqa: ANN401  as the method that it replaces
    return _read_json(serializer, blob) if serializer == JSONSerializer() else _refuse(serializer, blob)


@contextmanager
def reading_json_only() -> Iterator[None]:
    """Have Prefect's serializers refuse, for as long as the block runs, what no task of this package stores."""
    before = {kind: kind.loads for kind in _KINDS}
    for kind in _KINDS:
        setattr(kind, "loads", _read if kind is JSONSerializer else _refuse)  # noqa: B010  mypy: it is a method
    try:
        yield
    finally:
        for kind, loads in before.items():
            setattr(kind, "loads", loads)  # noqa: B010
