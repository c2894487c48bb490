"""Watching a rollout to its end: what is shown meanwhile, and that showing it harms nothing."""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import PATIENCE, Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import Report, WorkloadRow
from prefect_cd.tasks import rollout
from prefect_cd.tasks.rollout import Display, watch_rollout, watch_soak
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import applied, config_map, release
from tests.unit.fake_api import FakeApi


def report(ready: int) -> Report:
    row = WorkloadRow(
        workload="deployment/app", phase=Phase.PROGRESSING, summary=f"{ready} of 9", ready=ready, wanted=9, pods=()
    )
    return Report(workloads=(row,), seconds=1)


class Artifact:
    def __init__(self, error: Exception | None = None) -> None:
        self.shown: list[int] = []
        self._error = error

    def show(self, report: Report) -> None:
        self.shown.append(report.workloads[0].ready)
        if self._error:
            raise self._error


def show_reports(artifact: Artifact, *, pause: float) -> None:
    async def run() -> None:
        display = Display(artifact)
        async with display.updated():
            for ready in range(5):
                display.show(report(ready))
                await asyncio.sleep(pause)

    asyncio.run(run())


def test_the_artifact_is_not_updated_for_every_report_and_the_last_one_is_shown() -> None:
    artifact = Artifact()
    show_reports(artifact, pause=0.01)
    assert artifact.shown == [0, 4]


def test_after_a_pause_the_latest_report_is_shown_without_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "_UPDATE_SECONDS", 0.05)
    artifact = Artifact()

    async def run() -> None:
        display = Display(artifact)
        async with display.updated():
            display.show(report(0))
            while not artifact.shown:
                await asyncio.sleep(0)
            display.show(report(1))
            display.show(report(2))
            while len(artifact.shown) < 2:
                await asyncio.sleep(0.01)
            assert artifact.shown == [0, 2]

    asyncio.run(run())
    assert artifact.shown == [0, 2]


def test_a_server_that_is_away_for_a_moment_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    artifact = Artifact(RuntimeError("no server"))
    show_reports(artifact, pause=0.01)
    assert artifact.shown == [0, 4]
    assert "cannot show the progress of the rollout: no server" in caplog.text


# --- the stages ------------------------------------------------------------------------------------------------------


