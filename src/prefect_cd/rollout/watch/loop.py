"""Watches a rollout to its end: observe, assess, report, wait.

Driven by changes: informers of the workloads and of all related objects (`informers`) wake the loop, and so does a
clock while something counts down. No verdict is final before everything has been listed again, so that none rests on a
watch that hangs, nor "complete" before a last check of the Services' ports. Logs are read only of runs that failed. How
long to watch is decided in `soak`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object, kind_and_name
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.pipeline.types import duration_text
from prefect_cd.rollout.assess import (
    NO_PEERS,
    Memory,
    Patience,
    Peers,
    Phase,
    Verdict,
    assess,
    assess_removed,
    find_peers,
)
from prefect_cd.rollout.diagnosis import Cause, containers
from prefect_cd.rollout.watch.crash_logs import CrashLogs
from prefect_cd.rollout.watch.informers import Informers, deleted_error, run_informers
from prefect_cd.rollout.watch.live_checks import LiveChecks
from prefect_cd.rollout.watch.related import WatchedWorkload, has_rollout, removes_itself
from prefect_cd.rollout.watch.report import (
    PodRow,
    Problem,
    Report,
    WorkloadRow,
    masked,
    problem_of,
    rollout_failed,
    workload_row,
)
from prefect_cd.rollout.watch.secret_values import SecretValues
from prefect_cd.rollout.watch.soak import WatchState

_TICK_SECONDS = 0.25
_BATCH_SECONDS = 0.05
"""One step of a rollout changes several objects: changes within this time are assessed together."""
_CLOCK_SHARE = 20
"""Assessments that only the clock triggers may take at most 1/20 of the time."""
_MAX_CAUSES = 2
"""Causes of one workload that become problems of the report."""
_LOST_AFTER = timedelta(seconds=1)
"""A shorter silence of the API server is not reported."""
_DELETED_SECONDS = 15.0
"""How long a deleted workload may take to be created again."""


async def watch(
    cluster: Cluster,
    objects: Sequence[Object],
    settings: RolloutSettings,
    *,
    since: datetime,
    started_at: datetime | None = None,
    on_change: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Watch every workload among `objects` until all are complete, and stay complete for the settle time.

    Workloads that are complete at first have completed a part of that time, by the state of their pods.

    Args:
        cluster: where they run.
        objects: the applied set; objects without a rollout are ignored, Services are assessed by their endpoints.
        settings: the environment's timeout, settle time and patience.
        since: just before the objects were applied; what is older proves nothing about this rollout.
        started_at: when the timeout starts to count; by default `since`.
        on_change: called with the report whenever a workload's row changed or the API server was lost or found again,
            and with the last report.

    Raises:
        RolloutFailed: a workload failed, was not complete in time, or did not stay complete.
        RolloutFailed: a workload does not exist, or no longer.
        ClusterUnreachable: the API server was unreachable for longer than the cluster's patience.
    """
    refs = [Ref.of(item) for item in objects if has_rollout(item)]
    services = [Ref.of(item) for item in objects if (item["apiVersion"], item["kind"]) == ("v1", "Service") and refs]
    temporary = frozenset(Ref.of(item) for item in objects if removes_itself(item))
    async with run_informers(cluster, refs, services, temporary) as informers:
        started_at = started_at or since
        state = WatchState(started_at, updated_at=_now())
        secrets = SecretValues(cluster, objects)
        rollout = _WatchedRollout(cluster, informers, settings, since, started_at, state, secrets, temporary)
        try:
            return await _watch_to_end(rollout, on_change)
        finally:
            await rollout.logs.close()


async def _watch_to_end(rollout: "_WatchedRollout", on_change: Callable[[Report], None]) -> Report:
    last_report: Report | None = None
    while True:
        rollout.assess()
        if rollout.checks.port_check_is_due(complete=rollout.state.complete) and not rollout.has_ended:
            await rollout.checks.check_ports()
            rollout.assess()
        if rollout.has_ended:
            await rollout.confirm()
        await rollout.learn_secrets()
        report = rollout.report
        if rollout.has_ended or last_report is None or report.differs(last_report):
            last_report = report
            on_change(report)
        if rollout.has_failed:
            raise await rollout.failure()
        if rollout.is_stable:
            return report
        await rollout.informers.wait_for_change(_TICK_SECONDS)
        await asyncio.sleep(_BATCH_SECONDS)


