"""What a workload says of itself: how far it is, and whether it has given up.

Decides by the counts that `kubectl rollout status` reads (kubernetes/kubectl `rollout_status.go`), after comparing
`observedGeneration`; whether the pods are as well as the counts say is for others to judge.
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
    kind_and_name,
    namespace_of,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause


@dataclass(frozen=True)
class Progress:
    """The workload's own account.

    Args:
        observed: its controller has seen the new specification.
        done: by its own counts it is complete.
        ready: new pods that serve, or runs that succeeded.
        wanted: how many there should be.
        sentence: the same for people.
        mark: how far it is; more is further.
        stopped: the workload itself says that it has failed.
        held: someone holds it (paused, suspended): nothing is expected to happen.
        final: nothing follows once it is done.
    """

    observed: bool
    done: bool
    ready: int
    wanted: int
    sentence: str
    mark: int = 0
    stopped: Cause | None = None
    held: bool = False
    final: bool = False


def observed(workload: Object) -> bool:
    """Whether the controller has seen the present specification."""
    return as_int(dig(workload, "status", "observedGeneration")) >= as_int(dig(workload, "metadata", "generation"))


def deployment(workload: Object, ready: int) -> Progress:
    """Updated, available, and the old ones gone."""
    wanted = _replicas(workload)
    total, updated, available = (
        as_int(dig(workload, "status", key)) for key in ("replicas", "updatedReplicas", "availableReplicas")
    )
    done = updated >= wanted and total <= updated and available >= wanted
    paused = dig(workload, "spec", "paused") is True and not done
    sentence = f"{ready} of {wanted} replicas ready{_aging(workload, ready, available)}" if total <= updated else (
        f"{updated} of {wanted} replicas updated, {total - updated} old to go")  # fmt: skip
    hold = f"{kind_and_name(workload)} is paused: kubectl rollout resume {kind_and_name(workload)}"
    return Progress(
        observed(workload),
        done,
        ready,
        wanted,
        hold if paused else sentence,
        mark=min(updated, wanted) + min(ready, wanted) - max(total - updated, 0),
        stopped=None if paused or done else deadline(workload),
        held=paused,
    )


def deadline(workload: Object) -> Cause | None:
    """The only failure that a Deployment ever reports."""
    state = condition(workload, "Progressing")
    if state.get("status") != "False" or state.get("reason") != "ProgressDeadlineExceeded":
        return None
    at = as_time(state.get("lastUpdateTime")) or as_time(state.get("lastTransitionTime"))
    limit = dig(workload, "spec", "progressDeadlineSeconds") or 600
    return statement(
        workload, Category.DEADLINE, f"{kind_and_name(workload)} made no progress for {limit} s", state, at
    )


def stateful_set(workload: Object, ready: int) -> Progress:
    """In order, above the partition, or when somebody deletes its pods."""
    wanted, status, strategy = _replicas(workload), dig(workload, "status"), dig(workload, "spec", "updateStrategy")
    total, updated, all_ready, available = (
        as_int(dig(status, key)) for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    )
    serving = total == wanted and min(all_ready, available) >= wanted
    if dig(strategy, "type") == "OnDelete":
        # Pods are replaced when a person deletes them: nothing to wait for.
        sentence = f"{all_ready} of {wanted} replicas ready"
        return Progress(observed(workload), serving, all_ready, wanted, sentence, mark=all_ready)
    partition = as_int(dig(strategy, "rollingUpdate", "partition"))
    due = max(wanted - partition, 0)
    whole = partition > 0 or dig(status, "currentRevision") == dig(status, "updateRevision")
    ready = all_ready if partition else ready
    sentence = f"{updated} of {due} replicas updated"
    if updated >= due:
        sentence = f"{ready} of {wanted} replicas ready{_aging(workload, ready, available)}"
    mark = min(updated, due) + min(ready, wanted) - max(total - wanted, 0)
    return Progress(observed(workload), serving and updated >= due and whole, ready, wanted, sentence, mark=mark)


def daemon_set(workload: Object, ready: int) -> Progress:
    """On every node that should have it, or when somebody deletes its pods."""
    status = dig(workload, "status")
    wanted, updated, available = (
        as_int(dig(status, k)) for k in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
    )
    if dig(workload, "spec", "updateStrategy", "type") == "OnDelete":
        updated, ready = wanted, available
    sentence = f"{updated} of {wanted} nodes updated"
    if updated >= wanted:
        sentence = f"{ready} of {wanted} nodes ready{_aging(workload, ready, available)}"
    done = updated >= wanted and available >= wanted
    mark = min(updated, wanted) + min(ready, wanted)
    return Progress(observed(workload), done, ready, wanted, sentence, mark=mark)


def job(workload: Object, _: int) -> Progress:
    """As many successes as were asked for."""
    spec = dig(workload, "spec")
    completions = dig(spec, "completions")
    wanted = completions if isinstance(completions, int) else max(as_int(dig(spec, "parallelism")), 1)
    succeeded, failed = (as_int(dig(workload, "status", key)) for key in ("succeeded", "failed"))
    done = any(condition_holds(workload, kind) for kind in ("Complete", "SuccessCriteriaMet"))
    suspended = dig(spec, "suspend") is True and not done
    tries = f", {failed} failed" if failed else ""
    sentence = f"succeeded{tries}" if done else f"{succeeded} of {wanted} succeeded{tries}"
    hold = f"{kind_and_name(workload)} is suspended: set spec.suspend to false"
    stopped = None
    for state in (condition(workload, "Failed"), condition(workload, "FailureTarget")):
        if state.get("status") == "True" and not stopped:
            late = state.get("reason") == "DeadlineExceeded"
            stopped = statement(workload, Category.DEADLINE if late else Category.CRASH,
                                f"{kind_and_name(workload)} failed", state, None)  # fmt: skip
    if not stopped and (lost := as_text(dig(workload, "status", "failedIndexes"))) and not dig(spec, "successPolicy"):
        said = {"message": f"failedIndexes: {lost}"}
        stopped = statement(workload, Category.CRASH, f"{kind_and_name(workload)} failed: index {lost}", said, None)
    return Progress(True, done, succeeded, wanted, hold if suspended else sentence, mark=succeeded, stopped=stopped,
                    held=suspended, final=True)  # fmt: skip


def anything(workload: Object, _: int) -> Progress:
    """Generic kinds, as sigs.k8s.io/cli-utils `kstatus` reads them; without a status there is nothing to wait for.

    A condition that says which generation it is about is read only when that is the present one.
    """
    name, status = kind_and_name(workload), dig(workload, "status")
    generation = as_int(dig(workload, "metadata", "generation"))
    seen = not isinstance(dig(status, "observedGeneration"), int) or observed(workload)
    for kind in ("Stalled", "Failed"):
        state = condition(workload, kind)
        if state.get("status") == "True" and not _outdated(state, generation):
            at = as_time(state.get("lastTransitionTime"))
            stopped = statement(workload, Category.UNKNOWN, f"{name} says {kind}", state, at)
            return Progress(seen, False, 0, 1, f"{name} is {kind.lower()}", stopped=stopped)
    for kind, good in (("Reconciling", "False"), ("Ready", "True"), ("Available", "True")):
        state = condition(workload, kind)
        if state and _outdated(state, generation):
            return Progress(False, False, 0, 1, name)
        if state and state.get("status") != good:
            said = as_text(state.get("message")) or as_text(state.get("reason")) or f"{kind} is {state.get('status')}"
            return Progress(seen, False, 0, 1, f"{name} is not ready: {said}", stopped=deadline(workload))
    return Progress(seen, True, 1, 1, f"{name} is there", mark=1)


def _aging(workload: Object, ready: int, available: int) -> str:
    """That pods have to stay ready for a while before they count."""
    seconds = as_int(dig(workload, "spec", "minReadySeconds"))
    return f", {available} of them for {seconds} s (minReadySeconds)" if seconds and available < ready else ""


def _outdated(state: Object, generation: int) -> bool:
    about = state.get("observedGeneration")
    return isinstance(about, int) and about < generation


def _replicas(workload: Object) -> int:
    wanted = dig(workload, "spec", "replicas")
    return wanted if isinstance(wanted, int) else 1


def statement(workload: Object, category: Category, summary: str, state: Object, at: datetime | None) -> Cause:
    """The workload's own word that it has failed."""
    said = ": ".join(part for part in (as_text(state.get("reason")), as_text(state.get("message"))) if part)
    return Cause(
        category=category,
        summary=f"{summary}{f' ({said})' if said else ''}",
        evidence=said,
        hint=f"kubectl -n {namespace_of(workload)} describe {kind_and_name(workload)}",
        object=kind_and_name(workload),
        proven=True,
        since=at,
        seen=at,
    )
