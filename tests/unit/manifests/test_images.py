"""Where the digest of the image is filled in, and where lint warns that a tag stays."""

import json
from pathlib import Path

import pytest

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.lint import Rule, lint
from prefect_cd.manifests.load import load
from prefect_cd.manifests.prepare import images_of, pin_image
from prefect_cd.pipeline.load import parse
from prefect_cd.release.model import BuiltImage

CASE = Path(__file__).parent / "cases" / "image-volume"
IMAGE = BuiltImage(name="registry.example.org:5000/acme/shop", digest="sha256:" + "a" * 64, built=True)
TAGGED = f"{IMAGE.name}:main"


@pytest.fixture
def objects() -> list[Object]:
    """A Deployment with an image volume, and a custom resource."""
    return [manifest.item for manifest in load(CASE, CASE)]


def test_an_image_volume_gets_the_digest(objects: list[Object]) -> None:
    workload, _ = objects
    (pinned,) = pin_image([workload], IMAGE, where="k8s")
    assert pinned["spec"]["template"]["spec"]["volumes"][0]["image"] == {
        "reference": IMAGE.reference,
        "pullPolicy": "Always",
    }
    assert images_of(pinned) == [IMAGE.reference] * 2


def test_a_set_that_uses_the_image_in_a_volume_only_is_accepted(objects: list[Object]) -> None:
    workload, _ = objects
    workload["spec"]["template"]["spec"]["containers"][0]["image"] = "busybox"
    (pinned,) = pin_image([workload], IMAGE, where="k8s")
    assert sorted(images_of(pinned)) == ["busybox", IMAGE.reference]


def workload_of(*images: str) -> Object:
    containers = [{"name": f"c{number}", "image": image} for number, image in enumerate(images)]
    template = {"spec": {"containers": containers}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": template}}


def test_manifests_need_not_know_the_registry() -> None:
    (pinned,) = pin_image([workload_of("shop", "busybox")], IMAGE, where="k8s")
    assert images_of(pinned) == [IMAGE.reference, "busybox"]


@pytest.mark.parametrize("other", ["shop:7", "acme/shop", "docker.io/library/shop", "shop@sha256:" + "b" * 64])
def test_another_image_of_this_name_is_none_of_ours(other: str) -> None:
    with pytest.raises(InvalidManifest, match="no container uses the image"):
        pin_image([workload_of(other)], IMAGE, where="k8s")


def test_beside_the_whole_name_the_short_one_is_another_image() -> None:
    (pinned,) = pin_image([workload_of(TAGGED, "shop")], IMAGE, where="k8s")
    assert images_of(pinned) == [IMAGE.reference, "shop"]


FIELDS = ["spec.template.spec.containers[].env[].value", "spec.image"]


def test_where_the_moving_tag_stays_lint_names_the_field_that_image_fields_then_fills_in(objects: list[Object]) -> None:
    findings = lint(pin_image(objects, IMAGE, where="k8s"), IMAGE.name)
    assert {finding.rule for finding in findings} == {Rule.MOVING_TAG}
    assert [finding.where for finding in findings] == ["deployment/web", "crawler/c"]
    assert [finding.summary.partition(", ")[0] for finding in findings] == [
        f"{field} names {TAGGED}" for field in FIELDS
    ]
    assert [finding.fix.split("`")[1] for finding in findings] == FIELDS
    workload, crawler = pinned = pin_image(objects, IMAGE, where="k8s", fields=FIELDS)
    assert crawler["spec"]["image"] == IMAGE.reference
    assert workload["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] == IMAGE.reference
    assert lint(pinned, IMAGE.name) == ()


def test_without_the_name_of_the_image_lint_checks_no_tags(objects: list[Object]) -> None:
    assert lint(objects) == ()


@pytest.mark.parametrize(
    ("text", "pinned"),
    [
        (f"--image={TAGGED} --x", f"--image={IMAGE.reference} --x"),
        (f"oci://{TAGGED}", f"oci://{IMAGE.reference}"),
        (f"a: {IMAGE.name}\nb: {TAGGED}@sha256:{'b' * 64}\n", f"a: {IMAGE.reference}\nb: {IMAGE.reference}\n"),
        (f"{IMAGE.name}-cache:main {IMAGE.name}/x x{IMAGE.name} x/{TAGGED}", None),
        (f"use {TAGGED}.", f"use {IMAGE.reference}."),
        ("busybox", None),
    ],
)
def test_a_reference_inside_of_a_text_is_replaced_and_nothing_else(text: str, pinned: str | None) -> None:
    item = {"kind": "A", "metadata": {"name": "x", "annotations": {"example.org/image": text}}}
    workload = {"kind": "B", "metadata": {"name": "y"}, "spec": {"containers": [{"image": IMAGE.name}]}}
    fields = ['metadata.annotations["example.org/image"]', "spec.gone[].x", "metadata[].more", "kind[]"]
    changed, _ = pin_image([item, workload], IMAGE, where="k8s", fields=fields)
    assert changed["metadata"]["annotations"] == {"example.org/image": pinned or text}
    assert item["metadata"]["annotations"] == {"example.org/image": text}  # type: ignore[index]


def test_an_image_without_a_tag_moves_too_and_other_names_and_secrets_are_not_reported() -> None:
    item = {"kind": "A", "metadata": {"name": "x"}, "spec": {"baseImage": IMAGE.name, "repository": IMAGE.name}}
    more = {
        "kind": "A",
        "metadata": {"name": "y"},
        "data": {"a.b\n": [TAGGED, TAGGED], "c": f"{TAGGED}@sha256:{'b' * 64}"},
    }
    secret = {"kind": "Secret", "metadata": {"name": "z"}, "stringData": {"image": TAGGED}}
    findings = lint([item, more, secret], IMAGE.name)
    assert [finding.fix.split("`")[1] for finding in findings] == ["spec.baseImage", r'data["a.b\n"][]']


PIPELINE = """
application: shop
source: {repository: 'https://example.org/shop'}
image: {name: registry.example.org/shop, fields: FIELDS}
environments: [{name: staging, namespace: shop, manifests: k8s}]
"""


@pytest.mark.parametrize("field", [*FIELDS, 'metadata.annotations["example.org/image"]', "data[]"])
def test_the_pipeline_file_accepts_paths_of_fields(field: str) -> None:
    pipeline, mistakes = parse(PIPELINE.replace("FIELDS", json.dumps([field])))
    assert mistakes == []
    assert pipeline
    assert pipeline.image.fields == (field,)


@pytest.mark.parametrize("field", ["", ".spec", "spec.", "spec..image", "spec[0]", "spec.*", "$.spec", "spec/image"])
def test_a_text_that_is_no_path_of_fields_is_a_mistake_with_its_line(field: str) -> None:
    _, mistakes = parse(PIPELINE.replace("FIELDS", json.dumps([field])))
    assert [mistake.line for mistake in mistakes] == [4]
