"""What is written when the live objects are no longer those that were planned for, and what is never pruned."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.environment import apply as core
from prefect_cd.environment.apply import apply, prune
from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.changes import compute_changes, is_prunable
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import Errored, Failed, LockLost, OwnershipConflict
from prefect_cd.kube.client import ABSENT, Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from tests.unit.fake_api import FakeApi

SHOP = Ownership("shop", "staging", "shop")
FINALIZER = "example.com/wait"
Work = Callable[[FakeApi, Cluster], Awaitable[None]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(core, "_LAST_DELAY", 0.002)
    monkeypatch.setattr(core, "_INTERVAL", timedelta(milliseconds=5))


class Lock:
    """The right to write, until `lost` is set: then the cluster knows, and this process does not yet."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.confirmed = 0
        self.epoch = 1

    async def guard(self) -> None:
        pass

    async def confirm(self, _: Cluster) -> None:
        self.confirmed += 1
        if self.lost:
            raise LockLost("another took over")


def live(kind: str, **metadata: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "labels": {}, **metadata}}


def config_map(name: str = "shop", **data: str) -> Object:
    metadata = {"name": name, "namespace": "shop"}
    return SHOP.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def put(api: FakeApi, item: Object, plural: str = "configmaps", **metadata: object) -> Object:
    """Store an object as another client would."""
    parts = {key: value for key, value in item.items() if key not in {"apiVersion", "kind", "metadata"}}
    return api.put(plural, item["metadata"]["name"], metadata={**item["metadata"], **metadata}, **parts)


def with_api(work: Work) -> None:
    async def run() -> None:
        api = FakeApi()
        api.put("namespaces", "shop")
        async with api.running() as cluster:
            await work(api, cluster)

    asyncio.run(run())


def actions(planned: ChangeSet) -> dict[str, str]:
    return {str(change.ref): change.action.value for change in planned.changes}


def once(*steps: Callable[[], object]) -> Callable[[str], None]:
    """What another client does before each of our first writes."""
    left: Iterator[Callable[[], object]] = iter(steps)

    def before_write(_: str) -> None:
        if step := next(left, None):
            step()

    return before_write


# --- writes that come too late ---------------------------------------------------------------------------------------


def test_a_plan_knows_for_which_live_object_it_was_made_and_its_digest_does_not() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        metadata = put(api, config_map(a="1"))["metadata"]
        put(api, config_map("old"))
        known = [Ref.of(config_map("old"))]
        planned = await compute_changes(cluster, SHOP, [config_map(a="2"), config_map("new")], known=known)
        versions = {str(change.ref): (change.uid, change.version) for change in planned.changes}
        assert versions["configmap/shop"] == (metadata["uid"], metadata["resourceVersion"])
        assert versions["configmap/new"] == ("", ABSENT)
        assert versions["configmap/old"][0] == "uid-old"
        put(api, config_map(a="1"))  # a new version
        again = await compute_changes(cluster, SHOP, [config_map(a="2"), config_map("new")], known=known)
        assert again != planned
        assert again.digest == planned.digest

    with_api(work)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["changed", "made", "gone", "made again"]), st.integers(1, 3))
def test_i3_whatever_a_successor_did_no_write_of_the_plan_before_lands(what: str, times: int) -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map("old", by="us"))
        if what != "made":
            put(api, config_map(by="us"))
        planned = await compute_changes(cluster, SHOP, [config_map(by="stale")], known=[Ref.of(config_map("old"))])
        for number in range(times):
            put(api, config_map("old", by=f"successor {number}"))
            if what in {"gone", "made again"}:
                with suppress(KeyError):
                    api.remove("configmaps", "shop")
            if what != "gone":
                put(api, config_map(by=f"successor {number}"))
        before = {**api.objects["configmaps"]}
        lock = Lock(lost=True)
        with pytest.raises(LockLost):
            await apply(cluster, SHOP, [config_map(by="stale")], planned, force=True, lock=lock)
        with pytest.raises(LockLost):
            await prune(cluster, SHOP, planned, lock=lock)
        assert api.objects["configmaps"] == before
        assert lock.confirmed == 2

    with_api(work)


def test_while_the_lock_is_ours_a_controller_that_writes_all_the_time_does_not_stop_a_write() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        item = SHOP.label(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "shop", "namespace": "shop"},
                "spec": {"replicas": 1},
            }
        )
        put(api, item, "deployments")
        wanted = {**item, "spec": {"replicas": 2}}
        planned = await compute_changes(cluster, SHOP, [wanted])

        def write_status() -> None:
            live = api.objects["deployments"]["shop"]
            put(api, {**live, "status": {"observed": live["metadata"]["resourceVersion"]}}, "deployments")

        api.before_write, lock = once(*[write_status] * 5), Lock()
        await apply(cluster, SHOP, [wanted], planned, lock=lock)
        assert api.objects["deployments"]["shop"]["spec"] == {"replicas": 2}
        assert "status" in api.objects["deployments"]["shop"]
        assert lock.confirmed == 5

    with_api(work)


