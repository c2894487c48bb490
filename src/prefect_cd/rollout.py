"""What a rollout has come to: progressing, complete or doomed.

Decides from one observation of a workload and all that belongs to it; two times are parameters. It refuses to know
how the observation was made, how long the whole watch may last, and what happened in earlier observations: the start
of a trouble is read from the objects, so a trouble that heals takes its countdown with it.

What counts: a Deployment's own words are compared with `observedGeneration` first; only pods of the new revision are
judged; a fact that proves doom counts at once, one that may heal after `Patience.heal`, crashes by their number, and
nothing that the cluster saw only before the rollout began (kubernetes/kubectl `rollout_status.go`, Shopify/krane and
werf/kubedog were the models).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from prefect_cd.diagnosis import (
    Category,
    Cause,
    Container,
    about,
    condition,
    containers,
    count,
    diagnose,
    dig,
    first_time,
    last_time,
    leaving,
    moment,
    name_of,
    refusal,
    words,
)
from prefect_cd.release import Object


class Phase(str, Enum):
    """The verdict in one word."""

    PROGRESSING = "progressing"
    COMPLETE = "complete"
    DOOMED = "doomed"


@dataclass(frozen=True)
class Observation:
    """A workload and all that belongs to it, as read from the API at about one moment.

    Args:
        workload: Deployment, StatefulSet, DaemonSet, Job, or anything else.
        revisions: ReplicaSets or ControllerRevisions that it owns, in any order.
        pods: the pods of its selector, in any order, those of old revisions among them.
        events: events about the workload, its revisions and pods, in any order.
    """

    workload: Object
    revisions: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Patience:
    """How much trouble is still no doom.

    Args:
        crashes: failed runs of one container that are doom.
        heal: how long a trouble that may heal is given.
        settle: how long a container without readiness probe must run before it counts as up: such a container is
            called ready the moment it starts, even if it dies the next.
        recover: how long, at least, one that crashed must run again; if the crashed run lasted longer, as long as
            that one, up to `heal`.
    """

    crashes: int = 3
    heal: timedelta = timedelta(seconds=60)
    settle: timedelta = timedelta(seconds=5)
    recover: timedelta = timedelta(seconds=10)


@dataclass(frozen=True)
class Verdict:
    """What a rollout has come to.

    Args:
        phase: progressing, complete or doomed.
        summary: one sentence for people.
        ready: pods of the new revision that serve (for a Job: that succeeded).
        wanted: how many there should be.
        causes: what is wrong, the one to show first.
    """

    phase: Phase
    summary: str
    ready: int = 0
    wanted: int = 0
    causes: tuple[Cause, ...] = ()


def judge(observation: Observation, *, since: datetime, now: datetime, patience: Patience = Patience()) -> Verdict:
    """The verdict on a rollout.

    Args:
        observation: the workload and all that belongs to it.
        since: just before the apply, aware; older troubles are not this rollout's.
        now: when the observation was made, aware.
        patience: how much trouble is still no doom.
    """
    rules = _KINDS.get(words(observation.workload.get("kind")), _ANYTHING)
    watch = _Watch(since, now, patience)
    revision = rules.newest(observation)
    pods = sorted((pod for pod in revision.pods if not leaving(pod)), key=_key)
    progress = rules.progress(observation.workload, sum(_ready(pod) for pod in pods))
    if not progress.observed:
        return Verdict(Phase.PROGRESSING, _unobserved(observation.workload), progress.ready, progress.wanted)
    if progress.done and not progress.wanted:
        return Verdict(Phase.COMPLETE, progress.sentence)
    causes = [
        *(cause for pod in pods for cause in diagnose(pod, observation.events) if not _over(cause, pod, watch)),
        *(() if progress.done else _refusals(revision, len(pods), progress, observation.events)),
    ]
    causes = [rules.weigh(cause, observation.workload) for cause in causes]
    return _verdict(progress, causes, pods, watch)


# --- from progress and causes to a verdict ---------------------------------------------------------------------------

_CLOCKS_DIFFER = timedelta(seconds=5)
"""Timestamps in objects are whole seconds of another machine's clock."""


