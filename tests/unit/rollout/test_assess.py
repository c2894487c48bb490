"""Recorded observations of a real cluster in, verdicts out."""

import random
import re
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Memory, Observation, Patience, Phase, PortResult, Verdict, assess
from prefect_cd.rollout.diagnosis import Category, as_time

OBSERVATIONS = Path(__file__).parents[1] / "observations"
PROGRESSING, COMPLETE, FAILED = Phase.PROGRESSING, Phase.COMPLETE, Phase.FAILED
AFTER_PATIENCE = timedelta(seconds=61)


# name of the recording -> phase, and the category of the first cause (None: no problem)
NOW: dict[str, tuple[Phase, Category | None]] = {
    "fresh-just-started": (PROGRESSING, None),
    "fresh": (COMPLETE, None),
    "rolling-first-pod": (PROGRESSING, None),
    "rolling-one-old-left": (PROGRESSING, None),
    "rolling": (COMPLETE, None),
    "scaled-to-zero": (COMPLETE, None),
    "over-a-broken-revision-midway": (PROGRESSING, None),
    "over-a-broken-revision": (COMPLETE, None),
    "one-restart-just-now": (PROGRESSING, Category.CRASH),
    "one-restart-heals": (COMPLETE, None),
    "slow-readiness-waiting": (PROGRESSING, Category.READINESS),
    "slow-readiness": (COMPLETE, None),
    "paused": (PROGRESSING, None),
    "evicted": (COMPLETE, None),
    "drained-midway": (PROGRESSING, None),
    "drained": (COMPLETE, None),
    "stateful-set-midway": (PROGRESSING, None),
    "stateful-set": (COMPLETE, None),
    "stateful-set-image-not-found": (FAILED, Category.IMAGE_NOT_FOUND),
    "stateful-set-crash-loop": (FAILED, Category.CRASH),
    "daemon-set": (COMPLETE, None),
    "daemon-set-crash-loop": (FAILED, Category.CRASH),
    "job-running": (PROGRESSING, None),
    "job": (COMPLETE, None),
    "job-crashed-once": (PROGRESSING, Category.CRASH),
    "job-crashed": (FAILED, Category.CRASH),
    "job-image-not-found": (FAILED, Category.IMAGE_NOT_FOUND),
    "image-not-found": (FAILED, Category.IMAGE_NOT_FOUND),
    "image-not-found-back-off": (FAILED, Category.IMAGE_NOT_FOUND),
    "tag-not-found": (FAILED, Category.IMAGE_NOT_FOUND),
    "image-name-invalid": (FAILED, Category.IMAGE_NAME_INVALID),
    "registry-unreachable": (PROGRESSING, Category.REGISTRY_UNREACHABLE),
    "crash-loop-two-crashes": (PROGRESSING, Category.CRASH),
    "crash-loop": (FAILED, Category.CRASH),
    "crash-loop-running-again": (FAILED, Category.CRASH),
    "exits-zero": (FAILED, Category.CRASH),
    "command-not-found": (FAILED, Category.COMMAND_NOT_FOUND),
    "command-not-found-back-off": (FAILED, Category.COMMAND_NOT_FOUND),
    "shell-command-not-found": (FAILED, Category.COMMAND_NOT_FOUND),
    "wrong-architecture": (FAILED, Category.WRONG_ARCHITECTURE),
    "out-of-memory": (FAILED, Category.OUT_OF_MEMORY),
    "missing-configmap-env": (PROGRESSING, Category.MISSING_CONFIG),
    "missing-configmap-heals": (COMPLETE, None),
    "missing-secret-key": (PROGRESSING, Category.MISSING_CONFIG),
    "missing-configmap-volume": (PROGRESSING, Category.MISSING_CONFIG),
    "init-container-fails": (FAILED, Category.INIT_CONTAINER),
    "init-container-running-again": (FAILED, Category.INIT_CONTAINER),
    "sidecar-crash-unnoticed": (PROGRESSING, Category.CRASH),
    "sidecar-crashes": (FAILED, Category.CRASH),
    "unschedulable": (PROGRESSING, Category.UNSCHEDULABLE),
    "claim-missing": (PROGRESSING, Category.VOLUME),
    "quota": (PROGRESSING, Category.QUOTA),
    "quota-heals": (COMPLETE, None),
    "pod-security": (FAILED, Category.ADMISSION),
    "limit-range": (FAILED, Category.ADMISSION),
    "policy-denies": (FAILED, Category.ADMISSION),
    "service-account-missing": (PROGRESSING, Category.SERVICE_ACCOUNT),
    "readiness-never": (PROGRESSING, Category.READINESS),
    "progress-deadline": (FAILED, Category.READINESS),
    "liveness-kills": (FAILED, Category.LIVENESS),
    "startup-never": (FAILED, Category.STARTUP),
    "post-start-hook-fails": (FAILED, Category.CRASH),
}
MAY_HEAL = sorted(
    name
    for name, (phase, category) in NOW.items()
    if phase is PROGRESSING and category not in (None, Category.CRASH, Category.READINESS)
)
names = st.sampled_from(sorted(NOW))


@cache
def recorded(name: str) -> tuple[Observation, datetime, datetime]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data = yaml.load((OBSERVATIONS / f"{name}.yaml").read_text(), Loader=loader)  # noqa: S506  a safe loader
    since, now = as_time(data["since"]), as_time(data["now"])
    assert since is not None
    assert now is not None
    parts = (tuple(data[part]) for part in ("revisions", "pods", "events"))
    return Observation(data["workload"], *parts), since, now


DEFAULT = Patience()


def verdict_on(name: str, *, later: timedelta = timedelta(), patience: Patience = DEFAULT) -> Verdict:
    observation, since, now = recorded(name)
    return assess(observation, since=since, now=now + later, patience=patience)


