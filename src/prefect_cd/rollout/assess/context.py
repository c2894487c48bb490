"""An observation, prepared for judgement: the new revision alone, sorted, explained, and with what is remembered.

Decides what is carried from one look to the next. Progress is a high-water mark: what is lost and found again is no
progress.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from prefect_cd.kube.objects import Object, created_at, dig, later, uid_of
from prefect_cd.rollout.assess.kinds import kind_of
from prefect_cd.rollout.assess.model import Memory, Observation, PodMemory
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.progress import Progress
from prefect_cd.rollout.assess.revisions import Revision, identity, sort_key
from prefect_cd.rollout.assess.stability import is_stable, remember
from prefect_cd.rollout.diagnosis import diagnose, refused, turned_away
from prefect_cd.rollout.diagnosis.cause import Cause
from prefect_cd.rollout.diagnosis.container import containers, is_disrupted, is_ready


@dataclass(frozen=True)
class Context:
    """One look: the pods of the new revision, what is wrong with each, and the memory with this look in it."""

    observation: Observation
    clock: Clock
    revision: Revision
    pods: tuple[Object, ...]
    progress: Progress
    diagnoses: Mapping[str, tuple[Cause, ...]]
    """By the pods' uids."""
    remembered: Mapping[str, PodMemory]
    """By the pods' uids, too."""
    memory: Memory

    @property
    def unsettled(self) -> list[Object]:
        """The pods of which one cannot tell yet that they are up to stay."""
        return [pod for pod in self.pods if not is_stable(pod, self.remembered[uid_of(pod)], self.clock)]


def build_context(observation: Observation, memory: Memory, clock: Clock) -> Context:
    """Everything about one look that does not depend on what was decided before."""
    kind = kind_of(observation.workload)
    revision = kind.newest(observation)
    pods = tuple(sorted((pod for pod in revision.pods if not is_disrupted(pod)), key=sort_key))
    progress = kind.progress(observation, sum(is_ready(pod) for pod in pods), clock)
    diagnoses = {uid_of(pod): diagnose(pod, observation.events, _logs(pod, observation)) for pod in pods}
    memory = _new_or_known(memory, identity(observation.workload), clock)
    known = {each.pod: each for each in memory.pods}
    looks = {uid: remember(pod, diagnoses[uid], known.get(uid), clock) for pod in pods for uid in [uid_of(pod)]}
    memory = replace(_marked(memory, progress, clock), pods=tuple(looks.values()))
    memory = _refused(memory, turned_away(sorted(revision.pods, key=sort_key)), pods, progress.wanted)
    return Context(observation, clock, revision, pods, progress, diagnoses, looks, memory)


def _logs(pod: Object, observation: Observation) -> dict[str, str]:
    return {each.container: each.text for each in observation.logs if each.pod == dig(pod, "metadata", "name")}


def _new_or_known(memory: Memory, revision: str, clock: Clock) -> Memory:
    """A new revision begins with an empty memory; one that follows another has its time from now on."""
    if memory.revision == revision:
        return memory
    return Memory(revision, best_at=clock.now if memory.revision else clock.since)


def _refused(memory: Memory, away: Sequence[Object], pods: Sequence[Object], wanted: int) -> Memory:
    """With the pods that their nodes have refused, in rounds of all that are wanted; none once a later one runs."""
    known = memory.refused.union(map(uid_of, away))
    refusal = refused(away[-1], ceil(len(known) / max(wanted, 1))) if away else memory.refusal
    if refusal and any(
        later(created_at(pod), refusal.seen) and any(c.running for c in containers(pod)) for pod in pods
    ):
        return replace(memory, refused=frozenset(), refusal=None)
    return replace(memory, refused=known, refusal=refusal)


def _marked(memory: Memory, progress: Progress, clock: Clock) -> Memory:
    """With the high-water mark of this look; begun anew by who holds the rollout, or wants another number of pods."""
    if not progress.observed:
        return memory  # this is still the account of the revision before
    if memory.best is None:
        at = clock.now if progress.held else memory.best_at
    elif progress.held or progress.wanted != memory.wanted or progress.mark > memory.best:
        at = clock.now
    else:
        return memory
    return replace(memory, best=progress.mark, best_at=at, wanted=progress.wanted)