@dataclass(frozen=True)
class _Watch:
    since: datetime
    now: datetime
    patience: Patience

    def elapsed(self, start: datetime | None) -> timedelta:
        """Time since `start`, but not more than we have watched; a start in the future means that clocks differ."""
        if start is None or start < self.since or start > self.now:
            start = self.since
        return max(self.now - start, timedelta())

    def fresh(self, at: datetime | None) -> bool:
        """Whether something was seen in this rollout and not only before it."""
        return at is None or at >= self.since - _CLOCKS_DIFFER


@dataclass(frozen=True)
class _Progress:
    """The workload's own account."""

    observed: bool
    done: bool
    ready: int
    wanted: int
    sentence: str
    stopped: Cause | None = None
    """The workload itself says that it has failed."""
    held: bool = False
    """Someone holds it (paused, suspended): nothing is expected to happen."""


def _verdict(progress: _Progress, causes: Sequence[Cause], pods: Sequence[Object], watch: _Watch) -> Verdict:
    ranked = _ranked(causes, progress.stopped, watch)
    if any(_is_doom(cause, watch) for cause in ranked):
        return Verdict(Phase.DOOMED, _sentence_of(ranked, watch), progress.ready, progress.wanted, ranked)
    unsteady = [pod for pod in pods if not all(_steady(each, watch) for each in containers(pod))]
    # the workload's own count may be older than its pods, or the list of pods than the count
    if progress.done and not unsteady and progress.ready >= progress.wanted:
        return Verdict(Phase.COMPLETE, progress.sentence, progress.ready, progress.wanted)
    story = _story(progress, ranked, pods, unsteady, watch)
    return Verdict(Phase.PROGRESSING, story, progress.ready, progress.wanted, ranked)


def _sentence_of(ranked: Sequence[Cause], watch: _Watch) -> str:
    """Why it is doomed; where only the workload itself says so, with what may be behind it."""
    if _is_doom(ranked[0], watch):
        return ranked[0].summary
    return f"{ranked[-1].summary}; {ranked[0].summary}"


def _is_doom(cause: Cause, watch: _Watch) -> bool:
    fresh = watch.fresh(cause.seen or cause.since)
    if cause.proven and fresh:
        return True
    if cause.counts:
        return fresh and cause.times >= watch.patience.crashes
    return watch.elapsed(cause.since) >= watch.patience.heal


def _ranked(causes: Sequence[Cause], stopped: Cause | None, watch: _Watch) -> tuple[Cause, ...]:
    """One cause per trouble and container, doom first; the workload's own 'I failed' explains the least, so last."""
    best: dict[tuple[Category, str], Cause] = {}
    order = sorted(
        causes, key=lambda c: (not _is_doom(c, watch), not c.proven, -c.times, c.object, c.container, c.evidence)
    )
    for cause in order:
        best.setdefault((cause.category, cause.container), cause)
    return (*best.values(), *([stopped] if stopped else ()))


def _over(cause: Cause, pod: Object, watch: _Watch) -> bool:
    """Whether a crash is history: its container runs and has proved it."""
    if not cause.times:
        return False
    mine = [each for each in containers(pod) if each.name == cause.container]
    return any(each.running and (each.ready or each.init) for each in mine) and all(
        _steady(each, watch) for each in mine
    )


def _steady(container: Container, watch: _Watch) -> bool:
    """Whether a container is up to stay, as far as one can tell: it outlives its last crash."""
    if not container.running:
        return container.ended_in_peace
    up = watch.elapsed(container.up_since)
    end = container.last_end
    if end and watch.fresh(moment(end.get("finishedAt"))):
        started, finished = moment(end.get("startedAt")), moment(end.get("finishedAt"))
        lasted = finished - started if started and finished else timedelta()
        return up >= min(max(watch.patience.recover, lasted), watch.patience.heal)
    probed = container.init or container.spec.get("readinessProbe") is not None
    old = container.up_since is not None and container.up_since < watch.since
    return probed or old or up >= watch.patience.settle


