"""Whether a pod stays up, and what must be remembered of it.

A container that has crashed, or a pod that was ready and lost its readiness, counts as stable again when it stays up
half as long again as it did before. One that never does fails the rollout by the number of its crashes, or when the
patience with its readiness is used up; crashes from which a container has recovered are forgiven.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from prefect_cd.kube.objects import (
    Object,
    as_text,
    as_time,
    condition,
    dig,
    events_about,
    kind_and_name,
    namespace_of,
    uid_of,
)
from prefect_cd.rollout.assess.model import PodMemory
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.container import Container, containers, is_ready
from prefect_cd.rollout.diagnosis.probes import latest_probe_failure, probe_grace, readiness_grace

_MAX_RECOVERY = timedelta(seconds=90)
"""No container or pod has to stay up longer than this to count as stable again."""
_FLAPPING_LOSSES = 2
"""A pod that loses its readiness only once is judged by `probe_problem`, after the probe's grace period."""


def update_pod_memory(pod: Object, causes: Sequence[Cause], earlier: PodMemory | None, clock: Clock) -> PodMemory:
    """What is known of a pod and of its problems, including this observation."""
    transition = as_text(condition(pod, "Ready").get("lastTransitionTime"))
    ended_runs = sum(container.ended_runs for container in containers(pod))
    if earlier is None:
        changed_at = as_time(transition)
        if changed_at is None or changed_at > clock.now:
            changed_at = clock.now
        earlier = PodMemory(uid_of(pod), is_ready(pod), transition, changed_at, ended_runs, ended_runs)
    memory = _with_readiness(pod, earlier, transition, ended_runs, clock)
    stays_ready = memory.ready and clock.elapsed(memory.changed_at) >= _required_recovery(memory.longest_ready, clock)
    if memory.first_lost_at and stays_ready:
        memory = replace(memory, losses=0, first_lost_at=None, longest_ready=timedelta())
    first_observed = {(container, category): at for container, category, at in memory.undated}
    undated = [(cause.container, cause.category) for cause in causes if cause.since is None]
    return replace(
        memory,
        startup_passed=_startup_passed(pod, memory, clock),
        forgiven=_forgiven(pod, memory, clock),
        undated=tuple((*problem, first_observed.get(problem, clock.now)) for problem in undated),
    )


def _with_readiness(pod: Object, earlier: PodMemory, transition: str, ended_runs: int, clock: Clock) -> PodMemory:
    """Note readiness that was gained or lost since the last observation; a loss by a crash counts as crash only."""
    if (is_ready(pod), transition) == (earlier.ready, earlier.transition):
        return replace(earlier, ended_runs=ended_runs)
    memory = replace(earlier, ready=is_ready(pod), transition=transition, changed_at=clock.now, ended_runs=ended_runs)
    if not earlier.ready or ended_runs != earlier.ended_runs:
        return memory
    return replace(
        memory,
        losses=earlier.losses + 1,
        first_lost_at=earlier.first_lost_at or clock.now,
        longest_ready=max(earlier.longest_ready, clock.elapsed(earlier.changed_at)),
    )


def _startup_passed(pod: Object, memory: PodMemory, clock: Clock) -> tuple[tuple[str, datetime], ...]:
    first_observed = dict(memory.startup_passed)
    return tuple(
        (container.name, first_observed.get(container.name, clock.now))
        for container in containers(pod)
        if container.started and container.spec.get("startupProbe")
    )


def _forgiven(pod: Object, memory: PodMemory, clock: Clock) -> tuple[tuple[str, int], ...]:
    earlier = dict(memory.forgiven)
    counts = []
    for container in containers(pod):
        recovered = _has_recovered(container, clock)
        count = container.ended_runs if recovered else earlier.get(container.name, 0)
        if count:
            counts.append((container.name, count))
    return tuple(counts)


def _has_recovered(container: Container, clock: Clock) -> bool:
    return container.running and (container.ready or container.init) and container_is_stable(container, clock)


