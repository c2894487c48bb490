"""Rollouts watched to their end on a real cluster: complete, doomed with the reason and the log, and late."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from prefect_cd.environment.apply import apply as write
from prefect_cd.environment.apply import compute_changes
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import ClusterAccess, RolloutSettings
from prefect_cd.rollout.watch import report as report_module
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.report import Report
from tests.cluster.control_plane import needs_restarts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]
ACCESS = ClusterAccess()
REGISTRY = os.environ.get("REGISTRY", "")
BUSYBOX = os.environ.get("BASE_IMAGE") or f"{REGISTRY}/base/busybox:1"
Kubectl = Callable[..., str]


def settings(seconds: float = 60, crashes: int = 1, settle: float = 0) -> RolloutSettings:
    given = {"timeout": seconds, "patience": 30, "settle": settle}
    return RolloutSettings.model_validate({"crashes": crashes, **{k: timedelta(seconds=v) for k, v in given.items()}})


async def roll_out(
    cluster: Cluster, *items: Object, rules: RolloutSettings, on_change: Callable[[Report], None] = lambda _: None
) -> Report:
    place = Ownership("shop", "staging", items[0]["metadata"]["namespace"])
    objects = [place.label(item, "r1") for item in items]
    since = datetime.now(timezone.utc)
    await write(cluster, objects, await compute_changes(cluster, place, objects))
    return await watch(cluster, objects, rules, since=since, on_change=on_change)


@pytest.mark.needs("jobs.batch")
async def test_a_rollout_is_watched_until_every_workload_is_complete(namespace: str, objects: Any) -> None:
    told: list[Report] = []
    template = objects.deployment(namespace, BUSYBOX, "true", name="once")["spec"]["template"]
    template["spec"]["restartPolicy"] = "Never"
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once", "namespace": namespace},
        "spec": {"template": template},
    }
    items = [objects.config_map(namespace), job]
    items += [objects.deployment(namespace, BUSYBOX, "sleep", "600", name=name, replicas=2) for name in ("web", "api")]
    async with connect(ACCESS) as cluster:
        report = await roll_out(cluster, *items, rules=settings(), on_change=told.append)
    assert report.complete
    assert [(each.workload, each.ready, each.wanted) for each in report.workloads] == [
        ("job/once", 1, 1),
        ("deployment/web", 2, 2),
        ("deployment/api", 2, 2),
    ]
    assert all(pod.ready for each in report.workloads[1:] for pod in each.pods)
    assert report.percent == 100
    assert told[-1].summary == report.summary
    assert len(told) > 1
    assert all(after.differs(before) for before, after in pairwise(told[:-1]))  # the last one is told in any case


async def test_nothing_to_wait_for_is_complete_at_once(namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        report = await roll_out(cluster, objects.config_map(namespace), rules=settings())
    assert report.complete
    assert report.workloads == ()


async def test_an_image_that_does_not_exist_is_doomed_within_seconds(namespace: str, objects: Any) -> None:
    item = objects.deployment(namespace, f"{REGISTRY}/base/none:1")
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed, match="none:1") as caught:
            await roll_out(cluster, item, rules=settings())
    assert caught.value.report.troubles[0].category == "image-not-found"
    assert caught.value.report.troubles[0].workload == "deployment/shop"
    assert caught.value.where.endswith(f"in {namespace}")
    assert caught.value.hint
    assert caught.value.report.seconds < 40


async def test_a_crash_is_told_with_its_last_words(namespace: str, objects: Any) -> None:
    script = "echo reading the settings; echo SHOP_KEY is not set >&2; exit 3"
    item = objects.deployment(namespace, BUSYBOX, "sh", "-c", script)
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, rules=settings())
    (trouble,) = caught.value.report.troubles
    assert trouble.category == "crash"
    assert sorted(trouble.logs.splitlines()) == ["SHOP_KEY is not set", "reading the settings"]  # two pipes: any order
    assert "SHOP_KEY is not set" in caught.value.detail
    assert "3" in trouble.summary + trouble.evidence


async def test_a_rollout_that_is_late_has_failed_and_says_how_it_stands(namespace: str, objects: Any) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1000}
    item = objects.deployment(namespace, BUSYBOX, "sleep", "600", readinessProbe=probe)
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed, match="not up after 4s: ") as caught:
            await roll_out(cluster, item, rules=settings(4))
    report = caught.value.report
    assert not report.complete
    assert 4 <= report.seconds < 15
    assert [(each.ready, each.wanted) for each in report.workloads] == [(0, 1)]


async def test_a_workload_that_somebody_deletes_meanwhile_is_gone(
    namespace: str, objects: Any, kubectl: Kubectl
) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1000}
    item = objects.deployment(namespace, BUSYBOX, "sleep", "600", readinessProbe=probe)
    loop = asyncio.get_running_loop()

    def delete(_: Report) -> None:
        loop.run_in_executor(None, lambda: kubectl("-n", namespace, "delete", "deployment", "shop", "--wait=false"))

    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed, match="it is gone") as caught:
            await roll_out(cluster, item, rules=settings(), on_change=delete)
    assert caught.value.where == f"deployment/shop in {namespace}"


async def test_the_verdict_stands_when_the_log_cannot_be_had(
    namespace: str, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any, **__: Any) -> str:
        return ""

    monkeypatch.setattr(Cluster, "logs", nothing)
    item = objects.deployment(namespace, BUSYBOX, "false")
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, rules=settings())
    assert caught.value.report.troubles[0].logs == ""


@pytest.mark.timeout(180)
async def test_a_rollout_whose_pods_die_after_it_is_complete_is_doomed(namespace: str, objects: Any) -> None:
    item = objects.deployment(namespace, BUSYBOX, "sh", "-c", "sleep 30; echo out of ideas; exit 4")
    told: list[Report] = []
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, rules=settings(settle=60), on_change=told.append)
    assert any(report.complete for report in told)
    assert caught.value.report.troubles[0].category == "crash"
    assert "out of ideas" in caught.value.detail


async def test_a_service_that_selects_nobody_is_doomed_however_complete_the_deployment_is(
    namespace: str, objects: Any
) -> None:
    service = objects.service(namespace)
    service["spec"]["selector"] = {"app": "nobody"}
    item = objects.deployment(namespace, BUSYBOX, "sleep", "600")
    rules = RolloutSettings.model_validate({"settle": timedelta(), "patience": {"service": timedelta(seconds=3)}})
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, service, rules=rules)
    assert caught.value.report.troubles[0].category == "service"


async def test_a_quiet_rollout_costs_no_requests_between_the_first_and_the_last_look(
    namespace: str, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Cluster.snapshot

    async def counted(self: Cluster, kind: Any, *given: Any, **named: Any) -> Any:
        asked.append(kind.kind)
        return await real(self, kind, *given, **named)

    monkeypatch.setattr(Cluster, "snapshot", counted)
    items = [objects.deployment(namespace, BUSYBOX, "sleep", "600", name=f"d{n}") for n in range(6)]
    async with connect(ACCESS) as cluster:
        await roll_out(cluster, *items, rules=settings(settle=4))
    looked = ("Deployment", "Event", "Pod", "ReplicaSet")
    assert set(asked[-4:]) <= set(looked)
    assert all(2 <= asked.count(each) <= 4 for each in looked)  # what changes while it is listed is listed again


@needs_restarts
@pytest.mark.timeout(500)
async def test_a_restart_of_the_api_server_in_the_middle_is_survived(
    namespace: str, objects: Any, restart: Callable[..., None]
) -> None:
    probe = {"exec": {"command": ["test", "-f", "/ready"]}, "periodSeconds": 1, "failureThreshold": 60}
    script = "sleep 15; touch /ready; sleep 600"
    item = objects.deployment(namespace, BUSYBOX, "sh", "-c", script, readinessProbe=probe)
    loop = asyncio.get_running_loop()
    begun: list[Any] = []

    def kill(report: Report) -> None:
        if any(each.pods for each in report.workloads) and not begun:
            begun.append(loop.run_in_executor(None, lambda: restart("kube-apiserver", 5, "KILL")))

    async with connect(ACCESS) as cluster:
        report = await roll_out(cluster, item, rules=settings(240), on_change=kill)
        await begun[0]
    assert report.complete
    assert report.workloads[0].pods[0].ready


async def test_pods_of_other_workloads_are_not_in_the_report(namespace: str, objects: Any, kubectl: Kubectl) -> None:
    other = objects.deployment(namespace, f"{REGISTRY}/base/none:1", name="other")
    kubectl("apply", "-f", "-", stdin=json.dumps(other))
    async with connect(ACCESS) as cluster:
        begun = time.monotonic()
        report = await roll_out(cluster, objects.deployment(namespace, BUSYBOX, "sleep", "600"), rules=settings())
        assert time.monotonic() - begun < 60
    assert [len(each.pods) for each in report.workloads] == [1]
    assert report.workloads[0].pods[0].name.startswith("shop-")
    assert report_module.PodRow is type(report.workloads[0].pods[0])