def category(verdict: Verdict) -> Category | None:
    return verdict.causes[0].category if verdict.causes else None


def statuses(observation: Observation) -> list[dict[str, Any]]:
    return [status for pod in observation.pods for status in pod["status"]["containerStatuses"]]


def edited(value: Any, key: str, new: Any) -> Any:  # noqa: ANN401  JSON is anything
    """A copy of a recording with every `key` replaced: for states that a small cluster cannot show."""
    if isinstance(value, dict):
        return {k: new if k == key else edited(v, key, new) for k, v in value.items()}
    return [edited(item, key, new) for item in value] if isinstance(value, list) else value


# --- verdicts on what was recorded


@pytest.mark.parametrize("name", sorted(NOW))
def test_a_recorded_observation_gets_its_verdict(name: str) -> None:
    verdict = verdict_on(name)
    assert (verdict.phase, category(verdict)) == NOW[name], verdict.summary


def test_every_recording_has_an_expected_verdict() -> None:
    assert {path.stem for path in OBSERVATIONS.glob("*.yaml")} == set(NOW)


@pytest.mark.parametrize("name", MAY_HEAL)
def test_a_problem_that_may_pass_fails_once_patience_has_run_out(name: str) -> None:
    problem = NOW[name][1]
    assert problem is not None
    verdict = verdict_on(name, later=DEFAULT.for_category(problem) + timedelta(seconds=1))
    assert (verdict.phase, category(verdict)) == (FAILED, problem)


@pytest.mark.parametrize("name", sorted(name for name, (phase, _) in NOW.items() if phase is COMPLETE))
def test_a_complete_rollout_stays_complete(name: str) -> None:
    assert verdict_on(name, later=timedelta(hours=1)).phase is COMPLETE


RUNS_AGAIN = {"crash-loop-running-again", "init-container-running-again"}  # a minute of running clears them


@pytest.mark.parametrize("name", sorted({name for name, (phase, _) in NOW.items() if phase is FAILED} - RUNS_AGAIN))
def test_a_failed_rollout_stays_failed_in_the_next_minute(name: str) -> None:
    assert verdict_on(name, later=timedelta(minutes=1)).phase is FAILED


def test_a_pod_that_never_becomes_ready_fails_after_the_probes_grace_period_and_patience() -> None:
    # the probe's own settings allow two failures two seconds apart; it had run for 58 s when it was recorded
    assert "fails in 7 s" in verdict_on("readiness-never").summary
    assert verdict_on("readiness-never", later=timedelta(seconds=6)).phase is PROGRESSING
    verdict = verdict_on("readiness-never", later=timedelta(seconds=8))
    assert (verdict.phase, category(verdict)) == (FAILED, Category.READINESS)


def test_the_grace_period_of_the_startup_probe_ends_when_it_has_passed() -> None:
    observation, since, _ = recorded("readiness-never")
    pods = edited(list(observation.pods), "imagePullPolicy", "Always")
    pods[0]["spec"]["containers"][0]["startupProbe"] = {"periodSeconds": 1, "failureThreshold": 100}
    slow = replace(observation, pods=tuple(pods))

    def look(seconds: float, memory: Memory) -> Verdict:
        return assess(slow, since=since, now=since + timedelta(seconds=seconds), memory=memory)

    memory = look(4, Memory()).memory  # the startup probe has passed by then: 5 s for readiness, 60 s of patience
    assert look(68, memory).phase is PROGRESSING
    assert look(70, memory).phase is FAILED
    assert look(70, Memory()).phase is PROGRESSING  # without the memory of it, both probes must be allowed for


def test_a_probe_that_may_fail_for_twenty_minutes_is_not_stalled_before() -> None:
    observation, since, _ = recorded("readiness-never")
    pods = edited(list(observation.pods), "failureThreshold", 600)  # two seconds apart
    patient = replace(observation, pods=tuple(pods))
    for minutes, phase in ((15, PROGRESSING), (19, PROGRESSING), (22, FAILED)):
        assert assess(patient, since=since, now=since + timedelta(minutes=minutes)).phase is phase


def test_a_container_recovers_from_a_crash_by_staying_up() -> None:
    assert verdict_on("crash-loop-running-again").phase is FAILED
    observation, since, now = recorded("one-restart-just-now")
    assert assess(observation, since=since, now=now + timedelta(seconds=3)).phase is PROGRESSING
    assert assess(observation, since=since, now=now + timedelta(seconds=11)).phase is COMPLETE


def test_crashes_of_a_container_that_has_recovered_are_over() -> None:
    verdict = verdict_on("init-container-running-again", later=timedelta(minutes=1))
    assert (verdict.phase, verdict.causes) == (PROGRESSING, ())


def test_the_number_of_crashes_is_a_setting() -> None:
    assert verdict_on("crash-loop", patience=Patience(crashes=5)).phase is PROGRESSING
    assert verdict_on("crash-loop-two-crashes", patience=Patience(crashes=2)).phase is FAILED


def test_the_patience_is_a_setting() -> None:
    assert verdict_on("unschedulable", patience=Patience(node=timedelta(seconds=2))).phase is FAILED


# --- problems from before the rollout


@pytest.mark.parametrize("name", ["crash-loop", "out-of-memory", "liveness-kills", "exits-zero"])
def test_crashes_before_the_rollout_do_not_count(name: str) -> None:
    observation, _, now = recorded(name)
    assert assess(observation, since=now + timedelta(minutes=5), now=now + timedelta(minutes=9)).phase is PROGRESSING


