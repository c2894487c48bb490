"""Properties of every rollout: pods that follow a script are observed again and again.

A script is a list of states with their durations, and a last state that never ends. Timestamps in the objects are whole
seconds, as the kubelet writes them; the watcher's clock is finer.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.assess import Memory, Observation, Patience, Phase, Verdict, assess
from prefect_cd.rollout.watch.soak import WatchState

Object = dict[str, Any]
BEGAN = datetime(2026, 1, 1, 12, 0, 0, 400_000, tzinfo=timezone.utc)
KINDS = ("Deployment", "StatefulSet", "DaemonSet")
PROBE = {"periodSeconds": 2, "failureThreshold": 2, "timeoutSeconds": 1}
WAITING = {
    "config": ("CreateContainerConfigError", 'configmap "shop" not found'),
    "registry": ("ErrImagePull", "dial tcp 10.0.0.9:443: connect: connection refused"),
    "image": ("ErrImagePull", "registry.example/shop:1: not found"),
    "creating": ("ContainerCreating", ""),
}
UP = ("ready", "unready")


@dataclass(frozen=True)
class Script:
    """States with their durations in seconds, then those of `after`, repeated without end."""

    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]

    def until(self, seconds: float) -> list[tuple[str, float]]:
        """The states entered so far, with their start times."""
        entered, at, steps = [], 0.0, list(self.before)
        while at <= seconds:
            if not steps:
                steps = list(self.after)
            state, lasts = steps.pop(0)
            entered.append((state, at))
            at += lasts
        return entered


def stamp(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(name: str, script: Script, seconds: float) -> Object:
    past = script.until(seconds)
    state, entered = past[-1]
    crashes = [(at, past[n - 1]) for n, (step, at) in enumerate(past) if step == "crash" and n]
    run = next((at for n, (step, at) in reversed(list(enumerate(past)))
                if step in UP and (n == 0 or past[n - 1][0] not in UP)), None)  # fmt: skip
    flips = [at for n, (step, at) in enumerate(past) if (step == "ready") != (n > 0 and past[n - 1][0] == "ready")]
    is_ready = "True" if state == "ready" else "False"
    status: Object = {
        "phase": "Running" if state in UP else "Pending",
        "conditions": [
            {"type": kind, "status": is_ready, "lastTransitionTime": stamp(flips[-1] if flips else 0)}
            for kind in ("Ready", "ContainersReady")
        ],
    }
    container: Object = {"name": "main", "ready": state == "ready", "restartCount": len(crashes) - (state == "crash")}
    ended = {}
    if crashes:
        at, (_, began) = crashes[-1]
        ended = {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": stamp(began), "finishedAt": stamp(at)}}
    if state in UP:
        container |= {"state": {"running": {"startedAt": stamp(run or 0)}}, "lastState": ended, "started": True}
    elif state == "crash":
        container |= {"state": ended or {"waiting": {"reason": "CrashLoopBackOff"}}}
    elif state in WAITING:
        reason, message = WAITING[state]
        container |= {"state": {"waiting": {"reason": reason, "message": message}}}
    if state == "unschedulable":
        status["conditions"] += [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                  "message": "0/1 nodes are available: 1 Insufficient cpu.",
                                  "lastTransitionTime": stamp(entered)}]  # fmt: skip
    else:
        status["containerStatuses"] = [container]
    labels = {"app": "shop", "pod-template-hash": "one", "controller-revision-hash": "one"}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": name, "labels": labels, "creationTimestamp": stamp(0)},
        "spec": {"containers": [{"name": "main", "image": "registry.example/shop:1", "readinessProbe": PROBE}]},
        "status": status,
    }


EVENTS = {
    "config": ("Failed", f"Error: {WAITING['config'][1]}"),
    "registry": ("Failed", f"Failed to pull image: {WAITING['registry'][1]}"),
    "image": ("Failed", f"Failed to pull image: {WAITING['image'][1]}"),
    "unready": ("Unhealthy", "Readiness probe failed: no"),
}


def events(name: str, script: Script, seconds: float) -> list[Object]:
    """The kubelet's events about the problems of a pod, with their first and last time."""
    about = {"kind": "Pod", "name": name, "uid": name, "fieldPath": "spec.containers{main}"}
    past = script.until(seconds)
    ends = [at for _, at in past[1:]] + [seconds]
    return [
        {"involvedObject": about, "reason": EVENTS[state][0], "message": EVENTS[state][1],
         "firstTimestamp": stamp(at), "lastTimestamp": stamp(end)}
        for (state, at), end in list(zip(past, ends, strict=True))[-6:]
        if state in EVENTS
    ]  # fmt: skip


