"""From one observation, and the memory of earlier ones, to a verdict.

How the observation was made, and how long the whole watch may last, is decided elsewhere; the two times are parameters.
Only the new revision counts. A permanent problem fails the rollout immediately, one that may pass fails it after the
patience with its category, crashes by their number, and nothing counts that the cluster saw only before the rollout
began (models: kubernetes/kubectl `rollout_status.go`, Shopify/krane and werf/kubedog).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from prefect_cd.kube.objects import Object, as_int, as_time, dig, kind_and_name, namespace_of, uid_of
from prefect_cd.rollout.assess.context import Context, build_context
from prefect_cd.rollout.assess.creation import creation_problems
from prefect_cd.rollout.assess.kinds import kind_of
from prefect_cd.rollout.assess.message import progress_message
from prefect_cd.rollout.assess.model import (
    DEFAULT_PATIENCE,
    NO_MEMORY,
    Memory,
    Observation,
    Patience,
    Phase,
    Verdict,
)
from prefect_cd.rollout.assess.patience import NO_ROOM, Clock
from prefect_cd.rollout.assess.peers import defer_early_crash
from prefect_cd.rollout.assess.reachability import unreachable_services
from prefect_cd.rollout.assess.revisions import Revision
from prefect_cd.rollout.assess.stability import flapping_problem, unchanged_since, with_memory
from prefect_cd.rollout.diagnosis import storage_limit_problem
from prefect_cd.rollout.diagnosis.cause import ADMISSION_DRY_RUN, Category, Cause
from prefect_cd.rollout.diagnosis.container import Container, containers
from prefect_cd.rollout.diagnosis.probes import readiness_grace


def assess(
    observation: Observation,
    *,
    since: datetime,
    now: datetime,
    patience: Patience = DEFAULT_PATIENCE,
    memory: Memory = NO_MEMORY,
) -> Verdict:
    """The verdict on a rollout.

    Args:
        observation: the workload and all objects related to it.
        since: just before the apply, aware; older problems are not this rollout's.
        now: when the observation was made, aware.
        patience: how long a problem may last before it fails the rollout.
        memory: of the previous verdict; without it, what only repeated observations show (flapping, lost progress) is
            not detected.
    """
    clock = Clock(since, now, patience)
    context = build_context(observation, memory, clock)
    if context.memory.phase is Phase.FAILED:
        return _verdict(context, Phase.FAILED, context.memory.summary, context.memory.causes)
    if context.memory.phase is Phase.COMPLETE:
        return _after_complete(context)
    return _until_complete(context)


# --- before and after it is complete ---------------------------------------------------------------------------------


def _until_complete(context: Context) -> Verdict:
    progress, clock = context.progress, context.clock
    failure = progress.failure if progress.observed else None
    causes = clock.rank(_causes(context), failure or _stalled(context))
    if any(clock.fails_rollout(cause) for cause in causes):
        return _verdict(context, Phase.FAILED, _failure_summary(causes, clock), causes)
    if not progress.observed:
        summary = f"waiting for the controller to observe the new {kind_and_name(context.observation.workload)}"
        return _verdict(context, Phase.PROGRESSING, summary, causes)
    unstable = context.unstable_pods
    # The workload's count may be older than the list of its pods, or the other way round: both must agree.
    serving = not unstable and progress.ready >= progress.wanted
    if progress.complete and (progress.final or not progress.wanted or serving):
        return _unless_unreachable(context)
    message = progress_message(progress, causes, context.pods, unstable, clock)
    return _verdict(context, Phase.PROGRESSING, message.text, causes, without_seconds=message.without_seconds)


def _unless_unreachable(context: Context) -> Verdict:
    """Complete, unless requests to the Services do not reach the pods."""
    progress, clock = context.progress, context.clock
    causes = clock.rank(_unreachable(context), None)
    if not causes:
        return _verdict(context, Phase.COMPLETE, progress.message, (), healthy=True)
    if any(clock.fails_rollout(cause) for cause in causes):
        return _verdict(context, Phase.FAILED, causes[0].summary, causes)
    message = progress_message(progress, causes, context.pods, context.unstable_pods, clock)
    return _verdict(context, Phase.PROGRESSING, message.text, causes, without_seconds=message.without_seconds)


def _after_complete(context: Context) -> Verdict:
    """A complete rollout stays complete until its pods, or the Services in front of them, fail.

    When the cluster cannot run another pod now (no room, no quota, no answer from the registry), that is not this
    revision's fault.
    """
    progress, clock = context.progress, context.clock
    if progress.final or not progress.wanted:
        return _verdict(context, Phase.COMPLETE, progress.message, (), healthy=True)
    unstable = context.unstable_pods
    causes = [cause for cause in _causes(context) if cause.category not in _CLUSTER_PROBLEMS]
    if progress.complete and not unstable and progress.ready >= progress.wanted:
        causes += _unreachable(context)
    # Without pods, for example of a custom resource, only the object's own status can report a failure.
    without_pods = not context.pods and progress.observed
    ranked = clock.rank(causes, progress.failure if without_pods else None)
    if any(clock.fails_rollout(cause) for cause in ranked):
        return _verdict(context, Phase.FAILED, f"it was complete, but {_failure_summary(ranked, clock)}", ranked)
    summary = without_seconds = progress.message
    if ranked:
        message = progress_message(progress, ranked, context.pods, unstable, clock)
        summary = f"complete, but {message.text}"
        without_seconds = f"complete, but {message.without_seconds}"
    # A pod that only starts, for example by an autoscaler, is not unhealthy; one that has run before is.
    unhealthy = [pod for pod in unstable if any(item.running or item.last_termination for item in containers(pod))]
    healthy = not ranked and not unhealthy and (progress.complete or not without_pods)
    return _verdict(context, Phase.COMPLETE, summary, ranked, healthy=healthy, without_seconds=without_seconds)


_CLUSTER_PROBLEMS = (
    Category.UNSCHEDULABLE,
    Category.QUOTA,
    Category.NODE,
    Category.REGISTRY_UNREACHABLE,
    Category.BLOCKED,
)


def _verdict(
    context: Context,
    phase: Phase,
    summary: str,
    causes: Sequence[Cause],
    *,
    healthy: bool = False,
    without_seconds: str = "",
) -> Verdict:
    memory = replace(context.memory, phase=phase)
    if phase is Phase.FAILED:
        memory = replace(memory, summary=summary, causes=tuple(causes))
    progress = context.progress
    return Verdict(
        phase,
        summary,
        progress.ready,
        progress.wanted,
        tuple(causes),
        healthy=healthy,
        final=phase is Phase.COMPLETE and (progress.final or not progress.wanted),
        unchanged_since=max(filter(None, map(unchanged_since, context.pods)), default=None),
        summary_without_seconds=without_seconds,
        memory=memory,
    )


def _failure_summary(ranked: Sequence[Cause], clock: Clock) -> str:
    """Why it failed; where only the workload's own status says so, with the problem that may be behind it."""
    if clock.fails_rollout(ranked[0]):
        return ranked[0].summary
    return f"{ranked[-1].summary}; {ranked[0].summary}"