@pytest.mark.parametrize("name", ["image-not-found", "missing-configmap-env", "pod-security", "progress-deadline"])
def test_a_problem_from_before_the_rollout_gets_the_full_patience(name: str) -> None:
    observation, _, now = recorded(name)
    began = now + timedelta(minutes=5)
    assert assess(observation, since=began, now=began + timedelta(seconds=50)).phase is PROGRESSING
    assert assess(observation, since=began, now=began + AFTER_PATIENCE).phase is FAILED


def test_a_clock_skew_of_seconds_does_not_hide_a_permanent_problem() -> None:
    observation, _, now = recorded("image-not-found")
    assert assess(observation, since=now + timedelta(seconds=4), now=now + timedelta(seconds=4)).phase is FAILED


def test_a_container_that_started_in_the_second_of_the_apply_is_new() -> None:
    # timestamps in objects are whole seconds: it started after the apply, and seems to have started before
    observation, _, _ = recorded("fresh-just-started")
    started = as_time(max(status["state"]["running"]["startedAt"] for status in statuses(observation)))
    assert started is not None
    since = started + timedelta(seconds=0.3)
    assert assess(observation, since=since, now=since + timedelta(seconds=1)).phase is PROGRESSING
    assert assess(observation, since=since, now=since + timedelta(seconds=6)).phase is COMPLETE


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_does_not_block_a_good_rollout(hours: int) -> None:
    observation, since, now = recorded("fresh")
    off = timedelta(hours=hours)
    assert assess(observation, since=since + off, now=now + off).phase is COMPLETE


# --- generations and revisions


@pytest.mark.parametrize("name", ["rolling", "stateful-set", "daemon-set", "progress-deadline"])
def test_nothing_counts_before_the_controller_has_seen_the_new_generation(name: str) -> None:
    observation, since, now = recorded(name)
    workload = edited(observation.workload, "generation", 99)
    verdict = assess(
        Observation(workload, observation.revisions, observation.pods, observation.events), since=since, now=now
    )
    assert (verdict.phase, verdict.causes) == (PROGRESSING, ())


def test_a_template_that_differs_by_new_defaults_is_found_by_its_revision_number() -> None:
    observation, since, now = recorded("image-not-found")
    workload = edited(observation.workload, "terminationMessagePolicy", "NewDefault")
    verdict = assess(
        Observation(workload, observation.revisions, observation.pods, observation.events), since=since, now=now
    )
    assert category(verdict) is Category.IMAGE_NOT_FOUND


def test_the_template_decides_and_not_a_revision_number_that_lags_behind() -> None:
    observation, since, now = recorded("over-a-broken-revision-midway")
    workload = edited(observation.workload, "deployment.kubernetes.io/revision", "1")
    verdict = assess(
        Observation(workload, observation.revisions, observation.pods, observation.events), since=since, now=now
    )
    assert (verdict.ready, verdict.causes) == (2, ())


def test_an_old_pod_that_stays_keeps_a_rollout_from_being_complete() -> None:
    assert verdict_on("rolling-one-old-left", later=timedelta(minutes=5)).phase is PROGRESSING


def test_old_pods_are_not_counted_as_ready() -> None:
    verdict = verdict_on("image-not-found")
    assert (verdict.ready, verdict.wanted) == (0, 1)


def test_a_job_may_use_up_the_retries_that_the_user_chose() -> None:
    observation, since, now = recorded("job-crashed-once")
    for limit, phase in ((6, FAILED), (10, PROGRESSING)):
        workload = edited(observation.workload, "backoffLimit", limit)
        workload["status"]["failed"] = 3
        verdict = assess(Observation(workload, (), observation.pods, observation.events), since=since, now=now)
        assert verdict.phase is phase


# --- refused pods of workloads that report it by events only


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_a_refusal_reported_by_events_fails_until_a_pod_is_created(kind: str) -> None:
    workload = {
        "kind": kind,
        "metadata": {"name": "shop", "uid": "u", "generation": 1},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1, "desiredNumberScheduled": 1},
    }
    about = {"kind": kind, "name": "shop", "uid": "u"}
    refused = {"involvedObject": about, "reason": "FailedCreate", "firstTimestamp": "2026-01-01T00:00:01Z",
               "lastTimestamp": "2026-01-01T00:00:09Z",
               "message": 'create Pod shop-0 in StatefulSet shop failed error: pods "shop-0" is forbidden: violates '
                          'PodSecurity "restricted:latest": runAsNonRoot != true'}  # fmt: skip
    created = {"involvedObject": about, "reason": "SuccessfulCreate", "lastTimestamp": "2026-01-01T00:00:10Z"}
    since, now = as_time("2026-01-01T00:00:00Z"), as_time("2026-01-01T00:00:12Z")
    assert since is not None
    assert now is not None
    assert assess(Observation(workload, events=(refused,)), since=since, now=now).phase is FAILED
    assert assess(Observation(workload, events=(refused, created)), since=since, now=now).phase is PROGRESSING
    labels = {"controller-revision-hash": "one"}
    pod = {"kind": "Pod", "metadata": {"name": "shop-0", "labels": labels}}
    workload["status"] = {**workload["status"], "updateRevision": "one"}  # type: ignore[dict-item]
    newest = {"kind": "ControllerRevision", "metadata": {"labels": labels}}
    assert assess(Observation(workload, (newest,), (pod,), (refused,)), since=since, now=now).causes == ()


