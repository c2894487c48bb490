"""Stage: watch a rollout to its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.errors import RolloutFailed
from prefect_cd.kube.client import PATIENCE
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.report import Report, report_of
from prefect_cd.tasks import artifacts
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.stage import log

_PATIENCE = 4 * PATIENCE
"""In the place of retries: a watch that is begun anew has forgotten for how long nobody could look."""
_UPDATE_SECONDS = 2
"""Between two updates of the artifact: a countdown changes the report every second."""


class Shown(Protocol):
    """Where a report is shown."""

    def show(self, report: Report) -> None:
        """Show the report as it is now."""


@task(name="rollout", task_run_name="rollout of {applied.target.name}", cache_policy=NO_CACHE)
def watch_rollout(applied: Applied) -> Report:
    """Watch all workloads until they are complete, or until one of them is doomed.

    Raises:
        RolloutFailed: with the reason and the last log lines, which are an artifact, too.
        ClusterUnreachable: the API server is gone for longer than our patience.
    """
    return _watched(applied, settle=timedelta())


@task(name="afterwards", task_run_name="{applied.target.name} stays up", cache_policy=NO_CACHE)
def watch_afterwards(applied: Applied) -> Report:
    """Watch on until the rollout has been complete for the settle time.

    What the gates took of it is not waited again: what happened to the pods meanwhile is in their own status.

    Raises:
        RolloutFailed: as by `watch_rollout`.
    """
    return _watched(applied, settle=applied.target.environment.rollout.settle)


def _watched(applied: Applied, *, settle: timedelta) -> Report:
    target = applied.target
    display = Display(artifacts.Progress(target.application, target.name))
    settings = target.environment.rollout.model_copy(update={"settle": settle})

    async def run() -> Report:
        async with target.connect(_PATIENCE) as cluster, display.kept():
            return await watch(cluster, applied.objects, settings, since=applied.since, on_change=display.tell)

    try:
        return asyncio.run(run())
    except RolloutFailed as error:
        if report := report_of(error):
            artifacts.failure(target.application, target.name, report)
        raise


class Display:
    """Shows how a rollout stands: in the log what is new, in the artifact the latest, with a pause after each.

    Prefect's server may be away for a moment; that is no reason to end a watch.
    """

    def __init__(self, progress: Shown) -> None:
        self._progress = progress
        self._said = ""
        self._latest: Report | None = None
        self._news = asyncio.Event()

    def tell(self, report: Report) -> None:
        """Take over a report, to be shown as soon as may be."""
        if report.gist != self._said:  # a countdown that goes on is for the artifact, not for the log
            log().info("%s", report.summary)
        self._said, self._latest = report.gist, report
        self._news.set()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Show what is told while the block runs; at its end the last of it is shown."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            self._show()

    async def _keep(self) -> None:
        while True:
            await self._news.wait()
            self._show()
            await asyncio.sleep(_UPDATE_SECONDS)

    def _show(self) -> None:
        if self._latest is None or not self._news.is_set():
            return
        self._news.clear()
        try:
            self._progress.show(self._latest)
        except Exception as error:  # noqa: BLE001  whatever a server's client may raise
            log().warning("the progress of the rollout is not shown: %s", error)
