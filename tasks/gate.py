"""Stage: a test of a running environment."""

import asyncio

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.gates import runner
from prefect_cd.gates.evidence import Evidence, require_passed
from prefect_cd.kube.service_url import open_url
from prefect_cd.pipeline.models import Gate, SourceSettings
from prefect_cd.rollout.watch.report import Report
from prefect_cd.tasks import artifacts, workspace
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.stage import RETRIES, live, log


@task(name="gate", task_run_name="{gate.name} on {applied.target.name}", cache_policy=NO_CACHE, **RETRIES)
def run_gate(source: SourceSettings, applied: Applied, report: Report, gate: Gate) -> Evidence:
    """Run one gate against the environment's URL; its report becomes an artifact.

    Args:
        source: where the suite's commit is.
        applied: what runs there; its own commit's suite is run.
        report: the proof that its rollout is complete.
        gate: the test.

    Raises:
        GateFailed: the answer is no.
        GateErrored: there is no answer.
        ClusterUnreachable: the way to a `service/` URL is not known, for longer than our patience; retried.
    """
    commit = applied.commit
    if not report.complete or commit is None:
        raise ValueError("a gate needs a complete rollout of a commit")
    # an http gate needs no sources: going back must not depend on the repository
    tree = workspace.folder() if gate.http else workspace.tree(source, commit)
    keep = workspace.folder() / "evidence" / f"{applied.target.name}-{gate.name}".replace("/", "-")
    keep.mkdir(parents=True, exist_ok=True)
    on_line = live()
    target = applied.target
    variables = {"EXPECTED_VERSION": commit.short, "ENVIRONMENT": target.name, "RELEASE": applied.release_id}

    async def run() -> Evidence:
        url = target.environment.url or ""
        async with target.connect() as cluster, open_url(cluster, target.environment.namespace, url) as reached:
            log().info("%s against %s", gate.name, reached)
            return await asyncio.to_thread(
                runner.run_gate, gate, tree, reached, keep, on_line=on_line, variables=variables
            )

    evidence = asyncio.run(run())
    artifacts.evidence(target.application, evidence, target.name)
    log().info("%s: %s", gate.name, evidence.summary)
    require_passed(evidence)
    return evidence
