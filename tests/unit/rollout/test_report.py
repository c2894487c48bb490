"""What a report shows."""

import pickle
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.assess import Phase, Verdict
from prefect_cd.rollout.watch.report import Report, WorkloadRow, pod_row, workload_row


def pod(**status: Any) -> Object:  # noqa: ANN401
    metadata = {"name": "shop-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": {**metadata, **status.pop("metadata", {})}, "status": status}


def waiting(reason: str | None) -> Object:
    return {"state": {"waiting": {"reason": reason} if reason else {}}}


def ended(code: int) -> Object:
    return {"state": {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}}


READY = [{"type": "Ready", "status": "True"}]


@pytest.mark.parametrize(
    ("item", "state", "ready"),
    [
        (pod(phase="Running", conditions=READY), "Running", True),
        (pod(phase="Running", conditions=[{"type": "Ready", "status": "False"}]), "Running", False),
        (pod(phase="Running", conditions=READY, metadata={"deletionTimestamp": "t"}), "Terminating", False),
        (pod(phase="Pending", containerStatuses=[waiting("ErrImagePull")]), "ErrImagePull", False),
        (pod(phase="Pending", containerStatuses=[waiting(None), waiting("Crash")]), "Crash", False),
        (pod(phase="Running", containerStatuses=[ended(1)]), "Error (exit code 1)", False),
        (pod(phase="Succeeded", containerStatuses=[ended(0)]), "Succeeded", False),
        (pod(phase="Failed", reason="Evicted"), "Evicted", False),
        (pod(), "Unknown", False),
        ({"metadata": {"name": "shop-1"}}, "Unknown", False),
    ],
)
def test_a_pod_is_a_row_with_its_state_in_one_word(item: Object, state: str, ready: bool) -> None:  # noqa: FBT001
    row = pod_row(item)
    assert (row.name, row.state, row.ready) == ("shop-1", state, ready)


def test_a_pod_has_the_time_of_its_start_and_before_that_of_its_creation() -> None:
    assert str(pod_row(pod()).since) == "2026-01-01 00:00:00+00:00"
    assert str(pod_row(pod(startTime="2026-01-02T00:00:00Z")).since) == "2026-01-02 00:00:00+00:00"
    assert pod_row({"metadata": {"name": "x"}}).since is None


def row(ready: int, wanted: int, phase: Phase = Phase.PROGRESSING) -> WorkloadRow:
    return WorkloadRow(workload="deployment/x", phase=phase, summary="so", ready=ready, wanted=wanted, pods=())


@pytest.mark.parametrize(
    ("workloads", "percent"),
    [((), 100), ((row(0, 0),), 100), ((row(1, 2),), 50), ((row(5, 2), row(0, 2)), 50)],
)
def test_the_percentage_is_of_all_replicas_and_never_above_a_hundred(
    workloads: tuple[WorkloadRow, ...], percent: float
) -> None:
    assert Report(workloads=workloads, seconds=0).percent == percent


def test_a_report_is_complete_when_every_workload_is() -> None:
    done = row(1, 1, Phase.COMPLETE)
    assert Report(workloads=(done, done), seconds=0).complete
    assert not Report(workloads=(done, row(1, 1)), seconds=0).complete
    assert Report(workloads=(), seconds=0).summary == "no workload to wait for"
    assert Report(workloads=(done,), seconds=0).summary == "deployment/x: so"


def test_the_error_of_a_failed_rollout_keeps_its_report_when_it_is_pickled() -> None:
    error = RolloutFailed(
        "it crashes", report=Report(workloads=(row(1, 2),), seconds=1), hint="h", where="w", detail="d"
    )
    restored = pickle.loads(pickle.dumps(error))  # noqa: S301  from the line itself
    assert isinstance(restored, RolloutFailed)
    assert (restored.reason, restored.report) == (error.reason, error.report)


def test_a_countdown_alone_is_no_change() -> None:
    def text(ready: int, seconds: int) -> str:
        sentence = f"{ready} of 1 ready; it waits (fails in {{}} s)"
        verdict = Verdict(Phase.PROGRESSING, sentence.format(seconds), summary_without_seconds=sentence.format("…"))
        workload = workload_row(Ref("apps/v1", "Deployment", "n", "x"), None, verdict)
        report = Report(workloads=(workload,), seconds=0)
        assert report.summary == f"deployment/x: {ready} of 1 ready; it waits (fails in {seconds} s)"
        return report.summary_without_seconds

    assert text(0, 12) == text(0, 11) == "deployment/x: 0 of 1 ready; it waits (fails in … s)"
    assert text(0, 12) != text(1, 12)


def test_a_summary_without_seconds_is_the_summary() -> None:
    assert Report(workloads=(row(0, 1),), seconds=0).summary_without_seconds == "deployment/x: so"


def test_while_the_api_server_is_lost_a_report_shows_since_when() -> None:
    before = Report(workloads=(row(0, 1),), seconds=0)
    lost = before.model_copy(update={"lost_since": datetime(2026, 1, 1, 12, tzinfo=timezone.utc)})
    assert lost.differs(before)
    assert lost.summary == "the API server has not answered since 12:00:00 UTC; last seen: deployment/x: so"
    assert not before.lost
