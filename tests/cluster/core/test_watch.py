"""Rollouts watched to their end on a real cluster: complete, failed with the reason and the log, and late."""

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
from prefect_cd.environment.changes import compute_changes
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
    times = {"timeout": seconds, "patience": 30, "settle": settle}
    return RolloutSettings.model_validate({"crashes": crashes, **{k: timedelta(seconds=v) for k, v in times.items()}})


async def roll_out(
    cluster: Cluster, *items: Object, rules: RolloutSettings, on_change: Callable[[Report], None] = lambda _: None
) -> Report:
    place = Ownership("shop", "staging", items[0]["metadata"]["namespace"])
    objects = [place.label(item, "r1") for item in items]
    since = datetime.now(timezone.utc)
    planned = await compute_changes(cluster, place, objects)
    await write(cluster, place, objects, planned)
    return await watch(cluster, objects, rules, since=since, on_change=on_change)


@pytest.mark.needs("jobs.batch")
async def test_a_rollout_is_watched_until_every_workload_is_complete(namespace: str, objects: Any) -> None:
    reports: list[Report] = []
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
        report = await roll_out(cluster, *items, rules=settings(), on_change=reports.append)
    assert report.complete
    assert [(row.workload, row.ready, row.wanted) for row in report.workloads] == [
        ("job/once", 1, 1),
        ("deployment/web", 2, 2),
        ("deployment/api", 2, 2),
    ]
    assert all(pod.ready for row in report.workloads[1:] for pod in row.pods)
    assert report.percent == 100
    assert reports[-1].summary == report.summary
    assert len(reports) > 1
    assert all(
        after.differs(before) for before, after in pairwise(reports[:-1])
    )  # the last one is reported in any case


async def test_a_rollout_without_workloads_is_complete_at_once(namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        report = await roll_out(cluster, objects.config_map(namespace), rules=settings())
    assert report.complete
    assert report.workloads == ()


async def test_an_image_that_does_not_exist_fails_the_rollout_within_seconds(namespace: str, objects: Any) -> None:
    item = objects.deployment(namespace, f"{REGISTRY}/base/none:1")
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed, match="none:1") as caught:
            await roll_out(cluster, item, rules=settings())
    assert caught.value.report.problems[0].category == "image-not-found"
    assert caught.value.report.problems[0].workload == "deployment/shop"
    assert caught.value.where.endswith(f"in {namespace}")
    assert caught.value.hint
    assert caught.value.report.seconds < 40


async def test_a_crash_is_reported_with_its_log(namespace: str, objects: Any) -> None:
    script = "echo reading the settings; echo SHOP_KEY is not set >&2; exit 3"
    item = objects.deployment(namespace, BUSYBOX, "sh", "-c", script)
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, rules=settings())
    (problem,) = caught.value.report.problems
    assert problem.category == "crash"
    assert sorted(problem.logs.splitlines()) == ["SHOP_KEY is not set", "reading the settings"]  # two pipes: any order
    assert "SHOP_KEY is not set" in caught.value.detail
    assert "3" in problem.summary + problem.evidence


async def test_a_rollout_that_is_late_has_failed_with_its_state(namespace: str, objects: Any) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1000}
    item = objects.deployment(namespace, BUSYBOX, "sleep", "600", readinessProbe=probe)
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed, match="not complete after 4s: ") as caught:
            await roll_out(cluster, item, rules=settings(4))
    report = caught.value.report
    assert not report.complete
    assert 4 <= report.seconds < 15
    assert [(row.ready, row.wanted) for row in report.workloads] == [(0, 1)]


async def test_a_workload_that_is_deleted_meanwhile_fails_the_rollout(
    namespace: str, objects: Any, kubectl: Kubectl
) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1000}
    item = objects.deployment(namespace, BUSYBOX, "sleep", "600", readinessProbe=probe)
    loop = asyncio.get_running_loop()

    def delete(_: Report) -> None:
        loop.run_in_executor(None, lambda: kubectl("-n", namespace, "delete", "deployment", "shop", "--wait=false"))

    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed, match="it does not exist any more") as caught:
            await roll_out(cluster, item, rules=settings(), on_change=delete)
    assert caught.value.where == f"deployment/shop in {namespace}"


