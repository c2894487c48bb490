"""What an environment lacks is known in preflight and in the plan, on a fake API server."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefect_cd.deployments.cli import main
from prefect_cd.errors import RequirementMissing
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import ClusterAccess, Environment
from prefect_cd.tasks import preconditions, requirements
from prefect_cd.tasks.changes import plan, refuse_blocked
from prefect_cd.tasks.preconditions import Preflight, preflight
from prefect_cd.tasks.target import Target
from tests.tasks.examples import (
    IMAGE,
    GitRepository,
    as_yaml,
    config_map,
    deployment,
    environment,
    image,
    pipeline,
    record,
    release,
)
from tests.unit.fake_api import FakeApi


def with_secret(*keys: str, name: str = "db") -> Object:
    item = deployment()
    sources = [{"name": key.upper(), "valueFrom": {"secretKeyRef": {"name": name, "key": key}}} for key in keys]
    item["spec"]["template"]["spec"]["containers"][0]["env"] = sources
    return item


@pytest.fixture
def check(repository: GitRepository, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Preflight]:
    """Preflight of these objects in these environments, with an image that is built already."""
    monkeypatch.setattr(preconditions, "find_image", lambda *_: image(built=False))

    def play(objects: list[Object], *environments: Environment) -> Preflight:
        commit = repository.commit({"k8s/shop.yaml": as_yaml(*objects)})
        return preflight.fn(pipeline(*environments, repository=repository.path), commit)

    return play


@pytest.fixture
def production(access: ClusterAccess) -> Environment:
    return environment(name="production", namespace="shop-production", cluster=access)


def test_i9_preflight_names_all_that_all_environments_lack(
    check: Callable[..., Preflight], environment: Environment, production: Environment, api: FakeApi
) -> None:
    api.put("secrets", "db", data={"user": "eA=="})
    workload = with_secret("user", "url")
    workload["spec"]["template"]["spec"]["serviceAccountName"] = "robot"
    with pytest.raises(RequirementMissing) as caught:
        check([workload, config_map(greeting="hello")], environment, production)
    assert caught.value.reason.startswith("the release cannot run in staging and production, so nothing was written")
    account = "deployment/shop: serviceAccountName"
    env = "deployment/shop: container main, env USER; deployment/shop: container main, env URL"
    namespace = "shop-production"
    empty = f"neither does the namespace {namespace}, which the release would create empty"
    create = f"kubectl create namespace {namespace} && kubectl -n {namespace} create secret generic db"
    patch = """kubectl -n shop patch secret db -p '{"stringData":{"url":"…"}}'"""
    add, or_ = "add the ServiceAccount to the manifests", "or correct the reference"
    assert (
        caught.value.detail
        == f"""\
staging: {env}: secret/db has no key url. Fix: {patch}, {or_}
staging: {account}: serviceaccount/robot does not exist. Fix: {add}, {or_}
production: {env}: secret/db does not exist; {empty}. Fix: {create} --from-literal=url=… --from-literal=user=…, {or_}
production: {account}: serviceaccount/robot does not exist; {empty}. Fix: {add}, {or_}"""
    )
    assert api.writes == []


def test_an_environment_may_ask_for_a_warning_only(
    check: Callable[..., Preflight], environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    check([with_secret("url")], environment.model_copy(update={"requirement_check": "warn"}))
    assert "staging: deployment/shop: container main, env URL: secret/db does not exist" in caplog.text


def test_what_we_may_not_read_is_not_missing(
    check: Callable[..., Preflight], environment: Environment, api: FakeApi
) -> None:
    api.unreadable = {"secrets"}
    check([with_secret("url")], environment)


def test_what_exists_or_comes_with_the_release_is_not_missing(
    check: Callable[..., Preflight], environment: Environment, api: FakeApi
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}, "stringData": {"url": "x"}}
    api.put("secrets", "db", data={"url": "eA=="})
    check([with_secret("url"), with_secret("url", name="mine") | {"metadata": {"name": "two"}}, secret], environment)


def test_a_refused_pod_is_named_as_the_cluster_says_it(
    check: Callable[..., Preflight], environment: Environment, api: FakeApi
) -> None:
    message = 'pods "shop-prefect-cd-dry-run" is forbidden: violates PodSecurity "restricted:latest": privileged'
    api.refused_names = {"shop-prefect-cd-dry-run": message}
    with pytest.raises(RequirementMissing) as caught:
        check([deployment()], environment)
    assert 'the cluster would refuse its pods: violates PodSecurity "restricted:latest"' in caught.value.detail


def test_i9_a_plan_finds_what_has_gone_since_and_nothing_is_written(target: Target, api: FakeApi) -> None:
    planned = plan.fn(target, release(with_secret("url")))
    (unmet,) = planned.unmet
    assert (unmet.certain, unmet.summary) == (True, "secret/db does not exist")
    with pytest.raises(RequirementMissing):
        refuse_blocked(pipeline(), release(), planned)
    assert api.writes == []


def test_a_version_that_is_brought_back_is_not_checked(target: Target) -> None:
    assert plan.fn(target, record(1, objects=(with_secret("url"),))).unmet == ()


@pytest.mark.parametrize("exists", [True, False])
def test_check_deep_is_the_preflight_without_a_run(
    exists: bool,  # noqa: FBT001
    repository: GitRepository,
    access: ClusterAccess,
    api: FakeApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(preconditions, "find_image", lambda *_: image(built=False))
    repository.commit({"k8s/shop.yaml": as_yaml(with_secret("url"))})
    if exists:
        api.put("secrets", "db", data={"url": "eA=="})
    staging = {"name": "staging", "namespace": "shop", "manifests": "k8s", "cluster": {"kubeconfig": access.kubeconfig}}
    file = tmp_path / "pipeline.yaml"
    source = {"repository": str(repository.path), "branch": "main"}
    content = {"application": "shop", "source": source, "image": {"name": IMAGE}, "environments": [staging]}
    file.write_text(yaml.safe_dump(content))
    code = main(["check", str(file), "--deep"])
    output = capsys.readouterr()
    assert api.writes == []
    if exists:
        assert (code, "can start in staging" in output.out) == (0, True)
    else:
        assert (code, "kubectl -n shop create secret generic db --from-literal=url=" in output.err) == (1, True)


def test_i10_no_registry_is_asked_but_the_pipelines_own(
    check: Callable[..., Preflight], environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit must not choose a host that we send requests to."""
    asked: list[str] = []
    monkeypatch.setattr(requirements, "find_digest", lambda name, *_, **__: asked.append(name))
    own = f"{IMAGE.rpartition('/')[0]}/helper"
    workload = deployment()
    containers = workload["spec"]["template"]["spec"]["containers"]
    containers += [{"name": "evil", "image": "evil.example/x:1"}, {"name": "local", "image": "127.0.0.1:80/x:1"}]
    containers += [{"name": "helper", "image": f"{own}:1"}]
    with pytest.raises(RequirementMissing, match="helper:1"):
        check([workload], environment)
    assert asked == [own]
