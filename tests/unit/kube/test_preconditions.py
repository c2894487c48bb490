"""What a write demands of the live object, and what it means when that does not hold."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cd.errors import OwnershipConflict
from prefect_cd.kube.client import ABSENT, Cluster, Conflict
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError, error_of
from prefect_cd.kube.transport import _encode
from tests.unit.fake_api import FakeApi

CONFIG_MAP = Ref("v1", "ConfigMap", "shop", "shop")
LEASE = Ref("coordination.k8s.io/v1", "Lease", "shop", "shop")


def item_of(ref: Ref, **parts: object) -> Object:
    metadata = {"name": ref.name, "namespace": ref.namespace}
    return {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, **parts}


def with_api(work: Callable[[FakeApi, Cluster], Awaitable[None]]) -> None:
    async def run() -> None:
        api = FakeApi()
        async with api.running() as cluster:
            await work(api, cluster)

    asyncio.run(run())


@pytest.mark.parametrize("write", ["apply", "replace", "delete"])
@pytest.mark.parametrize(("uid", "version"), [("", "stale"), ("uid-shop", "stale"), ("another", "stale")])
def test_i3_a_write_for_an_earlier_version_is_a_conflict_and_changes_nothing(
    write: str, uid: str, version: str
) -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        stale = api.put("configmaps", "shop", data={"a": "1"})["metadata"]["resourceVersion"]
        now = api.put("configmaps", "shop", data={"a": "2"})
        item = item_of(CONFIG_MAP, data={"a": "3"})
        wanted = {"uid": uid, "version": {"stale": stale}[version]}
        with pytest.raises(Conflict) as caught:
            await {
                "apply": lambda: cluster.apply(item, force=True, **wanted),
                "replace": lambda: cluster.replace(item, **wanted),
                "delete": lambda: cluster.delete(CONFIG_MAP, **wanted),
            }[write]()
        assert (caught.value.status, caught.value.cause, caught.value.where) == (409, "Conflict", "configmap/shop")
        assert api.objects["configmaps"]["shop"] == now
        assert (await cluster.get(CONFIG_MAP)) == now

    with_api(work)


def test_a_write_for_the_live_object_lands() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        def wanted() -> dict[str, str]:
            metadata = api.objects["configmaps"]["shop"]["metadata"]
            return {"uid": metadata["uid"], "version": metadata["resourceVersion"]}

        api.put("configmaps", "shop", data={"a": "1"})
        await cluster.apply(item_of(CONFIG_MAP, data={"a": "2"}), **wanted())
        await cluster.replace(item_of(CONFIG_MAP, data={"a": "3"}), **wanted())
        assert api.objects["configmaps"]["shop"]["data"] == {"a": "3"}
        await cluster.delete(CONFIG_MAP, **wanted())
        assert api.objects["configmaps"] == {}
        await cluster.delete(CONFIG_MAP, uid="uid-shop", version="1")  # it is gone: that is success

    with_api(work)


def test_i3_with_a_uid_an_object_that_is_gone_is_not_made_again() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        with pytest.raises(Conflict):
            await cluster.apply(item_of(CONFIG_MAP), uid="uid-shop", version="7")
        with pytest.raises(Conflict):
            await cluster.replace(item_of(LEASE), uid="uid-shop", version="7")
        with pytest.raises(ApiError) as caught:
            await cluster.replace(item_of(CONFIG_MAP), uid="uid-shop", version="7")
        assert caught.value.cause == "NotFound"
        assert api.objects == {}
        await cluster.replace(item_of(LEASE))
        assert list(api.objects["leases"]) == ["shop"]

    with_api(work)


def test_an_apply_at_the_version_of_nothing_only_creates() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        item = item_of(CONFIG_MAP, data={"a": "1"})
        first = await cluster.apply(item, version=ABSENT)
        with pytest.raises(Conflict):
            await cluster.apply({**item, "data": {"a": "2"}}, force=True, version=ABSENT)
        assert api.objects["configmaps"]["shop"] == first
        assert first["metadata"]["resourceVersion"] != ABSENT
        assert "resourceVersion" not in item["metadata"]

    with_api(work)


def test_an_object_that_was_made_again_has_another_uid() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        first = await cluster.create(item_of(CONFIG_MAP))
        await cluster.delete(CONFIG_MAP)
        second = await cluster.create(item_of(CONFIG_MAP))
        assert first["metadata"]["uid"] != second["metadata"]["uid"]
        with pytest.raises(Conflict) as caught:
            await cluster.create(item_of(CONFIG_MAP))
        assert caught.value.cause == "AlreadyExists"
        assert api.objects["configmaps"]["shop"] == second

    with_api(work)


def test_an_object_with_finalizers_is_there_until_the_last_one_is_removed() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        api.put("configmaps", "shop", metadata={"finalizers": ["example.com/wait"]})
        await cluster.delete(CONFIG_MAP)
        going = await cluster.get(CONFIG_MAP)
        assert going is not None
        assert "deletionTimestamp" in going["metadata"]
        await cluster.delete(CONFIG_MAP)
        metadata = {key: value for key, value in going["metadata"].items() if key != "finalizers"}
        await cluster.replace({**going, "metadata": metadata})
        assert await cluster.get(CONFIG_MAP) is None

    with_api(work)


def test_one_name_in_two_namespaces_is_two_objects() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        elsewhere = Ref("v1", "ConfigMap", "other", "shop")
        await cluster.apply(item_of(CONFIG_MAP, data={"a": "1"}))
        await cluster.apply(item_of(elsewhere, data={"a": "2"}))
        kind = await cluster.kind("v1", "ConfigMap")
        values = [[item["data"]["a"] for item in await cluster.list(kind, n)] for n in ("shop", "other", "")]
        assert values == [["1"], ["2"], ["1", "2"]]
        await cluster.delete(elsewhere)
        assert await cluster.get(elsewhere) is None
        assert await cluster.get(CONFIG_MAP) is not None
        assert list(api.objects["configmaps"]) == ["shop"]

    with_api(work)


def test_a_409_is_a_conflict_except_for_fields_of_another_manager() -> None:
    def answer(**parts: object) -> bytes:
        return json.dumps({"message": "m", "reason": "Conflict", **parts}).encode()

    causes = [{"reason": "FieldManagerConflict", "message": 'conflict with "helm"', "field": ".data"}]
    assert isinstance(error_of("PATCH", 409, answer(), "configmap/shop"), Conflict)
    assert isinstance(error_of("PATCH", 409, answer(details={"causes": causes}), "configmap/shop"), OwnershipConflict)
    assert not isinstance(error_of("GET", 404, answer(), "configmap/shop"), Conflict)


@given(st.text())
def test_a_body_has_no_escaped_characters_that_yaml_does_not_know(text: str) -> None:
    sent = _encode({"data": {"a": text}})
    assert b"\\ud8" not in sent.replace(b"\\\\", b"")
    assert json.loads(sent) == {"data": {"a": text}}


def test_half_a_character_is_sent_for_the_server_to_refuse() -> None:
    assert _encode({"a": "\ud83c"}) == b'{"a": "\xed\xa0\xbc"}'


# --- identity --------------------------------------------------------------------------------------------------------


def test_an_object_is_the_same_under_all_versions_of_its_group() -> None:
    def ref(api_version: str, kind: str = "HorizontalPodAutoscaler", namespace: str = "shop") -> Ref:
        return Ref(api_version, kind, namespace, "shop")

    same = {ref(version).identity for version in ("autoscaling/v1", "autoscaling/v2", "autoscaling/v2beta2")}
    assert same == {("autoscaling", "HorizontalPodAutoscaler", "shop", "shop")}
    others = [ref("v1"), ref("example.com/v1"), ref("autoscaling/v1", "Other"), ref("autoscaling/v1", namespace="n")]
    assert len({other.identity for other in others} | same) == 5
    assert CONFIG_MAP.identity == ("", "ConfigMap", "shop", "shop")
