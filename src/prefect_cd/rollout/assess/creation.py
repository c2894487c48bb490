"""What stands between a workload and its pods: refusals, a ReplicaSet that is not there, an earlier revision.

Decides by conditions where there are some, for they go when the trouble goes. StatefulSets, DaemonSets and Jobs have
only events: they count while pods are missing and none was created since.
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
from prefect_cd.rollout.diagnosis.admission import refusal, unreplicated
from prefect_cd.rollout.diagnosis.cause import Category, Cause, recounted
from prefect_cd.rollout.diagnosis.container import is_disrupted, is_ready


def creation_problems(observation: Observation, revision: Revision, pods: int, progress: Progress) -> list[Cause]:
    """Everything that keeps pods from being created."""
    workload, owner = observation.workload, revision.owner
    found = [
        _no_replica_set(workload, observation.events) if owner is None else None,
        _refused_set(owner, observation.events) if owner and owner.get("kind") == "ReplicaSet" else None,
        _refused(owner, observation.events, missing=pods < progress.wanted)
        if owner and owner.get("kind") != "ReplicaSet"
        else None,
        _blocked(observation, revision) if workload.get("kind") == "StatefulSet" and progress.observed else None,
    ]
    return [each for each in found if each]


def _no_replica_set(workload: Object, events: Sequence[Object]) -> Cause | None:
    """A Deployment whose controller is refused the ReplicaSet: it never even says that it has seen the new template.

    The words are the controller's (kubernetes/kubernetes `pkg/controller/deployment/sync.go`).
    """
    state = condition(workload, "Progressing")
    failed = with_reason(events_about(workload, events), "ReplicaSetCreateError")
    if state.get("reason") != "ReplicaSetCreateError" and not failed:
        return None
    said = as_text(state.get("message")) if state.get("reason") == "ReplicaSetCreateError" else ""
    start = earliest(failed) or as_time(state.get("lastTransitionTime"))
    seen = latest(failed) or as_time(state.get("lastUpdateTime"))
    return unreplicated(workload, said or as_text(failed[-1].get("message")), since=start, seen=seen)


def _refused_set(owner: Object, events: Sequence[Object]) -> Cause | None:
    state = condition(owner, "ReplicaFailure")
    if state.get("status") != "True" or state.get("reason") != "FailedCreate":
        return None
    start = as_time(state.get("lastTransitionTime"))
    seen = latest(with_reason(events_about(owner, events), "FailedCreate")) or start
    return refusal(owner, as_text(state.get("message")), since=start, seen=seen)


def _refused(owner: Object, events: Sequence[Object], *, missing: bool) -> Cause | None:
    mine = events_about(owner, events)
    failed, created = with_reason(mine, "FailedCreate"), latest(with_reason(mine, "SuccessfulCreate"))
    seen = latest(failed)
    if not failed or not missing or later(created, seen):
        return None
    newest = max(failed, key=lambda event: (str(last_time(event)), as_text(event.get("message"))))
    starts = [at for event in failed if (at := first_time(event)) and not (created and at <= created)]
    return refusal(owner, as_text(newest.get("message")), since=min(starts, default=None), seen=seen)


def _blocked(observation: Observation, revision: Revision) -> Cause | None:
    """A StatefulSet replaces its pods in order, and waits for ever for a broken one of an earlier revision.

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
    behind = diagnose(pod, observation.events)
    if not behind:
        return None  # it is coming up, and will be replaced when it is
    name = as_text(dig(pod, "metadata", "name"))
    return Cause(
        category=Category.BLOCKED,
        summary=f"{kind_and_name(workload)} waits for {kind_and_name(pod)} of an earlier revision, which is not ready",
        evidence=behind[0].summary,
        hint=f"kubectl -n {namespace_of(pod)} delete pod {name}: a StatefulSet does not replace a broken pod by itself",
        object=kind_and_name(pod),
        container=behind[0].container,
        since=max(filter(None, (each.since for each in behind)), default=created_at(pod)),
        allowed=max(each.allowed for each in behind),
    )


_DEFAULT_BACKOFF = 6
"""The `backoffLimit` that nobody chose (Kubernetes API reference, JobSpec)."""


def job_retries(cause: Cause, workload: Object) -> Cause:
    """Each run of a Job is a pod of its own: runs side by side are one try of each, and not many of one.

    Neither are failures beside as many successes. A number of retries that someone chose is the Job's to exhaust.
    """
    if not cause.times:
        return cause
    spec, status = dig(workload, "spec"), dig(workload, "status")
    limit, per_index = dig(spec, "backoffLimit"), dig(spec, "backoffLimitPerIndex")
    if per_index is not None:
        return replace(cause, left_to=f"backoffLimitPerIndex {per_index} decides")
    if isinstance(limit, int) and limit != _DEFAULT_BACKOFF:
        return replace(cause, left_to=f"backoffLimit {limit} decides")
    parallel, completions = as_int(dig(spec, "parallelism")) or 1, as_int(dig(spec, "completions"))
    side_by_side = min(parallel, completions) if completions else parallel  # a work queue says no number
    tries = ceil(as_int(dig(status, "failed")) / max(side_by_side, as_int(dig(status, "succeeded"))))
    return recounted(cause, max(cause.times, tries))
