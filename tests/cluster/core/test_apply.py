"""From objects to an environment: what is planned, what is written, what is pruned, and what is left alone."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import asyncio
import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import Self

from prefect_cd.environment import apply as core
from prefect_cd.environment import changes
from prefect_cd.environment.apply import Unlocked, prune
from prefect_cd.environment.change_set import Action, ChangeSet
from prefect_cd.environment.changes import compute_changes, live_objects, validate
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.namespace import ensure_namespace
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.state import read_state
from prefect_cd.errors import ClusterUnreachable, InvalidManifest, LockLost, OwnershipConflict
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests import diff, labels, load
from prefect_cd.pipeline.models import ClusterAccess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
ACCESS = ClusterAccess()
Kubectl = Callable[..., str]


@pytest.fixture
def ownership(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


@pytest.fixture
def role(kubectl: Kubectl) -> Iterator[str]:
    """The name of a ClusterRole of the test's own."""
    name = f"h-core-{uuid.uuid4().hex[:8]}"
    yield name
    kubectl("delete", "clusterrole", name, f"{name}-2", "--ignore-not-found")


BROUGHT: defaultdict[Ownership, set[Ref]] = defaultdict(set)


async def bring(
    cluster: Cluster,
    ownership: Ownership,
    *items: Object,
    force: bool = False,
    take_back: bool = False,
    before: Sequence[Object] = (),
) -> ChangeSet:
    """Plan, write and prune, as a release does it; like the records, it knows what it has brought in before."""
    objects = [ownership.label(item, "r1") for item in items]
    known = [*(Ref.of(item) for item in before), *BROUGHT[ownership]]
    planned = await compute_changes(cluster, ownership, objects, force=force, take_back=take_back, known=known)
    BROUGHT[ownership] |= {Ref.of(item) for item in objects}
    await core.apply(cluster, ownership, objects, planned, force=force, take_back=take_back)
    await prune(cluster, ownership, planned)
    return planned


def actions(planned: ChangeSet) -> dict[str, str]:
    return {str(change.ref): change.action.value for change in planned.changes}


async def versions(cluster: Cluster, *items: Object) -> list[str]:
    live_objects = [await cluster.get(Ref.of(item)) for item in items]
    return [str(live["metadata"]["resourceVersion"]) if live else "" for live in live_objects]


async def test_objects_are_created_changed_left_alone_and_pruned(ownership: Ownership, objects: Any) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        first = await bring(
            cluster, ownership, *(objects.config_map(n, name, x="1") for name in "abc"), objects.service(n)
        )
        assert set(actions(first).values()) == {"created"}
        second = await bring(
            cluster, ownership, objects.config_map(n, "a", x="1"), objects.config_map(n, "b", x="2"), objects.service(n)
        )
        assert actions(second) == {
            "configmap/a": "unchanged",
            "configmap/b": "changed",
            "configmap/c": "pruned",
            "service/shop": "unchanged",
        }
        assert str(second) == "1 changed, 2 unchanged, 1 pruned"
        assert await cluster.get(Ref("v1", "ConfigMap", n, "c")) is None
        live = await cluster.get(Ref("v1", "ConfigMap", n, "b"))
        assert live is not None
        assert live["data"] == {"x": "2"}
        assert ownership.owns(live)


@pytest.mark.needs("persistentvolumeclaims", "horizontalpodautoscalers.autoscaling", "cronjobs.batch")
@pytest.mark.timeout(90)
async def test_i8_the_second_apply_writes_nothing(ownership: Ownership, objects: Any) -> None:
    n = ownership.namespace
    image = "localhost:5000/base/busybox:1"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk", "namespace": n},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k", "namespace": n}, "stringData": {"a": "b"}}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "shop", "namespace": n},
        "spec": {
            "maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"},
        },
    }
    job = objects.deployment(n, image, "true", name="cron")["spec"]["template"]
    job["spec"]["restartPolicy"] = "Never"
    cron = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "cron", "namespace": n},
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": job}}},
    }
    deployment = objects.deployment(n, image, "sleep", "600", replicas=0)
    items = [deployment, objects.service(n), objects.config_map(n, x="1"), claim, secret, scaler, cron]
    written = [item for item in items if item is not deployment and item is not scaler]  # controllers write into these
    async with connect(ACCESS) as cluster:
        await published(cluster, n)
        await bring(cluster, ownership, *items)
        before = await versions(cluster, *written)
        second = await bring(cluster, ownership, *items)
        assert {change.action for change in second.changes} == {Action.UNCHANGED}
        assert not second.changes_something
        assert await versions(cluster, *written) == before
        assert await cluster.get(Ref("v1", "ConfigMap", n, "kube-root-ca.crt")) is not None


