"""Stage: find every mistake that can be found before anything is built or written."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from prefect import task
from pydantic import Field

from prefect_cd.environment.changes import prepare_objects, validate
from prefect_cd.environment.permissions import FORGES_RECORDS, Permission, permissions
from prefect_cd.environment.record_key import load_record_key
from prefect_cd.environment.requirements import Unmet
from prefect_cd.errors import DeliveryError, Forbidden, InvalidManifest
from prefect_cd.gates.browser.executable import find_browser
from prefect_cd.gates.checkout import checkout_path
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.resources import Kind, Ref
from prefect_cd.manifests.load import Manifest, load
from prefect_cd.manifests.prepare import pin_image
from prefect_cd.pipeline.models import Environment, Pipeline
from prefect_cd.release.image import choose_builder, find_image
from prefect_cd.release.model import BuiltImage, Commit, Result, digest_of
from prefect_cd.tasks import workspace
from prefect_cd.tasks.changes import environment_state
from prefect_cd.tasks.connection import CONNECTIONS
from prefect_cd.tasks.requirements import check_requirements, requirement_problem, warn_of_requirements
from prefect_cd.tasks.stage import PERSISTED, RETRIES, log
from prefect_cd.tasks.summary import listed
from prefect_cd.tasks.target import Target

_PATIENCE = timedelta(seconds=5)
_UNBUILT = "sha256:" + "0" * 64


class Preflight(Result):
    """What preflight found, so that no later stage asks again.

    Prefect keeps it on the disk until a run that waits is resumed, so it holds no manifest: a Secret may be among them.
    """

    image: BuiltImage | None = Field(description="the commit's image, where the registry has it already")
    builder: str | None = Field(description="what will build the image; None where it is there")
    digest: str = Field(description="of the manifests that were checked, of all environments")


@task(name="preflight", task_run_name="preflight", **PERSISTED, **RETRIES)
@listed
def preflight(pipeline: Pipeline, commit: Commit) -> Preflight:
    """Check tools, suites, clusters, permissions and manifests; writes nothing.

    Manifests are read here, from a clean checkout, before any code of the commit runs beside them.

    Raises:
        RequirementMissing: all that the environments lack.
        Invalid: the first other thing that is wrong, with where it stands and what to do.
        ClusterUnreachable: a cluster does not answer; retried.
    """
    tree = workspace.tree(pipeline.source, commit, clean=True)
    image = find_image(pipeline.image, commit)
    builder = None if image else choose_builder(pipeline.image)
    if builder:
        log().info("%s will build the image", builder.program)
    for check in pipeline.checks:
        checkout_path(tree, check.directory, check.name)
    for environment in pipeline.environments:
        _check_suites(environment, tree)
    manifests = read_manifests(pipeline, tree)
    targets = [Target.of(pipeline, environment.name) for environment in pipeline.environments]

    async def check_clusters() -> list[tuple[Unmet, ...] | BaseException]:
        name = pipeline.image.name
        checks = (_check_environment(target, manifests[target.name], targets, name) for target in targets)
        return await asyncio.gather(*checks, return_exceptions=True)

    unmet: list[tuple[Target, Unmet]] = []
    for target, result in zip(targets, CONNECTIONS.run(check_clusters), strict=True):
        if isinstance(result, BaseException):  # of several, the first in the pipeline's order
            raise result
        warn_of_requirements(target, result)
        unmet += [(target, finding) for finding in result]
    if problem := requirement_problem(unmet):
        raise problem
    return Preflight(image=image, builder=builder.name if builder else None, digest=digest_of_manifests(manifests))


def read_manifests(pipeline: Pipeline, tree: Path) -> dict[str, tuple[Manifest, ...]]:
    """Every environment's objects, as the checkout `tree` has them.

    Raises:
        InvalidManifest: a file cannot be read as objects, or no container of an environment uses the pipeline's image.
    """
    return {environment.name: _manifests_of(pipeline, environment, tree) for environment in pipeline.environments}


def digest_of_manifests(manifests: dict[str, tuple[Manifest, ...]]) -> str:
    """Identity of what was read, 64 hex digits."""
    return digest_of({name: [manifest.item for manifest in items] for name, items in manifests.items()})


def _check_suites(environment: Environment, tree: Path) -> None:
    for gate in environment.gates:
        start = checkout_path(tree, gate.directory, gate.name)
        if gate.browser:
            checkout_path(start, gate.browser, gate.name)
            log().info("%s will use %s", gate.name, find_browser())


def _manifests_of(pipeline: Pipeline, environment: Environment, tree: Path) -> tuple[Manifest, ...]:
    manifests = load(tree / environment.manifests, tree)
    unbuilt = BuiltImage(name=pipeline.image.name, digest=_UNBUILT, built=False)
    items = [manifest.item for manifest in manifests]
    pin_image(items, unbuilt, where=environment.manifests, fields=pipeline.image.fields)
    return manifests


async def _check_environment(
    target: Target, manifests: tuple[Manifest, ...], targets: Sequence[Target], image: str
) -> tuple[Unmet, ...]:
    environment = target.environment
    if load_record_key(environment.record_key or "") is None and environment.approval:
        log().info("%s: its records are not signed (record_key in the pipeline file)", target.name)
    async with target.connection(_PATIENCE) as cluster:
        log().info("%s: Kubernetes %s at %s", target.name, await cluster.version(), cluster.server)
        objects = await prepare_objects(cluster, manifests, environment.namespace, environment.cluster_scoped)
        kinds = {await cluster.kind(item["apiVersion"], item["kind"]) for item in objects}
        await _check_permissions(cluster, target, kinds)
        written = {Ref.of(item): manifest.where for item, manifest in zip(objects, manifests, strict=True)}
        labelled = [target.ownership.label(item) for item in objects]
        await validate(
            cluster, target.ownership, labelled, written, force=environment.take_over, take_back=target.takes_back
        )
        for other in targets:
            if other.name != target.name and other.environment.approval:
                await _warn_of_reach(cluster, target, other)
        try:
            known_good = (await environment_state(cluster, target)).known_good
        except DeliveryError:  # the plan will say what is wrong, and looks again
            return ()
        return await check_requirements(cluster, target, objects, known_good.objects if known_good else (), image)


async def _warn_of_reach(cluster: Cluster, target: Target, other: Target) -> None:
    """Warn where the credentials of an environment can write the records of another one, which needs an approval.

    Nothing that we do for the one writes to the other. But whoever gets hold of these credentials needs no approval.
    """
    async with other.connection(_PATIENCE) as others_cluster:
        if others_cluster.server != cluster.server:
            return
    answers = await parallel(cluster.is_allowed(*_asked(permission, other)) for permission in FORGES_RECORDS)
    if any(answers):
        log().warning(
            "%s: its credentials may write Secrets in namespace %s of %s, which needs an approval; give each "
            "environment credentials of its own: `kubeconfig` or `context` of its `cluster` in the pipeline file",
            target.name,
            other.environment.namespace,
            other.name,
        )


async def _check_permissions(cluster: Cluster, target: Target, kinds: set[Kind]) -> None:
    """Ask for each verb that a release, a rollback and a recovery use, so that none of them stops halfway."""
    refused = await refused_permissions(cluster, target, kinds)
    for permission in refused:
        if not permission.required:
            log().warning("%s: we may not %s (for: %s)", target.name, permission, permission.purpose)
    missing = ", ".join(str(permission) for permission in refused if permission.required)
    if missing:
        raise Forbidden(
            f"we may not {missing} in namespace {target.environment.namespace}",
            where=f"environment {target.name}, {cluster.server}",
            hint="`prefect-cd rbac pipeline.yaml` prints the Role that grants exactly what is needed; "
            "`kubectl auth can-i --list` shows what is granted",
        )


async def refused_permissions(cluster: Cluster, target: Target, kinds: set[Kind]) -> list[Permission]:
    """What this identity lacks of the permissions for an environment whose manifests have these kinds."""
    needed = permissions(kinds, target.environment, known=await _known_kinds(cluster, target))
    answers = await parallel(cluster.is_allowed(*_asked(permission, target)) for permission in needed)
    return [permission for permission, may in zip(needed, answers, strict=True) if not may]


def _asked(permission: Permission, target: Target) -> tuple[str, str, str, str]:
    namespace = target.environment.namespace if permission.namespaced else ""
    return permission.verb, permission.group, permission.resource, namespace


async def _known_kinds(cluster: Cluster, target: Target) -> list[Kind]:
    """The kinds of what earlier releases brought in and the next one may remove."""
    try:
        state = await environment_state(cluster, target)
    except DeliveryError:  # a permission that is asked for next is missing, or the plan will say what is wrong
        return []
    kinds: list[Kind] = []
    for api_version, name in sorted({(ref.api_version, ref.kind) for ref in state.known}):
        try:
            kinds.append(await cluster.kind(api_version, name))
        except InvalidManifest:  # no longer served, and so are its objects
            continue
    return kinds
