"""Recorded observations of a real cluster in, verdicts out."""

import random
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.diagnosis import Category, moment
from prefect_cd.rollout import Observation, Patience, Phase, Verdict, judge

OBSERVATIONS = Path(__file__).parent / "observations"
PROGRESSING, COMPLETE, DOOMED = Phase.PROGRESSING, Phase.COMPLETE, Phase.DOOMED
AFTER_PATIENCE = timedelta(seconds=61)

# name of the recording -> phase, and the category of the first cause (None: there is no trouble)
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
    "stateful-set-image-not-found": (DOOMED, Category.IMAGE_NOT_FOUND),
    "stateful-set-crash-loop": (DOOMED, Category.CRASH),
    "daemon-set": (COMPLETE, None),
    "daemon-set-crash-loop": (DOOMED, Category.CRASH),
    "job-running": (PROGRESSING, None),
    "job": (COMPLETE, None),
    "job-crashed-once": (PROGRESSING, Category.CRASH),
    "job-crashed": (DOOMED, Category.CRASH),
    "job-image-not-found": (DOOMED, Category.IMAGE_NOT_FOUND),
    "image-not-found": (DOOMED, Category.IMAGE_NOT_FOUND),
    "image-not-found-back-off": (DOOMED, Category.IMAGE_NOT_FOUND),
    "tag-not-found": (DOOMED, Category.IMAGE_NOT_FOUND),
    "image-name-invalid": (DOOMED, Category.IMAGE_NAME_INVALID),
    "registry-unreachable": (PROGRESSING, Category.REGISTRY_UNREACHABLE),
    "crash-loop-two-crashes": (PROGRESSING, Category.CRASH),
    "crash-loop": (DOOMED, Category.CRASH),
    "crash-loop-running-again": (DOOMED, Category.CRASH),
    "exits-zero": (DOOMED, Category.CRASH),
    "command-not-found": (DOOMED, Category.COMMAND_NOT_FOUND),
    "command-not-found-back-off": (DOOMED, Category.COMMAND_NOT_FOUND),
    "shell-command-not-found": (DOOMED, Category.COMMAND_NOT_FOUND),
    "wrong-architecture": (DOOMED, Category.WRONG_ARCHITECTURE),
    "out-of-memory": (DOOMED, Category.OUT_OF_MEMORY),
    "missing-configmap-env": (PROGRESSING, Category.MISSING_CONFIG),
    "missing-configmap-heals": (COMPLETE, None),
    "missing-secret-key": (PROGRESSING, Category.MISSING_CONFIG),
    "missing-configmap-volume": (PROGRESSING, Category.MISSING_CONFIG),
    "init-container-fails": (DOOMED, Category.INIT_CONTAINER),
    "init-container-running-again": (DOOMED, Category.INIT_CONTAINER),
    "sidecar-crash-unnoticed": (PROGRESSING, Category.CRASH),
    "sidecar-crashes": (DOOMED, Category.CRASH),
    "unschedulable": (PROGRESSING, Category.UNSCHEDULABLE),
    "claim-missing": (PROGRESSING, Category.VOLUME),
    "quota": (PROGRESSING, Category.QUOTA),
    "quota-heals": (COMPLETE, None),
    "pod-security": (DOOMED, Category.ADMISSION),
    "limit-range": (DOOMED, Category.ADMISSION),
    "policy-denies": (DOOMED, Category.ADMISSION),
    "service-account-missing": (PROGRESSING, Category.SERVICE_ACCOUNT),
    "readiness-never": (PROGRESSING, Category.READINESS),
    "progress-deadline": (DOOMED, Category.READINESS),
    "liveness-kills": (DOOMED, Category.LIVENESS),
    "startup-never": (DOOMED, Category.STARTUP),
    "post-start-hook-fails": (DOOMED, Category.CRASH),
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
    since, now = moment(data["since"]), moment(data["now"])
    assert since is not None
    assert now is not None
    parts = (tuple(data[part]) for part in ("revisions", "pods", "events"))
    return Observation(data["workload"], *parts), since, now


DEFAULT = Patience()


def verdict(name: str, *, later: timedelta = timedelta(), patience: Patience = DEFAULT) -> Verdict:
    observation, since, now = recorded(name)
    return judge(observation, since=since, now=now + later, patience=patience)


def category(found: Verdict) -> Category | None:
    return found.causes[0].category if found.causes else None


def edited(value: Any, key: str, new: Any) -> Any:  # noqa: ANN401  JSON is anything
    """A copy of a recording with every `key` replaced: for states that a small cluster cannot show."""
    if isinstance(value, dict):
        return {k: new if k == key else edited(v, key, new) for k, v in value.items()}
    return [edited(item, key, new) for item in value] if isinstance(value, list) else value


# --- verdicts on what was recorded


