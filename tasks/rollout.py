"""Stage: watch a rollout to its end."""

import asyncio

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.tasks import artifacts
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.watch import Report, RolloutDoomed, watch


@task(name="rollout", task_run_name="rollout of {applied.target.name}", cache_policy=NO_CACHE, **RETRIES)
def watch_rollout(applied: Applied) -> Report:
    """Watch all workloads until they are complete, or until one of them is doomed.

    Raises:
        RolloutDoomed: with the reason and the last log lines, which are an artifact, too.
        ClusterUnreachable: the API server is gone for longer than our patience; retried.
    """
    target = applied.target
    progress = artifacts.Progress(target.application, target.name)

    def show(report: Report) -> None:
        log().info("%s", report.summary)
        progress.show(report)

    async def run() -> Report:
        async with target.connect() as cluster:
            settings = target.environment.rollout
            return await watch(cluster, applied.objects, settings, since=applied.since, on_change=show)

    try:
        return asyncio.run(run())
    except RolloutDoomed as error:
        artifacts.failure(target.application, target.name, error.report)
        raise
