"""What the server does not change in place: replaced where that loses nothing, kept where it holds data, or refused."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd.environment import apply as core
from prefect_cd.environment.apply import prune
from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.changes import compute_changes, prepare_objects, validate
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import Failed, InvalidManifest, OwnershipConflict, RolloutFailed
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.load import Manifest
from prefect_cd.pipeline.models import ClusterAccess, RolloutSettings
from prefect_cd.rollout.watch.loop import watch

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]
ACCESS = ClusterAccess()
BUSYBOX = os.environ.get("BASE_IMAGE") or f"{os.environ.get('REGISTRY', '')}/base/busybox:1"
Kubectl = Callable[..., str]


@pytest.fixture
def ownership(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


async def bring(
    cluster: Cluster,
    ownership: Ownership,
    *items: Object,
    restoring: bool = False,
    force: bool = False,
    runs: Sequence[Object] = (),
    release: str = "r1",
) -> ChangeSet:
    """Plan, write and prune, as a release does it, or a rollback (`restoring`)."""
    objects = [ownership.label(item, release) for item in items]
    earlier = [ownership.label(item, "r0") for item in runs]
    planned = await compute_changes(cluster, ownership, objects, force=force, restoring=restoring, runs=earlier)
    await core.apply(cluster, ownership, objects, planned, force=force, restoring=restoring)
    await prune(cluster, ownership, planned)
    return planned


def actions(planned: ChangeSet) -> list[str]:
    return [change.action.value for change in planned.changes]


async def live_object(cluster: Cluster, item: Object) -> Any:
    live = await cluster.get(Ref.of(item))
    assert live is not None
    return live


async def unchanged(cluster: Cluster, ownership: Ownership, *items: Object) -> bool:
    """Whether bringing the objects once more would write nothing."""
    again = await compute_changes(cluster, ownership, [ownership.label(item, "r1") for item in items])
    return not again.changes_something


# --- replaced --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
async def test_what_a_release_made_immutable_is_replaced_by_a_rollback(kind: str, ownership: Ownership) -> None:
    head = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "settings", "namespace": ownership.namespace}}
    old, new = {**head, "data": {"a": "MQ=="}}, {**head, "data": {"a": "Mg=="}, "immutable": True}
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, old)
        assert actions(await bring(cluster, ownership, new)) == ["changed"]
        before = await live_object(cluster, new)
        assert actions(await bring(cluster, ownership, old, restoring=True)) == ["replaced"]
        after = await live_object(cluster, old)
        assert (after["data"], after.get("immutable")) == (old["data"], None)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert await unchanged(cluster, ownership, old)


async def test_an_immutable_object_of_somebody_else_is_never_replaced(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    item = objects.config_map(ownership.namespace, a="1")
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({**item, "immutable": True}))
    changed = objects.config_map(ownership.namespace, a="2")
    async with connect(ACCESS) as cluster:
        before = await live_object(cluster, item)
        with pytest.raises(InvalidManifest, match="immutable"):
            await bring(cluster, ownership, changed, force=True)
        with pytest.raises(Failed, match="configmap/shop"):
            await bring(cluster, ownership, changed, restoring=True)
        assert await live_object(cluster, item) == before


def job(namespace: str, command: str, **spec: Any) -> Object:
    container = {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", command]}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "migrate", "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}, **spec},
    }


async def watched(cluster: Cluster, ownership: Ownership, *items: Object, since: datetime) -> Any:
    settings = RolloutSettings(timeout=timedelta(seconds=40), settle=timedelta(), crashes=1)
    return await watch(cluster, [ownership.label(item, "r1") for item in items], settings, since=since)


@pytest.mark.needs("jobs.batch")
async def test_a_finished_job_is_replaced_and_a_running_one_only_by_a_rollback(ownership: Ownership) -> None:
    first, second = job(ownership.namespace, "true"), job(ownership.namespace, "sleep 600")
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, first)
        await watched(cluster, ownership, first, since=datetime.now(timezone.utc))
        assert await unchanged(cluster, ownership, first)
        assert actions(await bring(cluster, ownership, second)) == ["replaced"]
        with pytest.raises(InvalidManifest) as caught:
            await bring(cluster, ownership, first)
        assert caught.value.hint == (
            "job/migrate still runs, and a Job's pod template cannot be changed: wait until it has ended, or delete it"
        )
        assert actions(await bring(cluster, ownership, first, restoring=True)) == ["replaced"]
        assert (await live_object(cluster, first))["spec"]["template"]["spec"]["containers"][0]["command"][-1] == "true"


def pod(namespace: str, *command: str, **metadata: Any) -> Object:
    container = {"name": "main", "image": BUSYBOX, "command": list(command)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "worker", "namespace": namespace, **metadata},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]},
    }


async def test_a_bare_pod_is_replaced(ownership: Ownership) -> None:
    first, second = pod(ownership.namespace, "sleep", "600"), pod(ownership.namespace, "sleep", "601")
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, first)
        before = await live_object(cluster, first)
        labelled = pod(ownership.namespace, "sleep", "600", annotations={"a": "1"})
        assert actions(await bring(cluster, ownership, labelled)) == ["changed"]
        assert actions(await bring(cluster, ownership, second)) == ["replaced"]
        after = await live_object(cluster, second)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert await unchanged(cluster, ownership, second)


# --- kept ------------------------------------------------------------------------------------------------------------


def claim(namespace: str, size: str, **data: str) -> Object:
    metadata = {"name": "data", "namespace": namespace, "annotations": data}
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": namespace}
    spec["resources"] = {"requests": {"storage": size}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


@pytest.fixture
def volume(namespace: str, kubectl: Kubectl) -> Iterator[None]:
    """A volume for the claim, of a StorageClass whose claims can grow; both have the namespace's name."""
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": namespace},
        "provisioner": "kubernetes.io/no-provisioner",
        "allowVolumeExpansion": True,
    }
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": namespace, "hostPath": {"path": "/nowhere"}}
    spec |= {"capacity": {"storage": "1Gi"}, "claimRef": {"namespace": namespace, "name": "data"}}
    persistent = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": spec}
    kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [storage_class, persistent]})
    )
    yield
    kubectl("delete", f"storageclass/{namespace}", f"persistentvolume/{namespace}", "--wait=false")


