"""Stage: what a version would change in an environment."""

import asyncio
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from prefect_cd.environment.change_set import Action, ChangeSet
from prefect_cd.environment.changes import compute_changes, live_objects
from prefect_cd.environment.eligibility import (
    EnvironmentState,
    blocked_by,
    content_digest,
    damage_problem,
    frozen_problem,
)
from prefect_cd.environment.record import Record
from prefect_cd.environment.requirements import Unmet
from prefect_cd.environment.state import read_state
from prefect_cd.environment.way_back import WayBackFinding
from prefect_cd.errors import UnknownRevision
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.irreversible import irreversible, unchecked_finding
from prefect_cd.manifests.lint import Finding, lint
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import git
from prefect_cd.release.model import Commit, Release, Result
from prefect_cd.tasks import artifacts, markdown, workspace
from prefect_cd.tasks.requirements import check_requirements, requirement_problem, warn_of_requirements
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.summary import listed
from prefect_cd.tasks.target import Target, Version, hash_of
from prefect_cd.tasks.way_back import check_way_back, way_back_problem


class Plan(Result):
    """What bringing a version into an environment would change, and what the environment's records say now."""

    target: Target
    version: Version
    objects: tuple[Object, ...] = Field(description="the full set, labelled and placed")
    changes: ChangeSet
    state: EnvironmentState
    unrecorded: tuple[Object, ...] = Field(
        description="live objects, as they are, that a rollback has to bring back and that no record has"
    )
    findings: tuple[Finding, ...] = Field(
        description="what in the objects may lose requests during the rollout, run another image, or not be undone"
    )
    way_back: tuple[WayBackFinding, ...] = Field(
        default=(), description="what would keep a rollback of the release from working"
    )
    unmet: tuple[Unmet, ...] = Field(
        default=(), description="what the pods of the release need and the environment does not have"
    )
    server: str
    kubernetes: str = Field(description="the server's version, for people: an upgrade does not change the plan")
    page: str = Field(default="", description="address of the page with the whole diff; empty outside of a run")

    @property
    def running(self) -> Record | None:
        """What runs there, as far as the records say; None where that is nothing."""
        known_good = self.state.known_good
        return known_good if known_good and known_good.objects else None

    @property
    def restoring(self) -> bool:
        """Whether an earlier version is brought back: a manual edit of what is ours must not make that fail."""
        return isinstance(self.version, Record)

    @property
    def content(self) -> str:
        """Identity of what an approval is asked for, 64 hex digits."""
        ownership = self.target.ownership
        return content_digest(
            ownership.environment, ownership.namespace, self.server, hash_of(self.version), self.changes.digest
        )

    @property
    def already_runs(self) -> bool:
        """Whether the environment runs exactly this, so that there is nothing to do."""
        runs = isinstance(self.version, Release) and self.state.runs(self.version)
        return runs and not self.changes.changes_something


@task(name="plan", task_run_name="plan {target.name}", cache_policy=NO_CACHE, **RETRIES)
@listed
def plan(target: Target, version: Version) -> Plan:
    """Dry-run all objects on the server and compare; writes nothing. The diff becomes an artifact.

    Args:
        target: the environment.
        version: a release, or the record of an old one.

    Raises:
        InvalidManifest, OwnershipConflict, Forbidden: as the server says.
    """

    async def run(cluster: Cluster) -> Plan:
        return await _plan(cluster, target, version)

    planned = target.run(run)
    place = markdown.place(planned.server, planned.kubernetes, target.environment.namespace)
    page = artifacts.planned_changes(
        target.application,
        target.name,
        planned.changes,
        place,
        planned.findings,
        planned.way_back,
        content=planned.content,
    )
    for finding in planned.findings:
        log().warning("%s: %s. Fix: %s", finding.where, finding.summary, finding.fix)
    for kept in planned.changes.kept:
        log().info("%s", kept)
    for obstacle in planned.way_back:
        log().warning("a rollback would not work: %s: %s. Fix: %s", obstacle.where, obstacle.summary, obstacle.fix)
    warn_of_requirements(target, planned.unmet)
    log().info("%s: %s", target.name, planned.changes)
    if planned.running is None and isinstance(version, Release):
        log().info("nothing runs in %s yet: if this release fails, what it adds is removed again", target.name)
    return planned.model_copy(update={"page": page or ""})


