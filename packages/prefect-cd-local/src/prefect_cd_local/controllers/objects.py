"""Accessors of API objects: metadata, owners, conditions, times.

Rules: the API conventions (metadata, conditions, times) and the documentation of pods and of owner references.
"""

from datetime import datetime, timezone

from prefect_cd_local.client import Object

Key = tuple[str, str]  # namespace (empty for cluster-scoped objects), name

# Conditions of a Service. The node writes them when it cannot listen on an address of the Service, because another
# program has the port; while one is False, the endpoints (node ports) or the names (cluster IP) are withdrawn.
NODE_PORTS_SERVED = "prefect-cd.dev/NodePortsServed"
CLUSTER_IP_SERVED = "prefect-cd.dev/ClusterIPServed"


def key_of(obj: Object) -> Key:
    """Return namespace and name."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def uid_of(obj: Object) -> str:
    """Return the uid, which tells apart objects of the same name."""
    return str(obj["metadata"]["uid"])


def is_ending(obj: Object) -> bool:
    """Return whether the object is marked for deletion."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def annotations(obj: Object) -> dict[str, str]:
    """Return the annotations; empty where there are none."""
    return obj["metadata"].get("annotations") or {}


def labels(obj: Object) -> dict[str, str]:
    """Return the labels; empty where there are none."""
    return obj["metadata"].get("labels") or {}


def owners_of(obj: Object) -> list[Object]:
    """Return the owner references."""
    return obj["metadata"].get("ownerReferences") or []


def controller_of(obj: Object) -> Object | None:
    """Return the owner reference with `controller: true`, if any."""
    return next((reference for reference in owners_of(obj) if reference.get("controller")), None)


def is_controlled_by(obj: Object, owner: Object) -> bool:
    """Return whether the object's controller is this owner."""
    return (controller_of(obj) or {}).get("uid") == uid_of(owner)


def reference_to(owner: Object) -> Object:
    """Return the owner reference for objects that a controller creates for an owner."""
    named = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    return {**named, "uid": uid_of(owner), "controller": True, "blockOwnerDeletion": True}


def condition(obj: Object, kind: str) -> Object | None:
    """Return the status condition of a type."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), None)


def is_withdrawn(service: Object, kind: str) -> bool:
    """Return whether another program answers at an address of a Service; `kind` is one of the conditions above."""
    return (condition(service, kind) or {}).get("status") == "False"


def is_over(pod: Object) -> bool:
    """Return whether a pod has finished."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def is_active(pod: Object) -> bool:
    """Return whether a pod counts for its ReplicaSet: not finished and not terminating."""
    return not is_over(pod) and not is_ending(pod)


def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready."""
    return (condition(pod, "Ready") or {}).get("status") == "True"


def parse_time(text: str) -> datetime:
    """Read a time in the API's format, with or without fractions of a second."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


def time_text(moment: datetime) -> str:
    """Format a time as the API does."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def now() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


def same_status(one: Object, other: Object) -> bool:
    """Return whether two statuses are equal, apart from zeros and empty lists."""

    def nonempty(status: Object) -> Object:
        return {name: value for name, value in status.items() if value}

    return nonempty(one) == nonempty(other)