@pytest.mark.needs("persistentvolumeclaims", "storageclasses.storage.k8s.io")
@pytest.mark.usefixtures("volume")
async def test_a_claim_that_grew_keeps_its_size_and_the_rest_goes_back(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    old = [claim(n, "1Gi", v="1"), objects.config_map(n, a="1")]
    new = [claim(n, "2Gi", v="2"), objects.config_map(n, a="2")]
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, *old)
        kubectl("-n", n, "wait", "persistentvolumeclaim/data", "--for=jsonpath={.status.phase}=Bound", "--timeout=60s")
        await bring(cluster, ownership, *new)
        with pytest.raises(InvalidManifest) as caught:
            await bring(cluster, ownership, *old)
        assert caught.value.hint == "write `storage: 2Gi`, which it has: a claim can grow, and not shrink"
        back = await bring(cluster, ownership, *old, restoring=True)
        assert actions(back) == ["changed", "changed"]
        assert back.kept == (
            "persistentvolumeclaim/data: spec.resources.requests.storage stays 2Gi: a claim can grow, and not shrink",
        )
        live = await live_object(cluster, old[0])
        assert live["metadata"]["annotations"]["v"] == "1"
        assert live["spec"]["resources"]["requests"]["storage"] == "2Gi"
        assert (await live_object(cluster, old[1]))["data"] == {"a": "1"}
        assert await unchanged(cluster, ownership, claim(n, "2Gi", v="1"), old[1])


