"""Stage: from a commit and its image to a release."""

from prefect import task

from prefect_cd.manifests import load, prepare
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.tasks import workspace
from prefect_cd.tasks.stage import KEPT, log


@task(name="render manifests", task_run_name="render manifests", **KEPT)
def render(pipeline: Pipeline, commit: Commit, image: BuiltImage) -> Release:
    """Render every environment's manifests with the image pinned to its digest.

    Raises:
        InvalidManifest: with file:line.
    """
    tree = workspace.tree(pipeline.source, commit)
    rendered = {}
    for environment in pipeline.environments:
        found = load.load(tree / environment.manifests, tree)
        items = [each.item for each in found]
        rendered[environment.name] = prepare.pin_image(items, image, where=environment.manifests)
    release = Release(application=pipeline.application, commit=commit, image=image, manifests=rendered)
    log().info("release %s, hash %s", release.id, release.hash)
    return release