async def published(cluster: Cluster, namespace: str) -> None:
    """Return when the cluster's own ConfigMap is in a new namespace."""
    while await cluster.get(Ref("v1", "ConfigMap", namespace, "kube-root-ca.crt")) is None:
        await asyncio.sleep(0.05)


async def test_a_set_that_did_not_change_is_not_written(ownership: Ownership, objects: Any) -> None:
    item = objects.config_map(ownership.namespace, x="1")

    class Lost(Unlocked):
        async def guard(self) -> None:
            raise LockLost("nothing may be written")

    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, item)
        planned = await compute_changes(cluster, ownership, [ownership.label(item, "r1")])
        await core.apply(cluster, ownership, [ownership.label(item, "r1")], planned, lock=Lost())


@pytest.mark.parametrize("bad", ["invalid", "strict", "other owner"])
async def test_i1_nothing_is_written_when_the_server_refuses_one_of_many_objects(
    bad: str, ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    many = [objects.config_map(n, f"m{number}") for number in range(20)]
    wrong = {
        "invalid": objects.service(n, port=99999),
        "strict": {**objects.config_map(n, "wrong"), "dat": {}},
        "other owner": objects.config_map(n, "theirs", a="2"),
    }[bad]
    theirs = json.dumps(objects.config_map(n, "theirs", a="1"))
    kubectl("apply", "--server-side", "--field-manager=helm", "-f", "-", stdin=theirs)
    async with connect(ACCESS) as cluster:
        with pytest.raises((InvalidManifest, OwnershipConflict)):
            await bring(cluster, ownership, *many, wrong)
        kind = await cluster.kind("v1", "ConfigMap")
        config_maps = await cluster.list(kind, n, fields="metadata.name!=kube-root-ca.crt")
        assert [(item["metadata"]["name"], item["data"]) for item in config_maps] == [("theirs", {"a": "1"})]


async def test_only_what_releases_brought_in_is_pruned_and_a_copy_of_it_by_somebody_else_stays(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, objects.config_map(n), objects.service(n))
        copy = json.loads(kubectl("-n", n, "get", "configmap", "shop", "-o", "json"))
        copy["metadata"] = {"name": "copy", "namespace": n, "labels": copy["metadata"]["labels"]}
        kubectl("apply", "-f", "-", stdin=json.dumps(copy))
        unknown = await compute_changes(cluster, ownership, [ownership.label(objects.config_map(n), "r1")])
        assert actions(unknown) == {"configmap/shop": "unchanged"}
        planned = await bring(cluster, ownership, objects.config_map(n, "other"))
        assert actions(planned) == {
            "configmap/other": "created",
            "configmap/shop": "pruned",
            "service/shop": "pruned",
        }
        assert await cluster.get(Ref("v1", "Service", n, "shop")) is None
        assert await cluster.get(Ref("v1", "ConfigMap", n, "copy")) is not None


async def test_a_kind_that_the_cluster_no_longer_has_needs_no_pruning(ownership: Ownership, objects: Any) -> None:
    gone = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "gone"}}
    async with connect(ACCESS) as cluster:
        assert actions(await bring(cluster, ownership, objects.config_map(ownership.namespace), before=[gone])) == {
            "configmap/shop": "created"
        }