# --- the problems ----------------------------------------------------------------------------------------------------


def _causes(context: Context) -> list[Cause]:
    """The problems of the new pods and of their creation; before the controller has observed it, only the latter."""
    observation, progress = context.observation, context.progress
    if not progress.observed:
        return creation_problems(observation, Revision(None, ()), 0, progress)
    if progress.complete and not progress.wanted:
        return []
    kind = kind_of(observation.workload)
    causes = [cause for pod in context.pods for cause in _pod_causes(context, pod)]
    if not progress.complete:
        causes += creation_problems(observation, context.revision, len(context.pods), progress)
        causes += filter(None, (storage_limit_problem(context.revision.pods), context.memory.rejection))
    return [_with_circumstances(context, kind.adjust(cause, observation.workload)) for cause in causes]


def _with_circumstances(context: Context, cause: Cause) -> Cause:
    """Allow more time where something missing now exists, other pods start or end, or peers are starting."""
    cause = _retrying_if_present(cause, context.observation)
    cause = _waiting_for_room(context, cause)
    return defer_early_crash(cause, context.observation.peers, context.clock.patience)


def _retrying_if_present(cause: Cause, observation: Observation) -> Cause:
    """What was missing exists now, so the node or the controller only has to retry, after pauses that double."""
    if cause.permanent or not cause.missing or cause.missing not in observation.present:
        return cause
    state = "it would be admitted now" if cause.missing.startswith(ADMISSION_DRY_RUN) else "it exists now"
    return replace(cause, retrying=True, note=f"{state}, and the next retry is pending")


