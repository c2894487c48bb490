"""Stage: from a commit and its image to a release."""

from prefect import task

from prefect_cd.manifests.prepare import pin_image
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.tasks.preconditions import Preflight
from prefect_cd.tasks.stage import PERSISTED, log


@task(name="render manifests", task_run_name="render manifests", **PERSISTED)
def render(pipeline: Pipeline, commit: Commit, image: BuiltImage, checked: Preflight) -> Release:
    """Every environment's manifests with the image pinned to its digest.

    Args:
        pipeline: the pipeline; a release has the manifests of all its environments.
        commit: what is released.
        image: the commit's image.
        checked: the manifests as preflight read and checked them.

    Raises:
        InvalidManifest: no container of an environment uses the image.
    """
    rendered = {
        environment.name: pin_image(
            [manifest.item for manifest in checked.manifests[environment.name]], image, where=environment.manifests
        )
        for environment in pipeline.environments
    }
    release = Release(application=pipeline.application, commit=commit, image=image, manifests=rendered)
    log().info("release %s, hash %s", release.id, release.hash)
    return release