@pytest.mark.needs("endpoints")
async def test_objects_of_other_managers_and_of_controllers_are_never_pruned(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    kubectl("-n", n, "create", "configmap", "theirs")
    for application, environment in (("other", "staging"), ("shop", "production")):
        other = Ownership(application, environment, n).label(objects.config_map(n, f"{application}-{environment}"))
        kubectl("apply", "--server-side", "--field-manager=prefect-cd", "-f", "-", stdin=json.dumps(other))
    before = [objects.config_map(n, name) for name in ("theirs", "other-staging", "shop-production")]
    before.append({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "shop", "namespace": n}})
    before.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}})
    async with connect(ACCESS) as cluster:
        await ensure_namespace(cluster, ownership)
        await bring(cluster, ownership, objects.service(n), objects.config_map(n))
        slices = await cluster.kind("discovery.k8s.io/v1", "EndpointSlice")
        endpoints = Ref("v1", "Endpoints", n, "shop")
        while not (await cluster.list(slices, n) and await cluster.get(endpoints)):
            await asyncio.sleep(0.05)
        await published(cluster, n)
        before += await cluster.list(slices, n)
        second = await bring(cluster, ownership, objects.service(n), before=before)
        assert actions(second) == {"service/shop": "unchanged", "configmap/shop": "pruned"}
        names = {item["metadata"]["name"] for item in await cluster.list(await cluster.kind("v1", "ConfigMap"), n)}
        assert names == {"theirs", "other-staging", "shop-production", "kube-root-ca.crt"}
        assert await cluster.list(slices, n)


async def test_i3_the_lock_and_the_records_are_never_pruned(ownership: Ownership, objects: Any, record: Any) -> None:
    n = ownership.namespace
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "own", "namespace": n},
        "spec": {"holderIdentity": "x"},
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k", "namespace": n}}
    async with connect(ACCESS) as cluster:
        lock = Lock(ACCESS, ownership, "me", timedelta(seconds=1))
        await cluster.create(lock._lease(None))
        written = await RecordStore(cluster, ownership).start(record(ownership))
        await bring(cluster, ownership, lease, secret)
        kinds = [(item["apiVersion"], item["kind"]) for item in (lease, secret)]
        owned = await changes._owned_objects(cluster, ownership, kinds)
        assert {item["metadata"]["name"] for item in owned.values()} == {"own", "k"}  # records are large
        planned = await bring(cluster, ownership, objects.config_map(n), before=[lease, secret])
        assert actions(planned) == {"configmap/shop": "created", "lease/own": "pruned", "secret/k": "pruned"}
        assert await cluster.get(lock._ref) is not None
        assert (await read_state(cluster, ownership)).newest == written


async def test_an_object_that_is_no_longer_ours_is_not_pruned(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, objects.config_map(n, "a"), objects.config_map(n, "b"))
        known = BROUGHT[ownership]
        planned = await compute_changes(cluster, ownership, [ownership.label(objects.config_map(n, "a"))], known=known)
        assert actions(planned)["configmap/b"] == "pruned"
        kubectl("-n", n, "label", "configmap", "b", f"{labels.APPLICATION}=other", "--overwrite")
        await prune(cluster, ownership, planned)
        assert await cluster.get(Ref("v1", "ConfigMap", n, "b")) is not None


@pytest.mark.needs("clusterroles.rbac.authorization.k8s.io")
async def test_two_environments_in_one_cluster_do_not_prune_each_others_cluster_scoped_objects(
    namespace: str, no_namespace: str, role: str, objects: Any
) -> None:
    staging, production = Ownership("shop", "staging", namespace), Ownership("shop", "production", no_namespace)
    one, two = objects.cluster_role(role), objects.cluster_role(f"{role}-2")
    async with connect(ACCESS) as cluster:
        await ensure_namespace(cluster, production)
        await bring(cluster, staging, one)
        await bring(cluster, production, two)
        assert actions(await bring(cluster, staging, one, before=[one])) == {f"clusterrole/{role}": "unchanged"}
        assert actions(await bring(cluster, production, before=[one])) == {f"clusterrole/{role}-2": "pruned"}
        assert await cluster.get(Ref.of(one)) is not None


@pytest.mark.needs("clusterroles.rbac.authorization.k8s.io")
async def test_an_object_of_another_environment_or_application_is_not_taken_over_silently(
    namespace: str, role: str, objects: Any
) -> None:
    one = objects.cluster_role(role)
    async with connect(ACCESS) as cluster:
        await bring(cluster, Ownership("shop", "staging", namespace), one)
        for other in (Ownership("shop", "production", namespace), Ownership("blog", "staging", namespace)):
            with pytest.raises(OwnershipConflict) as caught:
                await bring(cluster, other, one)
            assert f"{other.application} in {other.environment} would change an object of application shop" in str(
                caught.value
            )
            assert "of application shop in environment staging" in caught.value.reason
            assert "take_over" in caught.value.hint
            with pytest.raises(OwnershipConflict, match="an object of application shop"):
                await validate(cluster, other, [other.label(one)], {Ref.of(one): "k8s/role.yaml:1"})