def _story(
    progress: _Progress, causes: Sequence[Cause], pods: Sequence[Object], unsteady: Sequence[Object], watch: _Watch
) -> str:
    if progress.held:
        return progress.sentence
    if causes:
        first = causes[0]
        left = watch.patience.heal - watch.elapsed(first.since)
        end = "" if first.counts else f" (given up in {max(round(left.total_seconds()), 0)} s)"
        return f"{progress.sentence}; {first.summary}{end}"
    late = [pod for pod in pods if not _ready(pod)] or list(unsteady)
    if not late:
        return progress.sentence
    age = round(watch.elapsed(moment(dig(late[0], "metadata", "creationTimestamp"))).total_seconds())
    return f"{progress.sentence}; waiting for {name_of(late[0])} ({_state(late[0])}, {age} s)"


def _ready(pod: Object) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def _state(pod: Object) -> str:
    for container in containers(pod):
        if reason := words(container.waiting.get("reason")):
            return reason
    if _ready(pod):
        return "just started"
    return "not ready" if dig(pod, "status", "phase") == "Running" else words(dig(pod, "status", "phase")) or "Pending"


def _unobserved(workload: Object) -> str:
    return f"the cluster has not looked at the new {name_of(workload)} yet"


# --- which pods are the new ones -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Revision:
    """The new revision: who creates its pods, and which they are."""

    owner: Object | None
    pods: tuple[Object, ...]


def _key(thing: Object) -> tuple[str, str, str]:
    return (words(dig(thing, "metadata", "creationTimestamp")), words(dig(thing, "metadata", "name")), repr(thing))


def _labelled(pods: Sequence[Object], label: str, value: object) -> tuple[Object, ...]:
    return tuple(pod for pod in pods if value and dig(pod, "metadata", "labels", label) == value)


def _newest_replica_set(observation: Observation) -> _Revision:
    """The ReplicaSet whose template is the Deployment's; of several, the oldest, as the controller chooses.

    Templates written before an upgrade of the cluster can differ by new defaults: then the revision's number decides.
    """
    workload = observation.workload
    sets = sorted((each for each in observation.revisions if each.get("kind") == "ReplicaSet"), key=_key)
    template = _comparable(dig(workload, "spec", "template"))
    number = dig(workload, "metadata", "annotations", _REVISION)
    same = [each for each in sets if _comparable(dig(each, "spec", "template")) == template]
    same = same or [each for each in sets if number and dig(each, "metadata", "annotations", _REVISION) == number]
    if not same:
        return _Revision(None, ())
    return _Revision(same[0], _labelled(observation.pods, _HASH, dig(same[0], "metadata", "labels", _HASH)))


_REVISION, _HASH = "deployment.kubernetes.io/revision", "pod-template-hash"
_CONTROLLER_HASH, _GENERATION = "controller-revision-hash", "pod-template-generation"


def _comparable(template: object) -> object:
    """A pod template without what the controller adds, and with absent and empty made equal."""
    if isinstance(template, dict):
        pairs = {key: _comparable(value) for key, value in template.items() if key != _HASH}
        return {key: value for key, value in pairs.items() if value not in (None, {}, [], "")}
    return [_comparable(item) for item in template] if isinstance(template, list) else template


def _updated_set(observation: Observation) -> _Revision:
    value = dig(observation.workload, "status", "updateRevision")
    return _Revision(observation.workload, _labelled(observation.pods, _CONTROLLER_HASH, value))


def _newest_daemons(observation: Observation) -> _Revision:
    owned = [each for each in observation.revisions if each.get("kind") == "ControllerRevision"]
    newest = max(owned, key=lambda each: (count(each.get("revision")), _key(each)), default={})
    if value := dig(newest, "metadata", "labels", _CONTROLLER_HASH):
        return _Revision(observation.workload, _labelled(observation.pods, _CONTROLLER_HASH, value))
    value = dig(observation.workload, "metadata", "annotations", "deprecated.daemonset.template.generation")
    return _Revision(observation.workload, _labelled(observation.pods, _GENERATION, value))


def _all_pods(observation: Observation) -> _Revision:
    return _Revision(observation.workload, observation.pods)


