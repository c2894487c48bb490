"""Reads objects that may lack anything: from an old cluster, with a half-written status, or from a custom controller.

Decides nothing about a rollout. Every function has a result for every input, so that rules need no checks of their own.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

Object = dict[str, Any]
"""One Kubernetes object as JSON: apiVersion, kind, metadata and the rest."""

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""The label of an EndpointSlice that names its Service."""


# --- values ----------------------------------------------------------------------------------------------------------


def dig(value: object, *path: str) -> Any:  # noqa: ANN401  JSON is anything
    """The value at `path`, or None where a step is missing."""
    for step in path:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def dig_mapping(value: object, *path: str) -> Object:
    """The JSON object at `path`; empty where it is missing."""
    mapping = dig(value, *path)
    return mapping if isinstance(mapping, dict) else {}


def as_objects(value: object) -> list[Object]:
    """The JSON objects in a list that may be missing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, (list, tuple)) else []


def as_int(value: object) -> int:
    """A whole number that may be missing: then 0."""
    return value if isinstance(value, int) else 0


def as_text(value: object) -> str:
    """A text that may be missing: then empty."""
    return value if isinstance(value, str) else ""


def as_time(value: object) -> datetime | None:
    """A Kubernetes timestamp as an aware datetime; None for a missing one and for 1970, which the kubelet writes."""
    if isinstance(value, datetime):
        parsed = value
    else:
        try:
            parsed = datetime.fromisoformat(as_text(value).replace("Z", "+00:00"))
        except ValueError:
            return None
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    return parsed if parsed.year > 1970 else None  # noqa: PLR2004


# --- metadata --------------------------------------------------------------------------------------------------------


def kind_and_name(item: Object) -> str:
    """Kind and name as kubectl takes them: `pod/shop-6d4f`."""
    return f"{as_text(item.get('kind')).lower() or 'object'}/{as_text(dig(item, 'metadata', 'name')) or '?'}"


def template_of(workload: Object) -> Object:
    """The pod template of a workload; a bare Pod is its own. Empty where there is none."""
    return workload if workload.get("kind") == "Pod" else dig_mapping(workload, "spec", "template")


def names_in(item: Object) -> tuple[str, ...]:
    """The names that a user chose and that messages repeat: of an object, its namespace, and its containers."""
    metadata = [as_text(dig(item, "metadata", key)) for key in ("name", "namespace")]
    containers = [*as_objects(dig(item, "spec", "initContainers")), *as_objects(dig(item, "spec", "containers"))]
    return (*metadata, *(as_text(container.get("name")) for container in containers))


def namespace_of(item: Object) -> str:
    """The object's namespace; `default` where it has none."""
    return as_text(dig(item, "metadata", "namespace")) or "default"


def uid_of(item: Object) -> str:
    """The object's uid, which differs from that of an earlier object with the same name; the name without a uid."""
    return as_text(dig(item, "metadata", "uid")) or as_text(dig(item, "metadata", "name"))


def created_at(item: Object) -> datetime | None:
    """When the object was created."""
    return as_time(dig(item, "metadata", "creationTimestamp"))


# --- status ----------------------------------------------------------------------------------------------------------


def condition(item: Object, kind: str) -> Object:
    """The condition of type `kind`, or an empty object."""
    conditions = as_objects(dig(item, "status", "conditions"))
    return next((entry for entry in conditions if entry.get("type") == kind), {})


def condition_holds(item: Object, kind: str) -> bool:
    """Whether the condition of type `kind` is True."""
    return condition(item, kind).get("status") == "True"


def endpoint_is_ready(endpoint: Object) -> bool:
    """Whether an endpoint of an EndpointSlice gets requests.

    A missing `ready` means ready (k8s.io/api, `discovery/v1` `EndpointConditions`).
    """
    return dig(endpoint, "conditions", "ready") is not False


# --- events ----------------------------------------------------------------------------------------------------------


_FIRST_TIMES = (("firstTimestamp",), ("eventTime",), ("metadata", "creationTimestamp"), ("lastTimestamp",))
_LAST_TIMES = (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",), ("metadata", "creationTimestamp"))


def first_time(event: Object) -> datetime | None:
    """When an event happened for the first time."""
    return next((at for path in _FIRST_TIMES if (at := as_time(dig(event, *path)))), None)


def last_time(event: Object) -> datetime | None:
    """When an event happened for the last time."""
    return next((at for path in _LAST_TIMES if (at := as_time(dig(event, *path)))), None)


def earliest(events: Sequence[Object]) -> datetime | None:
    """When the first of several events happened for the first time."""
    return min((at for event in events if (at := first_time(event))), default=None)


def latest(events: Sequence[Object]) -> datetime | None:
    """When the last of several events happened for the last time."""
    return max((at for event in events if (at := last_time(event))), default=None)


def later(one: datetime | None, other: datetime | None) -> bool:
    """Whether `one` is known to be no earlier than `other`: events have times in whole seconds."""
    return one is not None and other is not None and one >= other


def with_reason(events: Sequence[Object], *reasons: str) -> list[Object]:
    """The events with one of these reasons."""
    return [event for event in events if event.get("reason") in reasons]


def events_about(item: Object, events: Sequence[Object]) -> tuple[Object, ...]:
    """The events about one object, oldest first."""
    about = [event for event in events if _is_about(event, item)]
    return tuple(sorted(about, key=lambda e: (str(first_time(e)), as_text(dig(e, "metadata", "name")), str(e))))


def _is_about(event: Object, item: Object) -> bool:
    """Whether an event is about an object: by uid where both have one, else by name and kind."""
    involved = dig_mapping(event, "involvedObject")
    uid = dig(item, "metadata", "uid")
    if uid and involved.get("uid"):
        return bool(involved["uid"] == uid)
    return involved.get("name") == dig(item, "metadata", "name") and involved.get("kind") in (None, item.get("kind"))
