"""Make every version stale that the holder of the lock before us may still know.

A process that was stopped between guard and request writes when it goes on, at the version that it has planned for.
What its successor has changed is refused to it by that version. What its successor has found right, and so has not
written, is not: it still has this version. So before a successor reads anything that it decides by, it gives each
object that the interrupted rollout may write another version, by an annotation. Pods do not change by it.

An object that does not exist has no version: a late request that creates one is found by the next release, which
removes what it brought in. Where that is not enough, `deployments/kubernetes/fencing` lets the API server refuse it.
"""

from collections.abc import Iterable

from prefect_cd.environment.changes import HOLDS_DATA
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record
from prefect_cd.environment.record_format import record_ref
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.labels import EPOCH


async def fence(cluster: Cluster, ownership: Ownership, interrupted: Record, base: Record, lock: Lock) -> None:
    """Give the objects and the record of an interrupted rollout new versions.

    Args:
        cluster: the API server.
        ownership: the environment.
        interrupted: the record of the rollout, still open; one that somebody deleted has no objects.
        base: what the environment is brought back to.
        lock: held by the caller, in a later epoch than that of the rollout.

    Raises:
        LockLost: it is no longer held.
    """
    written = {Ref.of(item) for item in (*interrupted.objects, *base.objects)}
    known = {ref for ref in interrupted.known if ref.kind not in HOLDS_DATA}  # these are never pruned
    pruned = await _ours(cluster, ownership, known - written)
    refs = [record_ref(ownership, interrupted.number), *written, *pruned]
    await parallel(cluster.annotate(ref, {EPOCH: str(lock.epoch)}, guard=lock.guard) for ref in refs)


async def _ours(cluster: Cluster, ownership: Ownership, refs: Iterable[Ref]) -> list[Ref]:
    """Those of the objects that exist and carry our labels: no other one is ever pruned."""
    live_objects = await parallel(cluster.get(ref) for ref in refs)
    return [Ref.of(live) for live in live_objects if live is not None and ownership.owns(live)]