def with_memory(cause: Cause, pod: Object, memory: PodMemory, clock: Clock) -> Cause | None:
    """Adjust a pod's problem by what is remembered; None when the pod has recovered from it."""
    if cause.since is None:
        first_observed = {(container, category): at for container, category, at in memory.undated}
        cause = replace(cause, since=first_observed.get((cause.container, cause.category)))
    container = next((item for item in containers(pod) if item.name == cause.container), None)
    if container is None:
        return cause
    if cause.times:
        times = cause.times - dict(memory.forgiven).get(container.name, 0)
        if times <= 0 or _has_recovered(container, clock):
            return None
        # A run that began before the first observation may be a good one: only its end fails the rollout.
        may_succeed = container.ready and memory.ended_runs == memory.ended_before
        return replace(cause, times=times, retrying=may_succeed)
    passed_at = dict(memory.startup_passed).get(container.name)
    if cause.category is Category.READINESS and cause.grace and passed_at:
        # The startup probe has succeeded: the rest of its grace period is not added to the readiness probe's.
        startup_grace = probe_grace(container.spec.get("startupProbe"))
        latest_pass = (cause.since or passed_at) + startup_grace
        return replace(cause, since=min(passed_at, latest_pass), grace=readiness_grace(container) - startup_grace)
    return cause


def flapping_problem(pod: Object, memory: PodMemory, events: Sequence[Object]) -> Cause | None:
    """A pod that becomes ready and loses its readiness again and again."""
    if memory.first_lost_at is None or memory.losses < _FLAPPING_LOSSES:
        return None
    pod_events = events_about(pod, events)
    failures = (latest_probe_failure(container, Category.READINESS, pod_events) for container in containers(pod))
    evidence = next(filter(None, failures), f"ready for {round(memory.longest_ready.total_seconds())} s at most")
    name = as_text(dig(pod, "metadata", "name"))
    return Cause(
        category=Category.READINESS,
        fact=f"{kind_and_name(pod)} becomes ready and loses its readiness again, {memory.losses} times",
        evidence=evidence,
        hint=f"kubectl -n {namespace_of(pod)} logs {name}, and check what its readinessProbe depends on",
        object=kind_and_name(pod),
        since=memory.first_lost_at,
        retrying=memory.ready,
    )


def is_stable(pod: Object, memory: PodMemory, clock: Clock) -> bool:
    """Whether a pod will stay up, as far as is known."""
    return memory.first_lost_at is None and all(container_is_stable(item, clock) for item in containers(pod))


def container_is_stable(container: Container, clock: Clock) -> bool:
    """Whether a container will stay up, as far as is known: it has recovered from its last crash."""
    if not container.running:
        return container.completed
    uptime, termination = clock.elapsed(container.running_since), container.last_termination
    if termination and clock.in_rollout(as_time(termination.get("finishedAt"))):
        return uptime >= _required_recovery(container.last_run_duration, clock)
    # The pod's readiness covers a container with a probe; the uptime before the rollout covers an old one.
    has_probe = container.init or container.spec.get("readinessProbe") is not None
    is_old = container.running_since is not None and not clock.in_rollout(container.running_since)
    return has_probe or is_old or uptime >= clock.patience.min_uptime


def unchanged_since(pod: Object) -> datetime | None:
    """When the pod last changed: it became ready, lost its readiness, or one of its containers started."""
    ready_changed = as_time(condition(pod, "Ready").get("lastTransitionTime"))
    times = [ready_changed, *(container.running_since for container in containers(pod))]
    return max(filter(None, times), default=None)


def _required_recovery(previous_uptime: timedelta, clock: Clock) -> timedelta:
    """How long something that was up for `previous_uptime` has to stay up to count as stable again."""
    return min(max(clock.patience.min_recovery, previous_uptime * 1.5), _MAX_RECOVERY)