@pytest.mark.parametrize("name", sorted(NOW))
def test_a_recorded_moment_gets_its_verdict(name: str) -> None:
    found = verdict(name)
    assert (found.phase, category(found)) == NOW[name], found.summary


def test_every_recording_has_an_expected_verdict() -> None:
    assert {path.stem for path in OBSERVATIONS.glob("*.yaml")} == set(NOW)


@pytest.mark.parametrize("name", MAY_HEAL)
def test_what_may_heal_is_doomed_once_patience_has_run_out(name: str) -> None:
    found = verdict(name, later=AFTER_PATIENCE)
    assert (found.phase, category(found)) == (DOOMED, NOW[name][1])


@pytest.mark.parametrize("name", sorted(name for name, (phase, _) in NOW.items() if phase is COMPLETE))
def test_what_is_complete_stays_complete(name: str) -> None:
    assert verdict(name, later=timedelta(hours=1)).phase is COMPLETE


RUNS_AGAIN = {"crash-loop-running-again", "init-container-running-again"}  # a minute of running would heal them


@pytest.mark.parametrize("name", sorted({name for name, (phase, _) in NOW.items() if phase is DOOMED} - RUNS_AGAIN))
def test_what_is_doomed_stays_doomed_in_its_next_minute(name: str) -> None:
    assert verdict(name, later=timedelta(minutes=1)).phase is DOOMED


def test_readiness_alone_never_dooms() -> None:
    assert verdict("readiness-never", later=timedelta(hours=1)).phase is PROGRESSING


def test_a_crash_heals_when_the_container_outlives_it() -> None:
    assert verdict("crash-loop-running-again").phase is DOOMED
    observation, since, now = recorded("one-restart-just-now")
    assert judge(observation, since=since, now=now + timedelta(seconds=3)).phase is PROGRESSING
    assert judge(observation, since=since, now=now + timedelta(seconds=11)).phase is COMPLETE


def test_crashes_of_a_container_that_runs_well_since_are_history() -> None:
    found = verdict("init-container-running-again", later=timedelta(minutes=1))
    assert (found.phase, found.causes) == (PROGRESSING, ())


def test_the_number_of_crashes_is_a_setting() -> None:
    assert verdict("crash-loop", patience=Patience(crashes=5)).phase is PROGRESSING
    assert verdict("crash-loop-two-crashes", patience=Patience(crashes=2)).phase is DOOMED


def test_the_time_to_heal_is_a_setting() -> None:
    assert verdict("unschedulable", patience=Patience(heal=timedelta(seconds=2))).phase is DOOMED


# --- what was seen before the rollout began


@pytest.mark.parametrize("name", ["crash-loop", "out-of-memory", "liveness-kills", "exits-zero"])
def test_crashes_before_the_rollout_are_not_its_own(name: str) -> None:
    observation, _, now = recorded(name)
    assert judge(observation, since=now + timedelta(minutes=5), now=now + timedelta(minutes=9)).phase is PROGRESSING


@pytest.mark.parametrize("name", ["image-not-found", "missing-configmap-env", "pod-security", "progress-deadline"])
def test_a_trouble_from_before_the_rollout_gets_the_patience_anew(name: str) -> None:
    observation, _, now = recorded(name)
    began = now + timedelta(minutes=5)
    assert judge(observation, since=began, now=began + timedelta(seconds=50)).phase is PROGRESSING
    assert judge(observation, since=began, now=began + AFTER_PATIENCE).phase is DOOMED


def test_a_few_seconds_between_the_clocks_do_not_hide_a_proof() -> None:
    observation, _, now = recorded("image-not-found")
    assert judge(observation, since=now + timedelta(seconds=4), now=now + timedelta(seconds=4)).phase is DOOMED


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_does_not_hold_a_good_rollout_for_ever(hours: int) -> None:
    observation, since, now = recorded("fresh")
    off = timedelta(hours=hours)
    assert judge(observation, since=since + off, now=now + off).phase is COMPLETE


# --- generations and revisions


@pytest.mark.parametrize("name", ["rolling", "stateful-set", "daemon-set", "progress-deadline"])
def test_nothing_counts_before_the_controller_has_seen_the_new_generation(name: str) -> None:
    observation, since, now = recorded(name)
    workload = edited(observation.workload, "generation", 99)
    found = judge(
        Observation(workload, observation.revisions, observation.pods, observation.events), since=since, now=now
    )
    assert (found.phase, found.causes) == (PROGRESSING, ())


def test_a_template_that_differs_by_new_defaults_is_found_by_its_revision_number() -> None:
    observation, since, now = recorded("image-not-found")
    workload = edited(observation.workload, "terminationMessagePolicy", "NewDefault")
    found = judge(
        Observation(workload, observation.revisions, observation.pods, observation.events), since=since, now=now
    )
    assert category(found) is Category.IMAGE_NOT_FOUND