async def test_an_existing_object_is_taken_over_only_on_request(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    """Also where the server reports no conflict, because no two managers want different values."""
    n = ownership.namespace
    kubectl("-n", n, "create", "configmap", "shop", "--from-literal=theirs=1")
    item = objects.config_map(n, ours="2")
    async with connect(ACCESS) as cluster:
        with pytest.raises(OwnershipConflict, match="kubectl-create") as caught:
            await bring(cluster, ownership, item)
        assert caught.value.where == "configmap/shop"
        before = await live_objects(cluster, [Ref.of(item)])
        assert [item["data"] for item in before] == [{"theirs": "1"}]
        assert "uid" not in before[0]["metadata"]
        assert actions(await bring(cluster, ownership, item, force=True)) == {"configmap/shop": "changed"}
        assert actions(await bring(cluster, ownership, item)) == {"configmap/shop": "unchanged"}


async def test_a_field_of_another_manager_is_taken_over_only_on_request(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, objects.config_map(n, a="1"))
        theirs = json.dumps(objects.config_map(n, a="9"))
        kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=by-hand", "-f", "-", stdin=theirs)
        with pytest.raises(OwnershipConflict, match="by-hand"):
            await bring(cluster, ownership, objects.config_map(n, a="1"))
        planned = await bring(cluster, ownership, objects.config_map(n, a="1"), force=True)
        assert "-  a: '9'" in planned.changes[0].diff
        assert "+  a: '1'" in planned.changes[0].diff


async def test_an_emergency_patch_is_named_and_taken_back_where_an_approver_sees_it(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n, image = ownership.namespace, "registry.example.org/shop:1"
    web = objects.deployment(n, image, "true", replicas=0)
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, web)
        kubectl("-n", n, "set", "image", "deployment/shop", f"{container_of(web)}=registry.example.org/emergency:2")
        kubectl("-n", n, "set", "env", "deployment/shop", "BOOM=1")
        with pytest.raises(OwnershipConflict, match=r"kubectl-set changed .*\.image") as caught:
            await bring(cluster, ownership, web)
        assert "the form shows it, and approving takes the fields back" in caught.value.hint
        planned = await bring(cluster, ownership, web, take_back=True)
        (edit,) = planned.changes[0].hand_edits
        assert edit.manager == "kubectl-set"
        assert any(path.endswith("env[BOOM]") for path in edit.fields)
        assert "-        image: registry.example.org/emergency:2" in planned.changes[0].diff
        (live,) = await live_objects(cluster, [Ref.of(web)])
        assert live["spec"]["template"]["spec"]["containers"][0]["image"] == image
        later = await compute_changes(cluster, ownership, [ownership.label(web, "r1")])
        assert [edit.fields for edit in later.changes[0].hand_edits] != []  # what the manifest does not have stays


async def test_fields_of_a_deliverer_are_not_taken_back_with_an_approval(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, objects.config_map(n, a="1"))
        theirs = json.dumps(objects.config_map(n, a="9"))
        kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=argocd", "-f", "-", stdin=theirs)
        with pytest.raises(OwnershipConflict, match="argocd"):
            await bring(cluster, ownership, objects.config_map(n, a="1"), take_back=True)


def container_of(workload: Object) -> str:
    return str(workload["spec"]["template"]["spec"]["containers"][0]["name"])


# --- others write at the same time -----------------------------------------------------------------------------------


class Busy:
    """A client that annotates objects all the time, as a controller writes status, until the block ends."""

    def __init__(self, kubectl: Kubectl, namespace: str, *names: str) -> None:
        self.writes = 0
        self._kubectl, self._namespace, self._names = kubectl, namespace, names
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(2)]

    def _write(self) -> None:
        while not self._over.is_set():
            note = f"note={uuid.uuid4().hex}"
            self._kubectl("-n", self._namespace, "annotate", *self._names, note, "--overwrite", check=False)
            self.writes += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


