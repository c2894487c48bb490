"""Where a stage works, and how its cluster is reached."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from prefect_cd.errors import Invalid, InvalidManifest
from prefect_cd.kube.client import PATIENCE, Cluster
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import ClusterAccess
from prefect_cd.tasks.target import Target, Version, hash_of, id_of
from tests.tasks.examples import config_map, deployment, environment, pipeline, record, release
from tests.unit.fake_api import FakeApi


def test_a_target_is_found_by_the_environments_name() -> None:
    target = Target.of(pipeline(environment(), environment(name="production", namespace="live")), "production")
    assert (target.application, target.name, target.environment.namespace) == ("shop", "production", "live")
    assert target.ownership.labels == {
        "prefect-cd.dev/application": "shop",
        "prefect-cd.dev/environment": "production",
    }


def test_an_unknown_environment_is_refused_with_the_names_of_those_that_there_are() -> None:
    with pytest.raises(KeyError, match=r"no environment 'live'; there are: staging"):
        Target.of(pipeline(), "live")


def test_the_pipeline_file_says_how_the_cluster_is_reached() -> None:
    access = ClusterAccess(context="kind")
    assert Target(application="shop", environment=environment(cluster=access)).access() == access


def with_block(name: str) -> Target:
    return Target(application="shop", environment=environment(cluster=ClusterAccess(credentials=name)))


@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_does_not_exist_is_refused_with_what_to_do() -> None:
    with pytest.raises(Invalid, match="no KubernetesCredentials block 'missing'") as caught:
        with_block("missing").access()
    assert caught.value.where == "environment staging"
    assert "create it in the Prefect UI" in caught.value.hint


@pytest.mark.usefixtures("prefect_server")
def test_i7_a_blocks_kubeconfig_is_used_and_never_printed() -> None:
    from prefect_kubernetes.credentials import (  # noqa: PLC0415  half a second that only this test pays
        KubernetesClusterConfig,
        KubernetesCredentials,
    )

    config = KubernetesClusterConfig(config={"users": [{"user": {"token": "hunter2"}}]}, context_name="live")
    KubernetesCredentials(cluster_config=config).save("cluster-of-the-shop", overwrite=True, _sync=True)
    KubernetesCredentials().save("where-the-worker-runs", overwrite=True, _sync=True)
    access = with_block("cluster-of-the-shop").access()
    assert isinstance(access, LoadedKubeconfig)
    assert access.content == {"users": [{"user": {"token": "hunter2"}}]}
    assert access.context == "live"
    assert "hunter2" not in repr(access)
    assert with_block("where-the-worker-runs").access() == ClusterAccess()


def test_all_work_on_a_target_shares_one_connection(target: Target, api: FakeApi) -> None:
    async def ask(cluster: Cluster) -> str:
        return await cluster.version()

    assert [target.run(ask) for _ in range(3)] == ["v1.36.3"] * 3
    assert api.connections == 1


def test_work_has_the_usual_patience_unless_it_brings_its_own(target: Target) -> None:
    async def patience(cluster: Cluster) -> timedelta:
        return cluster.patience

    assert target.run(patience) == PATIENCE
    assert target.run(patience, patience=timedelta(seconds=5)) == timedelta(seconds=5)


def test_another_kubeconfig_in_the_environment_is_another_connection(
    target: Target, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(cluster: Cluster) -> str:
        return await cluster.version()

    target.run(ask)
    monkeypatch.setenv("KUBECONFIG", "/another")
    target.run(ask)
    assert api.connections == 2


def objects_of(target: Target, version: Version) -> tuple[Object, ...]:
    async def prepare(cluster: Cluster) -> tuple[Object, ...]:
        return await target.objects(cluster, version)

    return target.run(prepare)


def test_a_releases_objects_are_placed_and_labelled_and_workloads_name_the_release(target: Target) -> None:
    candidate = release(config_map(greeting="hello"), deployment())
    settings, workload = objects_of(target, candidate)
    marks = {"app.kubernetes.io/managed-by": "prefect-cd", **target.ownership.labels}
    assert settings["metadata"] == {"name": "shop", "namespace": "shop", "labels": marks}
    assert workload["metadata"]["annotations"] == {"prefect-cd.dev/release": candidate.id}
    assert workload["spec"] == deployment()["spec"]  # pods that did not change are not restarted


def test_a_records_objects_are_those_that_were_recorded(target: Target) -> None:
    old = record(1)
    assert objects_of(target, old) == old.objects
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    older = old.model_copy(update={"objects": ({**secret, "stringData": {"user": "alpha"}},)})
    assert objects_of(target, older) == ({**secret, "data": {"user": "YWxwaGE="}},)


def test_a_kind_that_the_cluster_lacks_is_refused_by_name(target: Target) -> None:
    unknown = {"apiVersion": "example.org/v1", "kind": "Basket", "metadata": {"name": "shop"}}
    with pytest.raises(InvalidManifest, match=r"no kind Basket in example\.org/v1") as caught:
        objects_of(target, release(unknown))
    assert "shop" in caught.value.where


IDENTITIES: list[tuple[Callable[[], Any], str, str]] = [
    (release, release().id, release().hash),
    (lambda: record(1), "release-1", "1" * 64),
]


@pytest.mark.parametrize(("version", "name", "digest"), IDENTITIES, ids=["release", "record"])
def test_releases_and_records_have_the_same_two_names(version: Callable[[], Any], name: str, digest: str) -> None:
    assert (id_of(version()), hash_of(version())) == (name, digest)


def test_a_url_of_the_users_is_used_as_it_is(target: Target, api: FakeApi) -> None:
    shown = target.model_copy(
        update={"environment": target.environment.model_copy(update={"url": "https://shop.example.org/"})}
    )
    with shown.url() as url:
        assert url == "https://shop.example.org"
    assert api.requests == []
