"""Stage: everything that can be known to be wrong before anything is built or written anywhere."""

import asyncio
from datetime import timedelta
from pathlib import Path

from prefect import task

from prefect_cd.environment import apply
from prefect_cd.errors import Forbidden
from prefect_cd.gates.browser.suite import find_browser, inside
from prefect_cd.kube import concurrency
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests import load, prepare
from prefect_cd.pipeline.models import Environment, Pipeline
from prefect_cd.release import image
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.tasks import workspace
from prefect_cd.tasks.stage import KEPT, RETRIES, log
from prefect_cd.tasks.target import Target

_PATIENCE = timedelta(seconds=5)
_UNBUILT = "sha256:" + "0" * 64
_NEEDED = (
    ("", "secrets", ("get", "list", "create", "patch", "delete")),
    ("coordination.k8s.io", "leases", ("get", "create", "update")),
    ("", "pods", ("list",)),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
    ("apps", "replicasets", ("list",)),
)
_NEEDED_BY_GATES = (
    ("", "services", ("get",)),
    ("discovery.k8s.io", "endpointslices", ("list",)),
)


@task(name="preflight", task_run_name="preflight", **KEPT, **RETRIES)
def preflight(pipeline: Pipeline, commit: Commit) -> None:
    """Prove tools, suites, clusters, permissions and manifests; nothing is written.

    Raises:
        Invalid: the first thing that is wrong, with where it stands and what to do.
        ClusterUnreachable: a cluster does not answer; retried.
    """
    tree = workspace.tree(pipeline.source, commit, clean=True)
    if image.find_image(pipeline.image, commit) is None:
        builder = image.choose_builder(pipeline.image)
        log().info("%s will build the image", builder.program)
    for check in pipeline.checks:
        inside(tree, check.directory, check.name)
    for environment in pipeline.environments:
        _suites(environment, tree)
    asyncio.run(_environments(pipeline, tree))


async def _environments(pipeline: Pipeline, tree: Path) -> None:
    """All at once; the first in the pipeline's order that is wrong is told."""
    asked = (_environment(pipeline, Target.of(pipeline, each.name), tree) for each in pipeline.environments)
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer


def _suites(environment: Environment, tree: Path) -> None:
    for gate in environment.gates:
        start = inside(tree, gate.directory, gate.name)
        if gate.browser:
            inside(start, gate.browser, gate.name)
            log().info("%s will use %s", gate.name, find_browser())


async def _environment(pipeline: Pipeline, target: Target, tree: Path) -> None:
    environment = target.environment
    found = load.load(tree / environment.manifests, tree)
    unbuilt = BuiltImage(name=pipeline.image.name, digest=_UNBUILT, built=False)
    prepare.pin_image([each.item for each in found], unbuilt, where=environment.manifests)
    async with target.connect(_PATIENCE) as cluster:
        log().info("%s: Kubernetes %s at %s", target.name, await cluster.version(), cluster.server)
        objects = await apply.prepare_objects(cluster, found, environment.namespace, environment.cluster_scoped)
        await _may(cluster, target, {(item["apiVersion"], item["kind"]) for item in objects})
        written = {Ref.of(item): each.where for item, each in zip(objects, found, strict=True)}
        labelled = [target.ownership.label(item) for item in objects]
        await apply.validate(cluster, target.ownership, labelled, written, force=environment.take_over)


async def _may(cluster: Cluster, target: Target, kinds: set[tuple[str, str]]) -> None:
    """Ask for each verb that a rollout and a rollback will use, so that neither stops halfway."""
    needed = [*_NEEDED, *(_NEEDED_BY_GATES if target.environment.gates else ())]
    for api_version, name in sorted(kinds):
        kind = await cluster.kind(api_version, name)
        needed.append((kind.group, kind.plural, ("get", "list", "patch", "delete")))
    asked = [(verb, group, resource) for group, resource, verbs in needed for verb in verbs]
    namespace = target.environment.namespace
    answers = await concurrency.parallel(cluster.may(*each, namespace) for each in asked)
    refused = [_said(*each) for each, may in zip(asked, answers, strict=True) if not may]
    if refused:
        raise Forbidden(
            f"we may not {', '.join(refused)} in namespace {namespace}",
            where=f"environment {target.name}, {cluster.server}",
            hint="grant these with a Role and a RoleBinding; `kubectl auth can-i --list` shows what is granted",
        )


def _said(verb: str, group: str, resource: str) -> str:
    return f"{verb} {resource}.{group}" if group else f"{verb} {resource}"
