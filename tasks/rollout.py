"""Stage: watch a rollout to its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import PATIENCE, Cluster
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.report import Report, report_of
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.summary import listed

_PATIENCE = 4 * PATIENCE
"""Instead of retries: a watch that starts again has forgotten how long the API server was unreachable."""
_UPDATE_SECONDS = 2
"""Between two updates of the artifact: a countdown changes the report every second."""


class ReportSink(Protocol):
    """Where a report is shown."""

    def show(self, report: Report) -> None:
        """Show the report as it is now."""


@task(name="rollout", task_run_name="rollout of {applied.target.name}", cache_policy=NO_CACHE)
@listed
def watch_rollout(applied: Applied) -> Report:
    """Watch all workloads until they are complete, or until one of them has failed.

    Raises:
        RolloutFailed: with the reason and the last log lines, which also become an artifact.
        ClusterUnreachable: the API server did not answer for longer than our patience.
    """
    return _watched(applied, soak=timedelta())


@task(name="soak", task_run_name="{applied.target.name} stays up", cache_policy=NO_CACHE)
@listed
def watch_soak(applied: Applied) -> Report:
    """Watch on until the rollout has been complete for the settle time.

    The time that the gates took counts: what happened to the pods meanwhile is in their status.

    Raises:
        RolloutFailed: as by `watch_rollout`.
    """
    return _watched(applied, soak=applied.target.environment.rollout.settle)


def _watched(applied: Applied, *, soak: timedelta) -> Report:
    target = applied.target
    display = Display(artifacts.Progress(target.application, target.name))
    settings = target.environment.rollout.model_copy(update={"settle": soak})

    async def run(cluster: Cluster) -> Report:
        async with display.updated():
            return await watch(cluster, applied.objects, settings, since=applied.since, on_change=display.show)

    try:
        return target.run(run, patience=_PATIENCE)
    except RolloutFailed as error:
        if report := report_of(error):
            artifacts.failure(target.application, target.name, report)
        raise


class Display:
    """Shows how a rollout stands: changes in the log, the latest report in the artifact, with a pause between updates.

    Prefect's server may be unreachable for a moment; that does not end a watch.
    """

    def __init__(self, sink: ReportSink) -> None:
        self._sink = sink
        self._logged = ""
        self._latest: Report | None = None
        self._news = asyncio.Event()

    def show(self, report: Report) -> None:
        """Log the report if it has changed, and show it in the artifact soon."""
        # a countdown that goes on is for the artifact, not for the log
        if report.summary_without_seconds != self._logged:
            log().info("%s", report.summary)
        self._logged, self._latest = report.summary_without_seconds, report
        self._news.set()

    @asynccontextmanager
    async def updated(self) -> AsyncIterator[None]:
        """Keep the artifact up to date while the block runs; at its end the last report is shown."""
        updating = asyncio.create_task(self._update())
        try:
            yield
        finally:
            updating.cancel()
            await asyncio.gather(updating, return_exceptions=True)
            self._show_latest()

    async def _update(self) -> None:
        while True:
            await self._news.wait()
            self._show_latest()
            await asyncio.sleep(_UPDATE_SECONDS)

    def _show_latest(self) -> None:
        if self._latest is None or not self._news.is_set():
            return
        self._news.clear()
        try:
            self._sink.show(self._latest)
        except Exception as error:  # noqa: BLE001  whatever the server's client may raise
            log().warning("cannot show the progress of the rollout: %s", error)