# --- other kinds


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        (None, COMPLETE),
        ({}, COMPLETE),
        ({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}, PROGRESSING),
        ({"observedGeneration": 2, "conditions": [{"type": "Ready", "status": "True"}]}, COMPLETE),
        ({"conditions": [{"type": "Ready", "status": "False", "message": "issuing"}]}, PROGRESSING),
        ({"conditions": [{"type": "Available", "status": "Unknown"}]}, PROGRESSING),
        ({"conditions": [{"type": "Reconciling", "status": "True"}]}, PROGRESSING),
        ({"conditions": [{"type": "Stalled", "status": "True", "message": "no such issuer"}]}, FAILED),
        ({"conditions": [{"type": "Failed", "status": "True"}, {"type": "Ready", "status": "True"}]}, FAILED),
    ],
)
def test_other_kinds_are_read_by_their_conditions(status: object, phase: Phase) -> None:
    resource = {"kind": "Certificate", "metadata": {"name": "shop", "generation": 2}}
    resource |= {"status": status} if status is not None else {}
    at = as_time("2026-01-01T00:00:00Z")
    assert at is not None
    assert assess(Observation(resource), since=at, now=at).phase is phase


# --- patience


def test_an_environment_without_settings_has_the_documented_patience() -> None:
    assert Patience.from_settings(RolloutSettings()) == Patience()


