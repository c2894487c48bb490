"""What the server itself writes into an object when it comes, changes and goes: identity, generation, first status.

Source: the API conventions (Metadata, Spec and Status), "Garbage Collection" and "Pod Lifecycle" in the Kubernetes
documentation, and the behaviour of a server of 1.36. Of the admission plug-ins only what people see is here: a
namespace that is not there or ends, a service account that is not there; a pod gets no token and no tolerations.
"""

import random
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

from prefect_cd.local.apiserver import schema, values
from prefect_cd.local.apiserver.errors import Cause, Refusal, about, forbidden, not_found
from prefect_cd.local.apiserver.kinds import BY_NAME, Kind
from prefect_cd.local.apiserver.managers import now
from prefect_cd.local.apiserver.storage import Store

Object = dict[str, Any]
_NAMESPACES, _ACCOUNTS = BY_NAME["v1", "Namespace"], BY_NAME["v1", "ServiceAccount"]
_COUNTED = {"Deployment", "ReplicaSet", "Pod"}
"""kinds with a generation"""
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_KEPT = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName")
_PROTECTED = {"default", "kube-system", "kube-public"}


def named(item: Object) -> Object:
    """The object with a name: one is made up where only its beginning is given."""
    metadata = item["metadata"]
    if metadata.get("name") or not metadata.get("generateName"):
        return item
    name = metadata["generateName"] + "".join(random.choices(_LETTERS, k=5))  # noqa: S311  a name is no secret
    return {**item, "metadata": {**metadata, "name": name}}


def admit(store: Store, kind: Kind, item: Object) -> None:
    """Refuse what comes into a namespace that is not there or is going.

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


def born(kind: Kind, item: Object) -> Object:
    """The object as it is when it comes into being."""
    ends = {"deletionTimestamp", "deletionGracePeriodSeconds", "generation"}
    metadata = {key: each for key, each in item["metadata"].items() if key not in ends}
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
    """How much of what its containers may use is promised to a pod."""
    found = [each["resources"] for group in ("initContainers", "containers") for each in spec.get(group) or ()]
    if not any(each.get("requests") or each.get("limits") for each in found):
        return "BestEffort"
    asked, limits = ([each.get(key) or {} for each in found] for key in ("requests", "limits"))
    full = all(each.get(name) for each in limits for name in ("cpu", "memory"))
    return "Guaranteed" if full and asked == limits else "Burstable"


def isolated(kind: Kind, old: Object, new: Object, subresource: str) -> Object:
    """The new object with everything that cannot be written this way as it was before."""
    kept = (*_KEPT, "ownerReferences", "finalizers") if subresource == "status" else _KEPT
    metadata = {key: each for key, each in new["metadata"].items() if key not in kept}
    metadata |= {key: old["metadata"][key] for key in kept if key in old["metadata"]}
    if subresource == "status":
        return {**old, "metadata": metadata, "status": new["status"]}
    out = {**new, "metadata": metadata}
    if kind.subresource("status") and "status" in old:
        out["status"] = old["status"]
    if kind.kind == "Namespace" and subresource != "finalize":
        out["spec"] = old["spec"]
    return out


def aged(kind: Kind, old: Object, new: Object) -> Object:
    """The new object with the next generation where what is wanted has changed."""
    if kind.kind not in _COUNTED:
        return new
    moved = old["spec"] != new["spec"]
    if kind.kind == "Deployment":
        moved |= (old["metadata"].get("annotations") or {}) != (new["metadata"].get("annotations") or {})
    return {**new, "metadata": {**new["metadata"], "generation": old["metadata"].get("generation", 0) + moved}}


def refuse_delete(kind: Kind, live: Object, preconditions: Object) -> None:
    """Refuse to delete the namespaces that are always there, and an object that is not the one that is meant.

    Raises:
        Refusal: 403 or 409.
    """
    metadata = live["metadata"]
    if kind is _NAMESPACES and metadata["name"] in _PROTECTED:
        raise forbidden(kind, metadata["name"], "this namespace may not be deleted")
    for key, said, hint in (
        ("uid", "UID", "The object might have been deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "The object might have been modified"),
    ):
        asked = preconditions.get(key)
        if asked not in {None, metadata[key]}:
            mismatch = f"({asked}) does not match the {said} in record ({metadata[key]})"
            which = f'{kind.kind}{"." if kind.group else ""}{kind.group} "{metadata["name"]}"'
            why = f"Operation cannot be fulfilled on {which}: the {said} in the precondition {mismatch}. {hint}"
            raise Refusal(409, "Conflict", why, {**about(kind, metadata["name"]), "kind": kind.kind})


def dying(kind: Kind, item: Object, asked: int | None, finalizers: list[str]) -> Object:
    """The object as it is between the request to delete it and its end; only pods on a node are given any time."""
    seconds = 0
    if (
        kind.kind == "Pod"
        and item["spec"].get("nodeName")
        and item["status"].get("phase") not in {"Succeeded", "Failed"}
    ):
        seconds = int(item["spec"]["terminationGracePeriodSeconds"]) if asked is None else max(asked, 0)
    metadata = {key: each for key, each in item["metadata"].items() if key != "finalizers"}
    if "deletionTimestamp" not in metadata and metadata.get("generation"):
        metadata["generation"] += 1
    if "deletionTimestamp" not in metadata or seconds < metadata.get("deletionGracePeriodSeconds", 0):
        ends = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        metadata |= {"deletionTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "deletionGracePeriodSeconds": seconds}
    if kind is _NAMESPACES:
        metadata.pop("deletionGracePeriodSeconds", None)
        item = {**item, "status": {**item["status"], "phase": "Terminating"}}
    return {**item, "metadata": {**metadata, **({"finalizers": finalizers} if finalizers else {})}}


def finished(item: Object) -> bool:
    """Whether nothing holds an object any more that is to be deleted."""
    metadata = item["metadata"]
    held = metadata.get("finalizers") or (item["kind"] == "Namespace" and item["spec"].get("finalizers"))
    return "deletionTimestamp" in metadata and not held and not metadata.get("deletionGracePeriodSeconds")


def bound(kind: Kind, pod: Object, node: str) -> Object:
    """The pod on a node, as a scheduler puts it there.

    Raises:
        Refusal: 409, it has a node.
    """
    name, assigned = pod["metadata"]["name"], pod["spec"].get("nodeName")
    if assigned:
        why = f'pod {name} is already assigned to node "{assigned}"'
        message = f'Operation cannot be fulfilled on {kind.plural}/binding "{name}": {why}'
        raise Refusal(409, "Conflict", message, {**about(kind, name), "kind": "pods/binding"})
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()}
    others = [each for each in pod["status"].get("conditions") or () if each["type"] != "PodScheduled"]
    status = {**pod["status"], "conditions": [*others, scheduled]}
    return {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}
