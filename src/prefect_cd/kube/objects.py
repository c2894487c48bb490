"""Reading objects that may lack anything: an old cluster, a half-written status, a controller of one's own.

Decides nothing about a rollout. Every function answers something for every input, so that the rules can be read as
rules.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

Object = dict[str, Any]
"""One Kubernetes object as JSON: apiVersion, kind, metadata and the rest."""


def dig_mapping(value: object, *path: str) -> Object:
    """The JSON object at `path`; empty where there is none."""
    found = dig(value, *path)
    return found if isinstance(found, dict) else {}


SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""The label of an EndpointSlice that says whose it is."""


def dig(value: object, *path: str) -> Any:  # noqa: ANN401  JSON is anything
    """The value at `path`, or None where a step is missing."""
    for step in path:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


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
    """A Kubernetes timestamp as an aware datetime; None for missing ones and for 1970, the kubelet's 'never'."""
    if isinstance(value, datetime):
        parsed = value
    else:
        try:
            parsed = datetime.fromisoformat(as_text(value).replace("Z", "+00:00"))
        except ValueError:
            return None
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    return parsed if parsed.year > 1970 else None  # noqa: PLR2004


def kind_and_name(thing: Object) -> str:
    """Kind and name as kubectl takes them: `pod/shop-6d4f`."""
    return f"{as_text(thing.get('kind')).lower() or 'object'}/{as_text(dig(thing, 'metadata', 'name')) or '?'}"


def names_in(thing: Object) -> tuple[str, ...]:
    """The names that people chose and messages repeat: of an object, its namespace, and its containers."""
    metadata = [as_text(dig(thing, "metadata", key)) for key in ("name", "namespace")]
    kinds = ("initContainers", "containers")
    return (*metadata, *(as_text(each.get("name")) for kind in kinds for each in as_objects(dig(thing, "spec", kind))))


def namespace_of(thing: Object) -> str:
    """Where it is; the default namespace when it does not say."""
    return as_text(dig(thing, "metadata", "namespace")) or "default"


def uid_of(thing: Object) -> str:
    """What tells it from an earlier one of the same name; the name where there is no uid."""
    return as_text(dig(thing, "metadata", "uid")) or as_text(dig(thing, "metadata", "name"))


def created_at(thing: Object) -> datetime | None:
    """When it was created."""
    return as_time(dig(thing, "metadata", "creationTimestamp"))


def condition(thing: Object, kind: str) -> Object:
    """The condition called `kind`, or an empty object."""
    found = [each for each in as_objects(dig(thing, "status", "conditions")) if each.get("type") == kind]
    return found[0] if found else {}


def condition_holds(thing: Object, kind: str) -> bool:
    """Whether the condition called `kind` is True."""
    return condition(thing, kind).get("status") == "True"


# --- events ----------------------------------------------------------------------------------------------------------


def first_time(event: Object) -> datetime | None:
    """When an event happened first."""
    for path in (("firstTimestamp",), ("eventTime",), ("metadata", "creationTimestamp"), ("lastTimestamp",)):
        if found := as_time(dig(event, *path)):
            return found
    return None


def last_time(event: Object) -> datetime | None:
    """When an event happened last."""
    for path in (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",), ("metadata", "creationTimestamp")):
        if found := as_time(dig(event, *path)):
            return found
    return None


def earliest(events: Sequence[Object]) -> datetime | None:
    """When the first of several events happened first."""
    return min((at for event in events if (at := first_time(event))), default=None)


def latest(events: Sequence[Object]) -> datetime | None:
    """When the last of several events happened last."""
    return max((at for event in events if (at := last_time(event))), default=None)


def later(one: datetime | None, other: datetime | None) -> bool:
    """Whether `one` is known to be no earlier than `other`: events are written in whole seconds."""
    return one is not None and other is not None and one >= other


def with_reason(events: Sequence[Object], *reasons: str) -> list[Object]:
    """The events with one of these reasons."""
    return [event for event in events if event.get("reason") in reasons]


def events_about(thing: Object, events: Sequence[Object]) -> tuple[Object, ...]:
    """The events about one object, oldest first."""
    uid, name = dig(thing, "metadata", "uid"), dig(thing, "metadata", "name")
    mine = [
        event
        for event in events
        if (dig(event, "involvedObject", "uid") == uid if uid and dig(event, "involvedObject", "uid") else
            dig(event, "involvedObject", "name") == name
            and dig(event, "involvedObject", "kind") in (None, thing.get("kind")))
    ]  # fmt: skip
    return tuple(sorted(mine, key=lambda e: (str(first_time(e)), as_text(dig(e, "metadata", "name")), str(e))))


__all__ = ["dig_mapping"]
