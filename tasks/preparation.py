"""Stage: everything before the first environment, as one task: a resumed run takes over its result as a whole."""

from pathlib import Path

from prefect import task

from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import BuiltImage, Commit, Result
from prefect_cd.tasks.check import run_check
from prefect_cd.tasks.image import build
from prefect_cd.tasks.preconditions import Preflight, preflight
from prefect_cd.tasks.runs import show_release
from prefect_cd.tasks.source import compare_pipeline_file, resolve
from prefect_cd.tasks.stage import PERSISTED


class Prepared(Result):
    """What a release is made of; its manifests are read anew, see `render`."""

    commit: Commit
    image: BuiltImage
    checked: Preflight
    evidence: tuple[Evidence, ...]


@task(name="prepare", task_run_name="prepare {revision}", **PERSISTED)
def prepare(pipeline: Pipeline, revision: str, file: Path) -> Prepared:
    """Resolve a revision, check what can be checked before anything is written, build, and run the checks.

    Args:
        pipeline: the pipeline.
        revision: branch, tag or SHA.
        file: where the pipeline was read from.

    Raises:
        DeliveryError: as the stages do.
    """
    commit = resolve(pipeline, revision)
    show_release(pipeline, commit)
    compare_pipeline_file(pipeline, commit, file)
    checked = preflight(pipeline, commit)
    image = build(pipeline, commit, checked)
    evidence = tuple(run_check(pipeline, commit, image, check) for check in pipeline.checks)
    return Prepared(commit=commit, image=image, checked=checked, evidence=evidence)