async def _plan(cluster: Cluster, target: Target, version: Version) -> Plan:
    state = await environment_state(cluster, target)
    objects = await target.objects(cluster, version)
    take_over = target.environment.take_over
    runs = state.known_good.objects if state.known_good else ()
    way_back = asyncio.create_task(_way_back(cluster, target, version, objects, state))
    unmet = asyncio.create_task(_requirements(cluster, target, version, objects, runs))
    try:
        changes = await compute_changes(
            cluster,
            target.ownership,
            objects,
            force=take_over,
            take_back=target.takes_back,
            restoring=isinstance(version, Record),
            known=state.known,
            runs=runs,
        )
        await asyncio.gather(way_back, unmet)
    finally:
        way_back.cancel()
        unmet.cancel()
        await asyncio.gather(way_back, unmet, return_exceptions=True)
    return Plan(
        target=target,
        version=version,
        objects=objects,
        changes=changes,
        state=state,
        unrecorded=await _unrecorded(cluster, target, objects, changes, state),
        findings=(
            *lint(objects, version.image.name if version.image else ""),
            *irreversible(runs, objects),
            *(unchecked_finding(str(change.ref)) for change in changes.changes if not change.checked),
        ),
        way_back=way_back.result(),
        unmet=unmet.result(),
        server=cluster.server,
        kubernetes=await cluster.version(),
    )


async def _unrecorded(
    cluster: Cluster, target: Target, objects: Sequence[Object], changes: ChangeSet, state: EnvironmentState
) -> tuple[Object, ...]:
    """The live objects that a rollback has to bring back and that no record has.

    Those of others: applied, they get our labels, so they are changed. And our own where there are no records:
    somebody has deleted them, and what they brought in still runs.
    """
    take_over, no_records = target.environment.take_over, state.newest is None
    if not take_over and not no_records:
        return ()
    actions = {Action.CHANGED, Action.REPLACED} | ({Action.UNCHANGED} if no_records else set())
    there = {change.ref for change in changes.changes if change.action in actions}
    refs = [Ref.of(item) for item in objects if target.ownership.owns(item) and Ref.of(item) in there]
    found = await live_objects(cluster, refs)
    return tuple(live for live in found if (no_records if target.ownership.owns(live) else take_over))


async def _way_back(
    cluster: Cluster, target: Target, version: Version, objects: tuple[Object, ...], state: EnvironmentState
) -> tuple[WayBackFinding, ...]:
    """The way back from a release; a rollback is a way back itself, and has to be quick."""
    if isinstance(version, Record):
        return ()
    return await check_way_back(cluster, target, version, objects, state.known_good)


async def _requirements(
    cluster: Cluster, target: Target, version: Version, objects: tuple[Object, ...], runs: Sequence[Object]
) -> tuple[Unmet, ...]:
    """What the environment lacks for a release; an earlier version is brought back with what is there."""
    return (
        ()
        if isinstance(version, Record)
        else await check_requirements(cluster, target, objects, runs, version.image.name)
    )


async def environment_state(cluster: Cluster, target: Target) -> EnvironmentState:
    """What the environment's records say.

    Raises:
        Invalid: a record that may decide cannot be read.
    """
    state = await read_state(cluster, target.ownership)
    if problem := damage_problem(state):
        raise problem
    return state


def refuse_blocked(pipeline: Pipeline, release: Release, planned: Plan) -> None:
    """Stop before the environment when it is frozen, runs something newer, or lacks what the release needs.

    Raises:
        EnvironmentFrozen, Superseded: see `eligibility.blocked_by`.
        RequirementMissing: see `requirements.requirement_problem`.
        NoWayBack: see `way_back.way_back_problem`.
    """
    if frozen := frozen_problem(planned.state):  # before git is asked, which may be away
        raise frozen
    running = planned.running
    older = None
    if running and running.commit and running.commit.sha != release.commit.sha:
        older = _contains(pipeline, release.commit, running.commit)
    error = blocked_by(planned.target.name, planned.state, release, older=older)
    error = error or requirement_problem((planned.target, unmet) for unmet in planned.unmet)
    if error := error or way_back_problem(planned.target, planned.state.known_good, planned.way_back):
        raise error


def _contains(pipeline: Pipeline, older: Commit, newer: Commit) -> bool | None:
    """Whether `newer` contains `older`; None when git does not know one of them even after a fetch."""
    tree = workspace.tree(pipeline.source, older)
    answer = git.is_ancestor(tree, older.sha, newer.sha)
    if answer is None:
        git.refresh(workspace.repository(pipeline.source), tree, timeout=pipeline.source.timeout)
        answer = git.is_ancestor(tree, older.sha, newer.sha)
    return answer


def commits_between(pipeline: Pipeline, release: Release, running: Record | None) -> tuple[Commit, ...]:
    """The commits that the release adds to what runs, newest first."""
    tree = workspace.tree(pipeline.source, release.commit)
    since = running.commit.sha if running and running.commit else None
    try:
        return git.log(tree, since, release.commit.sha, limit=50 if since else 10)
    except UnknownRevision:
        return (release.commit,)