async def test_objects_that_others_write_all_the_time_are_applied_and_pruned(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n, image = ownership.namespace, "localhost:5000/base/busybox:1"

    def items(version: str) -> list[Object]:
        workloads = [objects.deployment(n, image, "sleep", "600", name=name, replicas=0) for name in ("a", "b")]
        for item in workloads:
            item["spec"]["template"]["metadata"]["annotations"] = {"version": version}
        return workloads

    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, *items("0"))
        with Busy(kubectl, n, "deployment/a", "deployment/b") as busy:
            for version in range(1, 8):
                seen = busy.writes
                while busy.writes < seen + 2:
                    await asyncio.sleep(0.01)
                planned = await bring(cluster, ownership, *items(str(version)))
                assert set(actions(planned).values()) == {"changed"}
                live = await cluster.get(Ref("apps/v1", "Deployment", n, "a"))
                assert live is not None
                assert live["spec"]["template"]["metadata"]["annotations"] == {"version": str(version)}
            assert actions(await bring(cluster, ownership, *items("8")[:1]))["deployment/b"] == "pruned"
            gone = await cluster.get(Ref("apps/v1", "Deployment", n, "b"))
            assert gone is None or "deletionTimestamp" in gone["metadata"]


async def test_an_object_that_came_after_the_plan_is_not_overwritten(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    item = ownership.label(objects.config_map(n, ours="1"))
    async with connect(ACCESS) as cluster:
        planned = await compute_changes(cluster, ownership, [item])
        kubectl("-n", n, "create", "configmap", "shop", "--from-literal=theirs=1")
        with pytest.raises(OwnershipConflict, match="kubectl-create"):
            await core.apply(cluster, ownership, [item], planned)
        live = await cluster.get(Ref.of(item))
        assert live is not None
        assert live["data"] == {"theirs": "1"}


@pytest.mark.parametrize("kind", ["configmap", "service"])
async def test_an_object_that_is_being_deleted_is_created_again_when_it_is_gone(
    kind: str, ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    item = {"configmap": objects.config_map, "service": objects.service}[kind](n)
    finalizers = '{"metadata": {"finalizers": %s}}'
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, item)
        kubectl("-n", n, "patch", kind, "shop", "--type=merge", "-p", finalizers % '["example.com/wait"]')
        await bring(cluster, ownership, objects.config_map(n, "other"), before=[item])  # prunes it
        before = await cluster.get(Ref.of(item))
        assert before is not None
        assert before["metadata"]["deletionTimestamp"]
        objects_again = [ownership.label(item, "r1")]
        planned = await compute_changes(cluster, ownership, objects_again)
        assert actions(planned)[f"{kind}/shop"] == "recreated"
        writing = asyncio.ensure_future(core.apply(cluster, ownership, objects_again, planned))
        await asyncio.to_thread(kubectl, "-n", n, "patch", kind, "shop", "--type=merge", "-p", finalizers % "null")
        await writing
        after = await cluster.get(Ref.of(item))
        assert after is not None
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert "deletionTimestamp" not in after["metadata"]


@pytest.mark.needs("horizontalpodautoscalers.autoscaling")
async def test_an_object_whose_manifest_moves_to_another_version_of_its_group_stays(ownership: Ownership) -> None:
    head = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "shop", "namespace": ownership.namespace}}
    target = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"}, "maxReplicas": 2}
    first, second = ({**head, "apiVersion": f"autoscaling/v{version}", "spec": target} for version in (1, 2))
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, first)
        before = await cluster.get(Ref.of(first))
        assert before is not None
        for item, earlier in ((second, first), (first, second)):
            planned = await bring(cluster, ownership, item, before=[earlier])
            assert "pruned" not in actions(planned).values()
            live = await cluster.get(Ref.of(item))
            assert live is not None
            assert live["metadata"]["uid"] == before["metadata"]["uid"]
        assert actions(await bring(cluster, ownership, before=[first, second])) == {
            "horizontalpodautoscaler/shop": "pruned"
        }


async def test_characters_beyond_the_first_plane_are_applied(ownership: Ownership, objects: Any) -> None:
    item = objects.config_map(ownership.namespace, greeting="🎉 é \\ud83c")
    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, item)
        live = await cluster.get(Ref.of(item))
        assert live is not None
        assert live["data"] == item["data"]
        half = {**item, "data": {"greeting": "\ud83c"}}
        with pytest.raises(InvalidManifest):
            await bring(cluster, ownership, half)


