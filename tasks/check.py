"""Stage: a command that must pass before anything is deployed."""

from prefect import task

from prefect_cd.gates import runner
from prefect_cd.gates.evidence import Evidence, require_passed
from prefect_cd.pipeline.models import Check, Pipeline
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.tasks import artifacts, workspace
from prefect_cd.tasks.isolation import isolation_of
from prefect_cd.tasks.stage import PERSISTED, live
from prefect_cd.tasks.summary import listed


@task(name="check", task_run_name="{check.name}", **PERSISTED)
@listed
def run_check(pipeline: Pipeline, commit: Commit, image: BuiltImage, check: Check) -> Evidence:
    """Run one check in the checkout; its report becomes an artifact.

    Args:
        pipeline: the pipeline; its repository is checked out.
        commit: what is tested.
        image: the commit's image; its reference is in the variable IMAGE of the command.
        check: the command.

    Raises:
        GateFailed: a test failed.
        GateErrored: it ended without an answer.
    """
    with_image = check.model_copy(update={"environment": {"IMAGE": image.reference, **check.environment}})
    evidence = runner.run_check(
        with_image, workspace.tree(pipeline.source, commit), on_line=live(), isolation=isolation_of(pipeline, check)
    )
    artifacts.evidence(pipeline.application, evidence)
    require_passed(evidence)
    return evidence
