"""The verdict on a Job that the cluster has removed because it had ended (`ttlSecondsAfterFinished`).

Its events outlive it: the controller writes one when a Job fails or completes (kubernetes/kubernetes
`pkg/controller/job/job_controller.go`, `recordJobFinished`).
"""

from collections.abc import Sequence
from datetime import datetime

from prefect_cd.kube.objects import Object, as_text, last_time, with_reason
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.assess.model import Phase, Verdict
from prefect_cd.rollout.diagnosis.cause import Category, Cause

_COMPLETED = "Completed"
_FAILED = ("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy", "FailedIndexes", "MaxFailedIndexesExceeded")


def assess_removed(ref: Ref, events: Sequence[Object], earlier: Verdict | None, since: datetime) -> Verdict | None:
    """The verdict on a Job that is gone; None when it may have been deleted before it ended.

    Args:
        ref: the Job.
        events: about Jobs of its name.
        earlier: the previous verdict; None when the Job was gone from the beginning.
        since: just before the apply; older events are about an earlier Job of this name.
    """
    began = since.replace(microsecond=0)  # the times of events are whole seconds
    ends = with_reason(events, _COMPLETED, *_FAILED)
    ends = sorted((end for end in ends if (at := last_time(end)) and at >= began), key=lambda end: str(last_time(end)))
    if ends and ends[-1]["reason"] != _COMPLETED:
        return _failed(ref, ends[-1])
    if ends or earlier is None or earlier.phase is Phase.COMPLETE:
        summary = "it has ended, and the cluster has removed it"
        return Verdict(Phase.COMPLETE, summary, 1, 1, healthy=True, final=True)
    return None


def _failed(ref: Ref, event: Object) -> Verdict:
    evidence = f"{event['reason']}: {as_text(event.get('message'))}"
    cause = Cause(
        category=Category.CRASH,
        fact=f"{ref} failed ({evidence}), and the cluster has removed it",
        evidence=evidence,
        hint="raise its ttlSecondsAfterFinished, so that its log can be read",
        object=str(ref),
        permanent=True,
        since=last_time(event),
        last_seen=last_time(event),
    )
    return Verdict(Phase.FAILED, cause.summary, 0, 1, (cause,))


__all__ = ["assess_removed"]
