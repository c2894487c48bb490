"""What somebody changed in a live object by hand: by whom, when, and which fields. Pure.

The API server notes it in `metadata.managedFields`. Controllers, such as an autoscaler, are managers, too; what was
done with kubectl is known by the manager's name, which begins with kubectl's own (`kubectl-patch`, `kubectl-set`,
`kubectl-edit`). `kubectl apply` is another way to deliver, and a restart changes nothing of a version.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from prefect_cd.kube.objects import Object, as_time, dig
from prefect_cd.release.model import Result

_DELIVERS = frozenset({"kubectl", "kubectl-client-side-apply", "kubectl-last-applied", "kubectl-create"})
"""Managers that bring whole objects in; `kubectl` is server-side apply."""
_CONTENT = ("spec", "data", "stringData", "binaryData")
_RESTART = "kubectl.kubernetes.io/restartedAt"
_MOST_FIELDS = 5


class HandEdit(Result):
    """What one manager changed."""

    manager: str
    at: datetime | None
    fields: tuple[str, ...]

    def __str__(self) -> str:
        when = f" at {self.at.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC" if self.at else ""
        more = f" and {len(self.fields) - _MOST_FIELDS} more" if len(self.fields) > _MOST_FIELDS else ""
        return f"{self.manager} changed {', '.join(self.fields[:_MOST_FIELDS])}{more}{when}"


def hand_edits(live: Object) -> tuple[HandEdit, ...]:
    """Who changed which fields of a live object by hand, as far as they are still theirs; the oldest first."""
    edits = [edit for entry in dig(live, "metadata", "managedFields") or [] if (edit := _edit(entry))]
    return tuple(sorted(edits, key=lambda edit: edit.at.isoformat() if edit.at else ""))


def _edit(entry: Object) -> HandEdit | None:
    manager = str(entry.get("manager", ""))
    if not manager.startswith("kubectl") or manager in _DELIVERS or entry.get("subresource"):
        return None
    written = entry.get("fieldsV1") or {}
    fields = [path for root in _CONTENT for path in _paths(root, written.get(f"f:{root}"))]
    return HandEdit(manager=manager, at=as_time(entry.get("time")), fields=tuple(fields)) if fields else None


def _paths(path: str, below: Any) -> Iterator[str]:  # noqa: ANN401  JSON is anything
    """The fields as people write them: `spec.template.spec.containers[web].image`."""
    if not isinstance(below, dict):
        return
    inner = {key: value for key, value in below.items() if key != "."}
    if not inner or (path.endswith("]") and "." in below):  # the whole item is theirs
        yield path
        return
    for key, value in inner.items():
        if key != f"f:{_RESTART}":
            yield from _paths(path + _step(key), value)


def _step(key: str) -> str:
    kind, _, name = key.partition(":")
    if kind == "f":
        return f".{name}"
    value = json.loads(name)
    return f"[{', '.join(map(str, value.values()))}]" if isinstance(value, dict) else f"[{value}]"


__all__ = ["HandEdit", "hand_edits"]
