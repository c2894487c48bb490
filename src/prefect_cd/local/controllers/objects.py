"""Questions that controllers ask of one object, answered without a cluster.

Rules: the API conventions (metadata, conditions, times) and the documentation of pods and of owner references.
"""

from datetime import datetime, timezone

from prefect_cd.local.client import Object

Key = tuple[str, str]  # namespace (empty for a cluster's own objects), name


def key_of(obj: Object) -> Key:
    """Give namespace and name."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def uid_of(obj: Object) -> str:
    """Give the identity that a namesake does not have."""
    return str(obj["metadata"]["uid"])


def is_ending(obj: Object) -> bool:
    """Tell whether someone asked for the object's deletion."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def annotations(obj: Object) -> dict[str, str]:
    """Give the annotations, also where there are none."""
    return obj["metadata"].get("annotations") or {}


def labels(obj: Object) -> dict[str, str]:
    """Give the labels, also where there are none."""
    return obj["metadata"].get("labels") or {}


def owners_of(obj: Object) -> list[Object]:
    """Give the owner references."""
    return obj["metadata"].get("ownerReferences") or []


def controller_of(obj: Object) -> Object | None:
    """Give the owner reference that says `controller`, if any."""
    return next((reference for reference in owners_of(obj) if reference.get("controller")), None)


def is_controlled_by(obj: Object, owner: Object) -> bool:
    """Tell whether the object's controller is this very owner."""
    return (controller_of(obj) or {}).get("uid") == uid_of(owner)


def reference_to(owner: Object) -> Object:
    """Give the owner reference of what a controller makes for an object."""
    named = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    return {**named, "uid": uid_of(owner), "controller": True, "blockOwnerDeletion": True}


def condition(obj: Object, kind: str) -> Object | None:
    """Give the status condition of a type."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), None)


def is_over(pod: Object) -> bool:
    """Tell whether a pod ran to its end."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def is_active(pod: Object) -> bool:
    """Tell whether a pod counts for its ReplicaSet: neither over nor asked to end."""
    return not is_over(pod) and not is_ending(pod)


def is_ready(pod: Object) -> bool:
    """Tell whether the pod says that it can serve."""
    return (condition(pod, "Ready") or {}).get("status") == "True"


def parse_time(text: str) -> datetime:
    """Read a time as the API spells it, whole seconds or parts of them."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


def time_text(moment: datetime) -> str:
    """Spell a time as the API does."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def now() -> datetime:
    """Give the time, for decisions that take it as a parameter."""
    return datetime.now(timezone.utc)


def same_status(one: Object, other: Object) -> bool:
    """Tell whether two statuses say the same, whichever spells out zeros and empty lists."""

    def said(status: Object) -> Object:
        return {name: value for name, value in status.items() if value}

    return said(one) == said(other)
