"""Observe, judge, report, wait: the loop around `rollout.judge`.

It is driven by what changes: mirrors of the workloads and of all that belongs to them (`sight`) wake it, and a clock
that ticks while something counts down. A final word is spoken only after everything was listed anew, so that none
rests on a watch that hangs, and "complete" only after a last knock at the Services' ports. Logs are read only of what
failed. How long to go on is decided in `settling`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object, kind_and_name
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.pipeline.types import duration_text
from prefect_cd.rollout.assess import NO_PEERS, Memory, Patience, Peers, Phase, Verdict, assess, find_peers
from prefect_cd.rollout.diagnosis import Cause, containers
from prefect_cd.rollout.watch.crash_logs import CrashLogs
from prefect_cd.rollout.watch.informers import Informers, deleted, run_informers
from prefect_cd.rollout.watch.live_checks import LiveChecks
from prefect_cd.rollout.watch.related import WatchedWorkload, has_rollout
from prefect_cd.rollout.watch.report import (
    PodRow,
    Problem,
    Report,
    WorkloadRow,
    problem_of,
    rollout_failed,
    workload_row,
)
from prefect_cd.rollout.watch.soak import WatchState

_TICK_SECONDS = 0.25
_BREATH_SECONDS = 0.05
"""What changes together is judged together: one change of a rollout makes several objects change."""
_SHARE = 20
"""Of the time, at most one part in so many goes into judging by the clock."""
_CAUSES = 2
"""Troubles of one workload that are told at length."""
_LOST_AFTER = timedelta(seconds=1)
"""A shorter silence of the API server is not worth telling."""
_ABSENCE_SECONDS = 15.0


async def watch(
    cluster: Cluster,
    objects: Sequence[Object],
    settings: RolloutSettings,
    *,
    since: datetime,
    begun: datetime | None = None,
    on_change: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Watch every workload among `objects` until all are complete, and stay so for the settle time.

    What is complete at the first look has stood a part of that time already, by what its pods say.

    Args:
        cluster: where they run.
        objects: the applied set; what has no rollout is left out, Services are judged by where they lead.
        settings: the environment's timeout, settle time and patience.
        since: just before the objects were applied; what is older proves nothing about this rollout.
        begun: from when on the timeout counts; `since` unless given.
        on_change: called with the report whenever a workload's row changed, the API server was lost or found again, and
            with the last one.

    Raises:
        RolloutFailed: a workload will not come up, did not in time, or does not stay up.
        RolloutFailed: a workload is not there, or no longer.
        ClusterUnreachable: the API server was away for longer than the cluster's patience.
    """
    refs = [Ref.of(item) for item in objects if has_rollout(item)]
    services = [Ref.of(item) for item in objects if (item["apiVersion"], item["kind"]) == ("v1", "Service") and refs]
    async with run_informers(cluster, refs, services) as sight, AsyncExitStack() as stack:
        begun = begun or since
        course = WatchState(begun, looked=_now())
        looking = _Looking(cluster, sight, settings, since, begun, course)
        stack.push_async_callback(looking.words.close)
        told: Report | None = None
        while True:
            looking.look()
            if looking.asking.wants_to_knock(complete=looking.course.complete) and not looking.over:
                await looking.asking.knock()
                looking.look()
            if looking.over:
                await looking.make_sure()
            report = looking.report
            if looking.over or told is None or report.differs(told):
                told = report
                on_change(report)
            if looking.ended:
                raise await looking.doomed()
            if looking.settled:
                return report
            await sight.wait(_TICK_SECONDS)
            await asyncio.sleep(_BREATH_SECONDS)


