"""What the images of a release's pods need: a name that can be read, an image, a platform of the nodes, a user. Pure.

What is in a registry or on nodes is a parameter; what is not known is no finding.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect_cd.environment.requirements import Unmet
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.manifests.image_references import ImagePattern
from prefect_cd.release.model import ImageReference

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"(?:{_HOST}(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@{_DIGEST})?")
"""distribution/reference, `regexp.go`."""
_MOST_LISTED = 50
"""A node's status names no more of its images (the kubelet's `nodeStatusMaxImages`)."""
_ARCHITECTURES = ("kubernetes.io/arch", "beta.kubernetes.io/arch")


@dataclass(frozen=True)
class Use:
    """A container and its image.

    Attributes:
        where: `deployment/web: container app`.
        image: the reference.
        pull: its imagePullPolicy; empty where it is not set.
        non_root: whether the kubelet refuses to run it as root.
        user: the number that the pod sets; None where the image decides.
        any_node: whether the pod leaves the processor of its node open.
    """

    where: str
    image: str
    pull: str
    non_root: bool
    user: int | None
    any_node: bool


@dataclass(frozen=True)
class Facts:
    """What is known about an image.

    Attributes:
        exists: whether its registry has it.
        user: in its configuration; None where that is not known.
        platforms: that it is made for; empty where that is not known.
    """

    exists: bool
    user: str | None = None
    platforms: frozenset[str] = frozenset()


def image_uses(workload: Object, spec: Object, own_image: str) -> list[Use]:
    """The images of a workload's containers; not the pipeline's own before it is built, and has a digest.

    Args:
        workload: for messages.
        spec: of its pods, as the cluster would admit them.
        own_image: the name of the pipeline's image.
    """
    own = ImagePattern(own_image)
    selector = {**dig_mapping(spec, "nodeSelector"), **dig_mapping(spec, "affinity", "nodeAffinity")}
    any_node = not any(name in str(selector) for name in _ARCHITECTURES) and not spec.get("runtimeClassName")
    uses = []
    for field, label in (("initContainers", "init container"), ("containers", "container")):
        for container in as_objects(spec.get(field)):
            security = {**dig_mapping(spec, "securityContext"), **dig_mapping(container, "securityContext")}
            user = security.get("runAsUser")
            use = Use(
                where=f"{kind_and_name(workload)}: {label} {as_text(container.get('name'))}",
                image=as_text(container.get("image")),
                pull=as_text(container.get("imagePullPolicy")),
                non_root=security.get("runAsNonRoot") is True,
                user=user if isinstance(user, int) else None,
                any_node=any_node,
            )
            is_unbuilt = own.is_reference(use.image) and not ImageReference.of(use.image).digest
            uses += [] if is_unbuilt else [use]
    return uses


def is_reference(text: str) -> bool:
    """Whether a text can be read as a reference to an image."""
    return _REFERENCE.fullmatch(text) is not None


def unmet_images(
    uses: Iterable[Use],
    facts: Mapping[str, Facts],
    nodes: Sequence[Object] | None,
    *,
    nodes_pull_from: Iterable[str] = (),
    admitted: bool = True,
) -> list[Unmet]:
    """What keeps containers from starting.

    Args:
        uses: the containers.
        facts: by reference; one about which nothing is known is left out.
        nodes: all nodes; None where we may not read them.
        nodes_pull_from: references to images in registries that the nodes must reach as we do.
        admitted: whether the pods are as the cluster would admit them: it may set the user itself.
    """
    reachable, on_nodes = frozenset(nodes_pull_from), _on_nodes(nodes or ())
    all_known = nodes is not None and all(len(_images(node)) < _MOST_LISTED for node in nodes)
    found = []
    for use in uses:
        if not is_reference(use.image):
            fix = "correct the image's name: lower case, and a tag or digest at most once"
            found.append(_unmet(use, f"{use.image!r} is no valid reference to an image", fix))
            continue
        if use.non_root and use.user == 0:
            fix = "set a runAsUser other than 0, or remove runAsNonRoot"
            found.append(_unmet(use, "it must not run as root (runAsNonRoot), and runAsUser is 0", fix))
        known = facts.get(use.image)
        if known and not known.exists and use.pull != "Never":
            sure = use.image not in on_nodes and (all_known or use.image in reachable)
            summary = f"the registry has no image {use.image}"
            found.append(_unmet(use, summary, "push the image, or correct its name and tag", certain=sure))
        elif known:
            found += [*_user(use, known, admitted=admitted), *_platform(use, known, nodes or ())]
    return found


def _user(use: Use, known: Facts, *, admitted: bool) -> Iterator[Unmet]:
    """What the kubelet says about runAsNonRoot (pkg/kubelet/kuberuntime, `security_context.go`)."""
    if not use.non_root or use.user is not None or known.user is None:
        return
    user = known.user.partition(":")[0]
    if user in {"", "0", "root"}:
        summary = "it must not run as root (runAsNonRoot), and its image has no other user"
    elif not user.isdigit():
        summary = f"runAsNonRoot needs a number, and the user of its image is a name, {user!r}"
    else:
        return
    yield _unmet(use, summary, "set runAsUser, or USER in the Dockerfile, to a number other than 0", certain=admitted)


def _platform(use: Use, known: Facts, nodes: Sequence[Object]) -> Iterator[Unmet]:
    info = [dig_mapping(node, "status", "nodeInfo") for node in nodes]
    of_nodes = {f"{entry.get('operatingSystem')}/{entry.get('architecture')}" for entry in info if entry}
    if known.platforms and of_nodes and not known.platforms & of_nodes:
        made, needed = (", ".join(sorted(platforms)) for platforms in (known.platforms, of_nodes))
        yield _unmet(
            use,
            f"its image is made for {made}, and the nodes are {needed}",
            f"build the image for {needed} (docker build --platform)",
            certain=use.any_node,
        )


def _on_nodes(nodes: Iterable[Object]) -> set[str]:
    """The names of the images that nodes have already."""
    return {name for node in nodes for image in _images(node) for name in image.get("names") or ()}


def _images(node: Object) -> list[Object]:
    return as_objects(dig(node, "status", "images"))


def _unmet(use: Use, summary: str, fix: str, *, certain: bool = True) -> Unmet:
    return Unmet(where=use.where, summary=summary, fix=fix, certain=certain)


__all__ = ["Facts", "Use", "image_uses", "is_reference", "unmet_images"]
