"""Stage: the commit's image in the registry, built once."""

from prefect import task

from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import image
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.tasks import workspace
from prefect_cd.tasks.preconditions import Preflight
from prefect_cd.tasks.stage import PERSISTED, RETRIES, live, log
from prefect_cd.tasks.summary import listed


@task(name="build image", task_run_name="build image", **PERSISTED, **RETRIES)
@listed
def build(pipeline: Pipeline, commit: Commit, checked: Preflight) -> BuiltImage:
    """The commit's image in the registry, by digest; builds nothing where preflight found it.

    Of several runs of a commit on one machine, one builds, and the others wait and take its image: two builds of one
    commit would have two digests, and would be two releases.

    Args:
        pipeline: how the image is built.
        commit: what is built.
        checked: what preflight found; names the builder.

    Raises:
        BuildFailed: it does not build.
        RegistryUnreachable: the registry does not answer; retried.
        Forbidden: the registry refuses the push.
        MissingTool: the builder is gone since preflight.
    """
    if checked.image:
        log().info("found %s, nothing to build", checked.image.reference)
        return checked.image
    builder = image.builder_named(checked.builder or "")
    with workspace.alone(f"build {pipeline.image.name}:{commit.sha}"):
        if existing := image.find_image(pipeline.image, commit):
            log().info("another run has built %s", existing.reference)
            return existing
        tree = workspace.tree(pipeline.source, commit, clean=True)
        built = image.build(pipeline.image, commit, tree, builder, on_line=live())
    log().info("built %s", built.reference)
    return built