def observe(kind: str, scripts: list[Script], seconds: float, image: str = "registry.example/shop:1") -> Observation:
    pods = [pod(f"shop-{n}", script, seconds) for n, script in enumerate(scripts)]
    serving = sum(item["status"]["conditions"][0]["status"] == "True" for item in pods)
    wanted = len(pods)
    template = {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [{"name": "main", "image": image}]}}
    status = {
        "observedGeneration": 1, "replicas": wanted, "updatedReplicas": wanted, "readyReplicas": serving,
        "availableReplicas": serving, "currentRevision": "one", "updateRevision": "one",
        "desiredNumberScheduled": wanted, "updatedNumberScheduled": wanted, "numberAvailable": serving,
    }  # fmt: skip
    workload = {
        "kind": kind,
        "metadata": {"name": "shop", "uid": "shop", "generation": 1},
        "spec": {"replicas": wanted, "template": template},
        "status": status,
    }
    owner = "ReplicaSet" if kind == "Deployment" else "ControllerRevision"
    labels = {"pod-template-hash": "one", "controller-revision-hash": "one"}
    revision = {"kind": owner, "metadata": {"name": "one", "uid": "one", "labels": labels}, "revision": 1,
                "spec": {"template": template}}  # fmt: skip
    pod_events = [event for n, script in enumerate(scripts) for event in events(f"shop-{n}", script, seconds)]
    return Observation(workload, (revision,), tuple(pods), tuple(pod_events))


def follow(kind: str, scripts: list[Script], *, until: float, every: float = 1.0) -> list[Verdict]:
    """The verdicts of a watcher that observes at regular intervals."""
    memory, verdicts, at = Memory(), [], 0.05
    while at < until:
        seen = observe(kind, scripts, at)
        verdicts.append(assess(seen, since=BEGAN, now=BEGAN + timedelta(seconds=at), memory=memory))
        memory = verdicts[-1].memory
        at += every
    return verdicts


# --- scripts of pods that become ready, and of pods that never do

HEALS = st.sampled_from(["creating", "config", "registry", "unschedulable", "unready"])
troubles = st.lists(st.tuples(HEALS, st.floats(0.2, 50)), max_size=3, unique_by=lambda step: step[0])
crashes = st.lists(st.floats(0.2, 4), max_size=2)
READY: tuple[tuple[str, float], ...] = (("ready", 10_000.0),)


def passes(verdicts: list[Verdict], *, every: float, settle: float) -> bool:
    """Whether a watcher that observes at regular intervals would have ended the watch as complete."""
    course, settings_ = WatchState(BEGAN, updated_at=BEGAN), RolloutSettings(settle=timedelta(seconds=settle))
    for n, verdict in enumerate(verdicts):
        now = BEGAN + timedelta(seconds=every * n)
        course = course.after_verdicts([verdict], now)
        if course.remaining(settings_, now) == timedelta():
            return True
    return False


@st.composite
def good(draw: st.DrawFn) -> Script:
    """Every problem passes within its patience, there are two crashes at most, and readiness may flap for a while."""
    crashed = [step for lasts in draw(crashes) for step in (("unready", lasts), ("crash", lasts))]
    flaps = draw(st.lists(st.tuples(st.floats(1, 5), st.floats(1, 5)), max_size=3))
    flapping = [step for up, down in flaps for step in (("ready", up), ("unready", down))]
    return Script((*draw(troubles), *crashed, *flapping), READY)


@st.composite
def bad(draw: st.DrawFn) -> Script:
    """In the end one problem that never passes, or two states that alternate without end."""
    for_ever = [((state, 100_000.0),) for state in (*WAITING, "unschedulable", "unready")]
    up, down = draw(st.floats(2, 50)), draw(st.floats(1, 20))
    turns = [(("ready", up), ("unready", down)), (("ready", up), ("crash", down)), (("unready", up), ("crash", down))]
    return Script((*draw(troubles),), draw(st.sampled_from([*for_ever, *turns])))


kinds = st.sampled_from(KINDS)


@settings(deadline=None, max_examples=20)
@given(kind=kinds, scripts=st.lists(good(), min_size=1, max_size=3))
@pytest.mark.timeout(120)
def test_pods_that_become_ready_in_the_end_never_fail_and_pass(kind: str, scripts: list[Script]) -> None:
    verdicts = follow(kind, scripts, until=300, every=1.7)
    assert [verdict.summary for verdict in verdicts if verdict.phase is Phase.FAILED] == []
    assert passes(verdicts, every=1.7, settle=30), verdicts[-1].summary


