"""Whether a pod is up to stay, and what has to be remembered of it.

Decides by endurance: what has crashed, or has been ready and then was not, is believed again when it holds out half
as long again as it did before. One that never does is doomed by its crashes, or when patience with its readiness is
over; crashes that were outlived are forgiven.
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
from prefect_cd.rollout.diagnosis.cause import Category, Cause, recounted
from prefect_cd.rollout.diagnosis.container import Container, containers, is_ready
from prefect_cd.rollout.diagnosis.probes import allowance, answer, budget

_LONGEST_PROOF = timedelta(seconds=90)
_FLAPS = 2
"""Once lost, readiness may come back for good: within the probe's own patience, that is for `probing` to say."""


def remember(pod: Object, causes: Sequence[Cause], before: PodMemory | None, clock: Clock) -> PodMemory:
    """What is known of a pod, and of what is wrong with it, after this look."""
    changed = as_text(condition(pod, "Ready").get("lastTransitionTime"))
    ends = sum(each.failures for each in containers(pod))
    if before is None:
        at = as_time(changed)
        before = PodMemory(uid_of(pod), is_ready(pod), changed, at if at and at <= clock.now else clock.now, ends, ends)
    memory = _changed(pod, before, changed, ends, clock)
    if memory.lost and memory.ready and clock.elapsed(memory.at) >= _proof(memory.held, clock):
        memory = replace(memory, losses=0, lost=None, held=timedelta())
    known = {(container, category): at for container, category, at in memory.troubles}
    undated = [(each.container, each.category) for each in causes if each.since is None]
    return replace(
        memory,
        started=_started(pod, memory, clock),
        forgiven=_forgiven(pod, memory, clock),
        troubles=tuple((*each, known.get(each, clock.now)) for each in undated),
    )


def _changed(pod: Object, before: PodMemory, changed: str, ends: int, clock: Clock) -> PodMemory:
    """With readiness lost or found since the last look; lost by a crash it is the crash that counts."""
    if (is_ready(pod), changed) == (before.ready, before.changed):
        return replace(before, ends=ends)
    now = replace(before, ready=is_ready(pod), changed=changed, at=clock.now, ends=ends)
    if not before.ready or ends != before.ends:
        return now
    held = max(before.held, clock.elapsed(before.at))
    return replace(now, losses=before.losses + 1, lost=before.lost or clock.now, held=held)


def _started(pod: Object, memory: PodMemory, clock: Clock) -> tuple[tuple[str, datetime], ...]:
    known = dict(memory.started)
    return tuple(
        (each.name, known.get(each.name, clock.now))
        for each in containers(pod)
        if each.started and each.spec.get("startupProbe")
    )


def _forgiven(pod: Object, memory: PodMemory, clock: Clock) -> tuple[tuple[str, int], ...]:
    known = dict(memory.forgiven)
    counts = ((each.name, each.failures if _outlived(each, clock) else known.get(each.name, 0))
              for each in containers(pod))  # fmt: skip
    return tuple(pair for pair in counts if pair[1])


def _outlived(container: Container, clock: Clock) -> bool:
    return container.running and (container.ready or container.init) and container_is_stable(container, clock)


def adjusted(cause: Cause, pod: Object, memory: PodMemory, clock: Clock) -> Cause | None:
    """A trouble of a pod in the light of what is remembered; None when it is history."""
    if cause.since is None:
        seen = {(container, category): at for container, category, at in memory.troubles}
        cause = replace(cause, since=seen.get((cause.container, cause.category)))
    mine = next((each for each in containers(pod) if each.name == cause.container), None)
    if mine is None:
        return cause
    if cause.times:
        left = cause.times - dict(memory.forgiven).get(mine.name, 0)
        if left <= 0 or _outlived(mine, clock):
            return None
        # a run that began before anybody looked may be the one that goes well: its end dooms, if it comes
        return replace(recounted(cause, left), trying=mine.ready and memory.ends == memory.earlier)
    if cause.category is Category.READINESS and cause.allowed and (at := dict(memory.started).get(mine.name)):
        # its startup probe has said yes: what it was given for that, it does not get for the other
        by_startup = (cause.since or at) + budget(mine.spec.get("startupProbe"))
        began = min(at, by_startup)
        return replace(cause, since=began, allowed=allowance(mine) - budget(mine.spec.get("startupProbe")))
    return cause


def flapping(pod: Object, memory: PodMemory, events: Sequence[Object]) -> Cause | None:
    """A pod that becomes ready and loses it, again and again."""
    if memory.lost is None or memory.losses < _FLAPS:
        return None
    mine = events_about(pod, events)
    said = [found for each in containers(pod) if (found := answer(each, Category.READINESS, mine))]
    name = as_text(dig(pod, "metadata", "name"))
    return Cause(
        category=Category.READINESS,
        summary=f"{kind_and_name(pod)} becomes ready and loses it again, {memory.losses} times",
        evidence=said[0] if said else f"ready for {round(memory.held.total_seconds())} s at most",
        hint=f"kubectl -n {namespace_of(pod)} logs {name}, and look at what its readinessProbe depends on",
        object=kind_and_name(pod),
        since=memory.lost,
        trying=memory.ready,
    )


def is_stable(pod: Object, memory: PodMemory, clock: Clock) -> bool:
    """Whether a pod is up to stay, as far as one can tell."""
    return memory.lost is None and all(container_is_stable(each, clock) for each in containers(pod))


def container_is_stable(container: Container, clock: Clock) -> bool:
    """Whether a container is up to stay, as far as one can tell: it outlives its last crash."""
    if not container.running:
        return container.ended_in_peace
    up, end = clock.elapsed(container.up_since), container.last_end
    if end and clock.fresh(as_time(end.get("finishedAt"))):
        return up >= _proof(container.last_run, clock)
    probed = container.init or container.spec.get("readinessProbe") is not None
    old = container.up_since is not None and not clock.fresh(container.up_since)
    return probed or old or up >= clock.patience.settle


def unchanged_since(pod: Object) -> datetime | None:
    """Since when nothing has happened to a pod: it became ready, or lost it, and the last of its containers started."""
    times = [as_time(condition(pod, "Ready").get("lastTransitionTime")), *(each.up_since for each in containers(pod))]
    return max(filter(None, times), default=None)


def _proof(held: timedelta, clock: Clock) -> timedelta:
    return min(max(clock.patience.recover, held * 1.5), _LONGEST_PROOF)