def test_one_duration_sets_every_patience_and_a_mapping_sets_single_ones() -> None:
    half = timedelta(seconds=30)
    every = Patience.from_settings(RolloutSettings.model_validate({"crashes": 5, "patience": "30s"}))
    assert every.crashes == 5
    assert {every.for_category(category) for category in Category} == {half}
    assert every.stall == Patience().stall
    one = Patience.from_settings(RolloutSettings.model_validate({"patience": {"quota": "30s"}}))
    assert one == Patience(quota=half)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"patience": "soon"}, "not a duration"),
        ({"patience": {"quotas": "30s"}}, "quotas"),
        ({"patience": {"quota": "soon"}}, "not a duration"),
        ({"patience": {"stall": "0s"}}, "longer than 0s"),
    ],
)
def test_an_invalid_patience_is_refused_with_one_error(wrong: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        RolloutSettings.model_validate(wrong)
    assert caught.value.error_count() == 1


def test_time_without_observations_is_added_to_every_patience() -> None:
    extended = Patience().extended_by(timedelta(seconds=7))
    assert (extended.quota, extended.stall) == (timedelta(seconds=67), timedelta(seconds=607))
    assert (extended.crashes, extended.min_uptime) == (3, timedelta(seconds=5))
    assert extended.min_recovery == timedelta(seconds=10)


def test_every_problem_has_the_patience_of_its_category() -> None:
    patience = Patience(node=timedelta(hours=1))
    assert verdict_on("unschedulable", later=AFTER_PATIENCE, patience=patience).phase is PROGRESSING
    assert verdict_on("quota", later=AFTER_PATIENCE, patience=patience).phase is FAILED


def test_a_retry_in_progress_doubles_the_patience() -> None:
    observation, since, now = recorded("registry-unreachable")
    [pod] = observation.pods
    pulling = {"involvedObject": {"kind": "Pod", "uid": pod["metadata"]["uid"]}, "reason": "Pulling",
               "lastTimestamp": (now + timedelta(seconds=1)).isoformat()}  # fmt: skip
    trying = replace(observation, events=(*observation.events, pulling))
    for seconds, phase in ((74, PROGRESSING), (160, PROGRESSING), (165, FAILED)):
        assert assess(trying, since=since, now=now + timedelta(seconds=seconds)).phase is phase


# --- problems of creating pods


def test_a_refused_replica_set_is_reported_although_the_deployment_is_never_observed() -> None:
    observation, since, now = recorded("fresh")
    workload = edited(observation.workload, "image", "localhost:5000/other:1")
    workload["metadata"]["generation"] = 99
    failure = {"involvedObject": {"kind": "Deployment", "uid": workload["metadata"]["uid"]},
            "reason": "ReplicaSetCreateError", "firstTimestamp": now.isoformat(), "lastTimestamp": now.isoformat(),
            "message": 'Failed to create new replica set "shop-1": replicasets.apps "shop-1" is forbidden: exceeded '
                       "quota: sets"}  # fmt: skip
    refused = replace(observation, workload=workload, events=(failure,))
    verdict = assess(refused, since=since, now=now)
    assert (verdict.phase, category(verdict)) == (PROGRESSING, Category.QUOTA)
    assert assess(refused, since=since, now=now + AFTER_PATIENCE).phase is FAILED


def test_a_controller_that_never_observes_the_workload_fails_the_rollout() -> None:
    observation, since, now = recorded("fresh")
    asleep = replace(observation, workload=edited(observation.workload, "generation", 99))
    assert assess(asleep, since=since, now=now + timedelta(minutes=9)).phase is PROGRESSING
    assert assess(asleep, since=since, now=now + timedelta(minutes=11)).phase is FAILED


def test_a_broken_pod_of_an_earlier_revision_blocks_a_stateful_set_until_it_is_gone() -> None:
    observation, since, now = recorded("stateful-set-image-not-found")
    workload = edited(observation.workload, "updateRevision", "shop-next")
    blocked = replace(observation, workload=workload)
    verdict = assess(blocked, since=since, now=now)
    assert (verdict.phase, category(verdict)) == (PROGRESSING, Category.BLOCKED)
    assert "delete pod" in verdict.causes[0].hint
    assert assess(blocked, since=since, now=now + AFTER_PATIENCE).phase is FAILED
    assert assess(replace(blocked, pods=()), since=since, now=now + AFTER_PATIENCE).causes == ()
    parallel = replace(blocked, workload=edited(workload, "podManagementPolicy", "Parallel"))
    assert assess(parallel, since=since, now=now).causes == ()


def test_pods_evicted_for_their_own_limits_fail_by_their_number() -> None:
    observation, since, now = recorded("drained-midway")
    [pod, *_] = observation.pods
    full = {**pod, "status": {"phase": "Failed", "reason": "Evicted",
                              "message": 'Usage of EmptyDir volume "tmp" exceeds the limit "1Mi". '}}  # fmt: skip
    revision = replace(observation, pods=(*observation.pods, full, full))
    assert assess(revision, since=since, now=now).phase is PROGRESSING
    verdict = assess(replace(revision, pods=(*revision.pods, full)), since=since, now=now)
    assert (verdict.phase, category(verdict)) == (FAILED, Category.STORAGE_LIMIT)


def test_a_job_with_retries_per_index_decides_itself() -> None:
    observation, since, now = recorded("job-crashed")
    workload = edited(observation.workload, "backoffLimit", 2147483647)
    workload["spec"]["backoffLimitPerIndex"] = 2
    workload["status"]["conditions"] = []
    assert assess(replace(observation, workload=workload), since=since, now=now).phase is PROGRESSING


# --- Services in front of the pods


def fronted(name: str, *, port: object = 8080, selector: str = "shop", ready: bool | None = True) -> Observation:
    observation, _, _ = recorded(name)
    service = {"kind": "Service", "metadata": {"name": "front", "creationTimestamp": "2026-11-24T08:00:00Z"},
               "spec": {"selector": {"app": selector}, "ports": [{"port": 80, "targetPort": port}]}}  # fmt: skip
    ready_endpoints = [{"conditions": {"ready": ready}}] if ready is not None else []
    endpoints = {"metadata": {"labels": {"kubernetes.io/service-name": "front"}, "generation": 2},
                 "ports": [{"name": ""}], "endpoints": ready_endpoints}  # fmt: skip
    return replace(observation, services=(service,), endpoints=(endpoints,))


def at(name: str, observation: Observation, seconds: float = 0, memory: Memory | None = None) -> Verdict:
    _, since, now = recorded(name)
    return assess(observation, since=since, now=now + timedelta(seconds=seconds), memory=memory or Memory())


def test_a_service_with_ready_endpoints_is_complete() -> None:
    assert at("fresh", fronted("fresh")).phase is COMPLETE


def test_a_service_that_selects_no_pods_fails_although_the_pods_are_complete() -> None:
    seen = fronted("fresh", ready=None, selector="shopp")
    verdict = at("fresh", seen)
    assert (verdict.phase, category(verdict)) == (PROGRESSING, Category.SERVICE)
    assert "service/front: selector app=shopp matches no pods (fails in" in verdict.summary
    assert at("fresh", seen, 31).phase is FAILED


def test_a_service_that_selects_a_label_set_by_the_program_may_be_waited_for_as_its_hint_says() -> None:
    """For example on its leader only: the label is in no pod template."""
    seen = fronted("fresh", ready=None, selector="leader")
    _, since, now = recorded("fresh")
    verdict = at("fresh", seen, 31)
    assert verdict.phase is FAILED
    assert "raise `rollout.patience.service` in the pipeline file" in verdict.causes[0].hint
    settings = RolloutSettings.model_validate({"patience": {"service": "5m"}})
    patience = Patience.from_settings(settings)
    assert assess(seen, since=since, now=now + timedelta(seconds=31), patience=patience).phase is PROGRESSING


@pytest.mark.parametrize(
    ("selector", "processed"),
    [("shop", True), ("shop", False), ("shopp", False)],
    ids=["no endpoints", "no slices", "selector matches nothing"],
)
def test_a_services_controller_has_a_grace_period_of_a_minute(selector: str, *, processed: bool) -> None:
    seen = fronted("fresh", ready=None, selector=selector)
    seen = seen if processed else replace(seen, endpoints=())
    if not processed:  # without slices it is not known that it had no endpoints before
        _, since, _ = recorded("fresh")
        seen = replace(
            seen, services=tuple(edited(item, "creationTimestamp", since.isoformat()) for item in seen.services)
        )
    verdict = at("fresh", seen, 31)
    assert (verdict.phase, category(verdict)) == (PROGRESSING, Category.SERVICE)
    assert "its controller may need" in verdict.summary
    assert "fails in" in at("fresh", seen, 61).summary
    assert at("fresh", seen, 91).phase is FAILED


def test_a_service_without_endpoints_before_the_rollout_does_not_count() -> None:
    seen = fronted("fresh", ready=None, selector="preview")
    assert at("fresh", edited_endpoints(seen, generation=1), 60).phase is COMPLETE


def test_a_new_service_without_endpoints_counts() -> None:
    seen = edited_endpoints(fronted("fresh", ready=None, selector="shopp"), generation=1)
    _, since, _ = recorded("fresh")
    new = replace(seen, services=tuple(edited(item, "creationTimestamp", since.isoformat()) for item in seen.services))
    assert at("fresh", new, 60).phase is FAILED


def edited_endpoints(observation: Observation, *, generation: int) -> Observation:
    return replace(
        observation, endpoints=tuple(edited(item, "generation", generation) for item in observation.endpoints)
    )


def test_a_named_port_that_no_container_declares_fails_immediately() -> None:
    verdict = at("fresh", fronted("fresh", port="web", ready=None))
    assert (verdict.phase, category(verdict)) == (FAILED, Category.PORT)


def test_a_port_that_refuses_connections_fails_after_the_patience() -> None:
    seen = fronted("fresh")
    shut = replace(seen, port_results=(PortResult("front", 80, open=False, error="connection refused"),))
    assert at("fresh", shut).phase is PROGRESSING
    assert (at("fresh", shut, 31).phase, category(at("fresh", shut, 31))) == (FAILED, Category.PORT)


@pytest.mark.parametrize("name", ["rolling-first-pod", "slow-readiness-waiting", "scaled-to-zero", "job"])
def test_a_service_is_not_checked_before_its_pods_are_ready(name: str) -> None:
    bare, fronted_ = recorded(name)[0], fronted(name, ready=None)
    assert at(name, fronted_).phase is at(name, bare).phase
    assert Category.SERVICE not in [cause.category for cause in at(name, fronted_).causes]


def test_a_service_that_loses_its_endpoints_after_complete_is_unhealthy_and_then_failed() -> None:
    complete = at("fresh", fronted("fresh"))
    assert complete.healthy
    lost = at("fresh", fronted("fresh", ready=False), 10, complete.memory)
    assert (lost.phase, lost.healthy) == (COMPLETE, False)
    assert at("fresh", fronted("fresh", ready=False), 101, lost.memory).phase is FAILED


# --- after complete


def test_a_completed_job_is_final() -> None:
    verdict = verdict_on("job")
    assert verdict.final
    assert not verdict_on("fresh").final
    assert verdict_on("scaled-to-zero").final


def test_the_time_of_the_pods_last_change_is_known() -> None:
    observation, *_ = recorded("fresh")
    ready = [state["lastTransitionTime"] for pod in observation.pods for state in pod["status"]["conditions"]]
    assert verdict_on("fresh").unchanged_since == as_time(max(ready))
    assert verdict_on("scaled-to-zero").unchanged_since is None


@pytest.mark.parametrize("name", sorted(name for name, (phase, _) in NOW.items() if phase is COMPLETE))
def test_a_complete_rollout_is_healthy_with_memory_too(name: str) -> None:
    first = verdict_on(name)
    observation, since, now = recorded(name)
    again = assess(observation, since=since, now=now + timedelta(minutes=1), memory=first.memory)
    assert (first.healthy, again.healthy, again.phase) == (True, True, COMPLETE)


# --- other kinds, more


@pytest.mark.parametrize(
    ("about", "phase"),
    [({}, COMPLETE), ({"observedGeneration": 2}, COMPLETE), ({"observedGeneration": 1}, PROGRESSING)],
)
def test_a_condition_about_an_older_generation_is_ignored(about: Any, phase: Phase) -> None:  # noqa: ANN401
    resource = {"kind": "Certificate", "metadata": {"name": "shop", "generation": 2},
             "status": {"conditions": [{"type": "Ready", "status": "True", **about}]}}  # fmt: skip
    now = as_time("2026-01-01T00:00:00Z")
    assert now is not None
    assert assess(Observation(resource), since=now, now=now).phase is phase


def test_a_new_custom_resource_may_still_get_a_status() -> None:
    resource = {"kind": "Certificate", "metadata": {"name": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    now = as_time("2026-01-01T00:00:01Z")
    assert now is not None
    assert assess(Observation(resource), since=now, now=now).phase is PROGRESSING
    assert assess(Observation(resource), since=now, now=now + timedelta(seconds=6)).phase is COMPLETE


def test_the_conditions_of_a_custom_resource_count_after_complete_too() -> None:
    now = as_time("2026-01-01T00:01:00Z")
    assert now is not None

    def says(*conditions: dict[str, str]) -> Observation:
        return Observation({"kind": "Certificate", "metadata": {"name": "shop"}, "status": {"conditions": conditions}})

    complete = assess(says({"type": "Ready", "status": "True"}), since=now, now=now)
    assert complete.healthy
    later = assess(says({"type": "Ready", "status": "False"}), since=now, now=now, memory=complete.memory)
    assert (later.phase, later.healthy) == (COMPLETE, False)
    stalled = assess(says({"type": "Stalled", "status": "True"}), since=now, now=now, memory=later.memory)
    assert stalled.phase is FAILED


def test_a_custom_resource_that_never_becomes_ready_fails_in_the_end() -> None:
    resource = {"kind": "Certificate", "metadata": {"name": "shop"}, "status": {"conditions": [
        {"type": "Ready", "status": "False", "message": "issuing"}]}}  # fmt: skip
    now = as_time("2026-01-01T00:00:01Z")
    assert now is not None
    verdict = assess(Observation(resource), since=now, now=now + timedelta(minutes=10))
    assert (verdict.phase, category(verdict)) == (FAILED, Category.DEADLINE)
    assert "issuing" in verdict.summary


def test_a_running_job_is_never_stalled() -> None:
    observation, since, now = recorded("job-running")
    running = edited(list(observation.pods), "state", {"running": {"startedAt": now.isoformat()}})
    seen = replace(observation, pods=tuple(running))
    assert assess(seen, since=since, now=now + timedelta(hours=5)).phase is PROGRESSING
    assert verdict_on("job-running", later=timedelta(hours=5)).phase is FAILED  # it never started


def test_a_paused_rollout_is_not_stalled() -> None:
    assert verdict_on("paused", later=timedelta(hours=5)).phase is PROGRESSING


# --- sentences


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fresh", "2 of 2 replicas ready"),
        ("paused", "deployment/shop is paused: kubectl rollout resume deployment/shop"),
        ("rolling-one-old-left", "2 of 2 replicas updated, 1 old pending termination"),
        ("drained-midway", "1 of 2 replicas ready; waiting for pod/shop-74b6db47c5-nsxdh (ContainerCreating, 1 s)"),
        ("crash-loop", "container main crashed with exit code 3, 3 times"),
        ("progress-deadline", "deployment/shop made no progress for 15 s"),
        ("registry-unreachable", "(fails in 73 s)"),
        ("crash-loop-two-crashes", "2 times (fails after 3 crashes)"),
        ("slow-readiness-waiting", "(its probe settings allow"),
    ],
)
def test_the_summary_is_one_sentence(name: str, sentence: str) -> None:
    assert sentence in verdict_on(name).summary


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("drained-midway", "(ContainerCreating, … s)"),
        ("registry-unreachable", "(fails in … s)"),
        ("slow-readiness-waiting", "(its probe settings allow … s more)"),
    ],
)
def test_only_the_seconds_of_a_summary_change_while_nothing_else_does(name: str, ending: str) -> None:
    now, later = verdict_on(name), verdict_on(name, later=timedelta(seconds=2))
    assert now.summary != later.summary
    assert now.summary_without_seconds == later.summary_without_seconds
    assert now.summary_without_seconds.endswith(ending)
    assert re.sub(r"\b\d+ s\b", "… s", now.summary) == now.summary_without_seconds


