"""The state of a rollout, as others read it: rows of workloads and pods, problems, and the error that carries them.

Pure. `rollout.assess` makes the verdicts and `rollout.diagnosis` the sentences; a report only arranges them, and masks
secrets in what pods, nodes and controllers wrote.
"""

from collections.abc import Sequence
from datetime import datetime

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.objects import Object, condition_holds
from prefect_cd.kube.resources import Ref
from prefect_cd.masking import Mask
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
    summary_without_seconds: str = ""
    """The summary with … in place of seconds that change all the time; empty where it has none."""


class Problem(Result):
    """Why a rollout failed: one cause of one workload, with the log of what failed."""

    workload: str
    category: str
    summary: str
    evidence: str
    hint: str
    where: str
    logs: str = ""


class Report(Result):
    """The state of a rollout, or how it ended."""

    workloads: tuple[WorkloadRow, ...]
    problems: tuple[Problem, ...] = ()
    seconds: float
    completed_at: datetime | None = None
    """Since when all workloads have been complete, without problems."""
    lost_since: datetime | None = None
    """Since when the API server has not answered: the rows are of that time."""

    @property
    def complete(self) -> bool:
        """Whether every workload is complete."""
        return all(row.phase == Phase.COMPLETE for row in self.workloads)

    @property
    def summary(self) -> str:
        """One sentence about all workloads."""
        return self._sentence([row.summary for row in self.workloads])

    @property
    def summary_without_seconds(self) -> str:
        """The summary with … in place of seconds that change all the time: shown again only when this changes."""
        return self._sentence([row.summary_without_seconds or row.summary for row in self.workloads])

    def _sentence(self, summaries: Sequence[str]) -> str:
        rows = [f"{row.workload}: {summary}" for row, summary in zip(self.workloads, summaries, strict=True)]
        text = "; ".join(rows) or "no workload to wait for"
        return f"{self.lost}; last seen: {text}" if self.lost else text

    @property
    def lost(self) -> str:
        """Since when the API server has not answered, in words; empty while it answers."""
        return f"the API server has not answered since {self.lost_since:%H:%M:%S} UTC" if self.lost_since else ""

    def differs(self, before: "Report") -> bool:
        """Whether it shows something that the report before did not."""
        return (self.workloads, self.lost_since) != (before.workloads, before.lost_since)

    @property
    def percent(self) -> float:
        """Ready replicas of wanted ones, 0 to 100."""
        wanted = sum(row.wanted for row in self.workloads)
        ready = sum(min(row.ready, row.wanted) for row in self.workloads)
        return 100.0 * ready / wanted if wanted else 100.0


def report_of(error: RolloutFailed) -> Report | None:
    """The report that a failed rollout carries; None when there was nothing to observe."""
    return error.report if isinstance(error.report, Report) else None


def masked(row: WorkloadRow, mask: Mask) -> WorkloadRow:
    """A row without secrets: its summary quotes messages of the cluster."""
    texts = {"summary": mask(row.summary), "summary_without_seconds": mask(row.summary_without_seconds)}
    return row.model_copy(update=texts)


def workload_row(ref: Ref, observation: Observation | None, verdict: Verdict) -> WorkloadRow:
    """One workload as a report shows it; without an observation, it has no pods."""
    pods = observation.pods if observation else ()
    return WorkloadRow(
        workload=str(ref),
        phase=verdict.phase,
        summary=verdict.summary,
        ready=verdict.ready,
        wanted=verdict.wanted,
        pods=tuple(sorted(map(pod_row, pods), key=lambda row: row.name)),
        summary_without_seconds=verdict.summary_without_seconds,
    )


def pod_row(pod: Object) -> PodRow:
    """One pod, with its state in one word."""
    status = pod.get("status") or {}
    terminating = "deletionTimestamp" in pod["metadata"]
    return PodRow(
        name=pod["metadata"]["name"],
        ready=condition_holds(pod, "Ready") and not terminating,
        state="Terminating" if terminating else _pod_state(status),
        since=status.get("startTime") or pod["metadata"].get("creationTimestamp"),
    )


def _pod_state(status: Object) -> str:
    """Why a container does not run; else the reason or the phase of the pod."""
    for container in status.get("containerStatuses") or []:
        if reason := _why_stopped(container.get("state") or {}):
            return reason
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _why_stopped(state: Object) -> str:
    """Why a container does not run; empty while it runs, or when it has succeeded."""
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    if exit_code := terminated.get("exitCode"):
        return f"{terminated.get('reason') or 'Error'} (exit code {exit_code})"
    return str(waiting.get("reason") or "")


def problem_of(ref: Ref, cause: Cause, logs: str, mask: Mask) -> Problem:
    """One cause as a report shows it, without secrets; those in `logs` are masked already."""
    return Problem(
        workload=str(ref),
        category=cause.category.value,
        summary=mask(cause.summary),
        evidence=mask(cause.evidence),
        hint=mask(cause.hint),
        where=f"{cause.object} in {ref.namespace}",
        logs=logs.strip(),
    )


def rollout_failed(report: Report, problems: Sequence[Problem], reason: str) -> RolloutFailed:
    """The error about a failed rollout, with the evidence and the hint of the first problem."""
    first = problems[0] if problems else None
    return RolloutFailed(
        reason,
        report=report.model_copy(update={"problems": tuple(problems)}),
        where=first.where if first else "",
        detail="\n".join(filter(None, [first.evidence, first.logs])) if first else "",
        hint=first.hint if first else "look at the pods' events: `kubectl describe`",
    )


__all__ = [
    "PodRow",
    "Problem",
    "Report",
    "WorkloadRow",
    "masked",
    "pod_row",
    "problem_of",
    "report_of",
    "rollout_failed",
    "workload_row",
]
