"""An observation prepared for the decision: the new revision's pods, sorted and diagnosed, with the memory updated.

Decides what is remembered from one observation to the next. Progress is a high-water mark: what is lost and regained
is no progress.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from prefect_cd.kube.objects import Object, created_at, dig, later, uid_of
from prefect_cd.rollout.assess.kinds import kind_of
from prefect_cd.rollout.assess.model import Memory, Observation, PodMemory
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.progress import Progress
from prefect_cd.rollout.assess.revisions import Revision, revision_id, sort_key
from prefect_cd.rollout.assess.stability import is_stable, update_pod_memory
from prefect_cd.rollout.diagnosis import diagnose, node_rejection_problem, rejected_pods
from prefect_cd.rollout.diagnosis.cause import Cause
from prefect_cd.rollout.diagnosis.container import containers, is_disrupted, is_ready


@dataclass(frozen=True)
class Context:
    """One observation: the new revision's pods, the causes for each, and the memory including this observation."""

    observation: Observation
    clock: Clock
    revision: Revision
    pods: tuple[Object, ...]
    progress: Progress
    diagnoses: Mapping[str, tuple[Cause, ...]]
    """By the pods' uids."""
    pod_memories: Mapping[str, PodMemory]
    """By the pods' uids, too."""
    memory: Memory

    @property
    def unstable_pods(self) -> list[Object]:
        """The pods that may not stay up, as far as is known yet."""
        return [pod for pod in self.pods if not is_stable(pod, self.pod_memories[uid_of(pod)], self.clock)]


def build_context(observation: Observation, memory: Memory, clock: Clock) -> Context:
    """Everything about one observation that does not depend on earlier decisions."""
    kind = kind_of(observation.workload)
    revision = kind.new_revision(observation)
    pods = tuple(sorted((pod for pod in revision.pods if not is_disrupted(pod)), key=sort_key))
    progress = kind.progress(observation, sum(is_ready(pod) for pod in pods), clock)
    diagnoses = {uid_of(pod): diagnose(pod, observation.events, _logs(pod, observation)) for pod in pods}
    memory = _for_revision(memory, revision_id(observation.workload), clock)
    earlier = {pod.uid: pod for pod in memory.pods}
    pod_memories = {}
    for pod in pods:
        uid = uid_of(pod)
        pod_memories[uid] = update_pod_memory(pod, diagnoses[uid], earlier.get(uid), clock)
    memory = replace(_with_progress(memory, progress, clock), pods=tuple(pod_memories.values()))
    memory = _with_rejections(memory, rejected_pods(sorted(revision.pods, key=sort_key)), pods, progress.wanted)
    return Context(observation, clock, revision, pods, progress, diagnoses, pod_memories, memory)


def _logs(pod: Object, observation: Observation) -> dict[str, str]:
    """The logs of one pod, by container."""
    name = dig(pod, "metadata", "name")
    return {log.container: log.text for log in observation.logs if log.pod == name}


def _for_revision(memory: Memory, revision: str, clock: Clock) -> Memory:
    """A new revision begins with an empty memory; if it replaces another, its time begins now."""
    if memory.revision == revision:
        return memory
    return Memory(revision, progressed_at=clock.now if memory.revision else clock.since)


def _with_rejections(memory: Memory, rejected: Sequence[Object], pods: Sequence[Object], wanted: int) -> Memory:
    """Remember the pods that nodes have rejected, until a newer pod runs.

    They are counted in rounds of all replicas: one round of a large workload is one failure, not many.
    """
    uids = memory.rejected.union(map(uid_of, rejected))
    rejection = memory.rejection
    if rejected:
        rejection = node_rejection_problem(rejected[-1], ceil(len(uids) / max(wanted, 1)))
    if rejection and any(_runs_since(pod, rejection) for pod in pods):
        return replace(memory, rejected=frozenset(), rejection=None)
    return replace(memory, rejected=uids, rejection=rejection)


def _runs_since(pod: Object, rejection: Cause) -> bool:
    """Whether a pod that was created after the rejection has a running container."""
    is_newer = later(created_at(pod), rejection.last_seen)
    return is_newer and any(container.running for container in containers(pod))


def _with_progress(memory: Memory, progress: Progress, clock: Clock) -> Memory:
    """Update the high-water mark; a pause of the workload, or another number of replicas, starts the time anew."""
    if not progress.observed:
        return memory  # the status is still that of the revision before
    if memory.best is None:
        progressed_at = clock.now if progress.paused else memory.progressed_at
    elif progress.paused or progress.wanted != memory.wanted or progress.mark > memory.best:
        progressed_at = clock.now
    else:
        return memory
    return replace(memory, best=progress.mark, progressed_at=progressed_at, wanted=progress.wanted)
