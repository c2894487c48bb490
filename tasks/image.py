"""Stage: one image per commit, built once."""

from prefect import task

from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import image
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.tasks import workspace
from prefect_cd.tasks.stage import KEPT, RETRIES, live, log


@task(name="build image", task_run_name="build image of {commit.short}", **KEPT, **RETRIES)
def build(pipeline: Pipeline, commit: Commit) -> BuiltImage:
    """The commit's image in the registry, by digest; nothing is built when it is there already.

    Raises:
        BuildFailed: it does not build.
        RegistryUnreachable: the registry does not answer; retried.
        Forbidden: the registry refuses the push.
        MissingTool: neither docker nor podman nor buildah works here.
    """
    settings = pipeline.image
    found = image.find_image(settings, commit)
    if found:
        log().info("found %s, nothing to build", found.reference)
        return found
    built = image.build(settings, commit, workspace.tree(pipeline.source, commit, clean=True), on_line=live())
    log().info("built %s", built.reference)
    return built