# --- the namespace ---------------------------------------------------------------------------------------------------


async def test_a_plan_for_a_missing_namespace_is_dry_run_and_creates_nothing(no_namespace: str, objects: Any) -> None:
    ownership = Ownership("shop", "staging", no_namespace)
    own = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": no_namespace}}
    good = [ownership.label(item) for item in (own, objects.config_map(no_namespace, a="1"))]
    wrong = [ownership.label({**objects.config_map(no_namespace), "dat": {}})]
    async with connect(ACCESS) as cluster:
        planned = await compute_changes(cluster, ownership, good)
        assert set(actions(planned).values()) == {"created"}
        assert "+  a: '1'" in planned.changes[1].diff
        await validate(cluster, ownership, good, {Ref.of(item): "x" for item in good})
        for dry_run in (
            compute_changes(cluster, ownership, wrong),
            validate(cluster, ownership, wrong, {Ref.of(wrong[0]): "k8s/a:1"}),
        ):
            with pytest.raises(InvalidManifest, match="dat"):
                await dry_run
        assert await cluster.get(Ref.of(own)) is None


async def test_a_missing_namespace_is_created_as_ours_and_an_existing_one_is_left_alone(
    no_namespace: str, namespace: str
) -> None:
    async with connect(ACCESS) as cluster:
        for name, ours in ((no_namespace, True), (namespace, False)):
            ownership = Ownership("shop", "staging", name)
            await ensure_namespace(cluster, ownership)
            await ensure_namespace(cluster, ownership)
            live = await cluster.get(Ref("v1", "Namespace", "", name))
            assert live is not None
            assert ownership.owns(live) == ours


# --- manifests as the commit has them --------------------------------------------------------------------------------


async def release(cluster: Cluster, ownership: Ownership, *items: Object, before: Sequence[Object] = ()) -> ChangeSet:
    """Prepare, plan, write and prune, as a release does it."""
    manifests = [load.Manifest(item, f"k8s/app.yaml:{number}") for number, item in enumerate(items, start=1)]
    prepared = await changes.prepare_objects(cluster, manifests, ownership.namespace, ["ClusterRole"])
    return await bring(cluster, ownership, *prepared, before=before)


async def test_a_key_that_leaves_string_data_leaves_the_secret_and_comes_back_with_it(ownership: Ownership) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    old = {**secret, "stringData": {"user": "alpha", "token": "one"}}
    new = {**secret, "stringData": {"account": "alpha", "token": "one"}}
    async with connect(ACCESS) as cluster:
        for item in (old, new, old):
            assert (await release(cluster, ownership, item)).changes_something
            live = await cluster.get(Ref("v1", "Secret", ownership.namespace, "login"))
            assert live is not None
            assert live["data"].keys() == item["stringData"].keys()
            assert not (await release(cluster, ownership, item)).changes_something


async def test_a_label_of_the_manifest_stays_and_the_object_is_ours(ownership: Ownership, objects: Any) -> None:
    item = objects.config_map(ownership.namespace, x="1")
    item["metadata"]["labels"] = {labels.MANAGED_BY: "team-a"}
    async with connect(ACCESS) as cluster:
        await release(cluster, ownership, item)
        live = await cluster.get(Ref.of(item))
        assert live is not None
        assert live["metadata"]["labels"][labels.MANAGED_BY] == "team-a"
        other = Ownership("other", "staging", ownership.namespace)
        with pytest.raises(OwnershipConflict, match="an object of application shop in environment staging"):
            await release(cluster, other, item)
        assert actions(await release(cluster, ownership, before=[item])) == {"configmap/shop": "pruned"}


@pytest.mark.needs("clusterroles.rbac.authorization.k8s.io")
async def test_a_cluster_scoped_object_with_a_namespace_is_unchanged_the_second_time(
    ownership: Ownership, role: str, objects: Any
) -> None:
    item = objects.cluster_role(role)
    item["metadata"]["namespace"] = ownership.namespace
    async with connect(ACCESS) as cluster:
        assert actions(await release(cluster, ownership, item)) == {f"clusterrole/{role}": "created"}
        assert actions(await release(cluster, ownership, item, before=[item])) == {f"clusterrole/{role}": "unchanged"}


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_an_object_that_the_server_refuses_is_an_error_with_file_and_line(
    ownership: Ownership, objects: Any
) -> None:
    items = [
        ownership.label(item)
        for item in (objects.config_map(ownership.namespace), objects.service(ownership.namespace))
    ]
    items[1]["spec"]["ports"][0]["port"] = 99999
    locations = {Ref.of(item): f"k8s/app.yaml:{line}" for line, item in enumerate(items, start=1)}
    async with connect(ACCESS) as cluster:
        with pytest.raises(InvalidManifest, match="65535") as caught:
            await validate(cluster, ownership, items, locations)
        assert caught.value.where == "k8s/app.yaml:2: service/shop"
        assert await cluster.get(Ref.of(items[0])) is None


