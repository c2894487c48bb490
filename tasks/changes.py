"""Stage: what a release would change in an environment."""

import asyncio
from datetime import datetime, timezone

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect_cd.tasks import artifacts, workspace
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.target import Target, Version, id_of

from prefect_cd import apply, source
from prefect_cd.apply import ChangeSet
from prefect_cd.cluster import Cluster
from prefect_cd.errors import UnknownRevision
from prefect_cd.history import History, Record, State
from prefect_cd.pipeline import Pipeline
from prefect_cd.release import Commit, Object, Release, Result
from prefect_cd.standing import Standing, content_of, obstacle


class Plan(Result):
    """What would be applied, and where the environment stands now."""

    changes: ChangeSet
    standing: Standing
    content: str
    server: str
    taken_over: tuple[Object, ...] = ()

    @property
    def running(self) -> Record | None:
        """What runs there, if we know."""
        return self.standing.known_good

    def runs(self, release: Release) -> bool:
        """Whether the environment runs exactly this, so that there is nothing to do."""
        return self.standing.runs(release) and not self.changes.changes_something


@task(name="plan", task_run_name="plan {target.name}", cache_policy=NO_CACHE, **RETRIES)
def plan(target: Target, release: Release) -> Plan:
    """Dry-run all objects on the server and compare; nothing is written, and the diff becomes an artifact.

    Raises:
        InvalidManifest, OwnershipConflict, Forbidden: as the server says.
    """
    planned = asyncio.run(_plan(target, release))
    artifacts.plan(target.application, target.name, planned.changes)
    log().info("%s: %s", target.name, planned.changes)
    if planned.running is None:
        log().info("%s has no known-good yet: if this release fails, there is nothing to go back to", target.name)
    return planned


async def _plan(target: Target, release: Release) -> Plan:
    async with target.connect() as cluster:
        return await survey(cluster, target, release)


async def survey(cluster: Cluster, target: Target, version: Version, *, force: bool = False) -> Plan:
    """The plan for a release, or for going back to a record (`force`)."""
    standing = await stand(cluster, target)
    objects = await target.objects(cluster, version)
    environment = target.environment
    force = force or environment.take_over
    changes = await apply.plan(cluster, target.place, objects, force=force, known_kinds=standing.known_kinds)
    taken_over: tuple[Object, ...] = ()
    if environment.take_over and standing.newest is None:
        taken_over = await apply.foreign(cluster, target.place, objects)
    content = ""
    if isinstance(version, Release):
        content = content_of(target.name, environment.namespace, cluster.server, version, changes.digest)
    return Plan(changes=changes, standing=standing, content=content, server=cluster.server, taken_over=taken_over)


async def stand(cluster: Cluster, target: Target) -> Standing:
    """Where the environment stands by its records."""
    history = History(cluster, target.place)
    if not await apply.namespace_exists(cluster, target.environment.namespace):
        return Standing()
    return Standing(newest=await history.newest(), known_good=await history.known_good())


def refuse_obstacle(pipeline: Pipeline, target: Target, release: Release, standing: Standing) -> None:
    """Stop before the environment when it is frozen, or runs something newer.

    Raises:
        EnvironmentFrozen, Superseded: see `standing.obstacle`.
    """
    running = standing.known_good
    older = None
    if running and running.commit and running.commit.sha != release.commit.sha:
        older = _contains(pipeline, release.commit, running.commit)
    error = obstacle(target.name, standing, release, older=older)
    if error:
        raise error


def _contains(pipeline: Pipeline, older: Commit, newer: Commit) -> bool | None:
    """Whether `newer` contains `older`; it is "unknown" only after a fetch."""
    tree = workspace.tree(pipeline.source, older)
    answer = source.is_ancestor(tree, older.sha, newer.sha)
    if answer is None:
        source.refresh(workspace.repository(pipeline.source), tree, timeout=pipeline.source.timeout)
        answer = source.is_ancestor(tree, older.sha, newer.sha)
    return answer


def commits_between(pipeline: Pipeline, release: Release, running: Record | None) -> tuple[Commit, ...]:
    """The commits that the release brings, newest first."""
    tree = workspace.tree(pipeline.source, release.commit)
    since = running.commit.sha if running and running.commit else None
    try:
        return source.log(tree, since, release.commit.sha, limit=50 if since else 10)
    except UnknownRevision:
        return (release.commit,)


def record_of(target: Target, version: Version, objects: tuple[Object, ...], run: str) -> Record:
    """The record that is written before the first write."""
    restores = version.number if isinstance(version, Record) else None
    return Record(
        number=0,
        application=target.application,
        environment=target.name,
        state=State.STARTED,
        release_id=id_of(version),
        release_hash=version.release_hash if isinstance(version, Record) else version.hash,
        commit=version.commit,
        image=version.image,
        objects=objects,
        started_at=datetime.now(timezone.utc),
        run=run,
        restores=restores,
    )
