"""What keeps a workload's pods from being created: refusals, a missing ReplicaSet, a broken pod of an old revision.

Conditions decide where there are some, since a condition goes away with its problem. StatefulSets, DaemonSets and Jobs
have only events: those count while pods are missing and none has been created since.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from prefect_cd.kube.objects import (
    Object,
    as_int,
    as_text,
    as_time,
    condition,
    created_at,
    dig,
    earliest,
    events_about,
    first_time,
    kind_and_name,
    last_time,
    later,
    latest,
    namespace_of,
    with_reason,
)
from prefect_cd.rollout.assess.model import Observation
from prefect_cd.rollout.assess.progress import Progress
from prefect_cd.rollout.assess.revisions import Revision, sort_key
from prefect_cd.rollout.diagnosis import diagnose
from prefect_cd.rollout.diagnosis.admission import pod_creation_problem, replica_set_creation_problem
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.container import is_disrupted, is_ready


def creation_problems(observation: Observation, revision: Revision, pods: int, progress: Progress) -> list[Cause]:
    """Everything that keeps pods from being created.

    Args:
        observation: of the workload.
        revision: the new one.
        pods: how many pods it has.
        progress: by the workload's own status.
    """
    workload, owner, events = observation.workload, revision.owner, observation.events
    causes: list[Cause | None] = []
    if owner is None:
        causes.append(_no_replica_set(workload, events))
    elif owner.get("kind") == "ReplicaSet":
        causes.append(_replica_set_refused_pods(owner, events))
    elif pods < progress.wanted:
        causes.append(_workload_refused_pods(owner, events))
    if workload.get("kind") == "StatefulSet" and progress.observed:
        causes.append(_blocked_by_old_pod(observation, revision))
    return [cause for cause in causes if cause]


def _no_replica_set(workload: Object, events: Sequence[Object]) -> Cause | None:
    """A Deployment whose controller is refused the ReplicaSet; then it does not update `observedGeneration` either.

    The reason is set by kubernetes/kubernetes `pkg/controller/deployment/sync.go`.
    """
    state = condition(workload, "Progressing")
    failures = with_reason(events_about(workload, events), "ReplicaSetCreateError")
    has_condition = state.get("reason") == "ReplicaSetCreateError"
    if not has_condition and not failures:
        return None
    message = as_text(state.get("message")) if has_condition else ""
    return replica_set_creation_problem(
        workload,
        message or as_text(failures[-1].get("message")),
        since=earliest(failures) or as_time(state.get("lastTransitionTime")),
        last_seen=latest(failures) or as_time(state.get("lastUpdateTime")),
    )


def _replica_set_refused_pods(owner: Object, events: Sequence[Object]) -> Cause | None:
    """A ReplicaSet that may not create its pods: its condition says so, its events say when last."""
    state = condition(owner, "ReplicaFailure")
    if state.get("status") != "True" or state.get("reason") != "FailedCreate":
        return None
    since = as_time(state.get("lastTransitionTime"))
    last_seen = latest(with_reason(events_about(owner, events), "FailedCreate")) or since
    return pod_creation_problem(owner, as_text(state.get("message")), since=since, last_seen=last_seen)


def _workload_refused_pods(owner: Object, events: Sequence[Object]) -> Cause | None:
    """A StatefulSet, DaemonSet or Job that may not create its pods, by its events since the last pod it created."""
    owner_events = events_about(owner, events)
    failures = with_reason(owner_events, "FailedCreate")
    created, last_seen = latest(with_reason(owner_events, "SuccessfulCreate")), latest(failures)
    if not failures or later(created, last_seen):
        return None
    newest = max(failures, key=lambda event: (str(last_time(event)), as_text(event.get("message"))))
    starts = [at for event in failures if (at := first_time(event)) and not (created and at <= created)]
    since = min(starts, default=None)
    return pod_creation_problem(owner, as_text(newest.get("message")), since=since, last_seen=last_seen)


def _blocked_by_old_pod(observation: Observation, revision: Revision) -> Cause | None:
    """A StatefulSet replaces its pods in order, and waits forever for a broken pod of an old revision.

    Kubernetes documentation, StatefulSets, "Forced rollback".
    """
    workload = observation.workload
    if dig(workload, "spec", "podManagementPolicy") == "Parallel":
        return None
    if dig(workload, "spec", "updateStrategy", "type") == "OnDelete":
        return None
    new = {id(pod) for pod in revision.pods}
    old = [pod for pod in observation.pods if id(pod) not in new and not is_disrupted(pod) and not is_ready(pod)]
    if not old or dig(workload, "status", "updateRevision") is None:
        return None
    pod = min(old, key=sort_key)
    causes = diagnose(pod, observation.events)
    if not causes:
        return None  # it is starting, and will be replaced once it is ready
    name = as_text(dig(pod, "metadata", "name"))
    return Cause(
        category=Category.BLOCKED,
        fact=f"{kind_and_name(workload)} waits for {kind_and_name(pod)} of an earlier revision, which is not ready",
        evidence=causes[0].summary,
        hint=f"kubectl -n {namespace_of(pod)} delete pod {name}: a StatefulSet does not replace a broken pod by itself",
        object=kind_and_name(pod),
        container=causes[0].container,
        since=max(filter(None, (cause.since for cause in causes)), default=created_at(pod)),
        grace=max(cause.grace for cause in causes),
    )


_DEFAULT_BACKOFF_LIMIT = 6
"""The default of `backoffLimit` (Kubernetes API reference, JobSpec)."""


def count_job_retries(cause: Cause, workload: Object) -> Cause:
    """Count the failed runs of a Job's pod template: each run is a pod of its own, so no pod has more than one.

    Pods that run in parallel are one try each, and not many tries of one; failures beside as many successes do not
    count either. A limit of retries that the user chose is left to the Job.
    """
    if not cause.times:
        return cause
    spec, status = dig(workload, "spec"), dig(workload, "status")
    limit, limit_per_index = dig(spec, "backoffLimit"), dig(spec, "backoffLimitPerIndex")
    if limit_per_index is not None:
        return replace(cause, deferred=f"backoffLimitPerIndex {limit_per_index} decides")
    if isinstance(limit, int) and limit != _DEFAULT_BACKOFF_LIMIT:
        return replace(cause, deferred=f"backoffLimit {limit} decides")
    parallelism, completions = as_int(dig(spec, "parallelism")) or 1, as_int(dig(spec, "completions"))
    in_parallel = min(parallelism, completions) if completions else parallelism  # a work queue sets no completions
    tries = ceil(as_int(dig(status, "failed")) / max(in_parallel, as_int(dig(status, "succeeded"))))
    return replace(cause, times=max(cause.times, tries))