async def test_a_kind_that_the_cluster_does_not_have_is_an_error_with_file_and_line(objects: Any) -> None:
    manifests = [load.Manifest({**objects.config_map("x"), "kind": "Widget"}, "k8s/app.yaml:7")]
    async with connect(ACCESS) as cluster:
        with pytest.raises(InvalidManifest, match="no kind Widget") as caught:
            await changes.prepare_objects(cluster, manifests, "x", ())
    assert caught.value.where == "k8s/app.yaml:7"


async def test_i7_a_plan_never_shows_a_secrets_value(ownership: Ownership, kubectl: Kubectl) -> None:
    """Neither the value of the commit, nor the live one, nor the one in kubectl's annotation."""
    metadata = {"name": "k", "namespace": ownership.namespace}
    item = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"a": "hunter1"}}
    kubectl("apply", "-f", "-", stdin=json.dumps(item))
    other = ownership.label({**item, "stringData": {"a": "hunter2", "b": "hunter3"}})
    async with connect(ACCESS) as cluster:
        for force in (True, False):
            planned = await compute_changes(cluster, ownership, [other], force=force)
            assert diff.HIDDEN_CHANGED in planned.changes[0].diff
            text = planned.model_dump_json()
            for value in ("hunter", "aHVudGVy"):  # plain, and the beginning of its base64
                assert value not in text
            await core.apply(cluster, ownership, [other], planned, force=force)
            other = ownership.label({**item, "stringData": {"a": "hunter4"}})


# --- digest and parallel work ----------------------------------------------------------------------------------------


async def test_i5_the_digest_changes_with_the_lines_that_change_and_with_nothing_else(
    ownership: Ownership, objects: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace

    async def digest(cluster: Cluster, **data: str) -> str:
        items = [ownership.label(objects.config_map(n, name, **data)) for name in ("a", "b")]
        return (await compute_changes(cluster, ownership, items)).digest

    async with connect(ACCESS) as cluster:
        await bring(cluster, ownership, *(objects.config_map(n, name, x="1") for name in ("a", "b")))
        approved = await digest(cluster, x="2")
        kubectl("-n", n, "annotate", "configmap", "a", "note=beside")
        assert await digest(cluster, x="2") == approved
        assert await digest(cluster, x="3") != approved
        kubectl("-n", n, "patch", "configmap", "a", "-p", '{"data": {"y": "9"}}')
        await bring(cluster, ownership, objects.config_map(n, "a", x="1"), objects.config_map(n, "b", x="2"))
        assert await digest(cluster, x="2") != approved


async def test_after_an_error_no_more_work_starts_and_running_work_is_awaited() -> None:
    started: list[int] = []
    ended: list[int] = []

    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(0)
        if number == 3:
            raise ClusterUnreachable("gone")
        await asyncio.sleep(0.05)
        ended.append(number)

    with pytest.raises(ClusterUnreachable, match="gone"):
        await parallel(work(number) for number in range(100))
    assert started == list(range(16))
    assert sorted(ended) == [number for number in range(16) if number != 3]


async def test_after_an_unexpected_error_running_work_is_awaited_too() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number == 0:
            raise ZeroDivisionError
        await asyncio.sleep(0.02)
        ended.append(number)

    with pytest.raises(ZeroDivisionError):
        await parallel(work(number) for number in range(5))
    assert len(ended) == 4


async def test_parallel_results_are_in_the_order_of_the_work() -> None:
    async def work(number: int) -> int:
        await asyncio.sleep(0.01 * (5 - number))
        return number

    assert await parallel(work(number) for number in range(5)) == [0, 1, 2, 3, 4]
    assert await parallel(iter(())) == []
