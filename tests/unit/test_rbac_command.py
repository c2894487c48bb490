"""`prefect-cd rbac`: the Roles that it prints."""

from pathlib import Path

import pytest
import yaml

from prefect_cd.deployments.cli import main
from tests.unit import fake_api
from tests.unit.fake_api import FakeApi

PIPELINE = """\
application: shop
source: {{repository: https://example.org/shop.git}}
image: {{name: registry.example.org/shop}}
environments:
  - {{name: staging, namespace: shop-staging, manifests: k8s, cluster: {{kubeconfig: {kubeconfig}}}}}
  - {{name: production, namespace: shop, manifests: k8s, cluster: {{kubeconfig: {kubeconfig}, context: x}}}}
"""
CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\n"
BASKET = "apiVersion: example.org/v1\nkind: Basket\nmetadata: {name: shop}\n"
CLUSTER_ROLE = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: shop}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s" / "shop.yaml").write_text(CONFIG_MAP)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.format(kubeconfig="nowhere"))
    return tmp_path / "pipeline.yaml"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, object]]:
    assert main(["rbac", *map(str, arguments)]) == 0
    return [item for item in yaml.safe_load_all(capsys.readouterr().out) if item]


def test_each_environment_has_a_role_and_a_binding_to_the_service_account(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = printed(capsys, file, "--service-account", "ci/deployer")
    assert [(item["kind"], item["metadata"]) for item in objects] == [
        ("Role", {"name": "prefect-cd-shop", "namespace": "shop-staging"}),
        ("RoleBinding", {"name": "prefect-cd-shop", "namespace": "shop-staging"}),
        ("Role", {"name": "prefect-cd-shop", "namespace": "shop"}),
        ("RoleBinding", {"name": "prefect-cd-shop", "namespace": "shop"}),
    ]
    assert objects[1]["subjects"] == [{"kind": "ServiceAccount", "namespace": "ci", "name": "deployer"}]
    verbs = ["get", "list", "create", "patch", "delete"]
    assert {"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs} in objects[0]["rules"]  # type: ignore[operator]
    assert "*" not in str(objects)


def test_one_environment_can_be_chosen(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    role, _ = printed(capsys, file, "--environment", "production")
    assert role["metadata"] == {"name": "prefect-cd-shop", "namespace": "shop"}
    assert main(["rbac", str(file), "--environment", "prod"]) == 1
    assert "no environment 'prod'" in capsys.readouterr().err


def test_what_no_role_can_grant_is_printed_apart(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "k8s" / "role.yaml").write_text(CLUSTER_ROLE)
    file.write_text(file.read_text().replace("manifests: k8s,", "manifests: k8s, cluster_scoped: [ClusterRole],"))
    assert main(["rbac", str(file)]) == 0
    roles = capsys.readouterr().out
    assert "resources: [clusterroles]" not in roles
    assert "# A Role cannot grant clusterroles: see `prefect-cd rbac --cluster-wide`." in roles
    role, binding = printed(capsys, file, "--cluster-wide")
    assert (role["kind"], binding["kind"]) == ("ClusterRole", "ClusterRoleBinding")
    assert "clusterroles" in str(role["rules"])
    assert "create" in str([rule for rule in role["rules"] if "namespaces" in str(rule)])  # type: ignore[attr-defined]


def test_a_custom_resource_is_looked_up_in_the_cluster(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "k8s" / "basket.yaml").write_text(BASKET)
    assert main(["rbac", str(file)]) == 1
    assert "no cluster to talk to" in capsys.readouterr().err
    monkeypatch.setitem(fake_api._KINDS, "example.org/v1", {"Basket": "basketry"})
    api = FakeApi()
    with api.serving():
        kubeconfig = file.parent / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(api.kubeconfig))
        file.write_text(PIPELINE.format(kubeconfig=kubeconfig))
        role, *_ = printed(capsys, file)
    assert "basketry" in str(role["rules"])


def test_a_checkout_without_the_manifests_is_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["rbac", str(file), "--checkout", str(empty)]) == 1
    assert f"there is no k8s in {empty}" in capsys.readouterr().err


def test_a_service_account_has_a_namespace(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rbac", str(file), "--service-account", "deployer"]) == 1
    assert "--service-account NAMESPACE/NAME" in capsys.readouterr().err
