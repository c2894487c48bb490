"""From one observation, and what is remembered of earlier ones, to a verdict.

Decides; two times are parameters. It refuses to know how the observation was made, and how long the whole watch may
last. What counts: only the new revision; a fact that proves doom counts at once, one that may heal after the patience
with its category, crashes by their number, and nothing that the cluster saw only before the rollout began
(kubernetes/kubectl `rollout_status.go`, Shopify/krane and werf/kubedog were the models).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from prefect_cd.kube.objects import Object, as_int, as_time, dig, kind_and_name, namespace_of, uid_of
from prefect_cd.rollout.assess.context import Context, build_context
from prefect_cd.rollout.assess.creation import creation_problems
from prefect_cd.rollout.assess.kinds import kind_of
from prefect_cd.rollout.assess.message import progress_message
from prefect_cd.rollout.assess.model import DEFAULT, NOTHING, Memory, Observation, Patience, Phase, Verdict
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.peers import excused
from prefect_cd.rollout.assess.reachability import unreachable_services
from prefect_cd.rollout.assess.revisions import Revision
from prefect_cd.rollout.assess.stability import adjusted, flapping, unchanged_since
from prefect_cd.rollout.diagnosis import overfull
from prefect_cd.rollout.diagnosis.cause import ADMISSION_DRY_RUN, Category, Cause
from prefect_cd.rollout.diagnosis.container import containers
from prefect_cd.rollout.diagnosis.probes import allowance


def assess(
    observation: Observation,
    *,
    since: datetime,
    now: datetime,
    patience: Patience = DEFAULT,
    memory: Memory = NOTHING,
) -> Verdict:
    """The verdict on a rollout.

    Args:
        observation: the workload and all that belongs to it.
        since: just before the apply, aware; older troubles are not this rollout's.
        now: when the observation was made, aware.
        patience: how much trouble is still no doom.
        memory: that of the verdict before; without it, what only time shows (flapping, lost progress) is not seen.
    """
    clock = Clock(since, now, patience)
    case = build_context(observation, memory, clock)
    if case.memory.phase is Phase.FAILED:
        return _verdict(case, Phase.FAILED, case.memory.summary, case.memory.causes)
    if case.memory.phase is Phase.COMPLETE:
        return _afterwards(case)
    return _until_complete(case)


# --- before and after it is complete ---------------------------------------------------------------------------------


def _until_complete(case: Context) -> Verdict:
    progress, clock = case.progress, case.clock
    stopped = progress.stopped if progress.observed else None
    causes = clock.ranked(_causes(case), stopped or _stalled(case))
    if any(clock.dooms(cause) for cause in causes):
        return _verdict(case, Phase.FAILED, _why(causes, clock), causes)
    if not progress.observed:
        return _verdict(case, Phase.PROGRESSING, _unobserved(case.observation.workload), causes)
    unsettled = case.unsettled
    # the workload's own count may be older than its pods, or the list of pods than the count
    serving = not unsettled and progress.ready >= progress.wanted
    if progress.done and (progress.final or not progress.wanted or serving):
        if not (unreachable := clock.ranked(_unreached(case), None)):
            return _verdict(case, Phase.COMPLETE, progress.sentence, (), well=True)
        doomed = any(clock.dooms(cause) for cause in unreachable)
        said = (
            unreachable[0].summary if doomed else progress_message(progress, unreachable, case.pods, unsettled, clock)
        )
        return _verdict(case, Phase.FAILED if doomed else Phase.PROGRESSING, said, unreachable)
    return _verdict(case, Phase.PROGRESSING, progress_message(progress, causes, case.pods, unsettled, clock), causes)


def _afterwards(case: Context) -> Verdict:
    """What was complete stays so until its pods, or the way to them, prove it wrong.

    That the cluster has no room for a pod more, or no longer lets one be made, is not this revision's fault.
    """
    progress, clock = case.progress, case.clock
    if progress.final or not progress.wanted:
        return _verdict(case, Phase.COMPLETE, progress.sentence, (), well=True)
    unsettled = case.unsettled
    causes = [each for each in _causes(case) if each.category not in _NOT_ITS_FAULT]
    serving = progress.done and not unsettled and progress.ready >= progress.wanted
    bare = not case.pods and progress.observed  # then its own word is all there is
    ranked = clock.ranked([*causes, *(_unreached(case) if serving else ())], progress.stopped if bare else None)
    if any(clock.dooms(cause) for cause in ranked):
        return _verdict(case, Phase.FAILED, f"it was complete, but {_why(ranked, clock)}", ranked)
    said = (
        f"complete, but {progress_message(progress, ranked, case.pods, unsettled, clock)}"
        if ranked
        else progress.sentence
    )
    shaky = [pod for pod in unsettled if any(each.running or each.last_end for each in containers(pod))]
    well = not ranked and not shaky and (progress.done or not bare)
    return _verdict(case, Phase.COMPLETE, said, ranked, well=well)


_NOT_ITS_FAULT = (
    Category.UNSCHEDULABLE,
    Category.QUOTA,
    Category.NODE,
    Category.REGISTRY_UNREACHABLE,
    Category.BLOCKED,
)


def _verdict(case: Context, phase: Phase, summary: str, causes: Sequence[Cause], *, well: bool = False) -> Verdict:
    memory = replace(case.memory, phase=phase)
    if phase is Phase.FAILED:
        memory = replace(memory, summary=summary, causes=tuple(causes))
    progress = case.progress
    return Verdict(
        phase,
        summary,
        progress.ready,
        progress.wanted,
        tuple(causes),
        well=well,
        final=phase is Phase.COMPLETE and (progress.final or not progress.wanted),
        unchanged_since=max(filter(None, map(unchanged_since, case.pods)), default=None),
        memory=memory,
    )


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _causes(case: Context) -> list[Cause]:
    """What is wrong with the new pods, and with creating them; before the controller has looked, only the latter."""
    observation, progress = case.observation, case.progress
    if not progress.observed:
        return creation_problems(observation, Revision(None, ()), 0, progress)
    if progress.done and not progress.wanted:
        return []
    kind = kind_of(observation.workload)
    found = [cause for pod in case.pods for cause in _pod_causes(case, pod)]
    if not progress.done:
        found += creation_problems(observation, case.revision, len(case.pods), progress)
        found += [each for each in (overfull(case.revision.pods), case.memory.refusal) if each]
    told = (kind.weigh(cause, observation.workload) for cause in found)
    return [_borne(case, cause) for cause in told]


def _borne(case: Context, cause: Cause) -> Cause:
    """A trouble with what speaks for more patience."""
    cause = _while_others_move(case, _healing(cause, case.observation))
    return excused(cause, case.observation.company, case.clock.patience)


def _healing(cause: Cause, observation: Observation) -> Cause:
    """What was missing is there: the node or the controller only has to try again, after pauses that double."""
    if cause.proven or not cause.missing or cause.missing not in observation.present:
        return cause
    healed = "would be let in" if cause.missing.startswith(ADMISSION_DRY_RUN) else "is there"
    return replace(cause, trying=True, summary=f"{cause.summary} (it {healed} now, and has to be tried again)")


_NO_ROOM = (Category.UNSCHEDULABLE, Category.QUOTA, Category.VOLUME)


def _while_others_move(case: Context, cause: Cause) -> Cause:
    """No room for a pod is a trouble only when nothing else goes on.

    Its time begins with the last progress, and not before the pods that are leaving have left (what they hold is free
    then), and those that are coming up have had the time that their own settings give them.
    """
    if cause.category not in _NO_ROOM or cause.proven:
        return cause
    start = cause.since or case.clock.since
    begun = max(start, case.memory.best_at or start)
    left = [as_time(dig(pod, "metadata", "deletionTimestamp")) for pod in case.observation.pods]
    up = [
        each.up_since + allowance(each)
        for pod in case.pods
        for each in containers(pod)
        if each.up_since and not each.ready and not each.failures
    ]
    free = max([begun, *filter(None, left), *up])
    return replace(cause, since=begun, allowed=cause.allowed + (free - begun))


def _pod_causes(case: Context, pod: Object) -> list[Cause]:
    observation, memory = case.observation, case.remembered[uid_of(pod)]
    told = (adjusted(cause, pod, memory, case.clock) for cause in case.diagnoses[uid_of(pod)])
    found = [cause for cause in told if cause]
    flaps = flapping(pod, memory, observation.events)
    return [*(each for each in found if each.category is not Category.READINESS), flaps] if flaps else found


def _unreached(case: Context) -> list[Cause]:
    return (
        []
        if case.progress.final or not case.progress.wanted
        else unreachable_services(case.observation, case.pods, case.clock)
    )


def _stalled(case: Context) -> Cause | None:
    """Nothing has come further for a long time, and nobody has said why.

    The Deployment's own deadline counts anew with every pod that becomes ready once more; this one does not.
    """
    progress, clock, workload = case.progress, case.clock, case.observation.workload
    own = timedelta(seconds=as_int(dig(workload, "spec", "progressDeadlineSeconds")))
    limit = max(clock.patience.stall, own)
    if progress.held or (progress.done and progress.observed) or clock.elapsed(case.memory.best_at) < limit:
        return None
    if progress.final and any(each.running for pod in case.pods for each in containers(pod)):
        return None  # a Job may take its time
    if any(clock.elapsed(each.up_since) < allowance(each) for pod in case.pods for each in containers(pod)
           if each.running and not each.ready and not each.failures):  # fmt: skip
        return None
    minutes = round(limit.total_seconds() / 60)
    return Cause(
        category=Category.DEADLINE,
        summary=f"{kind_and_name(workload)} has come no further for {minutes} minutes ({progress.sentence})",
        evidence=progress.sentence,
        hint=f"kubectl -n {namespace_of(workload)} describe {kind_and_name(workload)}",
        object=kind_and_name(workload),
        proven=True,
    )


def _why(ranked: Sequence[Cause], clock: Clock) -> str:
    """Why it is doomed; where only the workload itself says so, with what may be behind it."""
    if clock.dooms(ranked[0]):
        return ranked[0].summary
    return f"{ranked[-1].summary}; {ranked[0].summary}"


def _unobserved(workload: Object) -> str:
    return f"the cluster has not looked at the new {kind_and_name(workload)} yet"