def ago(seconds: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def put_workload(api: FakeApi, *, ready: int, **container: Any) -> Object:  # noqa: ANN401
    """A Deployment with one pod, as the cluster has it after an apply."""
    labels = {"app": "shop"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "readinessProbe": {}}]}}
    replica_set = {
        "labels": {**labels, "pod-template-hash": "1"},
        "ownerReferences": [{"uid": "uid-shop"}],
        "creationTimestamp": ago(60),
    }
    api.put("replicasets", "shop-1", metadata=replica_set, spec={"replicas": 1, "template": template})
    status = {"name": "main", "ready": bool(ready), "started": True, "restartCount": 0, **container}
    api.put(
        "pods",
        "shop-1-a",
        metadata={"labels": {**labels, "pod-template-hash": "1"}, "creationTimestamp": ago(60)},
        spec={"containers": [{"name": "main", "image": "shop:1", "readinessProbe": {}}]},
        status={
            "phase": "Running",
            "conditions": [
                {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": ago(50)},
            ],
            "containerStatuses": [status],
        },
    )
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), ready)
    return api.put(
        "deployments",
        "shop",
        metadata={"generation": 1, "creationTimestamp": ago(60)},
        spec={"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        status={**counts, "observedGeneration": 1},
    )


def test_a_release_without_workloads_is_complete_at_once(target: Target) -> None:
    seen = watch_rollout.fn(applied(target, release(), config_map(greeting="hello")))
    assert (seen.complete, seen.workloads) == (True, ())


def test_a_rollout_that_is_complete_is_the_proof_that_gates_want_and_its_progress_is_shown(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    workload = put_workload(api, ready=1, state={"running": {"startedAt": ago(50)}})
    done = applied(target, release(), workload)
    played = run(lambda: watch_rollout(done))
    assert played.result.complete
    assert [row.workload for row in played.result.workloads] == ["deployment/shop"]
    (progress,) = played.artifacts
    assert (progress.key, progress.data) == ("shop-staging-rollout", 100)
    assert [task.name for task in played.tasks(1)] == ["rollout of staging"]


def test_a_rollout_that_failed_has_a_page_with_the_reason_and_is_not_watched_again(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    waiting = {"waiting": {"reason": "InvalidImageName", "message": 'couldn\'t parse image name "Shop:1"'}}
    workload = put_workload(api, ready=0, state=waiting, started=False)
    done = applied(target, release(), workload)
    played = run(lambda: watch_rollout(done))
    with pytest.raises(RolloutFailed) as caught:
        _ = played.result
    assert "Shop:1" in str(caught.value)
    page = next(page for page in played.artifacts if page.key == "shop-staging-rollout-failed")
    assert "Shop:1" in page.data
    assert [(task.name, task.run_count) for task in played.tasks(1)] == [("rollout of staging", 1)]


def crashes(api: FakeApi) -> Object:
    """A Deployment whose pod crashes, and writes secrets into its log, its message and an event."""
    api.put("secrets", "shop-db", data={"password": b64encode(b"correcthorse").decode()})
    terminated = {
        "exitCode": 1,
        "startedAt": ago(5),
        "finishedAt": ago(4),
        "message": "no token: a1b2-c3d4 for correcthorse",
    }
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    state = {"state": {"waiting": waiting}, "lastState": {"terminated": terminated}}
    workload = put_workload(api, ready=0, started=False, restartCount=5, **state)
    (container,) = api.objects["pods"]["shop-1-a"]["spec"]["containers"]
    container["envFrom"] = [{"secretRef": {"name": "shop-db"}}]
    api.logs["shop-1-a"] = f"{'x' * 3970}\nno access to postgres://shop:hunter2@db\nwith correcthorse\n"
    return workload


@pytest.mark.parametrize("readable", [True, False])
def test_i7_no_secret_of_a_pod_that_crashes_is_in_an_error_a_state_a_log_or_a_page(
    target: Target,
    api: FakeApi,
    run: Callable[[Callable[[], Any]], Run],
    caplog: pytest.LogCaptureFixture,
    *,
    readable: bool,
) -> None:
    workload = crashes(api)
    api.unreadable = set() if readable else {"secrets"}
    done = applied(target, release(), workload)
    played = run(lambda: watch_rollout(done))
    with pytest.raises(RolloutFailed) as caught:
        _ = played.result
    seen = caught.value.report
    assert isinstance(seen, Report)
    shown = [str(caught.value), seen.model_dump_json(), *(str(page.data) for page in played.artifacts), caplog.text]
    shown += [page.description or "" for page in played.artifacts]
    shown += [str(task.state) for task in played.tasks(1)]
    assert "postgres://shop:***@db" in str(caught.value)
    assert f"with {'***' if readable else 'correcthorse'}" in str(caught.value)
    for secret in ("hunt", "a1b2", *(["correcthorse"] if readable else [])):
        assert [text for text in shown if secret in text] == []


def test_i7_a_value_of_a_secret_is_masked_where_no_log_was_read(target: Target, api: FakeApi) -> None:
    api.put("secrets", "shop-db", data={"image": b64encode(b"Correct:horse").decode()})
    waiting = {"waiting": {"reason": "InvalidImageName", "message": 'couldn\'t parse image name "Correct:horse"'}}
    workload = put_workload(api, ready=0, state=waiting, started=False)
    workload["spec"]["template"]["spec"]["imagePullSecrets"] = [{"name": "shop-db"}]
    with pytest.raises(RolloutFailed) as caught:
        watch_rollout.fn(applied(target, release(), workload))
    assert "Correct:horse" not in str(caught.value)
    assert '"***"' in str(caught.value)


def test_no_secret_is_read_for_a_rollout_without_problems(target: Target, api: FakeApi) -> None:
    crashes(api)
    workload = put_workload(api, ready=1, state={"running": {"startedAt": ago(50)}})
    workload["spec"]["template"]["spec"]["imagePullSecrets"] = [{"name": "shop-db"}]
    assert watch_rollout.fn(applied(target, release(), workload)).complete
    assert not [path for path, _ in api.requests if "/secrets" in path]


def test_the_soak_waits_for_the_settle_time_and_the_rollout_does_not(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[float] = []

    async def watch(_: object, __: object, settings: RolloutSettings, **___: object) -> Report:
        settled.append(settings.settle.total_seconds())
        return report(1)

    monkeypatch.setattr(rollout, "watch", watch)
    settings = RolloutSettings(settle=timedelta(seconds=30))
    patient = target.model_copy(update={"environment": target.environment.model_copy(update={"rollout": settings})})
    watch_rollout.fn(applied(patient))
    watch_soak.fn(applied(patient))
    assert settled == [0, 30]


def test_a_watch_is_more_patient_with_the_api_server_than_other_stages_since_it_is_not_retried(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[timedelta] = []

    async def watch(cluster: Cluster, *_: object, **__: object) -> Report:
        patience.append(cluster.patience)
        return report(1)

    monkeypatch.setattr(rollout, "watch", watch)
    watch_rollout.fn(applied(target))
    assert patience == [4 * PATIENCE]
    assert (watch_rollout.retries, watch_soak.retries) == (0, 0)
