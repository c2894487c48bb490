"""Fields that the server sets when an object is created, changed and deleted: identity, generation, first status.

Source: the API conventions (Metadata, Spec and Status), "Garbage Collection" and "Pod Lifecycle" in the Kubernetes
documentation, and the behaviour of a server of 1.36. Of the admission plug-ins only what users notice is here: a
namespace that is missing or terminating, and a missing service account. Pods get no token and no tolerations.
"""

import random
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

from prefect_cd_local.apiserver import schema, values
from prefect_cd_local.apiserver.errors import Cause, Refusal, about, forbidden, not_found
from prefect_cd_local.apiserver.kinds import BY_NAME, Kind
from prefect_cd_local.apiserver.managed_fields import now
from prefect_cd_local.apiserver.storage import Store

Object = dict[str, Any]
_NAMESPACES, _ACCOUNTS = BY_NAME["v1", "Namespace"], BY_NAME["v1", "ServiceAccount"]
_COUNTED = {"Deployment", "ReplicaSet", "Pod"}
"""Kinds with a generation."""
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_KEPT = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName")
_PROTECTED = {"default", "kube-system", "kube-public"}


def with_generated_name(item: Object) -> Object:
    """Return the object with a name, generated from `generateName` where it has none."""
    metadata = item["metadata"]
    if metadata.get("name") or not metadata.get("generateName"):
        return item
    name = metadata["generateName"] + "".join(random.choices(_LETTERS, k=5))  # noqa: S311  names are not secret
    return {**item, "metadata": {**metadata, "name": name}}


def admit(store: Store, kind: Kind, item: Object) -> None:
    """Refuse an object whose namespace is missing or terminating, or whose service account is missing.

    Raises:
        Refusal: 404 or 403.
    """
    if not kind.namespaced:
        return
    metadata = item["metadata"]
    name, space = metadata.get("name") or metadata.get("generateName", ""), metadata["namespace"]
    namespace = store.get(_NAMESPACES, "", space)
    if namespace is None:
        raise not_found(_NAMESPACES, space)
    if "deletionTimestamp" in namespace["metadata"]:
        cause = Cause("NamespaceTerminating", f"namespace {space} is being terminated", "metadata.namespace")
        why = f"unable to create new content in namespace {space} because it is being terminated"
        raise forbidden(kind, name, why, cause)
    account = item["spec"].get("serviceAccountName", "default") if kind.kind == "Pod" else "default"
    if account != "default" and store.get(_ACCOUNTS, space, account) is None:
        why = f'error looking up service account {space}/{account}: serviceaccount "{account}" not found'
        raise forbidden(kind, name, why)


