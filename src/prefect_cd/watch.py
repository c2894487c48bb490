"""Observe, judge, report, wait: the loop around `rollout.judge`, and what it leaves as a report.

It reads workloads, their revisions and pods, and events about them; logs only of what failed. The verdict is made in
`rollout`, the words in `diagnosis`.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone

from prefect_cd.apply import parallel
from prefect_cd.cluster import Cluster, Ref
from prefect_cd.diagnosis import Cause
from prefect_cd.errors import RolloutFailed
from prefect_cd.pipeline import RolloutSettings, duration_text
from prefect_cd.release import Object, Result
from prefect_cd.rollout import Observation, Patience, Phase, Verdict, judge

_LOOK_EVERY_SECONDS = 1.0
_BLIND_AFTER = timedelta(seconds=5)
_LOG_LINES = 30
_LOG_ATTEMPTS = 3
_REVISIONS = {"Deployment": "ReplicaSet", "StatefulSet": "ControllerRevision", "DaemonSet": "ControllerRevision"}
_WATCHED = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job"})
_BUILT_IN_GROUPS = frozenset({"", "apps", "batch", "autoscaling", "policy"})


class PodRow(Result):
    """One pod, as a table shows it."""

    name: str
    ready: bool
    state: str
    since: datetime | None


class Watched(Result):
    """One workload, its verdict and its pods."""

    workload: str
    phase: Phase
    summary: str
    ready: int
    wanted: int
    pods: tuple[PodRow, ...]


class Trouble(Result):
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

    workloads: tuple[Watched, ...]
    troubles: tuple[Trouble, ...] = ()
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every workload is."""
        return all(each.phase == Phase.COMPLETE for each in self.workloads)

    @property
    def summary(self) -> str:
        """One sentence over all workloads."""
        return "; ".join(f"{each.workload}: {each.summary}" for each in self.workloads) or "no workload to wait for"

    @property
    def percent(self) -> float:
        """Ready replicas of wanted ones, 0 to 100."""
        wanted = sum(each.wanted for each in self.workloads)
        return 100.0 * sum(min(each.ready, each.wanted) for each in self.workloads) / wanted if wanted else 100.0


class RolloutDoomed(RolloutFailed):
    """A rollout that will not come up; carries the report."""

    def __init__(self, report: Report, reason: str, *, hint: str, where: str, detail: str) -> None:
        super().__init__(reason, hint=hint, where=where, detail=detail)
        self.report = report


async def watch(
    cluster: Cluster,
    objects: Sequence[Object],
    settings: RolloutSettings,
    *,
    since: datetime,
    on_change: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Watch every workload among `objects` until all are complete.

    Args:
        cluster: where they run.
        objects: the applied set; what has no rollout is left out.
        settings: the environment's timeout and patience.
        since: just before the objects were applied; what is older proves nothing about this rollout.
        on_change: called with the report whenever a sentence in it changed.

    Raises:
        RolloutDoomed: a workload will not come up, or did not in time.
    """
    refs = [Ref.of(item) for item in objects if _has_rollout(item)]
    said = ""
    looked, blind = datetime.now(timezone.utc), timedelta()
    while True:
        events = await _all_events(cluster, refs)
        seen = await parallel(_observe(cluster, ref, events) for ref in refs)
        now = datetime.now(timezone.utc)
        looked, blind = now, blind + unseen(looked, now)
        patience = Patience(crashes=settings.crashes, heal=settings.patience + blind)
        verdicts = [judge(each, since=since, now=now, patience=patience) for each in seen]
        report = _report(refs, seen, verdicts, (now - since).total_seconds())
        if report.summary != said:
            said = report.summary
            on_change(report)
        if any(verdict.phase == Phase.DOOMED for verdict in verdicts):
            raise await _doomed(cluster, report, refs, verdicts)
        if all(verdict.phase == Phase.COMPLETE for verdict in verdicts):
            return report
        if now - since > settings.timeout + blind:
            raise await _doomed(cluster, report, refs, verdicts, f"not up after {duration_text(settings.timeout)}: ")
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


def unseen(looked: datetime, now: datetime) -> timedelta:
    """The time between two looks that nobody may be blamed for: the API server, or we, were away.

    While it was away no pod could heal in a way that we, or the controllers, would have seen.
    """
    gap = now - looked
    return gap if gap > _BLIND_AFTER else timedelta()


def _has_rollout(item: Object) -> bool:
    group = item["apiVersion"].rpartition("/")[0]
    custom = group not in _BUILT_IN_GROUPS and not group.endswith(".k8s.io")
    return item["kind"] in _WATCHED or custom


async def _all_events(cluster: Cluster, refs: Sequence[Ref]) -> dict[str, list[Object]]:
    """The events of each namespace, listed once for all of its workloads."""
    namespaces = sorted({ref.namespace for ref in refs if ref.kind in _WATCHED})
    kind = await cluster.kind("v1", "Event")
    return dict(zip(namespaces, await parallel(cluster.list(kind, each) for each in namespaces), strict=True))


async def _observe(cluster: Cluster, ref: Ref, events: Mapping[str, Sequence[Object]]) -> Observation:
    workload = await cluster.get(ref)
    if workload is None:
        raise RolloutFailed(
            "it is gone", where=f"{ref} in {ref.namespace}", hint="somebody deleted it during the rollout"
        )
    if ref.kind not in _WATCHED:
        return Observation(workload)
    selector = _selector(workload["spec"].get("selector") or {})
    pods = await cluster.list(await cluster.kind("v1", "Pod"), ref.namespace, labels=selector)
    revisions: list[Object] = []
    if ref.kind in _REVISIONS:
        kind = await cluster.kind("apps/v1", _REVISIONS[ref.kind])
        found = await cluster.list(kind, ref.namespace, labels=selector)
        revisions = [each for each in found if _owned(each, workload["metadata"]["uid"])]
    uids = {each["metadata"]["uid"] for each in (workload, *revisions, *pods)}
    about = tuple(event for event in events[ref.namespace] if event["involvedObject"].get("uid") in uids)
    return Observation(workload, tuple(revisions), tuple(pods), about)


def _selector(selector: Object) -> str:
    """A LabelSelector object in the words of a query."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    words = {
        "In": "{key} in ({values})",
        "NotIn": "{key} notin ({values})",
        "Exists": "{key}",
        "DoesNotExist": "!{key}",
    }
    parts += [
        words[each["operator"]].format(key=each["key"], values=",".join(each.get("values") or []))
        for each in selector.get("matchExpressions") or []
    ]
    return ",".join(parts)


