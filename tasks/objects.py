"""Stages: write a version into an environment; remove what it no longer contains."""

import asyncio
from datetime import datetime, timezone

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect_cd.tasks.changes import survey
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.target import Target, Version, id_of
from pydantic import Field

from prefect_cd import apply as core
from prefect_cd.apply import ChangeSet
from prefect_cd.lock import Lock
from prefect_cd.release import Object, Result


class Applied(Result):
    """A version that was written into an environment; the proof that a rollout can be watched."""

    target: Target
    release_id: str
    objects: tuple[Object, ...]
    changes: ChangeSet
    since: datetime = Field(description="just before the first write: what is older proves nothing about this rollout")


@task(name="apply", task_run_name="apply to {target.name}", cache_policy=NO_CACHE, **RETRIES)
def apply(target: Target, version: Version, lock: Lock, *, force: bool = False) -> Applied:
    """Dry-run all objects, then write those that differ; the same version twice writes nothing.

    Args:
        target: the environment.
        version: a release, or the record of an old one.
        lock: held by the caller; each write asks it first.
        force: take fields over from other managers, as going back does.

    Raises:
        InvalidManifest, OwnershipConflict: before anything was written.
        LockLost: we are no longer the writer.
    """
    return asyncio.run(_apply(target, version, lock, force=force))


async def _apply(target: Target, version: Version, lock: Lock, *, force: bool) -> Applied:
    since = datetime.now(timezone.utc)
    async with target.connect() as cluster:
        objects = await target.objects(cluster, version)
        planned = (await survey(cluster, target, version, force=force)).changes
        force = force or target.environment.take_over
        await core.apply(cluster, objects, planned, force=force, guard=lock.guard)
    log().info("%s: %s", target.name, planned)
    return Applied(target=target, release_id=id_of(version), objects=objects, changes=planned, since=since)


@task(name="prune", task_run_name="prune {applied.target.name}", cache_policy=NO_CACHE, **RETRIES)
def prune(applied: Applied, lock: Lock) -> None:
    """Remove what an earlier version added and this one no longer contains; others' objects never.

    It comes after the rollout: until then old pods may still need what goes.
    """

    async def run() -> None:
        async with applied.target.connect() as cluster:
            await core.prune(cluster, applied.target.place, applied.changes, guard=lock.guard)

    asyncio.run(run())