def test_an_object_that_changes_before_every_attempt_is_an_error_that_a_later_attempt_may_heal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core, "_ATTEMPTS", 4)

    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map(a="1"))
        put(api, config_map("old"))
        planned = await compute_changes(cluster, SHOP, [config_map(a="2")], known=[Ref.of(config_map("old"))])
        count = iter(range(100))
        api.before_write = lambda _: [put(api, config_map(name, n=str(next(count)))) for name in ("shop", "old")]
        for write in (
            apply(cluster, SHOP, [config_map(a="2")], planned),
            prune(cluster, SHOP, planned),
        ):
            with pytest.raises(Errored, match="it changed before each of 4 attempts"):
                await write
        assert set(api.objects["configmaps"]) == {"shop", "old"}

    with_api(work)


def test_an_object_that_somebody_wrote_as_we_would_is_not_written_again() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        planned = await compute_changes(cluster, SHOP, [config_map(a="1")])
        api.before_write = once(lambda: put(api, config_map(a="1")))
        await apply(cluster, SHOP, [config_map(a="1")], planned)
        assert api.writes == ["PATCH configmaps/shop"]  # refused
        assert api.objects["configmaps"]["shop"]["data"] == {"a": "1"}

    with_api(work)


@pytest.mark.parametrize("what", ["made", "made again", "relabelled"])
def test_an_object_of_somebody_else_that_came_after_the_plan_is_neither_overwritten_nor_pruned(what: str) -> None:
    theirs: Object = {**config_map(by="them"), "metadata": {"name": "shop", "namespace": "shop"}}

    async def work(api: FakeApi, cluster: Cluster) -> None:
        def come() -> None:
            if what == "made again":
                api.remove("configmaps", "shop")
            put(api, theirs)

        if what != "made":
            put(api, config_map(by="us"))
        planned = await compute_changes(cluster, SHOP, [config_map(by="us again")])
        api.before_write = once(come)
        with pytest.raises(OwnershipConflict, match="would change an object of another manager"):
            await apply(cluster, SHOP, [config_map(by="us again")], planned)
        assert api.objects["configmaps"]["shop"]["data"] == {"by": "them"}
        if what == "made":
            return
        api.remove("configmaps", "shop")
        put(api, config_map(by="us"))
        planned = await compute_changes(cluster, SHOP, [], known=[Ref.of(config_map())])
        assert actions(planned) == {"configmap/shop": "pruned"}
        api.before_write = once(come)
        await prune(cluster, SHOP, planned)
        assert api.objects["configmaps"]["shop"]["data"] == {"by": "them"}

    with_api(work)


def test_an_object_of_ours_that_was_made_again_after_the_plan_is_pruned_all_the_same() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map("old"))
        planned = await compute_changes(cluster, SHOP, [config_map()], known=[Ref.of(config_map("old"))])

        def make_again() -> None:
            api.remove("configmaps", "old")
            put(api, config_map("old", again="yes"))

        api.before_write = once(make_again)
        await prune(cluster, SHOP, planned)
        assert "old" not in api.objects["configmaps"]
        await prune(cluster, SHOP, planned)  # gone already

    with_api(work)


# --- versions of a group ---------------------------------------------------------------------------------------------


def autoscaler(version: str, **spec: object) -> Object:
    metadata = {"name": "shop", "namespace": "shop"}
    item = {"apiVersion": f"autoscaling/{version}", "kind": "HorizontalPodAutoscaler", "metadata": metadata}
    return SHOP.label({**item, "spec": spec})


@pytest.mark.parametrize(("before", "after"), [("v1", "v2"), ("v2", "v1"), ("v2", "v2")])
def test_an_object_whose_manifest_moves_to_another_version_of_its_group_stays(before: str, after: str) -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        first = await compute_changes(cluster, SHOP, [autoscaler(before, maxReplicas=2)])
        await apply(cluster, SHOP, [autoscaler(before, maxReplicas=2)], first)
        known = [Ref.of(autoscaler(before))]
        api.requests.clear()
        same = await compute_changes(cluster, SHOP, [autoscaler(after, maxReplicas=2)], known=known)
        assert actions(same) == {"horizontalpodautoscaler/shop": "unchanged"}
        assert len(api.lists("horizontalpodautoscalers")) == 1
        other = await compute_changes(cluster, SHOP, [autoscaler(after, maxReplicas=3)], known=known)
        assert actions(other) == {"horizontalpodautoscaler/shop": "changed"}
        await apply(cluster, SHOP, [autoscaler(after, maxReplicas=3)], other)
        gone = await compute_changes(cluster, SHOP, [], known=[*known, Ref.of(autoscaler(after))])
        assert actions(gone) == {"horizontalpodautoscaler/shop": "pruned"}
        await prune(cluster, SHOP, gone)
        assert api.objects["horizontalpodautoscalers"] == {}

    with_api(work)