async def test_the_verdict_does_not_need_the_log(namespace: str, objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any, **__: Any) -> str:
        return ""

    monkeypatch.setattr(Cluster, "logs", nothing)
    item = objects.deployment(namespace, BUSYBOX, "false")
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, rules=settings())
    assert caught.value.report.problems[0].logs == ""


@pytest.mark.timeout(180)
async def test_a_rollout_whose_pods_die_after_it_was_complete_has_failed(namespace: str, objects: Any) -> None:
    item = objects.deployment(namespace, BUSYBOX, "sh", "-c", "sleep 30; echo out of ideas; exit 4")
    reports: list[Report] = []
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, rules=settings(settle=60), on_change=reports.append)
    assert any(report.complete for report in reports)
    assert caught.value.report.problems[0].category == "crash"
    assert "out of ideas" in caught.value.detail


async def test_a_service_that_selects_no_pods_fails_the_rollout_of_a_complete_deployment(
    namespace: str, objects: Any
) -> None:
    service = objects.service(namespace)
    service["spec"]["selector"] = {"app": "none"}
    item = objects.deployment(namespace, BUSYBOX, "sleep", "600")
    rules = RolloutSettings.model_validate({"settle": timedelta(), "patience": {"service": timedelta(seconds=3)}})
    async with connect(ACCESS) as cluster:
        with pytest.raises(RolloutFailed) as caught:
            await roll_out(cluster, item, service, rules=rules)
    assert caught.value.report.problems[0].category == "service"


async def test_a_rollout_without_changes_costs_no_requests_between_the_first_and_the_last_list(
    namespace: str, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    real = Cluster.snapshot

    async def counted(self: Cluster, kind: Any, *arguments: Any, **keywords: Any) -> Any:
        listed.append(kind.kind)
        return await real(self, kind, *arguments, **keywords)

    monkeypatch.setattr(Cluster, "snapshot", counted)
    items = [objects.deployment(namespace, BUSYBOX, "sleep", "600", name=f"d{n}") for n in range(6)]
    async with connect(ACCESS) as cluster:
        await roll_out(cluster, *items, rules=settings(settle=4))
    kinds = ("Deployment", "Event", "Pod", "ReplicaSet")
    assert set(listed[-4:]) <= set(kinds)
    assert all(2 <= listed.count(kind) <= 4 for kind in kinds)  # what changes while it is listed is listed again


@needs_restarts
@pytest.mark.restarts
@pytest.mark.timeout(500)
async def test_a_restart_of_the_api_server_in_the_middle_is_survived(
    namespace: str, objects: Any, restart: Callable[..., None]
) -> None:
    probe = {"exec": {"command": ["test", "-f", "/ready"]}, "periodSeconds": 1, "failureThreshold": 60}
    script = "sleep 15; touch /ready; sleep 600"
    item = objects.deployment(namespace, BUSYBOX, "sh", "-c", script, readinessProbe=probe)
    loop = asyncio.get_running_loop()
    restarts: list[Any] = []

    def kill(report: Report) -> None:
        if any(row.pods for row in report.workloads) and not restarts:
            restarts.append(loop.run_in_executor(None, lambda: restart("kube-apiserver", 5, "KILL")))

    async with connect(ACCESS) as cluster:
        report = await roll_out(cluster, item, rules=settings(240), on_change=kill)
        await restarts[0]
    assert report.complete
    assert report.workloads[0].pods[0].ready


async def test_pods_of_other_workloads_are_not_in_the_report(namespace: str, objects: Any, kubectl: Kubectl) -> None:
    other = objects.deployment(namespace, f"{REGISTRY}/base/none:1", name="other")
    kubectl("apply", "-f", "-", stdin=json.dumps(other))
    async with connect(ACCESS) as cluster:
        started = time.monotonic()
        report = await roll_out(cluster, objects.deployment(namespace, BUSYBOX, "sleep", "600"), rules=settings())
        assert time.monotonic() - started < 60
    assert [len(row.pods) for row in report.workloads] == [1]
    assert report.workloads[0].pods[0].name.startswith("shop-")
    assert report_module.PodRow is type(report.workloads[0].pods[0])
