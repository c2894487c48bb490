"""From a commit and its image to what would be applied in each environment."""

import pytest

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.load import Manifest
from prefect_cd.tasks.preconditions import Preflight
from prefect_cd.tasks.release import render
from tests.tasks.examples import IMAGE, commit, config_map, deployment, environment, image, pipeline

TWO = pipeline(environment(), environment(name="production", namespace="live", manifests="k8s/production"))


def checked(**objects: tuple[Object, ...]) -> Preflight:
    manifests = {name: tuple(Manifest(item, "k8s/shop.yaml:1") for item in items) for name, items in objects.items()}
    return Preflight(image=None, builder=None, manifests=manifests)


def references(items: tuple[Object, ...]) -> list[str]:
    return [item["spec"]["template"]["spec"]["containers"][0]["image"] for item in items if "spec" in item]


def test_i1_every_environment_gets_the_same_digest_whatever_tag_its_manifests_name() -> None:
    manifests = checked(
        staging=(deployment(reference=f"{IMAGE}:edge"), config_map()), production=(deployment(reference=IMAGE),)
    )
    release = render.fn(TWO, commit(), image(), manifests)
    assert references(release.manifests["staging"]) == [f"{IMAGE}@{image().digest}"]
    assert references(release.manifests["production"]) == [f"{IMAGE}@{image().digest}"]
    assert (release.application, release.commit, release.image) == ("shop", commit(), image())


def test_the_same_input_is_the_same_release_and_another_manifest_another() -> None:
    one = checked(staging=(deployment(),), production=(deployment(),))
    other = checked(staging=(deployment(),), production=(deployment(), config_map(greeting="hello")))
    first, again, third = (render.fn(TWO, commit(), image(), manifests) for manifests in (one, one, other))
    assert first.hash == again.hash != third.hash


def test_a_set_without_the_pipelines_image_is_refused_with_its_folder() -> None:
    manifests = checked(staging=(deployment(),), production=(deployment(reference="example.org/another"),))
    with pytest.raises(InvalidManifest, match=f"no container uses the image {IMAGE}") as caught:
        render.fn(TWO, commit(), image(), manifests)
    assert caught.value.where == "k8s/production"


def test_the_manifests_of_preflight_stay_as_they_were() -> None:
    manifests = checked(staging=(deployment(),), production=(deployment(),))
    render.fn(TWO, commit(), image(), manifests)
    assert references((manifests.manifests["staging"][0].item,)) == [IMAGE]