@dataclass
class _WatchedRollout:
    """A rollout with its latest verdicts, and what is remembered for the next ones."""

    cluster: Cluster
    informers: Informers
    settings: RolloutSettings
    since: datetime
    started_at: datetime
    state: WatchState
    secrets: SecretValues
    temporary: frozenset[Ref] = frozenset()
    """Jobs that the cluster removes once they have ended."""
    verdicts: dict[Ref, Verdict] = field(default_factory=dict)
    logs: CrashLogs = field(init=False)
    checks: LiveChecks = field(init=False)
    _memories: dict[Ref, Memory] = field(default_factory=dict)
    _rows: dict[Ref, WorkloadRow] = field(default_factory=dict)
    _with_problems: dict[Ref, tuple[Object, ...]] = field(default_factory=dict)
    """Workloads with problems, each with its pods: their messages are shown."""
    _deleted_since: dict[Ref, datetime] = field(default_factory=dict)
    _next_by_clock: float = 0.0

    def __post_init__(self) -> None:
        self.logs = CrashLogs(self.cluster, self.secrets)
        self.checks = LiveChecks(self.cluster, self.informers)

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def assess(self) -> None:
        """Assess the workloads that have changed, and by the clock those with a countdown; none without the server."""
        self.informers.raise_errors()
        now, began = _now(), time.monotonic()
        self.state = self.state.after_observation(now, lost_since=self.informers.lost_since)
        if self.informers.lost_since:
            return
        by_clock = began >= self._next_by_clock
        patience = Patience.from_settings(self.settings).extended_by(self.state.unobserved)
        peers = find_peers(self.verdicts, patience)
        for watched in self.informers.workloads:
            verdict = self.verdicts.get(watched.ref)
            if watched.stale or verdict is None or (by_clock and not verdict.healthy):
                self._assess(watched, now, patience, peers.get(watched.ref, NO_PEERS))
        if by_clock:
            self._next_by_clock = began + max(_TICK_SECONDS, _CLOCK_SHARE * (time.monotonic() - began))
        self.state = self.state.after_verdicts(list(self.verdicts.values()), now)

    def _assess(self, watched: WatchedWorkload, now: datetime, patience: Patience, peers: Peers) -> None:
        ref = watched.ref
        try:
            observation = self.informers.observe(watched)
        except RolloutFailed:
            self._assess_without(ref, now)
            return
        self._deleted_since.pop(ref, None)
        observation = replace(
            observation,
            logs=self.logs.available(observation.pods, lambda: self.informers.mark_changed(watched)),
            port_results=self.checks.port_results.get(ref, ()),
            peers=peers,
        )
        memory = self._memories.get(ref, Memory())
        verdict = assess(observation, since=self.since, now=now, patience=patience, memory=memory)
        self.verdicts[ref] = verdict
        self._rows[ref] = workload_row(ref, observation, verdict)
        self._with_problems[ref] = (observation.workload, *observation.pods) if verdict.causes else ()
        # a failure is final once it is remembered, so it must be confirmed first
        if verdict.phase is not Phase.FAILED:
            self._memories[ref] = verdict.memory

    def _assess_without(self, ref: Ref, now: datetime) -> None:
        """Assess a workload that is gone.

        Raises:
            RolloutFailed: as by `_tolerate_deletion`.
        """
        events = self.informers.events_of(ref)
        verdict = assess_removed(ref, events, self.verdicts.get(ref), self.since) if ref in self.temporary else None
        if verdict is None:
            self._tolerate_deletion(ref, now)
            return
        self._deleted_since.setdefault(ref, now)
        self.verdicts[ref] = verdict
        self._rows[ref] = workload_row(ref, None, verdict)

    def _tolerate_deletion(self, ref: Ref, now: datetime) -> None:
        """Wait for a deleted workload: `kubectl replace --force` and a Job that runs again create it anew.

        Raises:
            RolloutFailed: it was not created again in time.
        """
        deleted_since = self._deleted_since.setdefault(ref, now)
        remaining = timedelta(seconds=_DELETED_SECONDS) + self.state.unobserved - (now - deleted_since)
        if remaining <= timedelta():
            raise deleted_error(ref)
        text = "it was deleted; waiting for it to be created again (fails in {} s)"
        verdict = Verdict(
            Phase.PROGRESSING,
            text.format(f"{remaining.total_seconds():.0f}"),
            summary_without_seconds=text.format("…"),
        )
        self.verdicts[ref] = verdict
        self._rows[ref] = workload_row(ref, None, verdict)

    async def confirm(self) -> None:
        """Confirm that the rollout has ended.

        Everything is listed again, the ports are checked again, and the logs and missing objects that may change a
        failure are waited for.
        """
        await self.informers.refresh()
        self.assess()
        if self.has_failed and await self.logs.wait():
            self.assess()
        if self.is_stable and self.checks.can_check_ports:
            await self.checks.check_ports()
            self.assess()
        if self.has_failed and await self.checks.find_missing(self.verdicts):
            self.assess()

    async def learn_secrets(self) -> None:
        """Read the Secrets of workloads whose messages are shown, so that these can be masked."""
        if not self.informers.lost_since:
            await self.secrets.learn(item for items in self._with_problems.values() for item in items)

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def has_failed(self) -> bool:
        """Whether a workload has failed, or the timeout is over."""
        if self.informers.lost_since:
            return False
        failed = any(verdict.phase is Phase.FAILED for verdict in self.verdicts.values())
        return failed or self.state.is_late(self.settings, self.state.updated_at)

    @property
    def is_stable(self) -> bool:
        """Whether all workloads have been complete for the settle time."""
        return (
            not self.informers.lost_since and self.state.remaining(self.settings, self.state.updated_at) == timedelta()
        )

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.has_failed or self.is_stable

    @property
    def report(self) -> Report:
        """The present state of the rollout."""
        now, lost_since = self.state.updated_at, self.informers.lost_since
        return Report(
            workloads=tuple(masked(row, self.secrets.mask) for row in self._rows.values()),
            seconds=(now - self.started_at).total_seconds(),
            completed_at=self.state.stable_since if self.state.complete else None,
            lost_since=lost_since if lost_since and now - lost_since >= _LOST_AFTER else None,
        )

    async def failure(self) -> RolloutFailed:
        """The error about a failed rollout, with the logs of what failed."""
        workloads, verdicts = self.informers.workloads, self.verdicts
        failed = [watched for watched in workloads if verdicts[watched.ref].phase is Phase.FAILED]
        if failed:
            # the crashes of others may be why these have failed
            crashing = [watched for watched in workloads if watched not in failed and self._crashes_too_often(watched)]
            with_problems = failed + crashing
        else:
            with_problems = [watched for watched in workloads if not verdicts[watched.ref].healthy]
        causes = [(watched, cause) for watched in with_problems for cause in verdicts[watched.ref].causes[:_MAX_CAUSES]]
        logs = await asyncio.gather(*(self._read_log(watched, cause) for watched, cause in causes))
        mask = self.secrets.mask
        problems = [
            problem_of(watched.ref, cause, log, mask) for (watched, cause), log in zip(causes, logs, strict=True)
        ]
        if failed:
            return rollout_failed(self.report, problems, mask(verdicts[failed[0].ref].summary))
        reason = problems[0].summary if problems else self.report.summary
        timeout = duration_text(self.settings.timeout)
        return rollout_failed(self.report, problems, f"not complete after {timeout}: {reason}")

    def _crashes_too_often(self, watched: WatchedWorkload) -> bool:
        causes = self.verdicts[watched.ref].causes
        return any(cause.counted and cause.times >= self.settings.crashes for cause in causes)

    async def _read_log(self, watched: WatchedWorkload, cause: Cause) -> str:
        if watched.ref in self._deleted_since:
            return ""
        for pod in self.informers.observe(watched).pods:
            for container in containers(pod):
                if (kind_and_name(pod), container.name) == (cause.object, cause.container):
                    return await self.logs.read(container)
        return ""


def _now() -> datetime:
    return datetime.now(timezone.utc)


__all__ = ["PodRow", "Problem", "Report", "WorkloadRow", "watch"]