async def test_what_cannot_go_back_is_named_after_all_the_rest_has(ownership: Ownership, objects: Any) -> None:
    n = ownership.namespace
    service, moved = objects.service(n), objects.service(n)
    moved["spec"]["clusterIP"] = "None"
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, service, objects.config_map(n, a="2"))
        with pytest.raises(InvalidManifest) as caught:
            await bring(cluster, ownership, moved)
        assert "spec.clusterIP cannot be changed: give the object another name" in caught.value.hint
        with pytest.raises(Failed, match="it went back, except service/shop") as failed:
            await bring(cluster, ownership, moved, objects.config_map(n, a="1"), restoring=True)
        assert "clusterIP" in failed.value.detail
        assert (await live_object(cluster, objects.config_map(n)))["data"] == {"a": "1"}


# --- fields that belong to nobody, or to somebody else ---------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0, 1)], ids=["to Recreate and back", "from Recreate and back"])
async def test_the_strategy_of_a_deployment_changes_both_ways(
    order: Sequence[int], ownership: Ownership, objects: Any
) -> None:
    rolling = objects.deployment(ownership.namespace, BUSYBOX, "sleep", "600", replicas=0)
    recreate = {**rolling, "spec": {**rolling["spec"], "strategy": {"type": "Recreate"}}}
    wanted = [(rolling, "RollingUpdate"), (recreate, "Recreate")]
    async with connect(ACCESS) as cluster:
        for item, strategy in (wanted[number] for number in order):
            labelled = ownership.label(item, "r1")
            await validate(cluster, ownership, [labelled], {Ref.of(item): "d.yaml:1"})
            assert (await bring(cluster, ownership, item)).changes_something
            assert (await live_object(cluster, item))["spec"]["strategy"]["type"] == strategy
            assert await unchanged(cluster, ownership, item)


@pytest.mark.needs("statefulsets.apps")
async def test_the_strategy_of_a_stateful_set_changes_both_ways(ownership: Ownership, objects: Any) -> None:
    deployment = objects.deployment(ownership.namespace, BUSYBOX, "sleep", "600", replicas=0)
    rolling = {**deployment, "kind": "StatefulSet", "spec": {**deployment["spec"], "serviceName": "shop"}}
    on_delete = {**rolling, "spec": {**rolling["spec"], "updateStrategy": {"type": "OnDelete"}}}
    async with connect(ACCESS) as cluster:
        for item, strategy in ((rolling, "RollingUpdate"), (on_delete, "OnDelete"), (rolling, "RollingUpdate")):
            assert (await bring(cluster, ownership, item)).changes_something
            assert (await live_object(cluster, item))["spec"]["updateStrategy"]["type"] == strategy
            assert await unchanged(cluster, ownership, item)


