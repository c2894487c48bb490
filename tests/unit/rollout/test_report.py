"""How a report reads."""

import pickle
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.objects import Object
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import Report, WorkloadRow, pod_row


def pod(**given: Any) -> Object:  # noqa: ANN401
    metadata = {"name": "shop-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": {**metadata, **given.pop("metadata", {})}, "status": given}


def waiting(reason: str | None) -> Object:
    return {"state": {"waiting": {"reason": reason} if reason else {}}}


def ended(code: int) -> Object:
    return {"state": {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}}


READY = [{"type": "Ready", "status": "True"}]


@pytest.mark.parametrize(
    ("seen", "state", "ready"),
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
def test_a_pod_is_a_row_with_the_word_that_says_most(seen: Object, state: str, ready: bool) -> None:  # noqa: FBT001
    told = pod_row(seen)
    assert (told.name, told.state, told.ready) == ("shop-1", state, ready)


def test_a_pod_stands_since_it_started_and_before_that_since_it_was_made() -> None:
    assert str(pod_row(pod()).since) == "2026-01-01 00:00:00+00:00"
    assert str(pod_row(pod(startTime="2026-01-02T00:00:00Z")).since) == "2026-01-02 00:00:00+00:00"
    assert pod_row({"metadata": {"name": "x"}}).since is None


def watched(ready: int, wanted: int, phase: Phase = Phase.PROGRESSING) -> WorkloadRow:
    return WorkloadRow(workload="deployment/x", phase=phase, summary="so", ready=ready, wanted=wanted, pods=())


@pytest.mark.parametrize(
    ("workloads", "percent"),
    [((), 100), ((watched(0, 0),), 100), ((watched(1, 2),), 50), ((watched(5, 2), watched(0, 2)), 50)],
)
def test_the_percentage_is_of_all_replicas_and_never_above_a_hundred(
    workloads: tuple[WorkloadRow, ...], percent: float
) -> None:
    assert Report(workloads=workloads, seconds=0).percent == percent


def test_a_report_is_complete_when_every_workload_is() -> None:
    done = watched(1, 1, Phase.COMPLETE)
    assert Report(workloads=(done, done), seconds=0).complete
    assert not Report(workloads=(done, watched(1, 1)), seconds=0).complete
    assert Report(workloads=(), seconds=0).summary == "no workload to wait for"
    assert Report(workloads=(done,), seconds=0).summary == "deployment/x: so"


def test_a_doomed_rollout_is_failed_and_takes_its_report_along() -> None:
    error = RolloutFailed(
        "it crashes", report=Report(workloads=(watched(1, 2),), seconds=1), hint="h", where="w", detail="d"
    )
    revived = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert isinstance(revived, RolloutFailed)
    assert (revived.reason, revived.report) == (error.reason, error.report)


def test_a_countdown_that_goes_on_is_nothing_new() -> None:
    def report(summary: str) -> Report:
        return Report(workloads=(watched(0, 1).model_copy(update={"summary": summary}),), seconds=0)

    waiting = report("0 of 1 ready; it waits (given up in 12 s)")
    assert waiting.gist == report("0 of 1 ready; it waits (given up in 11 s)").gist
    assert waiting.gist != report("1 of 1 ready; it waits (given up in 12 s)").gist


def test_while_the_api_server_is_away_a_report_says_how_old_it_is() -> None:
    seen = Report(workloads=(watched(0, 1),), seconds=0)
    lost = seen.model_copy(update={"lost_since": datetime(2026, 1, 1, 12, tzinfo=timezone.utc)})
    assert lost.differs(seen)
    assert lost.summary == "the API server has not answered since 12:00:00 UTC; last seen: deployment/x: so"
    assert not seen.lost
