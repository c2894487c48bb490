"""Part of the plan of a release: would a rollback to the known-good work, as far as that can be known before.

Each check finds its own obstacles and sends few requests: nothing is asked about what the release leaves as it is.
The checks run side by side, and beside the dry runs of the plan.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain

from prefect_cd.environment.change_set import Action
from prefect_cd.environment.planner import Planner
from prefect_cd.environment.record import Record
from prefect_cd.environment.way_back import (
    Obstacle,
    WayBackFinding,
    missing,
    quota_findings,
    references,
    restarted,
    restored,
)
from prefect_cd.errors import ClusterUnreachable, DeliveryError, Forbidden, NoWayBack
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.release.model import BuiltImage, Release
from prefect_cd.release.registry import find_digest
from prefect_cd.tasks.target import Target

_REGISTRY_TIMEOUT = timedelta(seconds=5)


async def check_way_back(
    cluster: Cluster, target: Target, release: Release, objects: Sequence[Object], base: Record | None
) -> tuple[WayBackFinding, ...]:
    """What would keep a rollback of a release from working; nothing is written.

    That the record of the known-good can be read, its caller knows already.

    Args:
        cluster: the environment's.
        target: the environment.
        release: the candidate.
        objects: all objects of the candidate, labelled and with namespaces.
        base: the known-good; None where nothing runs yet, and there is nothing to restore.

    Raises:
        ClusterUnreachable: the API server does not answer.
    """
    if base is None or target.environment.rollback == "never":
        return ()
    old = await target.objects(cluster, base)
    workloads = restarted(old, objects)
    checks = (
        _image(target, base.image, release.image, workloads),
        _references(cluster, workloads, old),
        _dry_run(cluster, target, restored(old, objects)),
        _quotas(cluster, target, workloads, old, objects),
    )
    return tuple(chain.from_iterable(await parallel(checks)))


def way_back_problem(target: Target, base: Record | None, findings: Sequence[WayBackFinding]) -> NoWayBack | None:
    """Why a release must not go into an environment from which no rollback would work; None if it may."""
    if not findings or not base or target.environment.rollback_check == "warn":
        return None
    return NoWayBack(
        f"a rollback of {target.name} to {base.release_id} would not work, so nothing was written",
        detail="\n".join(f"{finding.where}: {finding.summary}. Fix: {finding.fix}" for finding in findings),
        hint="repair that, or set `rollback_check: warn` for the environment",
    )


async def _image(
    target: Target, image: BuiltImage | None, candidate: BuiltImage, workloads: Sequence[Object]
) -> list[WayBackFinding]:
    """The known-good's image has to be in its registry still: nodes may have removed it."""
    if image is None or image.reference == candidate.reference or image.reference not in str(workloads):
        return []
    try:
        there = await asyncio.to_thread(
            find_digest,
            image.name,
            image.digest,
            insecure=target.insecure_registry,
            token_service=target.token_service,
            timeout=_REGISTRY_TIMEOUT,
        )
    except DeliveryError as error:
        summary = f"nobody knows whether the known-good's image is there: {error.reason}"
        return [WayBackFinding(obstacle=Obstacle.UNKNOWN, where=image.reference, summary=summary, fix=error.hint)]
    if there:
        return []
    return [
        WayBackFinding(
            obstacle=Obstacle.IMAGE,
            where=image.reference,
            summary="the known-good's image is no longer in its registry",
            fix="push it again, and keep the images of known-good releases when the registry is cleaned up",
        )
    ]


async def _references(cluster: Cluster, workloads: Sequence[Object], old: Sequence[Object]) -> list[WayBackFinding]:
    found = references(workloads, old)
    refs = sorted({reference.ref for reference in found})
    try:
        live = dict(zip(refs, await parallel(cluster.get(ref) for ref in refs), strict=True))
    except Forbidden:  # preflight has warned of it
        return []
    return [finding for reference in found if (finding := missing(reference, live[reference.ref]))]


async def _dry_run(cluster: Cluster, target: Target, objects: Sequence[Object]) -> list[WayBackFinding]:
    """What the server would refuse: for example, a policy may have come since the known-good was written.

    What a rollback replaces, or keeps because it cannot go back in part, is no obstacle: the plan names it.
    """
    planner = Planner(cluster, target.ownership, force=target.environment.take_over, restoring=True)

    async def dry_run(item: Object) -> WayBackFinding | None:
        try:
            change = await planner.change_of(item, await planner.ours(Ref.of(item)))
            reasons = [field.reason for field in change.kept] if change.action == Action.KEPT else []
        except ClusterUnreachable:
            raise
        except DeliveryError as error:
            reasons = [error.reason]
        if not reasons:
            return None
        summary = f"the API server would refuse the known-good's object: {'; '.join(reasons)}"
        fix = "correct what refuses it, for example an admission policy or webhook"
        return WayBackFinding(obstacle=Obstacle.REFUSED, where=str(Ref.of(item)), summary=summary, fix=fix)

    return [finding for finding in await parallel(map(dry_run, objects)) if finding]


async def _quotas(
    cluster: Cluster, target: Target, workloads: Sequence[Object], old: Sequence[Object], new: Sequence[Object]
) -> list[WayBackFinding]:
    if not workloads:
        return []
    try:
        kind = await cluster.kind("v1", "ResourceQuota")
        quotas = await cluster.list(kind, target.environment.namespace)
    except DeliveryError as error:
        if isinstance(error, ClusterUnreachable):
            raise
        return []  # we may not read them, or this cluster has none
    return quota_findings(quotas, workloads, old, new)