def _refusals(revision: _Revision, pods: int, progress: _Progress, events: Sequence[Object]) -> list[Cause]:
    """Pods that the cluster does not let us create.

    A ReplicaSet has a condition for it, which goes when the trouble goes. The others have only events: they count
    while pods are missing and none was created since.
    """
    owner = revision.owner
    if owner is None:
        return []
    mine = about(owner, events)
    failed = [event for event in mine if event.get("reason") == "FailedCreate"]
    seen = max((at for event in failed if (at := last_time(event))), default=None)
    if owner.get("kind") == "ReplicaSet":
        state = condition(owner, "ReplicaFailure")
        if state.get("status") != "True" or state.get("reason") != "FailedCreate":
            return []
        start = moment(state.get("lastTransitionTime"))
        return [refusal(owner, words(state.get("message")), since=start, seen=seen or start)]
    created = max((at for e in mine if e.get("reason") == "SuccessfulCreate" and (at := last_time(e))), default=None)
    if not failed or pods >= progress.wanted or (created and seen and created >= seen):
        return []
    newest = max(failed, key=lambda event: (str(last_time(event)), words(event.get("message"))))
    starts = [at for event in failed if (at := first_time(event)) and not (created and at <= created)]
    return [refusal(owner, words(newest.get("message")), since=min(starts, default=None), seen=seen)]


# --- what the workloads say of themselves ----------------------------------------------------------------------------


def _observed(workload: Object) -> bool:
    return count(dig(workload, "status", "observedGeneration")) >= count(dig(workload, "metadata", "generation"))


def _replicas(workload: Object) -> int:
    wanted = dig(workload, "spec", "replicas")
    return wanted if isinstance(wanted, int) else 1


def _deployment(workload: Object, ready: int) -> _Progress:
    wanted = _replicas(workload)
    total, updated, available = (
        count(dig(workload, "status", key)) for key in ("replicas", "updatedReplicas", "availableReplicas")
    )
    done = updated >= wanted and total <= updated and available >= wanted
    paused = dig(workload, "spec", "paused") is True and not done
    sentence = f"{ready} of {wanted} replicas ready" if total <= updated else (
        f"{updated} of {wanted} replicas updated, {total - updated} old to go")  # fmt: skip
    hold = f"{name_of(workload)} is paused: kubectl rollout resume {name_of(workload)}"
    return _Progress(
        _observed(workload),
        done,
        ready,
        wanted,
        hold if paused else sentence,
        None if paused or done else _deadline(workload),
        held=paused,
    )


def _deadline(workload: Object) -> Cause | None:
    state = condition(workload, "Progressing")
    if state.get("status") != "False" or state.get("reason") != "ProgressDeadlineExceeded":
        return None
    at = moment(state.get("lastUpdateTime")) or moment(state.get("lastTransitionTime"))
    limit = dig(workload, "spec", "progressDeadlineSeconds") or 600
    return _statement(workload, Category.DEADLINE, f"{name_of(workload)} made no progress for {limit} s", state, at)


def _stateful_set(workload: Object, ready: int) -> _Progress:
    wanted, status, strategy = _replicas(workload), dig(workload, "status"), dig(workload, "spec", "updateStrategy")
    total, updated, all_ready, available = (
        count(dig(status, key)) for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    )
    serving = total == wanted and min(all_ready, available) >= wanted
    if dig(strategy, "type") == "OnDelete":
        # Pods are replaced when a person deletes them: nothing to wait for.
        return _Progress(_observed(workload), serving, all_ready, wanted, f"{all_ready} of {wanted} replicas ready")
    partition = count(dig(strategy, "rollingUpdate", "partition"))
    due = max(wanted - partition, 0)
    whole = partition > 0 or dig(status, "currentRevision") == dig(status, "updateRevision")
    ready = all_ready if partition else ready
    sentence = f"{ready} of {wanted} replicas ready" if updated >= due else f"{updated} of {due} replicas updated"
    return _Progress(_observed(workload), serving and updated >= due and whole, ready, wanted, sentence)


def _daemon_set(workload: Object, ready: int) -> _Progress:
    status = dig(workload, "status")
    wanted, updated, available = (
        count(dig(status, k)) for k in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
    )
    if dig(workload, "spec", "updateStrategy", "type") == "OnDelete":
        updated, ready = wanted, available
    sentence = f"{ready} of {wanted} nodes ready" if updated >= wanted else f"{updated} of {wanted} nodes updated"
    return _Progress(_observed(workload), updated >= wanted and available >= wanted, ready, wanted, sentence)


