"""What the images of pods need, from the pods and from what is known about images and nodes."""

from typing import Any

import pytest

from prefect_cd.environment.image_requirements import Facts, image_uses, is_reference, unmet_images
from prefect_cd.environment.requirements import Unmet
from prefect_cd.kube.objects import Object

IMAGE = "registry.example.com/acme/sidecar:1"
OWN = "acme/shop"
WEB: Object = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}


def node(architecture: str = "amd64", *images: str) -> Object:
    info = {"operatingSystem": "linux", "architecture": architecture}
    return {"kind": "Node", "status": {"nodeInfo": info, "images": [{"names": [name]} for name in images]}}


def check(
    facts: Facts | None,
    container: Object | None = None,
    *,
    nodes: list[Object] | None = None,
    image: str = IMAGE,
    near: bool = False,
    admitted: bool = True,
    **pod: Any,  # noqa: ANN401
) -> list[Unmet]:
    uses = image_uses(WEB, {"containers": [{"name": "app", "image": image, **(container or {})}], **pod}, OWN)
    known = {} if facts is None else {image: facts}
    return unmet_images(uses, known, nodes, nodes_pull_from=[image] if near else [], admitted=admitted)


def certain(found: list[Unmet]) -> bool | None:
    """Whether the one finding is certain; None without a finding."""
    assert len(found) <= 1
    return found[0].certain if found else None


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "busybox",
        "busybox:1.36",
        "acme/shop",
        "localhost:5000/a/b-c__d.e:v1_2.3",
        "registry.example.com:5000/acme/shop@sha256:" + "a" * 64,
        "Registry.Example.com/acme/shop:Latest",
        "[::1]:5000/shop:1@sha256:" + "0" * 64,
    ],
)
def test_what_the_kubelet_reads_is_a_reference(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize(
    "text", ["", "busybox::1", "acme/Shop:1", "localhost:5000/Base/Busybox:1", "a b", "shop@1", "-a"]
)
def test_what_the_kubelet_does_not_read_is_certain_to_fail(text: str) -> None:
    (found,) = check(None, image=text)
    assert (found.where, found.certain) == ("deployment/web: container app", True)
    assert repr(text) in found.summary


# --- images that do not exist ----------------------------------------------------------------------------------------

GONE = Facts(exists=False)
CROWDED = node("amd64", *(f"image-{number}" for number in range(50)))


@pytest.mark.parametrize(
    ("settings", "sure"),
    [
        ({"near": True}, True),
        ({"near": False}, False),
        ({"nodes": [node()]}, True),
        ({"nodes": [CROWDED]}, False),
        ({"nodes": [CROWDED], "near": True}, True),
        ({"nodes": [node("amd64", IMAGE)], "near": True}, False),
        ({"near": True, "container": {"imagePullPolicy": "Never"}}, None),
    ],
)
def test_an_image_that_its_registry_does_not_have_is_certain_where_no_node_can_have_it(
    settings: dict[str, Any],
    sure: bool | None,  # noqa: FBT001
) -> None:
    assert certain(check(GONE, **settings)) == sure


def test_an_image_that_exists_or_that_nobody_knows_about_is_no_finding() -> None:
    assert check(Facts(exists=True), near=True) == check(None, near=True) == []


def test_the_image_that_is_not_built_yet_is_not_looked_at() -> None:
    for image in (OWN, f"{OWN}:latest", f"docker.io/{OWN}"):
        assert image_uses(WEB, {"containers": [{"name": "app", "image": image}]}, OWN) == []
    built = {"containers": [{"name": "app", "image": f"{OWN}@sha256:{'a' * 64}"}]}
    assert len(image_uses(WEB, built, OWN)) == 1


def test_containers_that_only_prepare_are_looked_at() -> None:
    spec = {"initContainers": [{"name": "setup", "image": IMAGE}], "containers": []}
    (found,) = unmet_images(image_uses(WEB, spec, OWN), {IMAGE: GONE}, [node()])
    assert found.where == "deployment/web: init container setup"


# --- users -----------------------------------------------------------------------------------------------------------

NON_ROOT = {"securityContext": {"runAsNonRoot": True}}


@pytest.mark.parametrize(
    ("user", "sure"),
    [("", True), ("0", True), ("root:root", True), ("app", True), ("1000", None), ("1000:1000", None), (None, None)],
)
def test_a_container_that_must_not_be_root_needs_a_number_of_another_user(user: str | None, sure: bool | None) -> None:  # noqa: FBT001
    assert certain(check(Facts(exists=True, user=user), NON_ROOT)) == sure
    assert certain(check(Facts(exists=True, user=user), **NON_ROOT)) == sure
    assert check(Facts(exists=True, user=user)) == []


def test_the_pods_own_user_decides_and_the_containers_settings_come_first() -> None:
    root = Facts(exists=True, user="")
    assert check(root, {"securityContext": {"runAsNonRoot": True, "runAsUser": 1000}}) == []
    assert check(root, {"securityContext": {"runAsNonRoot": False}}, **NON_ROOT) == []
    (found,) = check(None, NON_ROOT, securityContext={"runAsUser": 0})
    assert (found.certain, "runAsUser is 0" in found.summary) == (True, True)


def test_where_the_cluster_has_not_shown_the_pod_it_may_set_the_user_itself() -> None:
    assert certain(check(Facts(exists=True, user=""), NON_ROOT, admitted=False)) is False


# --- platforms -------------------------------------------------------------------------------------------------------

ARM = Facts(exists=True, platforms=frozenset({"linux/arm64"}))


def test_an_image_for_no_processor_of_the_nodes_is_named() -> None:
    (found,) = check(ARM, nodes=[node()])
    assert found.certain
    assert "linux/arm64, and the nodes are linux/amd64" in found.summary
    assert check(ARM, nodes=[node(), node("arm64")]) == check(ARM, nodes=None) == check(ARM, nodes=[]) == []


@pytest.mark.parametrize(
    "pod",
    [
        {"nodeSelector": {"kubernetes.io/arch": "arm64"}},
        {"affinity": {"nodeAffinity": {"required": [{"key": "kubernetes.io/arch", "values": ["arm64"]}]}}},
    ],
)
def test_a_pod_that_chooses_its_processor_may_get_a_node_of_it_later(pod: dict[str, Any]) -> None:
    assert certain(check(ARM, nodes=[node()], **pod)) is False
