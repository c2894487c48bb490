"""How a rollout stands, as others read it: rows of workloads and pods, troubles, and the error that carries them.

Pure. The verdict is made in `rollout`, the words in `diagnosis`; here they only get their place.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.release.model import Result
from prefect_cd.rollout.assess import Observation, Phase, Verdict
from prefect_cd.rollout.diagnosis import Cause


class PodRow(Result):
    """One pod, as a table shows it."""

    name: str
    ready: bool
    state: str
    since: datetime | None


class WorkloadRow(Result):
    """One workload, its verdict and its pods."""

    workload: str
    phase: Phase
    summary: str
    ready: int
    wanted: int
    pods: tuple[PodRow, ...]


class Problem(Result):
    """Why a workload will not come up, with the last words of what failed."""

    workload: str
    category: str
    summary: str
    evidence: str
    hint: str
    where: str
    logs: str = ""


class Report(Result):
    """How a rollout stands, or how it ended."""

    workloads: tuple[WorkloadRow, ...]
    troubles: tuple[Problem, ...] = ()
    seconds: float
    completed_at: datetime | None = None
    """Since when everything has been complete and out of trouble."""
    lost_since: datetime | None = None
    """Since when the API server has not answered: what is told of the workloads is as old as that."""

    @property
    def complete(self) -> bool:
        """Whether every workload is."""
        return all(each.phase == Phase.COMPLETE for each in self.workloads)

    @property
    def summary(self) -> str:
        """One sentence over all workloads."""
        told = "; ".join(f"{each.workload}: {each.summary}" for each in self.workloads) or "no workload to wait for"
        return f"{self.lost}; last seen: {told}" if self.lost else told

    @property
    def lost(self) -> str:
        """That nothing new is known, and since when; empty while we are in touch."""
        return f"the API server has not answered since {self.lost_since:%H:%M:%S} UTC" if self.lost_since else ""

    @property
    def gist(self) -> str:
        """The summary without its seconds: what has to be said again only when it changes."""
        return re.sub(r"\b\d+ s\b", "… s", self.summary)

    def differs(self, before: "Report") -> bool:
        """Whether it has something to show that the one before had not."""
        return (self.workloads, self.lost_since) != (before.workloads, before.lost_since)

    @property
    def percent(self) -> float:
        """Ready replicas of wanted ones, 0 to 100."""
        wanted = sum(each.wanted for each in self.workloads)
        return 100.0 * sum(min(each.ready, each.wanted) for each in self.workloads) / wanted if wanted else 100.0


def report_of(error: RolloutFailed) -> Report | None:
    """The report that a failed rollout carries; None when there was nothing to look at."""
    return error.report if isinstance(error.report, Report) else None


def workload_row(ref: Ref, observation: Observation, verdict: Verdict) -> WorkloadRow:
    """One workload as a report shows it."""
    return WorkloadRow(
        workload=str(ref),
        phase=verdict.phase,
        summary=verdict.summary,
        ready=verdict.ready,
        wanted=verdict.wanted,
        pods=tuple(sorted(map(pod_row, observation.pods), key=lambda each: each.name)),
    )


def pod_row(pod: Object) -> PodRow:
    """One pod with the word that says most about it."""
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    reasons = [said for each in containers if (said := _stopped(each.get("state") or {}))]
    leaving = "deletionTimestamp" in pod["metadata"]
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or [])
    return PodRow(
        name=pod["metadata"]["name"],
        ready=ready and not leaving,
        state="Terminating" if leaving else (reasons or [status.get("reason") or status.get("phase") or "Unknown"])[0],
        since=status.get("startTime") or pod["metadata"].get("creationTimestamp"),
    )


def _stopped(state: Object) -> str:
    """Why a container does not run; empty while it does, or has done its work."""
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if code := ended.get("exitCode"):
        return f"{ended.get('reason') or 'Error'} (exit code {code})"
    return str(waiting.get("reason") or "")


def problem_of(ref: Ref, cause: Cause, logs: str) -> Problem:
    """One cause as a report shows it."""
    return Problem(
        workload=str(ref),
        category=cause.category.value,
        summary=cause.summary,
        evidence=cause.evidence,
        hint=cause.hint,
        where=f"{cause.object} in {ref.namespace}",
        logs=logs.strip(),
    )


def rollout_failed(report: Report, troubles: Sequence[Problem], reason: str) -> RolloutFailed:
    """The error that says why, in one sentence, with the evidence and the next step of the first trouble."""
    first = troubles[0] if troubles else None
    return RolloutFailed(
        reason,
        report=report.model_copy(update={"troubles": tuple(troubles)}),
        where=first.where if first else "",
        detail="\n".join(filter(None, [first.evidence, first.logs])) if first else "",
        hint=first.hint if first else "look at the pods' events: `kubectl describe`",
    )


__all__ = [
    "PodRow",
    "Problem",
    "Report",
    "WorkloadRow",
    "pod_row",
    "problem_of",
    "report_of",
    "rollout_failed",
    "workload_row",
]
