"""What is prefect-cd's own, and so may not come from a commit: its labels and annotations, records and locks. Pure.

Whoever may push could otherwise write a record, which decides what a rollback brings back, or mark an object as one of
another environment. Templates count, too: a controller makes objects of them, with labels and types as they are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prefect_cd.kube.objects import Object, kind_and_name
from prefect_cd.kube.resources import group_of
from prefect_cd.manifests.labels import PREFIX

NAMES = "prefect-cd."
"""How the names of records (Secrets) and locks (Leases) begin."""
_NAMED = frozenset({("", "Secret"), ("coordination.k8s.io", "Lease")})
_MARKS = frozenset({"labels", "annotations"})
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Reserved:
    """Something of prefect-cd's own in an object.

    Attributes:
        path: where it stands in the object.
        problem: what it is.
        hint: what to do next.
    """

    path: Path
    problem: str
    hint: str


def reserved_name(item: Object) -> Reserved | None:
    """What of an object's own name or type is reserved for records and locks, or None."""
    name = str(item["metadata"]["name"])
    if (group_of(item["apiVersion"]), item["kind"]) in _NAMED and name.startswith(NAMES):
        return Reserved(
            ("metadata", "name"),
            f"{kind_and_name(item)} has the name of a record or lock of prefect-cd",
            f"choose a name that does not begin with `{NAMES}`",
        )
    if str(item.get("type", "")).startswith(PREFIX):
        return _type(item, ("type",), str(item["type"]))
    return None


def reserved(item: Object) -> Reserved | None:
    """What in an object of a commit is prefect-cd's own, or None; also in its templates.

    Args:
        item: the object, which has a name.
    """
    if problem := reserved_name(item):
        return problem
    for path, key, value in _entries(item):
        if key == "type" and isinstance(value, str) and value.startswith(PREFIX):
            return _type(item, (*path, key), value)
        if path and path[-1] in _MARKS and key.startswith(PREFIX):
            return Reserved(
                (*path, key),
                f"{kind_and_name(item)} sets {key} in {_shown(path)}, which only prefect-cd sets",
                "remove it: prefect-cd labels what it applies, and an operator uses `kubectl label`",
            )
    return None


def _type(item: Object, path: Path, value: str) -> Reserved:
    return Reserved(
        path, f"{kind_and_name(item)} has the type {value} of prefect-cd's records", "remove the type, or use another"
    )


def _entries(item: Object) -> Iterator[tuple[Path, str, object]]:
    """Every entry of every map in an object: the path of the map, the key and the value."""
    values: list[tuple[Path, object]] = [((), item)]
    while values:  # without recursion: a commit decides how deep it is
        path, value = values.pop()
        if isinstance(value, dict):
            yield from ((path, str(key), child) for key, child in value.items())
            values += [((*path, str(key)), child) for key, child in value.items()]
        elif isinstance(value, list):
            values += [((*path, index), child) for index, child in enumerate(value)]


def _shown(path: Path) -> str:
    """`spec.template.metadata.labels`."""
    return ".".join(map(str, path))


__all__ = ["NAMES", "Reserved", "reserved", "reserved_name"]
