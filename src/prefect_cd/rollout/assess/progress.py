"""The progress of a rollout by the workload's own status, and the failure that the status reports.

The counts that `kubectl rollout status` reads decide (kubernetes/kubectl `rollout_status.go`), after a comparison of
`observedGeneration`. Whether the pods are as healthy as the counts say is not decided here.
"""

from dataclasses import dataclass
from datetime import datetime

from prefect_cd.kube.objects import (
    Object,
    as_int,
    as_text,
    as_time,
    condition,
    condition_holds,
    dig,
    dig_mapping,
    kind_and_name,
    namespace_of,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause


@dataclass(frozen=True)
class Progress:
    """The progress by the workload's own status.

    Args:
        observed: its controller has seen the new specification.
        complete: by its own counts the rollout is complete.
        ready: new pods that are ready, or runs that succeeded.
        wanted: how many there should be.
        message: the progress in words, for the user.
        mark: the progress as a number; higher is further.
        failure: the failure that the status reports.
        paused: the workload is paused or suspended: no progress is expected.
        final: nothing can change once it is complete.
    """

    observed: bool
    complete: bool
    ready: int
    wanted: int
    message: str
    mark: int = 0
    failure: Cause | None = None
    paused: bool = False
    final: bool = False


def observed(workload: Object) -> bool:
    """Whether the controller has seen the current specification."""
    return as_int(dig(workload, "status", "observedGeneration")) >= as_int(dig(workload, "metadata", "generation"))


def deployment_progress(workload: Object, ready: int) -> Progress:
    """A Deployment is complete when all pods are updated and available, and the old ones are gone."""
    wanted = _replicas(workload)
    total, updated, available = (
        as_int(dig(workload, "status", key)) for key in ("replicas", "updatedReplicas", "availableReplicas")
    )
    complete = updated >= wanted and total <= updated and available >= wanted
    paused = dig(workload, "spec", "paused") is True and not complete
    if paused:
        message = f"{kind_and_name(workload)} is paused: kubectl rollout resume {kind_and_name(workload)}"
    elif total > updated:
        message = f"{updated} of {wanted} replicas updated, {total - updated} old pending termination"
    else:
        message = f"{ready} of {wanted} replicas ready{_min_ready_note(workload, ready, available)}"
    return Progress(
        observed(workload),
        complete,
        ready,
        wanted,
        message,
        mark=min(updated, wanted) + min(ready, wanted) - max(total - updated, 0),
        failure=None if paused or complete else deadline_exceeded(workload),
        paused=paused,
    )


def deadline_exceeded(workload: Object) -> Cause | None:
    """The only failure that a Deployment reports in its status."""
    state = condition(workload, "Progressing")
    if state.get("status") != "False" or state.get("reason") != "ProgressDeadlineExceeded":
        return None
    at = as_time(state.get("lastUpdateTime")) or as_time(state.get("lastTransitionTime"))
    limit = dig(workload, "spec", "progressDeadlineSeconds") or 600
    fact = f"{kind_and_name(workload)} made no progress for {limit} s"
    return reported_failure(workload, Category.DEADLINE, fact, state, at)


def stateful_set_progress(workload: Object, ready: int) -> Progress:
    """A StatefulSet is complete when all pods above the partition are updated, and all are ready."""
    wanted, status, strategy = _replicas(workload), dig(workload, "status"), dig(workload, "spec", "updateStrategy")
    total, updated, all_ready, available = (
        as_int(dig(status, key)) for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    )
    serving = total == wanted and min(all_ready, available) >= wanted
    if dig(strategy, "type") == "OnDelete":
        # Pods are replaced when a user deletes them: nothing to wait for.
        message = f"{all_ready} of {wanted} replicas ready"
        return Progress(observed(workload), serving, all_ready, wanted, message, mark=all_ready)
    partition = as_int(dig(strategy, "rollingUpdate", "partition"))
    to_update = max(wanted - partition, 0)
    # With a partition, pods below it keep the old revision, and the two revisions never become equal.
    same_revision = partition > 0 or dig(status, "currentRevision") == dig(status, "updateRevision")
    ready = all_ready if partition else ready
    message = f"{updated} of {to_update} replicas updated"
    if updated >= to_update:
        message = f"{ready} of {wanted} replicas ready{_min_ready_note(workload, ready, available)}"
    mark = min(updated, to_update) + min(ready, wanted) - max(total - wanted, 0)
    complete = serving and updated >= to_update and same_revision
    return Progress(observed(workload), complete, ready, wanted, message, mark=mark)


def daemon_set_progress(workload: Object, ready: int) -> Progress:
    """A DaemonSet is complete when its pods are updated and available on every node that should run one."""
    status = dig(workload, "status")
    wanted, updated, available = (
        as_int(dig(status, key)) for key in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
    )
    if dig(workload, "spec", "updateStrategy", "type") == "OnDelete":
        updated, ready = wanted, available  # pods are replaced when a user deletes them: nothing to wait for
    message = f"{updated} of {wanted} nodes updated"
    if updated >= wanted:
        message = f"{ready} of {wanted} nodes ready{_min_ready_note(workload, ready, available)}"
    complete = updated >= wanted and available >= wanted
    mark = min(updated, wanted) + min(ready, wanted)
    return Progress(observed(workload), complete, ready, wanted, message, mark=mark)


def job_progress(workload: Object, _: int) -> Progress:
    """A Job is complete when as many runs have succeeded as it asks for, by its own conditions."""
    spec = dig(workload, "spec")
    completions = dig(spec, "completions")
    wanted = completions if isinstance(completions, int) else max(as_int(dig(spec, "parallelism")), 1)
    succeeded, failed = (as_int(dig(workload, "status", key)) for key in ("succeeded", "failed"))
    complete = any(condition_holds(workload, kind) for kind in ("Complete", "SuccessCriteriaMet"))
    suspended = dig(spec, "suspend") is True and not complete
    if suspended:
        message = f"{kind_and_name(workload)} is suspended: set spec.suspend to false"
    else:
        message = "succeeded" if complete else f"{succeeded} of {wanted} succeeded"
        message += f", {failed} failed" if failed else ""
    return Progress(
        True,
        complete,
        succeeded,
        wanted,
        message,
        mark=succeeded,
        failure=_job_failure(workload),
        paused=suspended,
        final=True,
    )


def _job_failure(workload: Object) -> Cause | None:
    for state in (condition(workload, "Failed"), condition(workload, "FailureTarget")):
        if state.get("status") == "True":
            category = Category.DEADLINE if state.get("reason") == "DeadlineExceeded" else Category.CRASH
            return reported_failure(workload, category, f"{kind_and_name(workload)} failed", state, None)
    failed_indexes = as_text(dig(workload, "status", "failedIndexes"))
    # With a success policy, some indexes may fail and the Job may still succeed.
    if not failed_indexes or dig(workload, "spec", "successPolicy"):
        return None
    fact = f"{kind_and_name(workload)} failed: index {failed_indexes}"
    return reported_failure(workload, Category.CRASH, fact, {"message": f"failedIndexes: {failed_indexes}"}, None)


def pod_progress(workload: Object, ready: int) -> Progress:
    """A bare Pod is complete when it is ready or has succeeded, and has failed when nothing starts it again."""
    name, phase, status = kind_and_name(workload), dig(workload, "status", "phase"), dig_mapping(workload, "status")
    failure = reported_failure(workload, Category.CRASH, f"{name} failed", status, None) if phase == "Failed" else None
    succeeded = phase == "Succeeded"
    message = "succeeded" if succeeded else f"{ready} of 1 ready"
    done = int(succeeded or bool(ready))
    return Progress(True, done == 1, done, 1, message, mark=done, failure=failure, final=succeeded)


def object_progress(workload: Object) -> Progress:
    """Any other object, read as sigs.k8s.io/cli-utils `kstatus` does; without a status there is nothing to wait for.

    A condition that names its generation is read only when that is the current one.
    """
    name, status = kind_and_name(workload), dig(workload, "status")
    generation = as_int(dig(workload, "metadata", "generation"))
    is_observed = not isinstance(dig(status, "observedGeneration"), int) or observed(workload)
    for kind in ("Stalled", "Failed"):
        state = condition(workload, kind)
        if state.get("status") == "True" and not _is_outdated(state, generation):
            at = as_time(state.get("lastTransitionTime"))
            reported = reported_failure(workload, Category.UNKNOWN, f"{name} reports {kind}", state, at)
            return Progress(is_observed, False, 0, 1, f"{name} is {kind.lower()}", failure=reported)
    for kind, good in (("Reconciling", "False"), ("Ready", "True"), ("Available", "True")):
        state = condition(workload, kind)
        if state and _is_outdated(state, generation):
            return Progress(False, False, 0, 1, name)
        if state and state.get("status") != good:
            reason = as_text(state.get("message")) or as_text(state.get("reason")) or f"{kind} is {state.get('status')}"
            failure = deadline_exceeded(workload)
            return Progress(is_observed, False, 0, 1, f"{name} is not ready: {reason}", failure=failure)
    return Progress(is_observed, True, 1, 1, f"{name} exists", mark=1)


def _min_ready_note(workload: Object, ready: int, available: int) -> str:
    """A note that pods have to stay ready for a while before they count as available; empty when they need not."""
    seconds = as_int(dig(workload, "spec", "minReadySeconds"))
    return f", {available} of them for {seconds} s (minReadySeconds)" if seconds and available < ready else ""


def _is_outdated(state: Object, generation: int) -> bool:
    observed_generation = state.get("observedGeneration")
    return isinstance(observed_generation, int) and observed_generation < generation


def _replicas(workload: Object) -> int:
    replicas = dig(workload, "spec", "replicas")
    return replicas if isinstance(replicas, int) else 1


def reported_failure(workload: Object, category: Category, fact: str, state: Object, at: datetime | None) -> Cause:
    """The failure that a workload reports in a condition."""
    evidence = ": ".join(part for part in (as_text(state.get("reason")), as_text(state.get("message"))) if part)
    return Cause(
        category=category,
        fact=f"{fact} ({evidence})" if evidence else fact,
        evidence=evidence,
        hint=f"kubectl -n {namespace_of(workload)} describe {kind_and_name(workload)}",
        object=kind_and_name(workload),
        permanent=True,
        since=at,
        last_seen=at,
    )
