"""Stages: write a version into an environment; remove what it no longer contains."""

from datetime import datetime, timezone

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from pydantic import Field

from prefect_cd.environment import apply as core
from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.lease import Lock
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.release.model import Commit, Result
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.summary import listed
from prefect_cd.tasks.target import Target, id_of


class Applied(Result):
    """A version that was written into an environment; the proof that a rollout can be watched."""

    target: Target
    release_id: str
    commit: Commit | None
    objects: tuple[Object, ...]
    changes: ChangeSet
    since: datetime = Field(description="just before the first write: what is older proves nothing about this rollout")


@task(name="apply", task_run_name="apply to {planned.target.name}", cache_policy=NO_CACHE, **RETRIES)
@listed
def apply(planned: Plan, lock: Lock) -> Applied:
    """Write the objects that the plan creates or configures; when nothing differs, nothing is written.

    Args:
        planned: what was dry-run and compared under the same lock.
        lock: held by the caller; each write asks it first.

    Raises:
        OwnershipConflict: another manager took a field over since the plan.
        LockLost: we are no longer the writer.
        ClusterUnreachable: no answer for longer than our patience, or it is unknown whether the lock is still ours;
            retried.
    """
    since, ownership = _first_attempt(), planned.target.ownership

    async def run(cluster: Cluster) -> None:
        await core.apply(
            cluster,
            ownership,
            planned.objects,
            planned.changes,
            force=planned.target.environment.take_over,
            take_back=planned.target.takes_back,
            restoring=planned.restoring,
            lock=lock,
        )

    planned.target.run(run)
    log().info("%s: %s", planned.target.name, planned.changes)
    return Applied(
        target=planned.target,
        release_id=id_of(planned.version),
        commit=planned.version.commit,
        objects=planned.objects,
        changes=planned.changes,
        since=since,
    )


def _first_attempt() -> datetime:
    """When the running task began: what a failed earlier attempt wrote belongs to this rollout, too."""
    context = TaskRunContext.get()
    return (context and context.task_run.start_time) or datetime.now(timezone.utc)


@task(name="prune", task_run_name="prune {applied.target.name}", cache_policy=NO_CACHE, **RETRIES)
def prune(applied: Applied, lock: Lock) -> None:
    """Remove what an earlier version added and this one no longer contains; never an object of someone else.

    It comes after the rollout: until then old pods may still need what it removes.
    """

    async def run(cluster: Cluster) -> None:
        await core.prune(cluster, applied.target.ownership, applied.changes, lock=lock)

    applied.target.run(run)