@settings(deadline=None, max_examples=20)
@given(kind=kinds, one=bad(), others=st.lists(st.one_of(good(), bad()), max_size=2))
@pytest.mark.timeout(120)
def test_a_pod_that_never_becomes_ready_fails_in_the_end_and_never_passes(
    kind: str, one: Script, others: list[Script]
) -> None:
    verdicts = follow(kind, [one, *others], until=900, every=2.3)
    assert verdicts[-1].phase is Phase.FAILED, verdicts[-1].summary
    assert not passes(verdicts, every=2.3, settle=60)


RANK = {Phase.PROGRESSING: 0, Phase.COMPLETE: 1, Phase.FAILED: 2}


@settings(deadline=None, max_examples=20)
@given(kind=kinds, scripts=st.lists(st.one_of(good(), bad()), min_size=1, max_size=2), every=st.floats(0.3, 20))
@pytest.mark.timeout(120)
def test_a_phase_never_goes_back_without_a_new_revision(kind: str, scripts: list[Script], every: float) -> None:
    ranks = [RANK[verdict.phase] for verdict in follow(kind, scripts, until=60 * every, every=every)]
    assert ranks == sorted(ranks)


@settings(deadline=None, max_examples=25)
@given(kind=kinds, script=bad(), calm=st.floats(1, 600))
@pytest.mark.timeout(60)
def test_a_failure_without_alternating_states_needs_no_memory(kind: str, script: Script, calm: float) -> None:
    if len(script.after) > 1:
        return  # alternating states are recognised with a memory only
    last = sum(lasts for _, lasts in script.before) + 700
    for at in (last, last + calm):
        assert assess(observe(kind, [script], at), since=BEGAN, now=BEGAN + timedelta(seconds=at)).phase is Phase.FAILED


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_revision_is_assessed_without_the_old_memory(kind: str) -> None:
    script = Script((), (("image", 1000.0),))
    failed = follow(kind, [script], until=5)[-1]
    assert failed.phase is Phase.FAILED
    good_now = Script((), READY)
    now = BEGAN + timedelta(seconds=30)
    same = assess(observe(kind, [good_now], 30), since=BEGAN, now=now, memory=failed.memory)
    assert (same.phase, same.summary) == (Phase.FAILED, failed.summary)
    new = assess(
        observe(kind, [good_now], 30, image="registry.example/shop:2"), since=BEGAN, now=now, memory=failed.memory
    )
    assert new.phase is Phase.COMPLETE


def phases(script: Script, until: float) -> list[Phase]:
    return [verdict.phase for verdict in follow("Deployment", [script], until=until)]


def test_endless_flapping_fails_and_flapping_that_ends_does_not() -> None:
    flaps = (("ready", 3.0), ("unready", 3.0))
    for_ever = phases(Script((), flaps), 120)
    assert for_ever[-1] is Phase.FAILED
    assert for_ever[50] is not Phase.FAILED
    ends = follow("Deployment", [Script(flaps * 8, READY)], until=120)
    assert Phase.FAILED not in [verdict.phase for verdict in ends]
    assert passes(ends, every=1.0, settle=30)


def test_pods_that_crash_after_twenty_seconds_are_complete_then_unhealthy_and_failed_in_the_end() -> None:
    verdicts = follow("Deployment", [Script((("creating", 2.0),), (("ready", 20.0), ("crash", 5.0)))], until=120)
    assert verdicts[10].phase is Phase.COMPLETE
    assert verdicts[10].healthy
    assert not any(verdict.healthy for verdict in verdicts[24:])
    assert "it was complete, but" in verdicts[-1].summary
    assert verdicts[-1].phase is Phase.FAILED


def test_a_crash_after_complete_is_forgiven_after_recovery() -> None:
    script = Script((("ready", 10.0), ("crash", 1.0)), READY)
    verdicts = follow("Deployment", [script], until=60)
    assert {verdict.phase for verdict in verdicts} == {Phase.COMPLETE}
    assert [verdict.healthy for verdict in verdicts[12:22]] == [False] * 10
    assert verdicts[-1].healthy
    assert verdicts[-1].causes == ()


def test_missing_room_after_complete_does_not_count_against_the_revision() -> None:
    scripts = [Script((), READY), Script((), READY)]
    at = BEGAN + timedelta(seconds=10)
    complete = assess(observe("Deployment", scripts, 10), since=BEGAN, now=at)
    more = observe("Deployment", [*scripts, Script((), (("unschedulable", 1000.0),))], 200)
    verdict = assess(more, since=BEGAN, now=BEGAN + timedelta(seconds=200), memory=complete.memory)
    assert (verdict.phase, verdict.healthy) == (Phase.COMPLETE, True)


