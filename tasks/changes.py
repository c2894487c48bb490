"""Stage: what a release would change in an environment."""

import asyncio

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from prefect_cd.environment import apply, ownership
from prefect_cd.environment.apply import ChangeSet
from prefect_cd.environment.eligibility import EnvironmentState, blocked_by, content_digest
from prefect_cd.environment.records import Record, RecordStore
from prefect_cd.errors import UnknownRevision
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.lint import lint
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import git
from prefect_cd.release.model import Commit, Release, Result
from prefect_cd.tasks import artifacts, markdown, workspace
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.target import Target, Version, hash_of


class Plan(Result):
    """What bringing a version into an environment would change, and where the environment stands now."""

    target: Target
    version: Version
    objects: tuple[Object, ...] = Field(description="the full set, labelled and placed")
    changes: ChangeSet
    standing: EnvironmentState
    taken_over: tuple[Object, ...] = Field(
        description="what is there and not ours yet, when the environment takes over"
    )
    server: str
    kubernetes: str = Field(description="the server's version, for people: an upgrade makes no other plan of it")

    @property
    def running(self) -> Record | None:
        """What runs there, if we know."""
        return self.standing.known_good

    @property
    def force(self) -> bool:
        """Whether fields are taken from other managers: going back must not fail on what somebody edited."""
        return self.target.environment.take_over or isinstance(self.version, Record)

    @property
    def content(self) -> str:
        """Identity of what a person is asked about, 64 hex digits."""
        place = self.target.ownership
        return content_digest(
            place.environment, place.namespace, self.server, hash_of(self.version), self.changes.digest
        )

    @property
    def is_there(self) -> bool:
        """Whether the environment runs exactly this, so that there is nothing to do."""
        runs = isinstance(self.version, Release) and self.standing.runs(self.version)
        return runs and not self.changes.changes_something


@task(name="plan", task_run_name="plan {target.name}", cache_policy=NO_CACHE, **RETRIES)
def plan(target: Target, version: Version) -> Plan:
    """Dry-run all objects on the server and compare; nothing is written, and the diff becomes an artifact.

    Args:
        target: the environment.
        version: a release, or the record of an old one.

    Raises:
        InvalidManifest, OwnershipConflict, Forbidden: as the server says.
    """
    planned = asyncio.run(_plan(target, version))
    where = markdown.place(planned.server, planned.kubernetes, target.environment.namespace)
    weak = lint(planned.objects)
    artifacts.planned_changes(target.application, target.name, planned.changes, where, weak)
    for weakness in weak:
        log().warning("%s: %s. Fix: %s", weakness.where, weakness.summary, weakness.fix)
    log().info("%s: %s", target.name, planned.changes)
    if planned.running is None:
        log().info("%s has no known-good yet: if this release fails, there is nothing to go back to", target.name)
    return planned


async def _plan(target: Target, version: Version) -> Plan:
    async with target.connect() as cluster:
        standing = await environment_state(cluster, target)
        objects = await target.objects(cluster, version)
        takes_over = target.environment.take_over
        changes = await apply.compute_changes(
            cluster,
            target.ownership,
            objects,
            force=takes_over or isinstance(version, Record),
            known_kinds=standing.known_kinds,
        )
        first = takes_over and standing.newest is None
        return Plan(
            target=target,
            version=version,
            objects=objects,
            changes=changes,
            standing=standing,
            taken_over=await apply.unowned_objects(cluster, target.ownership, objects) if first else (),
            server=cluster.server,
            kubernetes=await cluster.version(),
        )


async def environment_state(cluster: Cluster, target: Target) -> EnvironmentState:
    """Where the environment stands by its records."""
    history = RecordStore(cluster, target.ownership)
    if not await ownership.namespace_exists(cluster, target.environment.namespace):
        return EnvironmentState()
    return EnvironmentState(newest=await history.newest(), known_good=await history.known_good())


def refuse_blocked(pipeline: Pipeline, release: Release, planned: Plan) -> None:
    """Stop before the environment when it is frozen, or runs something newer.

    Raises:
        EnvironmentFrozen, Superseded: see `standing.obstacle`.
    """
    running = planned.running
    older = None
    if running and running.commit and running.commit.sha != release.commit.sha:
        older = _contains(pipeline, release.commit, running.commit)
    error = blocked_by(planned.target.name, planned.standing, release, older=older)
    if error:
        raise error


def _contains(pipeline: Pipeline, older: Commit, newer: Commit) -> bool | None:
    """Whether `newer` contains `older`; it is "unknown" only after a fetch."""
    tree = workspace.tree(pipeline.source, older)
    answer = git.is_ancestor(tree, older.sha, newer.sha)
    if answer is None:
        git.refresh(workspace.repository(pipeline.source), tree, timeout=pipeline.source.timeout)
        answer = git.is_ancestor(tree, older.sha, newer.sha)
    return answer


def commits_between(pipeline: Pipeline, release: Release, running: Record | None) -> tuple[Commit, ...]:
    """The commits that the release brings, newest first."""
    tree = workspace.tree(pipeline.source, release.commit)
    since = running.commit.sha if running and running.commit else None
    try:
        return git.log(tree, since, release.commit.sha, limit=50 if since else 10)
    except UnknownRevision:
        return (release.commit,)
