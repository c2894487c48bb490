"""Part of preflight and of the plan of a release: does its environment have what the release needs and does not bring?

Only what starts with the release is looked up, by name, and what we may not read counts as not known. Everything is
asked side by side, so that one answer lists all that is missing.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import anyio

from prefect_cd.environment.admission_requirements import Refusal, refusal, unmet_quotas
from prefect_cd.environment.image_requirements import Facts, image_uses, is_reference, unmet_images
from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.requirements import (
    Need,
    Unmet,
    incomplete,
    needs,
    outside,
    starting,
    storage_classes,
    unmet_node_selectors,
    unmet_references,
    unmet_storage_classes,
)
from prefect_cd.environment.service_requirements import as_admitted, services_to_check, unmet_services
from prefect_cd.errors import ClusterUnreachable, DeliveryError, InvalidManifest, RequirementMissing
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object, dig_mapping
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.pod_references import CLUSTER_SCOPED
from prefect_cd.manifests.pod_templates import dry_run_pod
from prefect_cd.release.model import ImageReference
from prefect_cd.release.registry import find_config, find_digest, split
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target

_DRY_RUN_SECONDS = 10.0
"""A webhook may take its time; a pod that was not answered for is not known to be refused."""
_REGISTRY_TIMEOUT = timedelta(seconds=3)
_MOST_SAID = 10
"""How many things the first sentence of the error names; the rest is in the log."""
_CREATING_KINDS = (
    ("external-secrets.io/v1", "ExternalSecret"),
    ("external-secrets.io/v1beta1", "ExternalSecret"),
    ("bitnami.com/v1alpha1", "SealedSecret"),
    ("cert-manager.io/v1", "Certificate"),
)
"""Custom resources from which controllers make Secrets."""
_T = TypeVar("_T")


async def check_requirements(
    cluster: Cluster, target: Target, objects: Sequence[Object], runs: Sequence[Object], image: str
) -> tuple[Unmet, ...]:
    """What a release needs of an environment and does not find there; nothing is written.

    Args:
        cluster: the environment's.
        target: the environment.
        objects: of the release, with namespaces.
        runs: the objects of the version that runs: what starts no pods needs nothing new.
        image: the name of the pipeline's image, whose registry the nodes and we can reach.

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
    gone = {ref for ref, item in live.items() if item is None} | {Ref.of(item) for item in objects}
    pods = await parallel(_admission(cluster, item, objects, gone, ask=has_namespace) for item in workloads)
    checks = [
        _references(cluster, namespace, wanted, live, objects, has_namespace=has_namespace),
        _storage(cluster, objects),
        _nodes_and_images(cluster, target, pods, runs, image),
    ]
    if has_namespace:
        checks += [_quotas(cluster, namespace, workloads, objects), _services(cluster, namespace, objects, runs, pods)]
    found = [*chain.from_iterable(await parallel(checks)), *(unmet for pod in pods for unmet in pod.unmet)]
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
    missing = [f"{target.name}: {unmet.where}: {unmet.summary}" for target, unmet in certain]
    fixes = [f"{line}. Fix: {unmet.fix}" for line, (_, unmet) in zip(missing, certain, strict=True)]
    more = [f"and {len(missing) - _MOST_SAID} more"] if len(missing) > _MOST_SAID else []
    names = " and ".join(dict.fromkeys(target.name for target, _ in certain))
    return RequirementMissing(
        f"the release cannot run in {names}, so nothing was written there: "
        + "; ".join([*missing[:_MOST_SAID], *more]),
        detail="\n".join(fixes),
        hint=(certain[0][1].fix if len(certain) == 1 else "each of them has its fix")
        + ". To let the rollout decide instead, set `requirement_check: warn` for the environment",
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


@dataclass(frozen=True)
class _Pod:
    """A pod of a workload: its spec as the cluster would admit it, or else as it is written, and what is refused."""

    workload: Object
    spec: Object
    admitted: Object | None = None
    unmet: tuple[Unmet, ...] = ()


async def _admission(
    cluster: Cluster, workload: Object, objects: Sequence[Object], gone: set[Ref], *, ask: bool
) -> _Pod:
    """What admission says to a pod: a dry run of it, again without each thing that is missing."""
    pod = dry_run_pod(workload)
    if pod is None or not ask:  # the dry run of a bare pod has said it
        spec = pod["spec"] if pod else dig_mapping(workload, "spec")
        return _Pod(workload, spec)
    found: list[Unmet] = []
    spec = pod["spec"] = _without(pod["spec"], gone)
    while True:
        answer = await _dry_run(cluster, pod)
        if isinstance(answer, dict):
            return _Pod(workload, dig_mapping(answer, "spec"), admitted=answer, unmet=tuple(found))
        result = refusal(answer, workload, objects) if answer else Refusal(None)
        found += [result.unmet] if result.unmet else []
        if result.field not in spec:
            return _Pod(workload, spec, unmet=tuple(found))
        for field in _fields(result.field):
            spec.pop(field, None)


async def _dry_run(cluster: Cluster, pod: Object) -> Object | str:
    """The pod as the server would admit it, or why it would not; empty when we do not know."""
    try:
        with anyio.fail_after(_DRY_RUN_SECONDS):
            return await cluster.create(pod, dry_run=True)
    except InvalidManifest as error:
        return error.reason
    except ClusterUnreachable as error:  # an answer of 500 about a webhook; whether the server is away, others tell
        return error.reason if "webhook" in error.reason else ""
    except (DeliveryError, ApiError, TimeoutError):
        return ""


def _without(spec: Object, gone: set[Ref]) -> Object:
    """A pod's spec without the account and the classes that do not exist yet: they are reported by themselves."""
    absent = {(ref.kind, ref.name) for ref in gone}
    kinds = {f"{kind[0].lower()}{kind[1:]}Name": kind for kind in ("ServiceAccount", *CLUSTER_SCOPED)}
    left_out = {field for key, kind in kinds.items() if (kind, spec.get(key)) in absent for field in _fields(key)}
    return {key: value for key, value in spec.items() if key not in left_out}


def _fields(field: str) -> tuple[str, ...]:
    return ("serviceAccountName", "serviceAccount") if field == "serviceAccountName" else (field,)


async def _quotas(
    cluster: Cluster, namespace: str, workloads: Sequence[Object], objects: Sequence[Object]
) -> list[Unmet]:
    quotas = await _known(_list(cluster, "ResourceQuota", namespace), [])
    return unmet_quotas(quotas, workloads, objects)


async def _services(
    cluster: Cluster, namespace: str, objects: Sequence[Object], runs: Sequence[Object], pods: Sequence[_Pod]
) -> list[Unmet]:
    services = services_to_check(objects, runs)
    if not services:
        return []
    live = await _known(_list(cluster, "Pod", namespace), None)
    admitted = {Ref.of(pod.workload).identity: pod.admitted for pod in pods if pod.admitted}
    return [] if live is None else unmet_services(services, as_admitted(objects, admitted), live)


async def _nodes_and_images(
    cluster: Cluster, target: Target, pods: Sequence[_Pod], runs: Sequence[Object], own_image: str
) -> list[Unmet]:
    """What the nodes do not have, and what the images lack for them; images that run already are not looked up."""
    running = str(runs)
    uses = [(pod, use) for pod in pods for use in image_uses(pod.workload, pod.spec, own_image)]
    uses = [(pod, use) for pod, use in uses if use.image not in running]
    images = {use.image for _, use in uses if is_reference(use.image)}
    selectors = any(pod.spec.get("nodeSelector") for pod in pods)
    nodes = await _known(_list(cluster, "Node"), None) if images or selectors else None
    own_host = split(own_image)[0]
    near = {image for image in images if _host(image) == own_host}
    deep = {use.image for _, use in uses if nodes or (use.non_root and use.user is None)}
    lookups = [_facts(target, image, deep=image in deep) for image in sorted(near)]
    facts = dict(chain.from_iterable(await parallel(lookups)))
    unmet = (
        unmet_images([use], facts, nodes, nodes_pull_from=near, admitted=pod.admitted is not None) for pod, use in uses
    )
    return [*unmet_node_selectors([pod.workload for pod in pods], nodes or []), *chain.from_iterable(unmet)]


def _host(image: str) -> str:
    return split(ImageReference.of(image).repository)[0]


async def _facts(target: Target, image: str, *, deep: bool) -> list[tuple[str, Facts]]:
    """What the pipeline's own registry knows about an image, if it says it to us.

    No other registry is asked: a commit must not choose a host that we send requests to. Images of registries that
    `image.pin` lists have been looked up when the release was rendered.

    Args:
        target: for the settings of the registry.
        image: the reference.
        deep: whether the image's configuration is wanted, too.
    """
    name, tag, digest = ImageReference.of(image)

    def look_up() -> Facts:
        exists = find_digest(
            name,
            digest or tag or "latest",
            insecure=target.insecure_registry,
            token_service=target.token_service,
            timeout=_REGISTRY_TIMEOUT,
        )
        if exists is None or not deep:
            return Facts(exists is not None)
        config = find_config(
            name,
            exists,
            insecure=target.insecure_registry,
            token_service=target.token_service,
            timeout=_REGISTRY_TIMEOUT,
        )
        return Facts(exists=True, user=config.user, platforms=config.platforms)

    try:
        return [(image, await asyncio.to_thread(look_up))]
    except DeliveryError:
        return []


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
