"""Stage: a test of a running environment."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.errors import DeliveryError
from prefect_cd.gates import runner
from prefect_cd.gates.evidence import Evidence, require_passed
from prefect_cd.masking import BY_SHAPE, Mask
from prefect_cd.pipeline.models import Gate, Pipeline
from prefect_cd.rollout.watch.report import Report
from prefect_cd.rollout.watch.secret_values import mask_for
from prefect_cd.tasks import artifacts, workspace
from prefect_cd.tasks.isolation import isolation_of
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.stage import RETRIES, live, log
from prefect_cd.tasks.summary import listed


@task(name="gate", task_run_name="{gate.name} on {applied.target.name}", cache_policy=NO_CACHE, **RETRIES)
@listed
def run_gate(pipeline: Pipeline, applied: Applied, report: Report, gate: Gate) -> Evidence:
    """Run one gate against the environment's URL; its report becomes an artifact.

    Args:
        pipeline: the pipeline; its repository contains the suite.
        applied: what runs there; the suite of its own commit is run.
        report: the proof that its rollout is complete.
        gate: the test.

    Raises:
        GateFailed: the answer is no.
        GateErrored: there is no answer.
        ClusterUnreachable: the cluster did not say how to reach a `service/` URL within our patience; retried.
        ValueError: the rollout is not complete, or what runs there is no commit.
    """
    commit = applied.commit
    if not report.complete or commit is None:
        raise ValueError("a gate needs a complete rollout of a commit")
    # an http gate needs no sources, so that a rollback does not depend on the repository
    tree = workspace.folder() if gate.http else workspace.tree(pipeline.source, commit)
    keep = workspace.folder() / "evidence" / f"{applied.target.name}-{gate.name}".replace("/", "-")
    keep.mkdir(parents=True, exist_ok=True)
    target = applied.target
    variables = {"EXPECTED_VERSION": commit.short, "ENVIRONMENT": target.name, "RELEASE": applied.release_id}

    with target.url() as url:
        log().info("%s against %s", gate.name, url)
        evidence = runner.run_gate(
            gate,
            tree,
            url,
            keep,
            on_line=live(),
            variables=variables,
            isolation=isolation_of(pipeline, gate),
            mask=_mask(applied),
        )
    artifacts.evidence(target.application, evidence, target.name)
    log().info("%s: %s", gate.name, evidence.summary)
    require_passed(evidence)
    return evidence


def _mask(applied: Applied) -> Mask:
    """Knows the Secrets of what runs in the environment, since its answers may have them; by shape where it cannot."""
    try:
        return applied.target.run(lambda cluster: mask_for(cluster, applied.objects))
    except DeliveryError:
        return BY_SHAPE
