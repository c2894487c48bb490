"""Rollouts of many shapes, step by step, compared with the real controllers.

`rollouts/*.yaml` contain the shape (steps) and what was recorded on Kubernetes 1.36.3: changes of a ReplicaSet's wanted
pods in order, by revision, and the final state. A shape runs on every stage of `conftest.py`. What depends on timing is
compared as invariants; where a shape is marked `deterministic`, the order of steps must be the same.

RECORD=1 with KUBECONFIG and REGISTRY set writes new recordings from the real cluster.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from conformance.clusters import Cluster
from prefect_cd_local.client import (
    DEPLOYMENTS,
    MERGE,
    NAMESPACES,
    REPLICA_SETS,
    ApiError,
    Client,
    Object,
)

SHAPES = sorted((Path(__file__).parent / "rollouts").glob("*.yaml"))
REVISION = "deployment.kubernetes.io/revision"
COUNTERS = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas")


@dataclass
class Trace:
    """The observed course of a rollout."""

    steps: list[tuple[str, int]] = field(default_factory=list)  # (revision, wanted pods), in order
    most_wanted: int = 0  # active pods of all revisions, while spec.replicas was unchanged
    least_available: int = 10_000
    sets: dict[str, Object] = field(default_factory=dict)
    deployment: Object = field(default_factory=dict)

    def final(self) -> Object:
        """Return the final state, without names and times."""
        status = self.deployment["status"]
        conditions = {entry["type"]: f"{entry['status']} {entry['reason']}" for entry in status["conditions"]}
        revisions = {
            rs["metadata"]["annotations"][REVISION]: {
                "wanted": rs["spec"]["replicas"],
                "history": rs["metadata"]["annotations"].get("deployment.kubernetes.io/revision-history", ""),
            }
            for rs in self.sets.values()
        }
        counters = {name: status[name] for name in COUNTERS if status.get(name)}
        return {"conditions": conditions, "revisions": revisions, "counters": counters}


def pod_template(what: str, image: str) -> Object:
    """Make pods that are ready (`good 1`, `good 2`), never become ready (`crash`), or cannot start (`bad-image`)."""
    kind, _, version = what.partition(" ")
    healthy = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 30}
    container = {
        "name": "web",
        "image": f"{image}.nope" if kind == "bad-image" else image,
        "command": ["false"] if kind == "crash" else ["sh", "-c", "trap exit TERM; sleep 600 & wait"],
        "env": [{"name": "VERSION", "value": version}],
        "readinessProbe": healthy if kind == "good" else {"exec": {"command": ["false"]}, "periodSeconds": 1},
    }
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    return {"metadata": {"labels": {"app": "web"}, "annotations": {"pod": kind}}, "spec": spec}


async def play(client: Client, image: str, steps: list[Object]) -> Trace:
    """Run the steps of a shape in a namespace of their own, watching all the time."""
    namespace, trace, seen = f"prefect-cd-rollouts-{uuid4().hex[:8]}", Trace(), asyncio.Event()
    await client.create(NAMESPACES, {"metadata": {"name": namespace}})
    watches = asyncio.gather(
        follow_sets(client, namespace, trace, seen), follow_deployment(client, namespace, trace, seen)
    )
    try:
        for step in steps:
            await act(client, namespace, image, step)
            await until(trace, step, seen, watches)
        return trace
    finally:
        watches.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await watches
        await client.delete(NAMESPACES, namespace)


async def act(client: Client, namespace: str, image: str, step: Object) -> None:
    change = dict(step.get("spec") or {})
    if "pod" in step:
        change["template"] = pod_template(step["pod"], image)
    if await client.find(DEPLOYMENTS, "web", namespace) is None:
        spec = {"selector": {"matchLabels": {"app": "web"}}, **change}
        await client.create(DEPLOYMENTS, {"metadata": {"name": "web", "namespace": namespace}, "spec": spec})
    else:
        await client.patch(DEPLOYMENTS, "web", namespace, {"spec": change}, MERGE)


async def until(trace: Trace, step: Object, seen: asyncio.Event, watches: "asyncio.Future[object]") -> None:
    """Wait until the sizes and the reason of Progressing are those of the step."""
    goal = {str(revision): size for revision, size in step["until"].items() if revision != "reason"}
    while not watches.done():
        if trace.deployment and _stands(trace, goal, step["until"].get("reason")):
            return
        seen.clear()
        await seen.wait()
    await watches


def _stands(trace: Trace, goal: dict[str, int], reason: str | None) -> bool:
    deployment = trace.deployment
    status = deployment.get("status") or {}
    sizes = {rs["metadata"]["annotations"][REVISION]: rs["spec"]["replicas"] for rs in trace.sets.values()}
    steady = all(rs["status"].get("replicas", 0) == rs["spec"]["replicas"] for rs in trace.sets.values())
    counted = status.get("replicas", 0) == sum(sizes.values())
    reasons = {entry["reason"] for entry in status.get("conditions") or [] if entry["type"] == "Progressing"}
    current = status.get("observedGeneration") == deployment["metadata"]["generation"]
    # The reason of the previous rollout stays while the new pods start, and so do its counters, which come by another
    # watch than the sizes.
    counters = (status.get("updatedReplicas"), status.get("availableReplicas"))
    waits = reason == "NewReplicaSetAvailable" and set(counters) != {deployment["spec"]["replicas"]}
    return current and steady and counted and sizes == goal and (reason is None or reason in reasons) and not waits


async def follow_sets(client: Client, namespace: str, trace: Trace, seen: asyncio.Event) -> None:
    sizes: dict[str, int] = {}
    version = (await client.list(REPLICA_SETS, namespace)).resource_version
    async for event in client.watch(REPLICA_SETS, namespace, resource_version=version):
        rs = event.object
        if event.type == "BOOKMARK":
            continue
        name, size = rs["metadata"]["name"], rs["spec"]["replicas"]
        if event.type == "DELETED":
            trace.sets.pop(name, None)
        else:
            trace.sets[name] = rs
            if sizes.get(name) != size:
                sizes[name] = size
                trace.steps.append((rs["metadata"]["annotations"][REVISION], size))
            trace.most_wanted = max(trace.most_wanted, sum(sizes.values()))
        seen.set()


async def follow_deployment(client: Client, namespace: str, trace: Trace, seen: asyncio.Event) -> None:
    version = (await client.list(DEPLOYMENTS, namespace)).resource_version
    was_available = False
    async for event in client.watch(DEPLOYMENTS, namespace, resource_version=version):
        if event.type == "BOOKMARK":
            continue
        trace.deployment = event.object
        available = (event.object.get("status") or {}).get("availableReplicas", 0)
        was_available = was_available or available >= event.object["spec"]["replicas"]
        if was_available:
            trace.least_available = min(trace.least_available, available)
        seen.set()


def check(shape: Object, trace: Trace) -> None:
    recorded, final = shape["recorded"], trace.final()
    assert final == recorded["final"]
    assert trace.most_wanted <= shape["most"]
    assert trace.least_available >= shape["least"]
    if shape.get("deterministic"):
        assert [list(step) for step in trace.steps] == recorded["steps"]


@pytest.fixture(params=SHAPES, ids=lambda path: path.stem)
def shape(request: pytest.FixtureRequest) -> Object:
    return {**yaml.safe_load(request.param.read_text()), "path": request.param}


@pytest.mark.timeout(180)
def test_a_rollout_takes_the_recorded_steps(stage: Cluster, shape: Object, request: pytest.FixtureRequest) -> None:
    async def run() -> Trace:
        async with Client.from_kubeconfig(stage.kubeconfig) as client:
            return await play(client, stage.image, shape["steps"])

    trace = asyncio.run(run())
    if os.environ.get("RECORD") and request.node.callspec.params["stage"] == "real_cluster":
        record(shape, trace)
    check(shape, trace)


def record(shape: Object, trace: Trace) -> None:
    path = shape.pop("path")
    steps = [list(step) for step in trace.steps]
    seen = {"most": trace.most_wanted, "least": trace.least_available}
    shape["recorded"] = {"steps": steps, "final": trace.final(), "seen": seen}
    path.write_text(yaml.safe_dump(shape, sort_keys=False, width=120, default_flow_style=None))