def _waiting_for_room(context: Context, cause: Cause) -> Cause:
    """Missing room for a pod is a problem only while no other pod starts or ends.

    Its time begins with the last progress. The grace period lasts until the terminating pods have ended, which frees
    what they hold, and until the starting pods have had the time that their own probe settings allow.
    """
    if cause.category not in NO_ROOM or cause.permanent:
        return cause
    since = cause.since or context.clock.since
    since = max(since, context.memory.progressed_at or since)
    end_times = [as_time(dig(pod, "metadata", "deletionTimestamp")) for pod in context.observation.pods]
    ready_times = [
        container.running_since + readiness_grace(container)
        for pod in context.pods
        for container in containers(pod)
        if container.running_since and not container.ready and not container.ended_runs
    ]
    free_at = max([since, *filter(None, end_times), *ready_times])
    return replace(cause, since=since, grace=cause.grace + (free_at - since))


def _pod_causes(context: Context, pod: Object) -> list[Cause]:
    """The problems of one pod; when it flaps, that is reported instead of its present readiness."""
    memory = context.pod_memories[uid_of(pod)]
    adjusted = (with_memory(cause, pod, memory, context.clock) for cause in context.diagnoses[uid_of(pod)])
    causes = [cause for cause in adjusted if cause]
    flapping = flapping_problem(pod, memory, context.observation.events)
    if not flapping:
        return causes
    return [*(cause for cause in causes if cause.category is not Category.READINESS), flapping]


def _unreachable(context: Context) -> list[Cause]:
    if context.progress.final or not context.progress.wanted:
        return []
    return unreachable_services(context.observation, context.pods, context.clock)


def _stalled(context: Context) -> Cause | None:
    """A rollout without progress for a long time, and without any other cause.

    The Deployment's own deadline starts again with every pod that becomes ready once more; this one does not.
    """
    progress, clock, workload = context.progress, context.clock, context.observation.workload
    own_limit = timedelta(seconds=as_int(dig(workload, "spec", "progressDeadlineSeconds")))
    limit = max(clock.patience.stall, own_limit)
    is_done = progress.complete and progress.observed
    if progress.paused or is_done or clock.elapsed(context.memory.progressed_at) < limit:
        return None
    all_containers = [container for pod in context.pods for container in containers(pod)]
    if progress.final and any(container.running for container in all_containers):
        return None  # a Job may run as long as it needs
    if any(_may_become_ready(container, clock) for container in all_containers):
        return None
    minutes = round(limit.total_seconds() / 60)
    return Cause(
        category=Category.DEADLINE,
        fact=f"{kind_and_name(workload)} has made no progress for {minutes} minutes ({progress.message})",
        evidence=progress.message,
        hint=f"kubectl -n {namespace_of(workload)} describe {kind_and_name(workload)}",
        object=kind_and_name(workload),
        permanent=True,
    )


def _may_become_ready(container: Container, clock: Clock) -> bool:
    """Whether a container is in its first run, and its own probe settings still allow it to be unready."""
    first_run = container.running and not container.ready and not container.ended_runs
    return first_run and clock.elapsed(container.running_since) < readiness_grace(container)