# --- properties


@settings(deadline=None)
@given(name=names, seed=st.integers(0, 2**32))
def test_the_order_of_pods_revisions_and_events_does_not_matter(name: str, seed: int) -> None:
    observation, since, now = recorded(name)
    dice = random.Random(seed)  # noqa: S311  a shuffle, not a secret
    mixed = [
        tuple(dice.sample(part, len(part))) for part in (observation.revisions, observation.pods, observation.events)
    ]
    assert assess(Observation(observation.workload, *mixed), since=since, now=now) == verdict_on(name)


def without(value: Any, dice: random.Random, share: float) -> Any:  # noqa: ANN401  JSON is anything
    if isinstance(value, dict):
        return {key: without(item, dice, share) for key, item in value.items() if dice.random() >= share}
    if isinstance(value, list):
        return [without(item, dice, share) for item in value if dice.random() >= share]
    return value if dice.random() >= share else None


@settings(max_examples=300, deadline=None)
@given(name=names, seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.1, 0.3, 1.0]))
@pytest.mark.timeout(60)
def test_assess_never_raises_whatever_fields_are_missing(name: str, seed: int, share: float) -> None:
    observation, since, now = recorded(name)
    dice = random.Random(seed)  # noqa: S311  damage, not a secret
    damaged = Observation(
        without(observation.workload, dice, share) or {},
        *(
            tuple(item for item in without(list(part), dice, share) or [] if item is not None)
            for part in (observation.revisions, observation.pods, observation.events)
        ),
    )
    assert assess(damaged, since=since, now=now).summary


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.05, 0.2, 0.5]), ready=st.sampled_from([True, False, None]))
@pytest.mark.timeout(60)
def test_assess_never_raises_whatever_fields_a_service_lacks(seed: int, share: float, ready: bool | None) -> None:  # noqa: FBT001
    seen, (_, since, now) = fronted("fresh", ready=ready), recorded("fresh")
    dice = random.Random(seed)  # noqa: S311  damage, not a secret
    services, endpoints = (
        tuple(item for item in without(list(part), dice, share) or [] if item is not None)
        for part in (seen.services, seen.endpoints)
    )
    assert assess(replace(seen, services=services, endpoints=endpoints), since=since, now=now).summary