def test_progress_that_is_lost_and_regained_counts_once() -> None:
    patient = Patience(crashes=99).extended_by(timedelta(hours=1))
    patient = replace(patient, stall=timedelta(minutes=5))
    script, memory, last = Script((), (("ready", 1.0), ("crash", 4.0))), Memory(), None
    for at in range(0, 400, 3):
        seen = observe("StatefulSet", [script, Script((), (("creating", 1000.0),))], at)
        last = assess(seen, since=BEGAN, now=BEGAN + timedelta(seconds=at), patience=patient, memory=memory)
        memory = last.memory
        assert (last.phase is Phase.FAILED) == (at >= 300)
    assert last is not None
    assert "has made no progress for 5 minutes" in last.summary


def test_crashes_followed_by_recovery_do_not_add_up() -> None:
    script = Script(
        (("ready", 2.0), ("crash", 1.0), ("ready", 16.0), ("crash", 1.0), ("ready", 30.0), ("crash", 1.0)), READY
    )
    verdicts = follow("Deployment", [script], until=120)
    assert Phase.FAILED not in [verdict.phase for verdict in verdicts]
    assert verdicts[-1].healthy
    for seconds, phase in ((50.5, Phase.FAILED), (52, Phase.PROGRESSING)):  # the first observation, without memory
        unforgiven = assess(
            observe("Deployment", [script], seconds), since=BEGAN, now=BEGAN + timedelta(seconds=seconds)
        )
        assert unforgiven.phase is phase


def test_readiness_lost_by_a_crash_is_not_flapping() -> None:
    script = Script((("ready", 3.0), ("crash", 1.0), ("ready", 3.0), ("crash", 1.0), ("unready", 62.0)), READY)
    verdicts = follow("Deployment", [script], until=200)
    assert Phase.FAILED not in [verdict.phase for verdict in verdicts]
    assert verdicts[-1].healthy


def test_readiness_lost_after_complete_must_last_before_the_rollout_is_healthy_again() -> None:
    verdicts = follow("Deployment", [Script((("ready", 10.0), ("unready", 3.0)), READY)], until=60)
    assert {verdict.phase for verdict in verdicts} == {Phase.COMPLETE}
    assert [n for n, verdict in enumerate(verdicts) if not verdict.healthy] == list(range(10, 29))


def test_a_large_rollout_with_progress_is_not_stalled_however_long_it_takes() -> None:
    """Fifty pods of which one becomes ready every minute; the first status is still that of the old revision."""
    memory, creating = Memory(), Script((), (("creating", 100_000.0),))
    for minute in range(50):
        scripts = [Script((), READY)] * minute + [creating] * (50 - minute)
        seen = observe("Deployment", scripts, 60 * minute)
        if minute == 0:
            status = {**seen.workload["status"], "observedGeneration": 0, "updatedReplicas": 50, "readyReplicas": 50}
            ready = observe("Deployment", [Script((), READY)] * 50, 0).pods
            seen = replace(seen, workload={**seen.workload, "status": status}, pods=ready)
        verdict = assess(seen, since=BEGAN, now=BEGAN + timedelta(minutes=minute), memory=memory)
        assert verdict.phase is Phase.PROGRESSING
        memory = verdict.memory


def stuck(*, minutes: float, memory: Memory, pods: int = 1, **spec: object) -> Verdict:
    seen = observe("Deployment", [Script((), (("creating", 100_000.0),))] * pods, 60 * minutes)
    workload = {**seen.workload, "spec": {**seen.workload["spec"], **spec}}
    workload["status"] = {**workload["status"], "availableReplicas": 0}
    now = BEGAN + timedelta(minutes=minutes)
    return assess(replace(seen, workload=workload), since=BEGAN, now=now, memory=memory)


def test_time_in_which_a_rollout_is_paused_is_not_counted() -> None:
    held = stuck(minutes=30, memory=stuck(minutes=5, memory=Memory(), paused=True).memory, paused=True)
    assert stuck(minutes=39, memory=held.memory).phase is Phase.PROGRESSING
    assert stuck(minutes=41, memory=held.memory).phase is Phase.FAILED


def test_another_number_of_replicas_restarts_the_stall_limit() -> None:
    many = stuck(minutes=5, memory=stuck(minutes=1, memory=Memory(), pods=3).memory, pods=3)
    fewer = stuck(minutes=9, memory=many.memory, pods=2)
    assert stuck(minutes=18, memory=fewer.memory, pods=2).phase is Phase.PROGRESSING
    assert stuck(minutes=20, memory=fewer.memory, pods=2).phase is Phase.FAILED


def test_a_longer_progress_deadline_of_the_deployment_is_respected() -> None:
    assert stuck(minutes=19, memory=Memory(), progressDeadlineSeconds=1200).phase is Phase.PROGRESSING
    assert stuck(minutes=21, memory=Memory(), progressDeadlineSeconds=1200).phase is Phase.FAILED