def test_the_template_decides_and_not_a_revision_number_that_lags_behind() -> None:
    observation, since, now = recorded("over-a-broken-revision-midway")
    workload = edited(observation.workload, "deployment.kubernetes.io/revision", "1")
    found = judge(
        Observation(workload, observation.revisions, observation.pods, observation.events), since=since, now=now
    )
    assert (found.ready, found.causes) == (2, ())


def test_an_old_pod_that_stays_keeps_a_rollout_from_being_complete() -> None:
    assert verdict("rolling-one-old-left", later=timedelta(minutes=5)).phase is PROGRESSING


def test_old_pods_are_not_counted_as_ready() -> None:
    found = verdict("image-not-found")
    assert (found.ready, found.wanted) == (0, 1)


def test_a_job_may_use_up_the_retries_that_someone_chose() -> None:
    observation, since, now = recorded("job-crashed-once")
    for limit, phase in ((6, DOOMED), (10, PROGRESSING)):
        workload = edited(observation.workload, "backoffLimit", limit)
        workload["status"]["failed"] = 3
        found = judge(Observation(workload, (), observation.pods, observation.events), since=since, now=now)
        assert found.phase is phase


# --- refused pods of workloads without a condition for it


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_a_refusal_that_only_events_tell_dooms_until_a_pod_is_created(kind: str) -> None:
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
    since, now = moment("2026-01-01T00:00:00Z"), moment("2026-01-01T00:00:12Z")
    assert since is not None
    assert now is not None
    assert judge(Observation(workload, events=(refused,)), since=since, now=now).phase is DOOMED
    assert judge(Observation(workload, events=(refused, created)), since=since, now=now).phase is PROGRESSING


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
        ({"conditions": [{"type": "Stalled", "status": "True", "message": "no such issuer"}]}, DOOMED),
        ({"conditions": [{"type": "Failed", "status": "True"}, {"type": "Ready", "status": "True"}]}, DOOMED),
    ],
)
def test_other_kinds_are_read_by_their_conditions(status: object, phase: Phase) -> None:
    thing = {"kind": "Certificate", "metadata": {"name": "shop", "generation": 2}}
    thing |= {"status": status} if status is not None else {}
    at = moment("2026-01-01T00:00:00Z")
    assert at is not None
    assert judge(Observation(thing), since=at, now=at).phase is phase


# --- sentences


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fresh", "2 of 2 replicas ready"),
        ("paused", "deployment/shop is paused: kubectl rollout resume deployment/shop"),
        ("rolling-one-old-left", "2 of 2 replicas updated, 1 old to go"),
        ("drained-midway", "1 of 2 replicas ready; waiting for pod/shop-74b6db47c5-nsxdh (ContainerCreating, 1 s)"),
        ("crash-loop", "container main crashed with exit code 3, 3 times"),
        ("progress-deadline", "deployment/shop made no progress for 15 s"),
        ("registry-unreachable", "(given up in 43 s)"),
    ],
)
def test_the_summary_says_it_in_one_sentence(name: str, sentence: str) -> None:
    assert sentence in verdict(name).summary


# --- properties


@settings(deadline=None)
@given(name=names, seed=st.integers(0, 2**32))
def test_the_order_of_pods_revisions_and_events_never_matters(name: str, seed: int) -> None:
    observation, since, now = recorded(name)
    dice = random.Random(seed)  # noqa: S311  a shuffle, not a secret
    mixed = [
        tuple(dice.sample(part, len(part))) for part in (observation.revisions, observation.pods, observation.events)
    ]
    assert judge(Observation(observation.workload, *mixed), since=since, now=now) == verdict(name)


def without(value: Any, dice: random.Random, share: float) -> Any:  # noqa: ANN401  JSON is anything
    if isinstance(value, dict):
        return {key: without(each, dice, share) for key, each in value.items() if dice.random() >= share}
    if isinstance(value, list):
        return [without(each, dice, share) for each in value if dice.random() >= share]
    return value if dice.random() >= share else None


@settings(max_examples=300, deadline=None)
@given(name=names, seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.1, 0.3, 1.0]))
@pytest.mark.timeout(60)
def test_whatever_is_missing_judge_never_raises(name: str, seed: int, share: float) -> None:
    observation, since, now = recorded(name)
    dice = random.Random(seed)  # noqa: S311  damage, not a secret
    damaged = Observation(
        without(observation.workload, dice, share) or {},
        *(
            tuple(each for each in without(list(part), dice, share) or [] if each is not None)
            for part in (observation.revisions, observation.pods, observation.events)
        ),
    )
    assert judge(damaged, since=since, now=now).summary


@settings(deadline=None)
@given(name=names, seconds=st.integers(0, 100_000))
def test_more_patience_never_dooms_more(name: str, seconds: int) -> None:
    later = timedelta(seconds=seconds)
    patient = Patience(crashes=6, heal=timedelta(minutes=10))
    if verdict(name, later=later, patience=patient).phase is DOOMED:
        assert verdict(name, later=later).phase is DOOMED
