"""Stage: from a commit and its image to a release."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_cd.errors import ContentChanged
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.prepare import images_of, pin_image, replace_images
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.image import find_digest_of_other
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.tasks import workspace
from prefect_cd.tasks.preconditions import Preflight, digest_of_manifests, read_manifests
from prefect_cd.tasks.stage import RETRIES, log
from prefect_cd.tasks.summary import listed


@task(name="render manifests", task_run_name="render manifests", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
@listed
def render(pipeline: Pipeline, commit: Commit, image: BuiltImage, checked: Preflight) -> Release:
    """Every environment's manifests with the image pinned to its digest.

    They are read anew from a clean checkout, also when a run is resumed: a Secret may be among them, and what Prefect
    keeps for a resumed run is readable on its disk.

    Args:
        pipeline: the pipeline; a release has the manifests of all its environments.
        commit: what is released.
        image: the commit's image.
        checked: what preflight checked; only the same manifests are released.

    Raises:
        InvalidManifest: no container of an environment uses the image; or an image of `image.pin` does not exist.
        RegistryUnreachable: the registry of such an image does not answer; retried.
        ContentChanged: the checkout no longer has the manifests that preflight checked.
    """
    manifests = read_manifests(pipeline, workspace.tree(pipeline.source, commit, clean=True))
    if digest_of_manifests(manifests) != checked.digest:
        raise ContentChanged(
            f"the manifests of {commit.short} are no longer those that preflight checked",
            hint="start the release again; a build that writes into its own checkout, or another version of "
            "kustomize on this machine, can change them",
        )
    rendered = {
        environment.name: pin_image(
            [manifest.item for manifest in manifests[environment.name]],
            image,
            where=environment.manifests,
            fields=pipeline.image.fields,
        )
        for environment in pipeline.environments
    }
    rendered = _with_others_pinned(pipeline, rendered)
    release = Release(application=pipeline.application, commit=commit, image=image, manifests=rendered)
    log().info("release %s, hash %s", release.id, release.hash)
    return release


def _with_others_pinned(pipeline: Pipeline, rendered: dict[str, tuple[Object, ...]]) -> dict[str, tuple[Object, ...]]:
    """The manifests with other images by digest, too, where the pipeline file lists their repositories."""
    references = {name for items in rendered.values() for item in items for name in images_of(item)}
    digests = {name: find_digest_of_other(pipeline.image, name) for name in sorted(references)}
    pinned = {name: f"{name}@{digest}" for name, digest in digests.items() if digest}
    for name, reference in pinned.items():
        log().info("%s is %s", name, reference)
    return (
        {environment: replace_images(items, pinned) for environment, items in rendered.items()} if pinned else rendered
    )
