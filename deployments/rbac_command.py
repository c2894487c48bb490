"""`prefect-cd rbac pipeline.yaml`: the Role and RoleBinding of each environment, with exactly the verbs that are used.

The kinds come from the manifests of a checkout. Kubernetes' own kinds need no cluster; for custom resources, the
environment's cluster is asked how it serves them.
"""

import argparse
import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from prefect_cd.deployments import terminal
from prefect_cd.environment.permissions import Permission, cluster_wide, permissions
from prefect_cd.errors import Invalid
from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.kube.client import connect
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Kind
from prefect_cd.manifests.load import load as load_manifests
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Environment, Pipeline

_PATIENCE = timedelta(seconds=5)
_RBAC = "rbac.authorization.k8s.io"
_VERBS = ("get", "list", "watch", "create", "patch", "update", "delete")


class Account(NamedTuple):
    """A service account."""

    namespace: str
    name: str


DEFAULT_ACCOUNT = Account("prefect-cd", "prefect-cd")


def run(arguments: argparse.Namespace) -> int:
    """Print the objects that grant what the pipeline's environments need, as YAML for `kubectl apply`.

    Raises:
        InvalidPipeline: the file has mistakes.
        Invalid: no such checkout or environment, or no service account of this form.
        InvalidManifest: a manifest cannot be read, or a cluster has no such kind.
        ClusterUnreachable: a custom resource is among the manifests, and the cluster does not answer.
    """
    pipeline = load(arguments.file)
    environments = _chosen(pipeline, arguments.environment)
    top = _checkout(pipeline, arguments.file, arguments.checkout)
    account = _account(arguments.service_account)
    terminal.write(
        cluster_role(pipeline.application, environments, top, account)
        if arguments.cluster_wide
        else "".join(role(pipeline.application, environment, top, account) for environment in environments)
    )
    return 0


def _chosen(pipeline: Pipeline, name: str | None) -> Sequence[Environment]:
    if name is None:
        return pipeline.environments
    try:
        return (pipeline.environment(name),)
    except KeyError as error:
        raise Invalid(str(error.args[0]), hint="correct --environment") from error


def _checkout(pipeline: Pipeline, file: Path, given: Path | None) -> Path:
    """The folder to which the paths of manifests are relative."""
    repository = Path(pipeline.source.repository)
    top = given or (repository if repository.is_dir() else file.resolve().parent)
    missing = [item.manifests for item in pipeline.environments if not (top / item.manifests).is_dir()]
    if missing:
        raise Invalid(
            f"there is no {missing[0]} in {top}",
            hint="name a checkout of the repository: --checkout FOLDER",
        )
    return top


def _account(text: str) -> Account:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise Invalid(f"{text!r} is no service account", hint="write --service-account NAMESPACE/NAME")
    return Account(namespace, name)


def kinds_of(environment: Environment, top: Path) -> list[Kind]:
    """The kinds of an environment's manifests.

    Args:
        environment: the environment.
        top: a checkout of the repository.
    """
    objects = [manifest.item for manifest in load_manifests(top / environment.manifests, top)]
    names = sorted({(item["apiVersion"], item["kind"]) for item in objects})
    known = {name: builtin_kind(*name) for name in names}
    custom = [name for name, kind in known.items() if kind is None]
    if custom:
        known |= zip(custom, asyncio.run(_discovered(environment, custom, objects)), strict=True)
    return [kind for kind in known.values() if kind]


async def _discovered(
    environment: Environment, names: Iterable[tuple[str, str]], objects: Iterable[Object]
) -> list[Kind]:
    """How the cluster serves custom resources, or will, where their definitions are among the objects."""
    async with connect(environment.cluster, patience=_PATIENCE) as cluster:
        cluster.expect(item for item in objects if item["kind"] == "CustomResourceDefinition")
        return [await cluster.kind(api_version, kind) for api_version, kind in names]


# --- the objects -----------------------------------------------------------------------------------------------------


def role(application: str, environment: Environment, top: Path, account: Account = DEFAULT_ACCOUNT) -> str:
    """The Role of an environment and its binding, as YAML.

    Args:
        application: the pipeline's.
        environment: the environment.
        top: a checkout with its manifests.
        account: the service account that serves the pipeline.
    """
    needed = permissions(kinds_of(environment, top), environment)
    of_cluster = sorted({item.resource for item in needed if not item.namespaced})
    comments = [f"{application} in {environment.name}; `kubectl create namespace {environment.namespace}` comes first."]
    if of_cluster:
        comments.append(f"A Role cannot grant {', '.join(of_cluster)}: see `prefect-cd rbac --cluster-wide`.")
    rules = _rules([item for item in needed if item.namespaced])
    return _documents("Role", application, environment.namespace, rules, account, comments)


def cluster_role(
    application: str, environments: Sequence[Environment], top: Path, account: Account = DEFAULT_ACCOUNT
) -> str:
    """The ClusterRole and its binding, as YAML: what no Role can grant.

    Args:
        application: the pipeline's.
        environments: which environments.
        top: a checkout with their manifests.
        account: the service account that serves the pipeline.
    """
    needed = {(item.group, item.resource, item.verb): item for item in cluster_wide(environments)}
    for environment in environments:
        for item in permissions(kinds_of(environment, top), environment):
            if not item.namespaced:
                needed[item.group, item.resource, item.verb] = item
    comments = [
        f"{application}: cluster-scoped objects of the manifests, if there are any, and what is optional. Without",
        "namespaces, create them yourself; without nodes, a node port is reached through the API server.",
    ]
    return _documents("ClusterRole", application, "", _rules(needed.values()), account, comments)


def _rules(needed: Iterable[Permission]) -> list[str]:
    """One line for each resource, under a comment with its purpose."""
    resources: dict[tuple[str, str], list[Permission]] = {}
    for permission in sorted(needed):
        resources.setdefault((permission.group, permission.resource), []).append(permission)
    lines: list[str] = []
    for (group, resource), items in resources.items():
        verbs = ", ".join(sorted((item.verb for item in items), key=_VERBS.index))
        lines.append(f"  # {'; '.join(dict.fromkeys(item.purpose for item in items))}")
        group_or_core = group or '""'
        lines.append(f"  - {{apiGroups: [{group_or_core}], resources: [{resource}], verbs: [{verbs}]}}")
    return lines


def _documents(
    kind: str, application: str, namespace: str, rules: Sequence[str], account: Account, comments: Sequence[str]
) -> str:
    """A Role or ClusterRole and its binding. Written by hand: YAML libraries write no comments."""
    metadata = f"name: prefect-cd-{application}" + (f", namespace: {namespace}" if namespace else "")
    lines = [
        "---",
        *(f"# {comment}" for comment in comments),
        f"apiVersion: {_RBAC}/v1",
        f"kind: {kind}",
        f"metadata: {{{metadata}}}",
        "rules:",
        *rules,
        "---",
        f"apiVersion: {_RBAC}/v1",
        f"kind: {kind}Binding",
        f"metadata: {{{metadata}}}",
        f"roleRef: {{apiGroup: {_RBAC}, kind: {kind}, name: prefect-cd-{application}}}",
        f"subjects: [{{kind: ServiceAccount, namespace: {account.namespace}, name: {account.name}}}]",
    ]
    return "\n".join(lines) + "\n"