def _owned(item: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or [])


def _report(refs: Sequence[Ref], seen: Sequence[Observation], verdicts: Sequence[Verdict], seconds: float) -> Report:
    rows = [
        Watched(
            workload=str(ref),
            phase=verdict.phase,
            summary=verdict.summary,
            ready=verdict.ready,
            wanted=verdict.wanted,
            pods=tuple(sorted(map(_row, observation.pods), key=lambda row: row.name)),
        )
        for ref, observation, verdict in zip(refs, seen, verdicts, strict=True)
    ]
    return Report(workloads=tuple(rows), seconds=seconds)


def _row(pod: Object) -> PodRow:
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    waiting = [(each.get("state") or {}).get("waiting") or {} for each in containers]
    reasons = [each["reason"] for each in waiting if each.get("reason")]
    leaving = "deletionTimestamp" in pod["metadata"]
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or [])
    return PodRow(
        name=pod["metadata"]["name"],
        ready=ready and not leaving,
        state="Terminating" if leaving else (reasons or [status.get("reason") or status.get("phase") or "Unknown"])[0],
        since=status.get("startTime") or pod["metadata"].get("creationTimestamp"),
    )


async def _doomed(
    cluster: Cluster, report: Report, refs: Sequence[Ref], verdicts: Sequence[Verdict], prefix: str = ""
) -> RolloutDoomed:
    troubles = [
        await _trouble(cluster, ref, cause)
        for ref, verdict in zip(refs, verdicts, strict=True)
        if verdict.phase != Phase.COMPLETE
        for cause in verdict.causes[:2]
    ]
    told = report.model_copy(update={"troubles": tuple(troubles)})
    first = troubles[0] if troubles else None
    return RolloutDoomed(
        told,
        prefix + (first.summary if first else report.summary),
        where=first.where if first else "",
        detail="\n".join(filter(None, [first.evidence, first.logs])) if first else "",
        hint=first.hint if first else "look at the pods' events: `kubectl describe`",
    )


async def _last_words(cluster: Cluster, namespace: str, pod: str, container: str) -> str:
    """The log of the instance that ended, or of the one that runs.

    Between two crashes the node has thrown the one away and not begun the other: it is asked again for a moment.
    """
    for _ in range(_LOG_ATTEMPTS):
        for previous in (True, False):
            logs = await cluster.logs(namespace, pod, container, previous=previous, lines=_LOG_LINES)
            if logs.strip():
                return logs
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    return ""


async def _trouble(cluster: Cluster, ref: Ref, cause: Cause) -> Trouble:
    kind, _, name = cause.object.partition("/")
    logs = await _last_words(cluster, ref.namespace, name, cause.container) if cause.container and kind == "pod" else ""
    return Trouble(
        workload=str(ref),
        category=cause.category.value,
        summary=cause.summary,
        evidence=cause.evidence,
        hint=cause.hint,
        where=f"{cause.object} in {ref.namespace}",
        logs=logs.strip(),
    )
