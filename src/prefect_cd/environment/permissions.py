"""What we have to be allowed to do in an environment: one table, for preflight and for the Roles. Pure.

Preflight asks the API server for each verb, and `prefect-cd rbac` grants exactly these. A verb is required where a
release, a rollback or a recovery would end without it; where it only shows more, preflight warns of what is not seen.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from prefect_cd.environment.changes import HOLDS_DATA
from prefect_cd.kube.resources import Kind
from prefect_cd.pipeline.models import Environment
from prefect_cd.rollout.watch.related import REVISION_KINDS, WATCHED_KINDS, has_rollout

_SCALABLE_KINDS = frozenset({"Deployment", "StatefulSet"})


@dataclass(frozen=True, order=True)
class Permission:
    """One verb on one resource, and what it is for."""

    group: str
    resource: str
    verb: str
    purpose: str
    required: bool = True
    namespaced: bool = True

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {resource}"


FORGES_RECORDS = tuple(
    Permission("", "secrets", verb, "records of releases of another environment") for verb in ("create", "patch")
)
"""Any of these lets an identity write a record, and so change what a rollback restores where records are not signed."""


def permissions(kinds: Collection[Kind], environment: Environment, *, known: Iterable[Kind] = ()) -> list[Permission]:
    """Every permission for an environment, each verb of a resource once, in a fixed order.

    Args:
        kinds: of the objects in the manifests.
        environment: its settings; gates and a probe may need the environment's Service.
        known: kinds of objects that earlier releases brought in: the next one may have to remove them.
    """
    merged: dict[tuple[str, str, str], Permission] = {}
    for permission in _all(kinds, environment, known):
        key = permission.group, permission.resource, permission.verb
        if key not in merged or (permission.required and not merged[key].required):
            merged[key] = permission
    return sorted(merged.values())


def cluster_wide(environments: Iterable[Environment]) -> list[Permission]:
    """What only a ClusterRole can grant and what is of use without being needed: see `prefect-cd rbac --cluster-wide`.

    With it, namespaces that do not exist are created, and a Service of type NodePort is reached at a node's address.
    """
    optional: dict[str, bool] = {"required": False, "namespaced": False}
    found = list(_permissions("", "namespaces", "get create patch", "create the namespace", **optional))
    if any(map(_requests_a_service, environments)):
        found += _permissions("", "nodes", "list", "addresses of node ports", **optional)
    return found


def _all(kinds: Collection[Kind], environment: Environment, known: Iterable[Kind]) -> Iterator[Permission]:
    yield from _permissions("", "secrets", "get list create patch delete", "records of releases")
    yield from _permissions("coordination.k8s.io", "leases", "get create update", "the lock")
    yield from _permissions("", "namespaces", "get", "whether the namespace is being deleted", required=False)
    yield from _permissions("", "resourcequotas", "list", "whether a quota allows a rollback", required=False)
    yield from _permissions("", "configmaps", "get", "whether what pods refer to exists", required=False)
    watched = {kind for kind in kinds if _has_rollout(kind)}
    services = {kind for kind in kinds if (kind.api_version, kind.kind) == ("v1", "Service")}
    for kind in kinds:
        yield from _of_manifests(kind, watch=kind in watched or (kind in services and bool(watched)))
    for kind in known:
        yield from _of_known(kind)
    workloads = {kind.kind for kind in watched} & WATCHED_KINDS
    if workloads:
        yield from _of_workloads(workloads)
    if workloads & _SCALABLE_KINDS:
        purpose = "which replicas an autoscaler sets"
        yield from _permissions("autoscaling", "horizontalpodautoscalers", "list", purpose, required=False)
    if services and watched:
        yield from _of_services()
    if _requests_a_service(environment):
        purpose = f"the environment's url {environment.url}"
        yield from _permissions("", "services", "get", purpose)
        yield from _permissions("discovery.k8s.io", "endpointslices", "list", purpose)
        yield from _permissions("", "pods/portforward", "get create", f"{purpose} without an address", required=False)


def _of_manifests(kind: Kind, *, watch: bool) -> Iterator[Permission]:
    verbs = "get list create patch" + (" watch" if watch else "")
    if kind.kind not in HOLDS_DATA:  # these are never deleted
        verbs += " delete"
    yield from _permissions(kind.group, kind.plural, verbs, "the manifests", namespaced=kind.namespaced)


def _of_known(kind: Kind) -> Iterator[Permission]:
    verbs = "get list patch" + ("" if kind.kind in HOLDS_DATA else " delete")
    purpose = "objects of earlier releases"
    yield from _permissions(kind.group, kind.plural, verbs, purpose, namespaced=kind.namespaced)


def _of_workloads(names: Collection[str]) -> Iterator[Permission]:
    yield from _permissions("", "pods", "list watch", "the verdict on a rollout")
    yield from _permissions("", "events", "list watch", "the verdict on a rollout")
    yield from _permissions("", "pods/log", "get", "last lines of a container that crashed")
    yield from _permissions("", "pods", "create", "a dry run: whether pods are admitted by now", required=False)
    for resource in ("serviceaccounts", "persistentvolumeclaims"):
        yield from _permissions("", resource, "get", "whether what pods refer to exists", required=False)
    for revision in sorted({REVISION_KINDS[name] for name in names if name in REVISION_KINDS}):
        yield from _permissions("apps", f"{revision.lower()}s", "list watch", "the verdict on a rollout")


def _of_services() -> Iterator[Permission]:
    yield from _permissions("discovery.k8s.io", "endpointslices", "list watch", "the verdict on a Service")
    purpose = "whether a program listens on the ports of Services"
    yield from _permissions("", "pods/proxy", "get", purpose, required=False)
    yield from _permissions("", "pods/portforward", "get create", purpose, required=False)
    yield from _permissions("networking.k8s.io", "networkpolicies", "list", purpose, required=False)


def _permissions(
    group: str, resource: str, verbs: str, purpose: str, *, required: bool = True, namespaced: bool = True
) -> Iterator[Permission]:
    for verb in verbs.split():
        yield Permission(group, resource, verb, purpose, required, namespaced)


def _has_rollout(kind: Kind) -> bool:
    return has_rollout({"apiVersion": kind.api_version, "kind": kind.kind})


def _requests_a_service(environment: Environment) -> bool:
    """Whether requests are sent to the environment's Service."""
    return (environment.url or "").startswith("service/") and bool(environment.gates or environment.probe)


__all__ = ["FORGES_RECORDS", "Permission", "cluster_wide", "permissions"]