async def test_fields_of_client_side_apply_are_taken_over_and_go(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    before, after = objects.config_map(n, keep="1", legacy="1"), objects.config_map(n, keep="1")
    kubectl("apply", "-f", "-", stdin=json.dumps(before))
    kubectl("-n", n, "annotate", "configmap", "shop", "theirs=1")
    async with connect(ACCESS) as cluster:
        with pytest.raises(OwnershipConflict):
            await bring(cluster, ownership, before)
        await bring(cluster, ownership, before, force=True)
        live = await live_object(cluster, before)
        assert live["data"] == before["data"]
        assert "kubectl.kubernetes.io/last-applied-configuration" not in live["metadata"]["annotations"]
        planned = await bring(cluster, ownership, after)
        assert "-  legacy: '1'" in planned.changes[0].diff
        live = await live_object(cluster, after)
        assert live["data"] == {"keep": "1"}
        assert live["metadata"]["annotations"] == {"theirs": "1"}
        assert await unchanged(cluster, ownership, after)


async def test_a_plan_that_takes_over_shows_what_it_removes(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    workload = objects.deployment(n, BUSYBOX, "sleep", "600", replicas=0)
    earlier = json.loads(json.dumps(workload))
    container = earlier["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "LEGACY", "value": "1"}]
    kubectl("apply", "-f", "-", stdin=json.dumps(earlier))
    async with connect(ACCESS) as cluster:
        planned = await bring(cluster, ownership, workload, force=True)
        assert "-        - name: LEGACY" in planned.changes[0].diff
        live = await live_object(cluster, workload)
        assert "env" not in live["spec"]["template"]["spec"]["containers"][0]
        assert await unchanged(cluster, ownership, workload)


async def test_keys_that_an_older_version_applied_as_string_data_leave_the_secret(
    ownership: Ownership, kubectl: Kubectl
) -> None:
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": ownership.namespace}}
    older = ownership.label({**head, "stringData": {"user": "alpha", "token": "one"}})
    kubectl("apply", "--server-side", "--field-manager=prefect-cd", "-f", "-", stdin=json.dumps(older))
    kubectl("-n", ownership.namespace, "patch", "secret", "login", "-p", '{"data": {"theirs": "MQ=="}}')
    secret = {**head, "data": {"token": "b25l"}}
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, secret)
        assert (await live_object(cluster, secret))["data"] == {"token": "b25l", "theirs": "MQ=="}
        assert await unchanged(cluster, ownership, secret)


@pytest.mark.needs("horizontalpodautoscalers.autoscaling")
async def test_the_replicas_that_an_autoscaler_set_are_left_to_it(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    web = objects.deployment(n, BUSYBOX, "sleep", "600", name="web")
    other = objects.deployment(n, BUSYBOX, "sleep", "601", name="web")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web", "namespace": n},
        "spec": {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 5},
    }
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, web, scaler)
        kubectl("-n", n, "wait", "deployment/web", "--for=jsonpath={.spec.replicas}=3", "--timeout=60s")
        forward = await bring(cluster, ownership, other, scaler)
        assert forward.kept == ("deployment/web: spec.replicas stays 3: horizontalpodautoscaler/web sets it",)
        assert (await live_object(cluster, web))["spec"]["replicas"] == 3
        await bring(cluster, ownership, web, scaler, restoring=True)
        live = await live_object(cluster, web)
        assert live["spec"]["replicas"] == 3
        assert live["spec"]["template"]["spec"]["containers"][0]["command"] == ["sleep", "600"]


async def test_a_manual_edit_of_ours_is_undone_by_a_rollback_and_an_object_of_another_is_not(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    mine, theirs = objects.config_map(n, "mine", a="1"), objects.config_map(n, "theirs", a="1")
    kubectl("-n", n, "create", "configmap", "theirs", "--from-literal=a=9")
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, mine)
        kubectl("-n", n, "patch", "configmap", "mine", "--type=merge", "-p", '{"data": {"a": "9"}}')
        with pytest.raises(Failed, match="except configmap/theirs"):
            await bring(cluster, ownership, mine, theirs, restoring=True)
        assert (await live_object(cluster, mine))["data"] == {"a": "1"}
        assert (await live_object(cluster, theirs))["data"] == {"a": "9"}


# --- custom resources ------------------------------------------------------------------------------------------------


@pytest.fixture
def group(kubectl: Kubectl) -> Iterator[str]:
    """A group of the test's own; its CustomResourceDefinition is removed."""
    name = f"g{uuid.uuid4().hex[:8]}.example.org"
    yield name
    kubectl("delete", "customresourcedefinition", f"lamps.{name}", "--ignore-not-found", "--wait=false")


def lamps(group: str, *properties: str) -> Object:
    spec = {"type": "object", "properties": {name: {"type": "integer"} for name in properties}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"lamps.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "Lamp", "plural": "lamps", "singular": "lamp"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def lamp(group: str, name: str, **spec: int) -> Object:
    return {"apiVersion": f"{group}/v1", "kind": "Lamp", "metadata": {"name": name}, "spec": spec}


@pytest.mark.needs("customresourcedefinitions.apiextensions.k8s.io")
async def test_a_definition_and_its_object_come_in_one_release(ownership: Ownership, group: str) -> None:
    async def prepared(cluster: Cluster, *items: Object) -> list[Object]:
        manifests = [Manifest(item, f"all.yaml:{number}") for number, item in enumerate(items)]
        placed = await prepare_objects(cluster, manifests, ownership.namespace, ["CustomResourceDefinition"])
        locations = {Ref.of(item): "all.yaml:1" for item in placed}
        await validate(cluster, ownership, [ownership.label(item) for item in placed], locations)
        return list(placed)

    async with connect(ACCESS) as cluster:
        wrong = await prepared(
            cluster, lamps(group, "watts"), lamp(group, "desk", watt=1), lamp(group, "wall", watts=1)
        )
        with pytest.raises(InvalidManifest, match="watt"):
            await bring(cluster, ownership, *wrong)
        assert await cluster.get(Ref.of(wrong[2])) is None  # the definition is there, and nothing else
    async with connect(ACCESS) as cluster:
        right = await prepared(
            cluster, lamps(group, "watts", "volts"), lamp(group, "desk", volts=1), lamp(group, "wall", watts=1)
        )
        planned = await bring(cluster, ownership, *right)
        assert [change.checked for change in planned.changes] == [True, False, True]
        assert (await live_object(cluster, right[1]))["spec"] == {"volts": 1}
        assert await unchanged(cluster, ownership, *right)
        # a new field of the definition, and its first use
        more = await prepared(cluster, lamps(group, "watts", "volts", "lux"), lamp(group, "desk", lux=5))
        planned = await bring(cluster, ownership, *more)
        assert [(change.action.value, change.checked) for change in planned.changes] == [
            ("changed", True),
            ("changed", False),
        ]
        assert (await live_object(cluster, more[1]))["spec"] == {"lux": 5}


# --- what ends -------------------------------------------------------------------------------------------------------


@pytest.mark.needs("jobs.batch")
@pytest.mark.parametrize("seconds", [0, 1])
async def test_a_job_that_the_cluster_removes_is_complete_and_does_not_run_again(
    seconds: int, ownership: Ownership
) -> None:
    item = job(ownership.namespace, "true", ttlSecondsAfterFinished=seconds)
    async with connect(ACCESS) as cluster:
        since = datetime.now(timezone.utc)
        await bring(cluster, ownership, item)
        report = await watched(cluster, ownership, item, since=since)
        assert report.complete
        while await cluster.get(Ref.of(item)):
            await asyncio.sleep(0.2)
        assert (await watched(cluster, ownership, item, since=since)).complete
        again = await bring(cluster, ownership, item, runs=[item], release="r2")
        assert not again.changes_something
        changed = job(ownership.namespace, "exit 3", ttlSecondsAfterFinished=0)
        since = datetime.now(timezone.utc)
        assert actions(await bring(cluster, ownership, changed, runs=[item])) == ["created"]
        with pytest.raises(RolloutFailed):
            await watched(cluster, ownership, changed, since=since)


async def test_a_bare_pod_is_watched_like_any_workload(ownership: Ownership) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        items = [pod(n, "sleep", "600", name="serves"), pod(n, "true", name="ends")]
        since = datetime.now(timezone.utc)
        await bring(cluster, ownership, *items)
        report = await watched(cluster, ownership, *items, since=since)
        assert [(row.workload, row.ready) for row in report.workloads] == [("pod/serves", 1), ("pod/ends", 1)]
        bad = pod(n, "sh", "-c", "echo no settings; exit 3", name="fails")
        await bring(cluster, ownership, bad)
        with pytest.raises(RolloutFailed, match="pod/fails") as caught:
            await watched(cluster, ownership, bad, since=since)
        assert "no settings" in caught.value.detail
        crashing = pod(n, "sh", "-c", "exit 3", name="crashes")
        crashing["spec"]["restartPolicy"] = "Always"
        await bring(cluster, ownership, crashing)
        with pytest.raises(RolloutFailed, match="crash"):
            await watched(cluster, ownership, crashing, since=since)
