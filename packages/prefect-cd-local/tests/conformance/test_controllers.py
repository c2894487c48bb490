"""The controllers of a cluster, tested by what its API shows.

The tests run on the embedded cluster, on a real one, and with our controllers on a real API server without others.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from conformance.clusters import Cluster, embedded_api_server, our_controllers, paper_node
from prefect_cd_local.client import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    EVENTS,
    MERGE,
    NAMESPACES,
    PODS,
    REPLICA_SETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Client,
    Object,
    Resource,
)

pytestmark = pytest.mark.timeout(120)


class Room(NamedTuple):
    """A namespace for the test, and an image for its pods."""

    client: Client
    namespace: str
    image: str


Scene = Callable[[Room], Awaitable[None]]
Play = Callable[[Scene], None]


@pytest.fixture
def play(controlled: Cluster) -> Play:
    """Run a test in a namespace of its own."""

    async def main(scene: Scene) -> None:
        async with Client.from_kubeconfig(controlled.kubeconfig) as client:
            room = Room(client, f"prefect-cd-rollouts-{uuid4().hex[:8]}", controlled.image)
            await client.create(NAMESPACES, {"metadata": {"name": room.namespace}})
            try:
                await scene(room)
            finally:
                if await client.find(NAMESPACES, room.namespace):
                    await client.delete(NAMESPACES, room.namespace)

    return lambda scene: asyncio.run(main(scene))


async def until(room: Room, resource: Resource, wanted: Callable[[list[Object]], bool]) -> list[Object]:
    """Wait until the collection is as wanted; returns it."""
    items, version = await room.client.list(resource, room.namespace)
    present = {item["metadata"]["uid"]: item for item in items}
    if not wanted(list(present.values())):
        async for event in room.client.watch(resource, room.namespace, resource_version=version):
            if event.type == "BOOKMARK":
                continue
            present[event.object["metadata"]["uid"]] = event.object
            if event.type == "DELETED":
                del present[event.object["metadata"]["uid"]]
            if wanted(list(present.values())):
                break
    return list(present.values())


def count(number: int) -> Callable[[list[Object]], bool]:
    return lambda items: len(items) == number


def web(room: Room, replicas: int = 2, **pod: object) -> Object:
    meta = {"labels": {"app": "web"}, "annotations": {"pod": "good"}}
    container = {
        "name": "web",
        "image": room.image,
        "command": ["sh", "-c", "trap exit TERM; sleep 600 & wait"],
        "ports": [{"name": "http", "containerPort": 8080}],
    }
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container], **pod}
    selector = {"matchLabels": {"app": "web"}}
    spec_ = {"replicas": replicas, "selector": selector, "template": {"metadata": meta, "spec": spec}}
    return {"metadata": {"name": "web", "namespace": room.namespace}, "spec": spec_}


async def roll_out(room: Room, replicas: int = 2) -> Object:
    await room.client.create(DEPLOYMENTS, web(room, replicas))
    (deployment,) = await until(room, DEPLOYMENTS, available(replicas))
    return deployment


def available(number: int) -> Callable[[list[Object]], bool]:
    return lambda items: [(item.get("status") or {}).get("availableReplicas") for item in items] == [number]


def test_a_new_namespace_gets_its_service_account_and_the_root_certificate(play: Play) -> None:
    async def scene(room: Room) -> None:
        (account,) = await until(room, SERVICE_ACCOUNTS, count(1))
        (root,) = await until(room, CONFIG_MAPS, count(1))
        assert (account["metadata"]["name"], root["metadata"]["name"]) == ("default", "kube-root-ca.crt")
        await room.client.delete(SERVICE_ACCOUNTS, "default", room.namespace)
        await until(
            room,
            SERVICE_ACCOUNTS,
            lambda items: [item["metadata"]["uid"] for item in items] not in ([], [account["metadata"]["uid"]]),
        )

    play(scene)


def test_a_terminating_namespace_is_emptied_and_removed(play: Play) -> None:
    async def scene(room: Room) -> None:
        await roll_out(room)
        _, version = await room.client.list(NAMESPACES)
        await room.client.delete(NAMESPACES, room.namespace)
        async for event in room.client.watch(NAMESPACES, resource_version=version):
            if event.type == "DELETED" and event.object["metadata"]["name"] == room.namespace:
                break
        assert (await room.client.list(PODS, room.namespace)).items == []

    play(scene)


@pytest.mark.parametrize(("propagation", "left"), [("Background", 0), ("Foreground", 0), ("Orphan", 2)])
def test_the_propagation_policy_decides_what_becomes_of_replica_sets_and_pods(
    play: Play, propagation: str, left: int
) -> None:
    async def scene(room: Room) -> None:
        await roll_out(room)
        await room.client.delete(DEPLOYMENTS, "web", room.namespace, propagation=propagation)
        await until(room, DEPLOYMENTS, count(0))
        if propagation == "Foreground":  # the owner was removed last
            assert (await room.client.list(REPLICA_SETS, room.namespace)).items == []
        if left:
            orphans = await until(room, REPLICA_SETS, count(1))
            assert "ownerReferences" not in orphans[0]["metadata"]
            again = await roll_out(room)  # an equal template adopts the orphan, with its pods
            (adopted,) = (await room.client.list(REPLICA_SETS, room.namespace)).items
            assert adopted["metadata"]["uid"] == orphans[0]["metadata"]["uid"]
            assert adopted["metadata"]["ownerReferences"][0]["uid"] == again["metadata"]["uid"]
        await until(room, PODS, count(left))

    play(scene)


def test_an_object_whose_owner_is_missing_or_has_another_uid_is_collected(play: Play) -> None:
    async def scene(room: Room) -> None:
        await room.client.create(CONFIG_MAPS, {"metadata": {"name": "owner", "namespace": room.namespace}})
        stranger = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": str(uuid4())}
        meta = {"name": "owned", "namespace": room.namespace, "ownerReferences": [stranger]}
        await room.client.create(CONFIG_MAPS, {"metadata": meta})
        await until(room, CONFIG_MAPS, lambda items: "owned" not in [i["metadata"]["name"] for i in items])
        assert await room.client.find(CONFIG_MAPS, "owner", room.namespace)

    play(scene)


def test_a_pod_that_no_longer_matches_is_released_and_replaced(play: Play) -> None:
    async def scene(room: Room) -> None:
        await roll_out(room)
        (pod, _) = (await room.client.list(PODS, room.namespace)).items
        await room.client.patch(
            PODS, pod["metadata"]["name"], room.namespace, {"metadata": {"labels": {"app": "debug"}}}, MERGE
        )
        pods = await until(room, PODS, count(3))
        (freed,) = [item for item in pods if item["metadata"]["labels"]["app"] == "debug"]
        await until(room, PODS, lambda items: any(not i["metadata"].get("ownerReferences") for i in items))
        assert freed["metadata"]["uid"] == pod["metadata"]["uid"]

    play(scene)


def test_a_refused_pod_shows_on_the_replica_set_and_the_deployment_until_it_is_created(play: Play) -> None:
    async def scene(room: Room) -> None:
        await room.client.create(DEPLOYMENTS, web(room, serviceAccountName="missing"))
        text = 'serviceaccount "missing" not found'
        (deployment,) = await until(room, DEPLOYMENTS, lambda items: text in str(items[0].get("status")))
        (failure,) = [entry for entry in deployment["status"]["conditions"] if entry["type"] == "ReplicaFailure"]
        assert (failure["status"], failure["reason"]) == ("True", "FailedCreate")
        events = await until(room, EVENTS, lambda items: "FailedCreate" in [i["reason"] for i in items])
        (event,) = [item for item in events if item["reason"] == "FailedCreate"]
        assert event["message"].startswith('Error creating: pods "web-')
        await room.client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "missing", "namespace": room.namespace}})
        (deployment,) = await until(room, DEPLOYMENTS, available(2))
        kinds = {entry["type"] for entry in deployment["status"]["conditions"]}
        assert kinds == {"Available", "Progressing"}

    play(scene)


def test_endpoints_follow_pods_and_end_with_the_service(play: Play) -> None:
    def addresses(number: int) -> Callable[[list[Object]], bool]:
        return lambda items: [sum(e["conditions"]["ready"] for e in i["endpoints"] or []) for i in items] == [number]

    async def scene(room: Room) -> None:
        spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}
        await room.client.create(SERVICES, {"metadata": {"name": "web", "namespace": room.namespace}, "spec": spec})
        await until(room, ENDPOINT_SLICES, count(1))
        await roll_out(room, replicas=3)
        (slice_,) = await until(room, ENDPOINT_SLICES, addresses(3))
        assert slice_["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]
        await room.client.patch(DEPLOYMENTS, "web", room.namespace, {"spec": {"replicas": 1}}, MERGE)
        await until(room, ENDPOINT_SLICES, addresses(1))
        await room.client.delete(SERVICES, "web", room.namespace)
        await until(room, ENDPOINT_SLICES, count(0))

    play(scene)


def test_many_pods_are_created_once_each(play: Play) -> None:
    async def scene(room: Room) -> None:
        await roll_out(room, replicas=8)  # a real cluster combines the events of more
        events = await until(
            room, EVENTS, lambda items: len([i for i in items if i["reason"] == "SuccessfulCreate"]) >= 8
        )
        made = {item["message"] for item in events if item["reason"] == "SuccessfulCreate"}
        assert len(made) == 8

    play(scene)


def test_restarted_controllers_finish_a_rollout(tmp_path: Path) -> None:
    def sizes(items: list[Object]) -> list[int]:
        return sorted(item["spec"]["replicas"] for item in items)

    async def main() -> None:
        async with (
            embedded_api_server(tmp_path) as server,
            paper_node(server),
            Client.from_kubeconfig(server.kubeconfig) as client,
        ):
            room = Room(client, "shop", server.image)
            await client.create(NAMESPACES, {"metadata": {"name": "shop"}})
            async with our_controllers(server):
                await roll_out(room, replicas=4)
                change = {"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}}
                await client.patch(DEPLOYMENTS, "web", "shop", change, MERGE)
                await until(room, REPLICA_SETS, count(2))
            async with our_controllers(server):
                await until(room, REPLICA_SETS, lambda items: sizes(items) == [0, 4])
                await until(room, DEPLOYMENTS, lambda items: "NewReplicaSetAvailable" in str(items[0]["status"]))

    asyncio.run(main())