def test_two_objects_in_two_versions_of_one_group_are_compared_each_in_its_own() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        second = autoscaler("v1", maxReplicas=2)
        second["metadata"]["name"] = "second"
        both = [autoscaler("v2", maxReplicas=2), second]
        await apply(cluster, SHOP, both, await compute_changes(cluster, SHOP, both))
        planned = await compute_changes(cluster, SHOP, both)
        assert set(actions(planned).values()) == {"unchanged"}
        assert len(api.objects["horizontalpodautoscalers"]) == 2

    with_api(work)


def test_a_version_that_is_no_longer_served_does_not_hide_the_objects_of_the_kind() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, autoscaler("v2"), "horizontalpodautoscalers")
        known = [Ref.of(autoscaler(version)) for version in ("v0", "v2")]
        planned = await compute_changes(cluster, SHOP, [], known=known)
        assert actions(planned) == {"horizontalpodautoscaler/shop": "pruned"}

    with_api(work)


# --- objects that are being deleted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("obstacle", ["", "helm"])
def test_an_object_that_is_being_deleted_is_created_again_when_it_is_gone(obstacle: str) -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map(a="1"), finalizers=[FINALIZER])
        await cluster.delete(Ref("v1", "ConfigMap", "shop", "shop"))
        api.other_managers = {"shop": obstacle} if obstacle else {}
        planned = await compute_changes(cluster, SHOP, [config_map(a="1")])
        assert actions(planned) == {"configmap/shop": "recreated"}
        assert planned.changes_something
        assert str(planned) == "1 recreated"
        api.other_managers = {}
        before = len(api.requests)
        writing = asyncio.ensure_future(apply(cluster, SHOP, [config_map(a="1")], planned))
        while len(api.requests) < before + 3:  # it waits
            await asyncio.sleep(0.001)
        assert api.objects["configmaps"]["shop"]["metadata"]["uid"] == "uid-shop"
        assert api.writes == ["DELETE configmaps/shop"]
        api.remove("configmaps", "shop")
        await writing
        api.remove("configmaps", "shop")
        assert (await compute_changes(cluster, SHOP, [config_map(a="1")])).digest == planned.digest
        await apply(cluster, SHOP, [config_map(a="1")], planned)
        made = api.objects["configmaps"]["shop"]
        assert (made["data"], made["metadata"]["uid"] != "uid-shop") == ({"a": "1"}, True)
        assert "deletionTimestamp" not in made["metadata"]

    with_api(work)


def test_an_object_whose_deletion_does_not_end_is_named_with_its_finalizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_DELETION_TIMEOUT", timedelta(milliseconds=20))

    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map(a="1"), finalizers=[FINALIZER], deletionTimestamp="2026-01-01T00:00:00Z")
        planned = await compute_changes(cluster, SHOP, [config_map(a="1")])
        with pytest.raises(Failed, match=f"still being deleted.*finalizers: {FINALIZER}") as caught:
            await apply(cluster, SHOP, [config_map(a="1")], planned)
        assert caught.value.where == "configmap/shop"
        assert "kubectl describe configmap/shop -n shop" in caught.value.hint

    with_api(work)


def test_an_object_that_is_deleted_after_the_plan_is_waited_for_as_well() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map(a="1"), finalizers=[FINALIZER])
        planned = await compute_changes(cluster, SHOP, [config_map(a="2")])
        metadata = {"finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        api.before_write = once(lambda: put(api, config_map(a="1"), **metadata))
        writing = asyncio.ensure_future(apply(cluster, SHOP, [config_map(a="2")], planned))
        while "PATCH configmaps/shop" not in api.writes:
            await asyncio.sleep(0.001)
        api.remove("configmaps", "shop")
        await writing
        assert api.objects["configmaps"]["shop"]["metadata"]["uid"] != "uid-shop"

    with_api(work)


def test_an_object_that_somebody_made_again_is_not_waited_for() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, config_map(a="1"), finalizers=[FINALIZER], deletionTimestamp="2026-01-01T00:00:00Z")
        planned = await compute_changes(cluster, SHOP, [config_map(a="2")])
        api.remove("configmaps", "shop")
        put(api, config_map(a="0"))
        await apply(cluster, SHOP, [config_map(a="2")], planned)
        assert api.objects["configmaps"]["shop"]["data"] == {"a": "2"}

    with_api(work)


# --- what is never pruned --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "PersistentVolume", "CustomResourceDefinition", "Namespace"])
def test_an_object_that_holds_data_is_never_pruned(kind: str) -> None:
    assert not is_prunable(live(kind))


def test_an_object_of_a_controller_and_one_that_is_being_deleted_are_not_pruned() -> None:
    assert is_prunable(live("ConfigMap"))
    assert not is_prunable(live("ConfigMap", ownerReferences=[{"uid": "1"}]))
    assert not is_prunable(live("ConfigMap", deletionTimestamp="2026-01-01T00:00:00Z"))
