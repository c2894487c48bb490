"""From a commit and its image to what would be applied in each environment."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import get_current_settings

from prefect_cd.errors import ContentChanged, InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import Environment, Pipeline
from prefect_cd.release import registry
from prefect_cd.release.model import Commit, Release
from prefect_cd.tasks import preconditions
from prefect_cd.tasks.preconditions import Preflight, digest_of_manifests, preflight, read_manifests
from prefect_cd.tasks.release import render
from tests.tasks.conftest import Run
from tests.tasks.examples import (
    IMAGE,
    GitRepository,
    as_yaml,
    config_map,
    deployment,
    environment,
    image,
    pipeline,
)


@pytest.fixture
def two(repository: GitRepository) -> Pipeline:
    """A pipeline with two environments."""
    staging = environment(manifests="k8s/staging")
    production = environment(name="production", namespace="live", manifests="k8s/production")
    return pipeline(staging, production, repository=repository.path)


@pytest.fixture
def released(repository: GitRepository, two: Pipeline) -> Callable[..., Release]:
    """The release of a commit with these objects in staging and production."""

    def commit_and_render(staging: tuple[Object, ...], production: tuple[Object, ...]) -> Release:
        return render.fn(two, *committed(repository, two, staging, production))

    return commit_and_render


def committed(
    repository: GitRepository, settings: Pipeline, staging: tuple[Object, ...], production: tuple[Object, ...]
) -> tuple[Commit, Any, Preflight]:
    """A commit, its image, and what preflight says about it."""
    files = {"k8s/staging/shop.yaml": as_yaml(*staging), "k8s/production/shop.yaml": as_yaml(*production)}
    commit = repository.commit(files)
    checked = digest_of_manifests(read_manifests(settings, repository.path))
    return commit, image(), Preflight(image=None, builder=None, digest=checked)


def references(items: tuple[Object, ...]) -> list[str]:
    return [item["spec"]["template"]["spec"]["containers"][0]["image"] for item in items if "spec" in item]


def test_i1_every_environment_gets_the_same_digest_whatever_tag_its_manifests_name(
    released: Callable[..., Release],
) -> None:
    release = released((deployment(reference=f"{IMAGE}:edge"), config_map()), (deployment(reference=IMAGE),))
    assert references(release.manifests["staging"]) == [f"{IMAGE}@{image().digest}"]
    assert references(release.manifests["production"]) == [f"{IMAGE}@{image().digest}"]
    assert (release.application, release.image) == ("shop", image())


def test_the_same_commit_is_the_same_release_and_another_manifest_another(
    repository: GitRepository, two: Pipeline, released: Callable[..., Release]
) -> None:
    one = committed(repository, two, (deployment(),), (deployment(),))
    first, again = (render.fn(two, *one) for _ in range(2))
    other = released((deployment(),), (deployment(), config_map(greeting="hello")))
    assert first.commit == one[0]
    assert first.hash == again.hash != other.hash


def test_a_set_without_the_pipelines_image_is_refused_with_its_folder(released: Callable[..., Release]) -> None:
    with pytest.raises(InvalidManifest, match=f"no container uses the image {IMAGE}") as caught:
        released((deployment(),), (deployment(reference="example.org/another"),))
    assert caught.value.where == "k8s/production"


def test_i1_only_the_manifests_that_preflight_checked_are_released(repository: GitRepository, two: Pipeline) -> None:
    commit, built, checked = committed(repository, two, (deployment(),), (deployment(),))
    other = checked.model_copy(update={"digest": "0" * 64})
    with pytest.raises(ContentChanged, match=f"{commit.short} are no longer those that preflight checked"):
        render.fn(two, commit, built, other)


def test_i10_what_a_build_changed_in_the_checkout_is_not_released(
    repository: GitRepository, two: Pipeline, home: Path
) -> None:
    commit, built, checked = committed(repository, two, (deployment(),), (deployment(),))
    first = render.fn(two, commit, built, checked)
    manifest = home / commit.sha[:12] / "k8s" / "staging" / "shop.yaml"
    manifest.write_text(as_yaml(deployment(reference="example.org/mine")))
    assert render.fn(two, commit, built, checked).hash == first.hash


def test_i7_no_value_of_a_secret_is_among_the_results_that_prefect_keeps(
    repository: GitRepository,
    environment: Environment,
    run: Callable[[Callable[[], Any]], Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preconditions, "find_image", lambda *_: image(built=False))
    value = base64.b64encode(b"hunter2 of the shop").decode()
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop"}, "data": {"password": value}}
    commit = repository.commit({"k8s/shop.yaml": as_yaml(deployment(), secret)})
    settings = pipeline(environment, repository=repository.path)

    def work() -> str:
        checked = preflight(settings, commit)
        return render(settings, commit, image(), checked).hash

    before = kept_results()
    assert len(run(work).result) == 64
    kept = kept_results() - before
    assert any("digest" in text for text in kept)  # preflight's
    assert not any(value in text or "hunter2" in text for text in kept)


def kept_results() -> set[str]:
    """What Prefect keeps on the disk as results."""
    storage = get_current_settings().results.local_storage_path
    return {path.read_text(errors="replace") for path in storage.rglob("*") if path.is_file()}


def test_the_pipelines_fields_get_the_digest_too(repository: GitRepository, two: Pipeline) -> None:
    crawler = {"kind": "Crawler", "apiVersion": "v1", "metadata": {"name": "c"}, "spec": {"image": f"{IMAGE}:main"}}
    commit, built, checked = committed(repository, two, (deployment(), crawler), (deployment(),))
    settings = two.image.model_copy(update={"fields": ("spec.image",)})
    for update, expected in (({}, f"{IMAGE}:main"), ({"image": settings}, f"{IMAGE}@{built.digest}")):
        release = render.fn(two.model_copy(update=update), commit, built, checked)
        items = {item["kind"]: item for item in release.manifests["staging"]}
        assert items["Crawler"]["spec"]["image"] == expected


def test_i5_images_of_others_get_their_digest_where_the_pipeline_file_lists_them(
    repository: GitRepository, two: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {"example.org/base/sidecar": f"sha256:{'5' * 64}"}
    monkeypatch.setattr(registry, "find_digest", lambda name, _tag, **_: digests[name])
    item = deployment()
    sidecars = ("example.org/base/sidecar:1", "example.org/another:1")
    item["spec"]["template"]["spec"]["containers"] += [{"name": name[-9:-2], "image": name} for name in sidecars]
    settings = two.model_copy(update={"image": two.image.model_copy(update={"pin": ("example.org/base",)})})
    release = render.fn(settings, *committed(repository, settings, (item,), (deployment(),)))
    containers = release.manifests["staging"][0]["spec"]["template"]["spec"]["containers"]
    pinned = f"example.org/base/sidecar:1@sha256:{'5' * 64}"
    assert [one["image"] for one in containers[1:]] == [pinned, "example.org/another:1"]