@settings(deadline=None)
@given(name=names, seconds=st.integers(0, 100_000))
def test_more_patience_never_fails_more(name: str, seconds: int) -> None:
    later = timedelta(seconds=seconds)
    patient = Patience(crashes=6).extended_by(timedelta(minutes=9))
    if verdict_on(name, later=later, patience=patient).phase is FAILED:
        assert verdict_on(name, later=later).phase is FAILED


# --- problems that other changes explain


def test_room_held_by_terminating_pods_extends_the_patience() -> None:
    observation, since, now = recorded("unschedulable")
    assert assess(observation, since=since, now=now + timedelta(seconds=90)).phase is FAILED
    until = (now + timedelta(seconds=80)).isoformat()
    leaving = edited(observation.pods[0], "uid", "old")
    leaving["metadata"] |= {"deletionTimestamp": until, "labels": {"app": "old"}}
    seen = replace(observation, pods=(*observation.pods, leaving))
    assert assess(seen, since=since, now=now + timedelta(seconds=90)).phase is PROGRESSING
    assert assess(seen, since=since, now=now + timedelta(seconds=145)).phase is FAILED
    assert "(waiting for other pods, 40 s more)" in assess(seen, since=since, now=now + timedelta(seconds=40)).summary


def test_a_quota_that_refuses_one_pod_does_not_count_while_others_start() -> None:
    observation, since, now = recorded("quota")
    first = assess(observation, since=since, now=now)
    later = now + timedelta(seconds=65)
    assert assess(observation, since=since, now=later, memory=first.memory).phase is FAILED
    progressed = replace(first.memory, progressed_at=later - timedelta(seconds=40))
    assert assess(observation, since=since, now=later, memory=progressed).phase is PROGRESSING


def test_a_missing_object_that_exists_now_is_retried() -> None:
    observation, since, now = recorded("missing-configmap-env")
    cause = assess(observation, since=since, now=now).causes[0]
    late = now + timedelta(seconds=61)
    assert assess(observation, since=since, now=late).phase is FAILED
    healing = assess(replace(observation, present=frozenset({cause.missing})), since=since, now=late)
    assert (healing.phase, "it exists now" in healing.summary) == (PROGRESSING, True)
    ended = assess(
        replace(observation, present=frozenset({cause.missing})), since=since, now=now + timedelta(seconds=122)
    )
    assert ended.phase is FAILED


def test_an_old_pod_that_is_still_starting_does_not_block() -> None:
    observation, since, now = recorded("stateful-set-midway")
    old = {
        "kind": "Pod",
        "metadata": {"name": "shop-9", "uid": "old", "labels": {"controller-revision-hash": "earlier"},
                     "creationTimestamp": since.isoformat()},
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Pending", "initContainerStatuses": [{"name": "restore", "state": {"running": {}}}]},
    }  # fmt: skip
    verdict = assess(replace(observation, pods=(*observation.pods, old)), since=since, now=now + timedelta(seconds=90))
    assert Category.BLOCKED not in [cause.category for cause in verdict.causes]


