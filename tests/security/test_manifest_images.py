"""No other spelling of the image's name keeps a tag, which could become another image than the tested one."""

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.lint import Rule, lint
from prefect_cd.manifests.prepare import images_of, pin_image
from prefect_cd.manifests.risks import RiskKind, risks
from prefect_cd.release.model import BuiltImage

DIGEST = "sha256:" + "a" * 64
SPELLINGS = {
    "acme/shop": ["acme/shop", "docker.io/acme/shop", "index.docker.io/acme/shop", "registry-1.docker.io/acme/shop"],
    "docker.io/acme/shop": ["acme/shop", "index.docker.io/acme/shop", "Docker.io/acme/shop"],
    "docker.io/shop": ["shop", "library/shop", "docker.io/library/shop", "docker.io/shop"],
    "library/shop": ["shop", "docker.io/shop"],
    "registry.example.com/acme/shop": ["registry.example.com:443/acme/shop", "REGISTRY.example.com/acme/shop"],
    "registry.example.com:443/acme/shop": ["registry.example.com/acme/shop"],
}
OTHERS = [
    "evil/shop",
    "docker.io/evil/acme/shop",
    "evil.io/acme/shop",
    "acme/shop2",
    "registry.example.com:80/acme/shop",
]


def workload(*images: str, value: str = "") -> Object:
    containers = [
        {"name": f"c{number}", "image": image, "env": [{"name": "IMAGE", "value": value}]}
        for number, image in enumerate(images)
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "shop"},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_the_image_gets_the_digest(name: str) -> None:
    image = BuiltImage(name=name, digest=DIGEST, built=True)
    for spelling in SPELLINGS[name]:
        for suffix in ("", ":evil", ":evil@sha256:" + "b" * 64):
            (pinned,) = pin_image([workload(name, spelling + suffix)], image, where="k8s")
            assert images_of(pinned) == [image.reference] * 2


@pytest.mark.parametrize("name", SPELLINGS)
def test_lint_finds_every_spelling_in_other_fields(name: str) -> None:
    image = BuiltImage(name=name, digest=DIGEST, built=True)
    for spelling in SPELLINGS[name]:
        if "/" in spelling and spelling == spelling.lower():
            (pinned,) = pin_image([workload(name, value=f"{spelling}:evil")], image, where="k8s")
            rules = {finding.rule for finding in lint([pinned], name)}
            assert Rule.MOVING_TAG in rules
            fields = ["spec.template.spec.containers[].env[].value"]
            (pinned,) = pin_image([workload(name, value=f"{spelling}:evil")], image, where="k8s", fields=fields)
            assert image.reference in str(pinned["spec"]["template"]["spec"]["containers"][0]["env"])


def test_images_of_others_are_left_alone() -> None:
    image = BuiltImage(name="acme/shop", digest=DIGEST, built=True)
    others = [f"{other}:1" for other in OTHERS]
    (pinned,) = pin_image([workload("acme/shop", *others, value=others[0])], image, where="k8s")
    assert images_of(pinned) == [image.reference, *others]
    shown = [risk.summary for risk in risks(None, pinned) if risk.kind is RiskKind.IMAGE]
    assert len(shown) == len(others)  # the form shows each image that a tag names
    assert not any(image.reference in summary for summary in shown)
