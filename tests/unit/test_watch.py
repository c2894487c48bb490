"""What is watched, and how a report reads; the loop itself is tested on a cluster."""

import pickle
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd.errors import RolloutFailed
from prefect_cd.release import Object
from prefect_cd.rollout import Phase
from prefect_cd.watch import Report, RolloutDoomed, Watched, _has_rollout, _owned, _row, _selector, unseen


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({}, ""),
        ({"matchLabels": None, "matchExpressions": None}, ""),
        ({"matchLabels": {"app": "shop", "tier": "web"}}, "app=shop,tier=web"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}, "a in (x,y)"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x"]}]}, "a notin (x)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "a"),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, "!a"),
        ({"matchLabels": {"b": "c"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}, "b=c,a"),
    ],
)
def test_a_selector_is_written_as_the_query_wants_it(selector: Object, text: str) -> None:
    assert _selector(selector) == text


@pytest.mark.parametrize(
    ("api_version", "kind", "watched"),
    [
        ("apps/v1", "Deployment", True),
        ("apps/v1", "StatefulSet", True),
        ("apps/v1", "DaemonSet", True),
        ("batch/v1", "Job", True),
        ("batch/v1", "CronJob", False),
        ("v1", "ConfigMap", False),
        ("v1", "Service", False),
        ("networking.k8s.io/v1", "Ingress", False),
        ("policy/v1", "PodDisruptionBudget", False),
        ("autoscaling/v2", "HorizontalPodAutoscaler", False),
        ("rbac.authorization.k8s.io/v1", "Role", False),
        ("acid.zalan.do/v1", "postgresql", True),
    ],
)
def test_workloads_and_custom_objects_are_watched(api_version: str, kind: str, watched: bool) -> None:  # noqa: FBT001
    assert _has_rollout({"apiVersion": api_version, "kind": kind}) == watched


def pod(**given: Any) -> Object:  # noqa: ANN401
    metadata = {"name": "shop-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": {**metadata, **given.pop("metadata", {})}, "status": given}


def waiting(reason: str | None) -> Object:
    return {"state": {"waiting": {"reason": reason} if reason else {}}}


READY = [{"type": "Ready", "status": "True"}]


@pytest.mark.parametrize(
    ("seen", "state", "ready"),
    [
        (pod(phase="Running", conditions=READY), "Running", True),
        (pod(phase="Running", conditions=[{"type": "Ready", "status": "False"}]), "Running", False),
        (pod(phase="Running", conditions=READY, metadata={"deletionTimestamp": "t"}), "Terminating", False),
        (pod(phase="Pending", containerStatuses=[waiting("ErrImagePull")]), "ErrImagePull", False),
        (pod(phase="Pending", containerStatuses=[waiting(None), waiting("Crash")]), "Crash", False),
        (pod(phase="Failed", reason="Evicted"), "Evicted", False),
        (pod(), "Unknown", False),
        ({"metadata": {"name": "shop-1"}}, "Unknown", False),
    ],
)
def test_a_pod_is_a_row_with_the_word_that_says_most(seen: Object, state: str, ready: bool) -> None:  # noqa: FBT001
    row = _row(seen)
    assert (row.name, row.state, row.ready) == ("shop-1", state, ready)


def test_a_pod_stands_since_it_started_and_before_that_since_it_was_made() -> None:
    assert str(_row(pod()).since) == "2026-01-01 00:00:00+00:00"
    assert str(_row(pod(startTime="2026-01-02T00:00:00Z")).since) == "2026-01-02 00:00:00+00:00"
    assert _row({"metadata": {"name": "x"}}).since is None


def test_what_another_workload_owns_is_not_ours() -> None:
    assert _owned({"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b"}]}}, "b")
    assert not _owned({"metadata": {"ownerReferences": [{"uid": "a"}]}}, "b")
    assert not _owned({"metadata": {}}, "b")


def watched(ready: int, wanted: int, phase: Phase = Phase.PROGRESSING) -> Watched:
    return Watched(workload="deployment/x", phase=phase, summary="so", ready=ready, wanted=wanted, pods=())


@pytest.mark.parametrize(
    ("workloads", "percent"),
    [((), 100), ((watched(0, 0),), 100), ((watched(1, 2),), 50), ((watched(5, 2), watched(0, 2)), 50)],
)
def test_the_percentage_is_of_all_replicas_and_never_above_a_hundred(
    workloads: tuple[Watched, ...], percent: float
) -> None:
    assert Report(workloads=workloads, seconds=0).percent == percent


def test_a_report_is_complete_when_every_workload_is() -> None:
    done = watched(1, 1, Phase.COMPLETE)
    assert Report(workloads=(done, done), seconds=0).complete
    assert not Report(workloads=(done, watched(1, 1)), seconds=0).complete
    assert Report(workloads=(), seconds=0).summary == "no workload to wait for"
    assert Report(workloads=(done,), seconds=0).summary == "deployment/x: so"


def test_a_doomed_rollout_is_failed_and_takes_its_report_along() -> None:
    error = RolloutDoomed(Report(workloads=(watched(1, 2),), seconds=1), "it crashes", hint="h", where="w", detail="d")
    revived = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert isinstance(revived, RolloutFailed)
    assert (revived.reason, revived.report) == (error.reason, error.report)


def test_time_in_which_nobody_could_look_is_not_counted_against_a_rollout() -> None:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert unseen(at, at + timedelta(seconds=2)) == timedelta()
    assert unseen(at, at + timedelta(seconds=70)) == timedelta(seconds=70)