@dataclass
class _Looking:
    """What is known of a rollout, look by look."""

    cluster: Cluster
    sight: Informers
    settings: RolloutSettings
    since: datetime
    begun: datetime
    course: WatchState
    verdicts: dict[Ref, Verdict] = field(default_factory=dict)
    words: CrashLogs = field(init=False)
    asking: LiveChecks = field(init=False)
    _memories: dict[Ref, Memory] = field(default_factory=dict)
    _rows: dict[Ref, WorkloadRow] = field(default_factory=dict)
    _absent: dict[Ref, datetime] = field(default_factory=dict)
    """Since when workloads that were there are not."""
    _due: float = 0.0

    def __post_init__(self) -> None:
        self.words = CrashLogs(self.cluster)
        self.asking = LiveChecks(self.cluster, self.sight)

    def look(self) -> None:
        """Judge what has changed, and by the clock what is not complete; nothing while the server is lost."""
        self.sight.check()
        now, began = _now(), time.monotonic()
        self.course = self.course.seen(now, lost_since=self.sight.lost_since)
        if self.sight.lost_since:
            return
        due = began >= self._due
        patience = Patience.by(self.settings).longer(self.course.blind)
        others = find_peers(self.verdicts, patience)
        for subject in self.sight.subjects:
            verdict = self.verdicts.get(subject.ref)
            if subject.stale or verdict is None or (due and not verdict.well):
                self._judge(subject, now, patience, others.get(subject.ref, NO_PEERS))
        if due:
            spent = time.monotonic() - began
            self._due = began + max(_TICK_SECONDS, _SHARE * spent)
        self.course = self.course.judged(list(self.verdicts.values()), now)

    def _judge(self, subject: WatchedWorkload, now: datetime, patience: Patience, others: Peers) -> None:
        try:
            seen = self.sight.observe(subject)
        except RolloutFailed:
            self._missed(subject, now)
            return
        self._absent.pop(subject.ref, None)
        logs = self.words.of(seen.pods, lambda: self.sight.tell(subject))
        knocks = self.asking.knocks.get(subject.ref, ())
        observation = replace(seen, logs=logs, knocks=knocks, company=others)
        memory = self._memories.get(subject.ref, Memory())
        verdict = assess(observation, since=self.since, now=now, patience=patience, memory=memory)
        self.verdicts[subject.ref] = verdict
        self._rows[subject.ref] = workload_row(subject.ref, observation, verdict)
        if verdict.phase is not Phase.FAILED:  # doom is remembered for ever, so it must be certain first
            self._memories[subject.ref] = verdict.memory

    def _missed(self, subject: WatchedWorkload, now: datetime) -> None:
        """A workload that was deleted may come back at once: `kubectl replace --force`, a Job that is run again.

        Raises:
            RolloutFailed: it did not, in time.
        """
        since = self._absent.setdefault(subject.ref, now)
        left = _ABSENCE_SECONDS + self.course.blind.total_seconds() - (now - since).total_seconds()
        if left <= 0:
            raise deleted(subject.ref)
        said = f"it was deleted; does it come back? (given up in {left:.0f} s)"
        verdict = Verdict(Phase.PROGRESSING, said)
        self.verdicts[subject.ref] = verdict
        self._rows[subject.ref] = WorkloadRow(
            workload=str(subject.ref), phase=verdict.phase, summary=said, ready=0, wanted=0, pods=()
        )

    async def make_sure(self) -> None:
        """Before a final word: list everything anew, see who listens, and whether what is missing came meanwhile."""
        await self.sight.look()
        self.look()
        if self.ended and await self.words.known():
            self.look()
        if self.settled and self.asking.may_knock:
            await self.asking.knock()
            self.look()
        if self.ended and await self.asking.found_missing(self.verdicts):
            self.look()

    @property
    def ended(self) -> str:
        """Why the answer is no: `doomed` or `late`; empty while it is not."""
        if self.sight.lost_since:
            return ""
        if any(verdict.phase == Phase.FAILED for verdict in self.verdicts.values()):
            return "doomed"
        return "late" if self.course.late(self.settings, self.course.looked) else ""

    @property
    def settled(self) -> bool:
        """Whether everything is complete, and has been for long enough."""
        return not self.sight.lost_since and self.course.settles_in(self.settings, self.course.looked) == timedelta()

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return bool(self.ended or self.settled)

    @property
    def report(self) -> Report:
        """How everything stands."""
        lost = self.sight.lost_since
        return Report(
            workloads=tuple(self._rows.values()),
            seconds=(self.course.looked - self.begun).total_seconds(),
            completed_at=self.course.calm_since if self.course.complete else None,
            lost_since=lost if lost and self.course.looked - lost >= _LOST_AFTER else None,
        )

    async def doomed(self) -> RolloutFailed:
        """The error that says why, with the last words of what failed."""
        subjects, verdicts = self.sight.subjects, self.verdicts
        fallen = [each for each in subjects if verdicts[each.ref].phase is Phase.FAILED]
        if fallen:
            blamed = fallen + [each for each in subjects if each not in fallen and self._crashes(each)]
        else:
            blamed = [each for each in subjects if not verdicts[each.ref].well]
        causes = [(each, cause) for each in blamed for cause in verdicts[each.ref].causes[:_CAUSES]]
        words = await asyncio.gather(*(self._words(*each) for each in causes))
        troubles = [problem_of(each.ref, cause, said) for (each, cause), said in zip(causes, words, strict=True)]
        if fallen:
            return rollout_failed(self.report, troubles, verdicts[fallen[0].ref].summary)
        why = troubles[0].summary if troubles else self.report.summary
        return rollout_failed(self.report, troubles, f"not up after {duration_text(self.settings.timeout)}: {why}")

    def _crashes(self, subject: WatchedWorkload) -> bool:
        """Whether it has crashed often enough for doom: excused by one that is doomed, it may be why that one is."""
        causes = self.verdicts[subject.ref].causes
        return any(cause.counts and cause.times >= self.settings.crashes for cause in causes)

    async def _words(self, subject: WatchedWorkload, cause: Cause) -> str:
        if subject.ref in self._absent:
            return ""
        for pod in self.sight.observe(subject).pods:
            for each in containers(pod):
                if (kind_and_name(pod), each.name) == (cause.object, cause.container):
                    return await self.words.said(each)
        return ""


def _now() -> datetime:
    return datetime.now(timezone.utc)


__all__ = ["PodRow", "Problem", "Report", "WorkloadRow", "watch"]
