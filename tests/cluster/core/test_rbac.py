"""The Roles that `prefect-cd rbac` prints, on a cluster that enforces them; and how it serves Kubernetes' own kinds."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.deployments.rbac_command import Account, cluster_role, kinds_of, role
from prefect_cd.environment.permissions import Permission, permissions
from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.resources import Kind
from prefect_cd.pipeline.models import ClusterAccess, Environment, Gate, HttpCheck
from prefect_cd.tasks.preconditions import refused_permissions
from prefect_cd.tasks.target import Target

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(120),
    pytest.mark.needs("roles.rbac.authorization.k8s.io"),
]
Kubectl = Callable[..., str]
NAMES = ("v1/ConfigMap", "v1/Secret", "v1/Service", "apps/v1/Deployment", "apps/v1/StatefulSet", "batch/v1/Job")
KINDS = {kind for name in NAMES if (kind := builtin_kind(*name.rpartition("/")[::2]))}
MANIFESTS = yaml.safe_dump_all(
    {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "shop"}} for kind in KINDS
)
SMOKE = Gate(name="smoke", http=HttpCheck())
SETTINGS = Environment(name="staging", namespace="shop", manifests="k8s", url="service/shop", gates=(SMOKE,))
NEEDED = permissions(KINDS, SETTINGS)
_EFFECTIVE_SECONDS = 10.0
"""Until the API server has read a changed Role, at most."""


class Deployer:
    """A service account with the Role of an environment, and what preflight says about it."""

    def __init__(self, kubectl: Kubectl, namespace: str, folder: Path) -> None:
        (folder / "k8s").mkdir()
        (folder / "k8s" / "shop.yaml").write_text(MANIFESTS)
        self._kubectl, self.namespace = kubectl, namespace
        environment = SETTINGS.model_copy(update={"namespace": namespace})
        kubectl("-n", namespace, "create", "serviceaccount", "deployer")
        account = Account(namespace, "deployer")
        assert set(kinds_of(environment, folder)) == KINDS
        self._role, binding = yaml.safe_load_all(role("shop", environment, folder, account))
        kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([self._role, binding]))
        config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
        config["users"][0]["user"] = {"token": kubectl("-n", namespace, "create", "token", "deployer").strip()}
        self.access = LoadedKubeconfig(config)
        self._target = Target(application="shop", environment=environment)

    def allow_all_but(self, left_out: Permission | None) -> None:
        """Replace the Role by one without this verb."""
        wanted: dict[str, Any] = yaml.safe_load(yaml.safe_dump(self._role))
        for rule in wanted["rules"]:
            if left_out and (rule["apiGroups"], rule["resources"]) == ([left_out.group], [left_out.resource]):
                rule["verbs"].remove(left_out.verb)
        wanted["rules"] = [rule for rule in wanted["rules"] if rule["verbs"]]
        self._kubectl("replace", "-f", "-", stdin=yaml.safe_dump(wanted))

    def refused(self) -> list[Permission]:
        """What preflight finds to be missing."""

        async def ask() -> list[Permission]:
            async with connect(self.access, patience=timedelta(seconds=10)) as cluster:
                return await refused_permissions(cluster, self._target, KINDS)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def deployer(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    namespace = f"h-core-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", namespace)
    yield Deployer(kubectl, namespace, tmp_path_factory.mktemp("rbac"))
    kubectl("delete", "namespace", namespace, "--wait=false", check=False)


def after_a_while(deployer: Deployer, expected: list[Permission]) -> list[Permission]:
    """What is missing, as soon as it is what we expect: a changed Role takes effect a moment later."""
    give_up = time.monotonic() + _EFFECTIVE_SECONDS
    while (missing := deployer.refused()) != expected and time.monotonic() < give_up:
        time.sleep(0.05)
    return missing


def test_i9_with_the_role_nothing_is_missing(deployer: Deployer) -> None:
    deployer.allow_all_but(None)
    assert after_a_while(deployer, []) == []


@pytest.mark.parametrize("permission", NEEDED, ids=str)
def test_i9_preflight_names_exactly_the_verb_that_the_role_lacks(deployer: Deployer, permission: Permission) -> None:
    deployer.allow_all_but(permission)
    assert after_a_while(deployer, [permission]) == [permission]


def test_the_optional_cluster_role_is_accepted(kubectl: Kubectl, deployer: Deployer, tmp_path: Path) -> None:
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s" / "shop.yaml").write_text(MANIFESTS)
    text = cluster_role("shop", [SETTINGS], tmp_path, Account(deployer.namespace, "deployer"))
    assert "created" in kubectl("create", "--dry-run=server", "-f", "-", stdin=text)


# --- Kubernetes' own kinds -------------------------------------------------------------------------------------------


async def test_kubernetes_own_kinds_are_served_as_we_say(kubectl: Kubectl) -> None:
    rows = [line.split() for line in kubectl("api-resources", "--no-headers").splitlines()]
    names = {(row[-3], row[-1]) for row in rows}
    async with connect(ClusterAccess()) as cluster:
        served = {name: await cluster.kind(*name) for name in sorted(names)}
    known: dict[tuple[str, str], Kind] = {name: kind for name in names if (kind := builtin_kind(*name))}
    assert len(known) > 40
    assert {name: served[name] for name in known} == known
