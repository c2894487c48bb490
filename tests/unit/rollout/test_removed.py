"""Jobs that the cluster has removed after their end, and bare Pods."""

from datetime import datetime, timedelta, timezone

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.assess import Observation, Phase, Verdict, assess, assess_removed
from prefect_cd.rollout.diagnosis import Category

JOB = Ref("batch/v1", "Job", "shop", "migrate")
SINCE = datetime(2026, 1, 1, 12, 0, 0, 500_000, tzinfo=timezone.utc)
RUNS, ENDED = Verdict(Phase.PROGRESSING, "0 of 1 succeeded"), Verdict(Phase.COMPLETE, "succeeded")


def event(reason: str, seconds: int = 1) -> Object:
    at = (SINCE + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"reason": reason, "message": "as the controller says", "lastTimestamp": at}


@pytest.mark.parametrize(
    ("events", "earlier", "phase"),
    [
        ([], None, Phase.COMPLETE),  # gone before the watch began: of an unchanged release
        ([], ENDED, Phase.COMPLETE),
        ([event("Completed")], RUNS, Phase.COMPLETE),
        ([event("Completed", 0)], RUNS, Phase.COMPLETE),  # in the second in which the rollout began
        ([event("BackoffLimitExceeded")], None, Phase.FAILED),
        ([event("BackoffLimitExceeded")], ENDED, Phase.FAILED),  # the event came late
        ([event("DeadlineExceeded", 1), event("Completed", 9)], RUNS, Phase.COMPLETE),
        ([event("Completed", 1), event("DeadlineExceeded", 9)], RUNS, Phase.FAILED),
        ([event("BackoffLimitExceeded", -5)], None, Phase.COMPLETE),  # of an earlier Job of this name
    ],
)
def test_a_job_that_is_gone_has_the_outcome_that_its_events_tell(
    events: list[Object], earlier: Verdict | None, phase: Phase
) -> None:
    verdict = assess_removed(JOB, events, earlier, SINCE)
    assert verdict is not None
    assert verdict.phase is phase
    assert verdict.healthy == verdict.final == (phase is Phase.COMPLETE)
    if phase is Phase.FAILED:
        assert verdict.causes[0].category is Category.CRASH
        assert "ttlSecondsAfterFinished" in verdict.causes[0].hint


def test_a_job_that_was_deleted_while_it_ran_has_no_outcome() -> None:
    assert assess_removed(JOB, [event("SuccessfulCreate")], RUNS, SINCE) is None


def pod(phase: str, state: Object, *, ready: bool = False) -> Object:
    status = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T12:00:02Z"}],
        "containerStatuses": [{"name": "main", "ready": ready, "restartCount": 0, "state": state}],
    }
    metadata = {"name": "worker", "namespace": "shop", "uid": "u", "creationTimestamp": "2026-01-01T12:00:01Z"}
    spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "x"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


STARTED = {"running": {"startedAt": "2026-01-01T12:00:02Z"}}


def ended(code: int) -> Object:
    times = {"startedAt": "2026-01-01T12:00:02Z", "finishedAt": "2026-01-01T12:00:03Z"}
    return {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", **times}}


@pytest.mark.parametrize(
    ("item", "phase"),
    [
        (pod("Pending", {"waiting": {"reason": "ContainerCreating"}}), Phase.PROGRESSING),
        (pod("Running", STARTED), Phase.PROGRESSING),
        (pod("Running", STARTED, ready=True), Phase.COMPLETE),
        (pod("Succeeded", ended(0)), Phase.COMPLETE),
        (pod("Failed", ended(3)), Phase.FAILED),
    ],
)
def test_a_bare_pod_is_complete_once_it_is_ready_or_has_succeeded(item: Object, phase: Phase) -> None:
    now = SINCE + timedelta(seconds=30)
    verdict = assess(Observation(item, pods=(item,)), since=SINCE, now=now)
    assert verdict.phase is phase
    assert verdict.final == (item["status"]["phase"] == "Succeeded")
    if phase is Phase.FAILED:
        assert "pod/worker failed" in verdict.summary
