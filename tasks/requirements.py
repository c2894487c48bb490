"""Part of preflight and of the plan of a release: does its environment have what the release needs and does not bring?

Only what starts with the release is looked up, by name, and what we may not read counts as not known. Everything is
asked side by side, so that one answer lists all that is missing.
"""

from collections.abc import Awaitable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

import anyio

from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.requirements import (
    Need,
    Unmet,
    incomplete,
    needs,
    outside,
    refusal,
    services_to_check,
    starting,
    storage_classes,
    unmet_node_selectors,
    unmet_quotas,
    unmet_references,
    unmet_services,
    unmet_storage_classes,
)
from prefect_cd.errors import ClusterUnreachable, DeliveryError, InvalidManifest, RequirementMissing
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object, dig
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.pod_references import CLUSTER_SCOPED
from prefect_cd.manifests.pod_templates import dry_run_pod
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target

_DRY_RUN_SECONDS = 10.0
"""A webhook may take its time; a pod that was not answered for is not known to be refused."""
_CREATING_KINDS = (
    ("external-secrets.io/v1", "ExternalSecret"),
    ("external-secrets.io/v1beta1", "ExternalSecret"),
    ("bitnami.com/v1alpha1", "SealedSecret"),
    ("cert-manager.io/v1", "Certificate"),
)
"""Custom resources from which controllers make Secrets."""
_T = TypeVar("_T")


async def check_requirements(
    cluster: Cluster, target: Target, objects: Sequence[Object], runs: Sequence[Object]
) -> tuple[Unmet, ...]:
    """What a release needs of an environment and does not find there; nothing is written.

    Args:
        cluster: the environment's.
        target: the environment.
        objects: of the release, with namespaces.
        runs: the objects of the version that runs: what starts no pods needs nothing new.

    Raises:
        ClusterUnreachable: the API server does not answer.
    """
    workloads = starting(objects, runs)
    if not workloads:
        return ()
    namespace = target.environment.namespace
    wanted = needs(workloads, namespace)
    has_namespace = await namespace_exists(cluster, namespace)
    live = await _live(cluster, outside(wanted, objects))
    checks = [
        _references(cluster, namespace, wanted, live, objects, has_namespace=has_namespace),
        _storage(cluster, objects),
        _nodes(cluster, workloads),
    ]
    if has_namespace:
        absent = {ref for ref, item in live.items() if item is None}
        inside = {Ref.of(item) for item in objects}
        checks += [_admission(cluster, workload, objects, absent | inside) for workload in workloads]
        checks += [_quotas(cluster, namespace, workloads, objects)]
        checks += [_services(cluster, namespace, objects, runs)]
    found = chain.from_iterable(await parallel(checks))
    return tuple({(unmet.where, unmet.summary): unmet for unmet in found}.values())


def requirement_problem(findings: Iterable[tuple[Target, Unmet]]) -> RequirementMissing | None:
    """The error that lists all that keeps releases out of their environments; None if nothing does."""
    certain = [
        (target, unmet)
        for target, unmet in findings
        if unmet.certain and target.environment.requirement_check == "stop"
    ]
    if not certain:
        return None
    lines = [f"{target.name}: {unmet.where}: {unmet.summary}. Fix: {unmet.fix}" for target, unmet in certain]
    names = ", ".join(dict.fromkeys(target.name for target, _ in certain))
    return RequirementMissing(
        f"{names} cannot run the release as things are, so nothing was written there",
        detail="\n".join(lines),
        hint="repair that and start again, or set `requirement_check: warn` for the environment",
    )


def warn_of_requirements(target: Target, findings: Iterable[Unmet]) -> None:
    """Log what is missing and does not stop the release."""
    for unmet in findings:
        if not unmet.certain or target.environment.requirement_check == "warn":
            log().warning("%s: %s: %s. Fix: %s", target.name, unmet.where, unmet.summary, unmet.fix)


async def _known(work: Awaitable[_T], otherwise: _T) -> _T:
    """The answer of the cluster, or `otherwise` where it gives none to us.

    Raises:
        ClusterUnreachable: it does not answer at all.
    """
    try:
        return await work
    except ClusterUnreachable:
        raise
    except (DeliveryError, ApiError):  # we may not read it, or this cluster does not have the kind
        return otherwise


# --- objects that pods refer to --------------------------------------------------------------------------------------


async def _live(cluster: Cluster, wanted: Sequence[Need]) -> dict[Ref, Object | None]:
    """The objects that pods refer to, None for those that do not exist; without those that we may not read."""

    async def read(need: Need) -> list[tuple[Ref, Object | None]]:
        async def pair() -> list[tuple[Ref, Object | None]]:
            return [(need.ref, await cluster.get(need.ref))]

        return await _known(pair(), [])

    return dict(chain.from_iterable(await parallel(map(read, wanted))))