def test_pods_that_their_node_rejects_count_although_they_are_gone_at_the_next_observation() -> None:
    observation, since, now = recorded("stateful-set-crash-loop")
    observation = replace(observation, workload=edited(observation.workload, "replicas", 1))
    (new, *_) = observation.pods
    memory, phases = Memory(), []
    for number in range(4):
        status = {"phase": "Failed", "reason": "SysctlForbidden", "message": "forbidden sysctl: net.core.somaxconn"}
        metadata = {**new["metadata"], "uid": f"try-{number}", "creationTimestamp": now.isoformat()}
        for pods in (({**new, "metadata": metadata, "status": status},), ()):
            verdict = assess(replace(observation, pods=pods, events=()), since=since, now=now, memory=memory)
            memory = verdict.memory
            phases.append(verdict.phase)
    assert phases == [PROGRESSING] * 4 + [FAILED] * 4
    assert (category(verdict), "somaxconn" in verdict.summary) == (Category.NODE, True)


def test_pods_rejected_in_parallel_are_one_round_and_forgotten_when_a_later_one_runs() -> None:
    observation, since, now = recorded("stateful-set-crash-loop")
    workload = edited(observation.workload, "replicas", 4)
    (new, *_) = observation.pods
    status = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"}
    away = tuple({**new, "metadata": {**new["metadata"], "uid": f"a-{n}"}, "status": status} for n in range(4))
    once = assess(replace(observation, workload=workload, pods=away, events=()), since=since, now=now)
    assert (once.phase, once.causes[0].times) == (PROGRESSING, 1)
    runs = edited(new, "state", {"running": {"startedAt": now.isoformat()}})
    later_ = {**runs, "metadata": {**new["metadata"], "uid": "b", "creationTimestamp": now.isoformat()}}
    up = replace(observation, workload=workload, pods=(later_,), events=())
    verdict = assess(up, since=since, now=now, memory=once.memory)
    assert Category.NODE not in [cause.category for cause in verdict.causes]


# --- Jobs


def test_a_job_is_complete_by_its_condition_whatever_its_pods_did() -> None:
    observation, since, now = recorded("job-crashed-once")
    status = {"succeeded": 1, "failed": 1, "conditions": [{"type": "Complete", "status": "True"}]}
    workload = {**observation.workload, "status": status}
    verdict = assess(replace(observation, workload=workload), since=since, now=now)
    assert (verdict.phase, verdict.final) == (COMPLETE, True)


@pytest.mark.parametrize(
    ("side_by_side", "completions", "failed", "succeeded", "phase"),
    [
        (1, 1, 3, 0, FAILED),
        (4, 4, 4, 0, PROGRESSING),
        (4, None, 4, 0, PROGRESSING),
        (4, 4, 12, 0, FAILED),
        (1, 50, 3, 30, PROGRESSING),
    ],
)
def test_failures_in_parallel_and_beside_successes_are_not_counted_as_retries(
    side_by_side: int, completions: int | None, failed: int, succeeded: int, phase: Phase
) -> None:
    observation, since, now = recorded("job-crashed-once")
    workload = edited(observation.workload, "backoffLimit", 6)
    workload["spec"] |= {"parallelism": side_by_side, "completions": completions}
    workload["status"] |= {"failed": failed, "succeeded": succeeded}
    assert assess(replace(observation, workload=workload), since=since, now=now).phase is phase


def test_a_failed_index_fails_the_job_unless_it_has_a_success_policy() -> None:
    observation, since, now = recorded("job-running")
    workload = edited(observation.workload, "backoffLimitPerIndex", 0)
    workload["status"]["failedIndexes"] = "1,3"
    verdict = assess(replace(observation, workload=workload), since=since, now=now)
    assert (verdict.phase, "1,3" in verdict.summary) == (FAILED, True)
    workload["spec"]["successPolicy"] = {"rules": [{"succeededCount": 1}]}
    assert assess(replace(observation, workload=workload), since=since, now=now).phase is PROGRESSING


def test_a_job_of_another_api_group_is_read_by_its_conditions() -> None:
    observation, since, now = recorded("job-crashed")
    workload = {**observation.workload, "apiVersion": "batch.volcano.sh/v1alpha1", "status": {"state": "Running"}}
    assert assess(Observation(workload), since=since, now=now).phase is COMPLETE


# --- clocks


def test_a_problem_a_few_seconds_in_the_future_is_new() -> None:
    observation, since, now = recorded("missing-configmap-env")
    ahead = (now + timedelta(seconds=3)).isoformat()
    events = tuple(edited(edited(item, "firstTimestamp", ahead), "lastTimestamp", ahead) for item in observation.events)
    earlier = since - timedelta(seconds=58)
    verdict = assess(replace(observation, events=events), since=earlier, now=now + timedelta(seconds=2))
    assert verdict.phase is PROGRESSING


def test_a_run_that_began_before_the_first_observation_may_succeed() -> None:
    observation, since, now = recorded("crash-loop")
    pods = [dict(edited(pod, "state", {"running": {"startedAt": now.isoformat()}})) for pod in observation.pods]
    up = tuple(edited(edited(pod, "ready", new=True), "started", new=True) for pod in pods)
    first = assess(replace(observation, pods=up), since=since, now=now)
    assert (first.phase, category(first)) == (PROGRESSING, Category.CRASH)
    ended = assess(observation, since=since, now=now + timedelta(seconds=2), memory=first.memory)
    assert ended.phase is FAILED
    outlived = assess(replace(observation, pods=up), since=since, now=now + timedelta(seconds=95), memory=first.memory)
    assert outlived.causes == ()