def _job(workload: Object, _: int) -> _Progress:
    spec = dig(workload, "spec")
    completions = dig(spec, "completions")
    wanted = completions if isinstance(completions, int) else max(count(dig(spec, "parallelism")), 1)
    succeeded, failed = (count(dig(workload, "status", key)) for key in ("succeeded", "failed"))
    done = any(condition(workload, kind).get("status") == "True" for kind in ("Complete", "SuccessCriteriaMet"))
    suspended = dig(spec, "suspend") is True and not done
    sentence = f"{succeeded} of {wanted} succeeded" + (f", {failed} failed" if failed else "")
    hold = f"{name_of(workload)} is suspended: set spec.suspend to false"
    stopped = None
    for state in (condition(workload, "Failed"), condition(workload, "FailureTarget")):
        if state.get("status") == "True" and not stopped:
            late = state.get("reason") == "DeadlineExceeded"
            stopped = _statement(workload, Category.DEADLINE if late else Category.CRASH,
                                 f"{name_of(workload)} failed", state, None)  # fmt: skip
    return _Progress(True, done, succeeded, wanted, hold if suspended else sentence, stopped, held=suspended)


def _anything(workload: Object, _: int) -> _Progress:
    """Generic kinds, as sigs.k8s.io/cli-utils `kstatus` reads them; without a status there is nothing to wait for."""
    name, status = name_of(workload), dig(workload, "status")
    observed = dig(status, "observedGeneration")
    seen = not isinstance(observed, int) or observed >= count(dig(workload, "metadata", "generation"))
    for kind in ("Stalled", "Failed"):
        state = condition(workload, kind)
        if state.get("status") == "True":
            at = moment(state.get("lastTransitionTime"))
            stopped = _statement(workload, Category.UNKNOWN, f"{name} says {kind}", state, at)
            return _Progress(seen, False, 0, 1, f"{name} is {kind.lower()}", stopped)
    for kind, good in (("Reconciling", "False"), ("Ready", "True"), ("Available", "True")):
        state = condition(workload, kind)
        if state and state.get("status") != good:
            said = words(state.get("message")) or words(state.get("reason")) or f"{kind} is {state.get('status')}"
            return _Progress(seen, False, 0, 1, f"{name} is not ready: {said}")
    return _Progress(seen, True, 1, 1, f"{name} is there")


def _statement(workload: Object, category: Category, summary: str, state: Object, at: datetime | None) -> Cause:
    """The workload's own word that it has failed."""
    said = ": ".join(part for part in (words(state.get("reason")), words(state.get("message"))) if part)
    namespace = words(dig(workload, "metadata", "namespace")) or "default"
    return Cause(
        category=category,
        summary=f"{summary}{f' ({said})' if said else ''}",
        evidence=said,
        hint=f"kubectl -n {namespace} describe {name_of(workload)}",
        object=name_of(workload),
        proven=True,
        since=at,
        seen=at,
    )


# --- the kinds -------------------------------------------------------------------------------------------------------


def _as_it_is(cause: Cause, _: Object) -> Cause:
    return cause


_DEFAULT_BACKOFF = 6
"""The `backoffLimit` that nobody chose (Kubernetes API reference, JobSpec)."""


def _job_retries(cause: Cause, workload: Object) -> Cause:
    """Each run of a Job is a pod of its own; a number of retries that someone chose is the Job's to exhaust."""
    if not cause.times:
        return cause
    limit = dig(workload, "spec", "backoffLimit")
    chosen = isinstance(limit, int) and limit != _DEFAULT_BACKOFF
    times = max(cause.times, count(dig(workload, "status", "failed")))
    summary = re.sub(r"(, \d+ times)?$", f", {times} times" if times > 1 else "", cause.summary, count=1)
    return replace(cause, times=1 if chosen else times, summary=summary)


@dataclass(frozen=True)
class _Kind:
    progress: Callable[[Object, int], _Progress]
    newest: Callable[[Observation], _Revision]
    weigh: Callable[[Cause, Object], Cause] = _as_it_is


_KINDS = {
    "Deployment": _Kind(_deployment, _newest_replica_set),
    "StatefulSet": _Kind(_stateful_set, _updated_set),
    "DaemonSet": _Kind(_daemon_set, _newest_daemons),
    "Job": _Kind(_job, _all_pods, _job_retries),
}
_ANYTHING = _Kind(_anything, _all_pods)

__all__ = ["Observation", "Patience", "Phase", "Verdict", "judge"]