def initialized(kind: Kind, item: Object) -> Object:
    """Return a new object with uid, creation time, generation and first status."""
    ends = {"deletionTimestamp", "deletionGracePeriodSeconds", "generation"}
    metadata = {key: value for key, value in item["metadata"].items() if key not in ends}
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
    metadata |= {"generation": 1} if kind.kind in _COUNTED else {}
    item = {**item, "metadata": metadata}
    if kind.subresource("status") and kind.kind != "Node":
        item["status"] = values.zero(schema.of(kind).fields["status"].type)
    if kind.kind == "Namespace":
        item |= {"spec": {**item["spec"], "finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    elif kind.kind == "Pod":
        account = item["spec"].get("serviceAccountName", "default")
        item["spec"] = {**item["spec"], "serviceAccountName": account, "serviceAccount": account}
        item["status"] = {"phase": "Pending", "qosClass": _quality(item["spec"])}
    return item


def _quality(spec: Object) -> str:
    """Return a pod's quality-of-service class."""
    resources = [
        container["resources"] for group in ("initContainers", "containers") for container in spec.get(group) or ()
    ]
    if not any(entry.get("requests") or entry.get("limits") for entry in resources):
        return "BestEffort"
    requests, limits = ([entry.get(key) or {} for entry in resources] for key in ("requests", "limits"))
    full = all(entry.get(name) for entry in limits for name in ("cpu", "memory"))
    return "Guaranteed" if full and requests == limits else "Burstable"


def with_read_only_parts(kind: Kind, old: Object, new: Object, subresource: str) -> Object:
    """Return the new object with the old values of everything that this kind of write cannot change."""
    kept = (*_KEPT, "ownerReferences", "finalizers") if subresource == "status" else _KEPT
    metadata = {key: value for key, value in new["metadata"].items() if key not in kept}
    metadata |= {key: old["metadata"][key] for key in kept if key in old["metadata"]}
    if subresource == "status":
        return {**old, "metadata": metadata, "status": new["status"]}
    out = {**new, "metadata": metadata}
    if kind.subresource("status") and "status" in old:
        out["status"] = old["status"]
    if kind.kind == "Namespace" and subresource != "finalize":
        out["spec"] = old["spec"]
    return out


def with_generation(kind: Kind, old: Object, new: Object) -> Object:
    """Return the new object, with the next generation if its spec has changed."""
    if kind.kind not in _COUNTED:
        return new
    moved = old["spec"] != new["spec"]
    if kind.kind == "Deployment":
        moved |= (old["metadata"].get("annotations") or {}) != (new["metadata"].get("annotations") or {})
    return {**new, "metadata": {**new["metadata"], "generation": old["metadata"].get("generation", 0) + moved}}


def check_delete(kind: Kind, live: Object, preconditions: Object) -> None:
    """Refuse to delete a protected namespace, or an object that does not fit the preconditions.

    Raises:
        Refusal: 403 or 409.
    """
    metadata = live["metadata"]
    if kind is _NAMESPACES and metadata["name"] in _PROTECTED:
        raise forbidden(kind, metadata["name"], "this namespace may not be deleted")
    for key, label, hint in (
        ("uid", "UID", "The object might have been deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "The object might have been modified"),
    ):
        expected = preconditions.get(key)
        if expected not in {None, metadata[key]}:
            mismatch = f"({expected}) does not match the {label} in record ({metadata[key]})"
            which = f'{kind.kind}{"." if kind.group else ""}{kind.group} "{metadata["name"]}"'
            why = f"Operation cannot be fulfilled on {which}: the {label} in the precondition {mismatch}. {hint}"
            raise Refusal(409, "Conflict", why, {**about(kind, metadata["name"]), "kind": kind.kind})


def marked_for_deletion(kind: Kind, item: Object, grace_seconds: int | None, finalizers: list[str]) -> Object:
    """Return the object with a deletion time; only pods on a node get a grace period."""
    seconds = 0
    if (
        kind.kind == "Pod"
        and item["spec"].get("nodeName")
        and item["status"].get("phase") not in {"Succeeded", "Failed"}
    ):
        seconds = int(item["spec"]["terminationGracePeriodSeconds"]) if grace_seconds is None else max(grace_seconds, 0)
    metadata = {key: value for key, value in item["metadata"].items() if key != "finalizers"}
    if "deletionTimestamp" not in metadata and metadata.get("generation"):
        metadata["generation"] += 1
    if "deletionTimestamp" not in metadata or seconds < metadata.get("deletionGracePeriodSeconds", 0):
        ends = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        metadata |= {"deletionTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "deletionGracePeriodSeconds": seconds}
    if kind is _NAMESPACES:
        metadata.pop("deletionGracePeriodSeconds", None)
        item = {**item, "status": {**item["status"], "phase": "Terminating"}}
    return {**item, "metadata": {**metadata, **({"finalizers": finalizers} if finalizers else {})}}


def is_removable(item: Object) -> bool:
    """Return whether nothing delays the removal of an object that is marked for deletion."""
    metadata = item["metadata"]
    held = metadata.get("finalizers") or (item["kind"] == "Namespace" and item["spec"].get("finalizers"))
    return "deletionTimestamp" in metadata and not held and not metadata.get("deletionGracePeriodSeconds")


def assigned(kind: Kind, pod: Object, node: str) -> Object:
    """Return the pod on a node, as a scheduler assigns it.

    Raises:
        Refusal: 409, it has a node.
    """
    name, assigned = pod["metadata"]["name"], pod["spec"].get("nodeName")
    if assigned:
        why = f'pod {name} is already assigned to node "{assigned}"'
        message = f'Operation cannot be fulfilled on {kind.plural}/binding "{name}": {why}'
        raise Refusal(409, "Conflict", message, {**about(kind, name), "kind": "pods/binding"})
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()}
    others = [condition for condition in pod["status"].get("conditions") or () if condition["type"] != "PodScheduled"]
    status = {**pod["status"], "conditions": [*others, scheduled]}
    return {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}