async def _references(
    cluster: Cluster,
    namespace: str,
    wanted: Sequence[Need],
    live: dict[Ref, Object | None],
    objects: Sequence[Object],
    *,
    has_namespace: bool,
) -> list[Unmet]:
    brought = dict(await parallel(_written(cluster, need, item) for need, item in incomplete(wanted, objects)))
    found = unmet_references(wanted, {**live, **brought}, objects, has_namespace=has_namespace)
    if not any(unmet.certain for unmet in found) or not has_namespace:
        return found
    others = await _others(cluster, namespace)  # rarely asked for: something is missing
    return unmet_references(wanted, {**live, **brought}, [*objects, *others])


async def _written(cluster: Cluster, need: Need, item: Object) -> tuple[Ref, Object]:
    """An object of the release as it will be: keys of other managers stay in it."""
    return need.ref, await _known(cluster.apply(item, dry_run=True, force=True), item)


async def _others(cluster: Cluster, namespace: str) -> list[Object]:
    """The objects of the namespace from which controllers make Secrets."""

    async def list_kind(api_version: str, name: str) -> list[Object]:
        if not await cluster.is_served(api_version, name):
            return []
        return await cluster.list(await cluster.kind(api_version, name), namespace)

    lists = await parallel(_known(list_kind(*kind), []) for kind in _CREATING_KINDS)
    return list(chain.from_iterable(lists))


# --- what the cluster says -------------------------------------------------------------------------------------------


async def _admission(cluster: Cluster, workload: Object, objects: Sequence[Object], absent: set[Ref]) -> list[Unmet]:
    """What admission would refuse about a pod: a dry run of it, again without each thing that is missing."""
    pod = dry_run_pod(workload)
    found: list[Unmet] = []
    if pod is None or workload["kind"] == "Pod":  # its own dry run says it
        return found
    spec = pod["spec"] = _without_absent(pod["spec"], absent)
    while True:
        answer = await _dry_run(cluster, pod)
        if not answer:
            return found
        result = refusal(answer, workload, objects)
        if result.unmet:
            found.append(result.unmet)
        if result.field not in spec:
            return found
        for field in _fields(result.field):
            spec.pop(field, None)


async def _dry_run(cluster: Cluster, pod: Object) -> str:
    """The reason why the server would refuse a pod; empty when it would not, or when we do not know."""
    try:
        with anyio.fail_after(_DRY_RUN_SECONDS):
            await cluster.create(pod, dry_run=True)
    except InvalidManifest as error:
        return error.reason
    except ClusterUnreachable as error:  # one answer of 500 or no answer from a webhook; other requests tell which
        return error.reason if "webhook" in error.reason else ""
    except (DeliveryError, ApiError, TimeoutError):
        return ""
    return ""


def _without_absent(spec: Object, absent: set[Ref]) -> Object:
    """A pod's spec without the account and the classes that do not exist yet: they are reported by themselves."""
    names = {(ref.kind, ref.name) for ref in absent}
    kinds = {
        "serviceAccountName": "ServiceAccount",
        **{f"{kind[0].lower()}{kind[1:]}Name": kind for kind in CLUSTER_SCOPED},
    }
    gone = {field for key, kind in kinds.items() if (kind, spec.get(key)) in names for field in _fields(key)}
    return {key: value for key, value in spec.items() if key not in gone}


def _fields(field: str) -> tuple[str, ...]:
    return ("serviceAccountName", "serviceAccount") if field == "serviceAccountName" else (field,)


async def _quotas(
    cluster: Cluster, namespace: str, workloads: Sequence[Object], objects: Sequence[Object]
) -> list[Unmet]:
    quotas = await _known(_list(cluster, "ResourceQuota", namespace), [])
    return unmet_quotas(quotas, workloads, objects)


async def _services(cluster: Cluster, namespace: str, objects: Sequence[Object], runs: Sequence[Object]) -> list[Unmet]:
    services = services_to_check(objects, runs)
    if not services:
        return []
    pods = await _known(_list(cluster, "Pod", namespace), None)
    return [] if pods is None else unmet_services(services, objects, pods)


async def _nodes(cluster: Cluster, workloads: Sequence[Object]) -> list[Unmet]:
    if not any(dig(item, "spec", "template", "spec", "nodeSelector") for item in workloads):
        return []
    return unmet_node_selectors(workloads, await _known(_list(cluster, "Node"), []))


async def _storage(cluster: Cluster, objects: Sequence[Object]) -> list[Unmet]:
    classes = storage_classes(objects)
    brought = {item["metadata"]["name"] for item in objects if item["kind"] == "StorageClass"}
    refs = [Ref("storage.k8s.io/v1", "StorageClass", "", name) for name in sorted(set(classes) - brought)]

    async def absent(ref: Ref) -> bool:
        return await cluster.get(ref) is None

    answers = await parallel(_known(absent(ref), otherwise=False) for ref in refs)
    return unmet_storage_classes(classes, {ref.name for ref, gone in zip(refs, answers, strict=True) if gone})


async def _list(cluster: Cluster, name: str, namespace: str = "") -> list[Object]:
    return await cluster.list(await cluster.kind("v1", name), namespace)
