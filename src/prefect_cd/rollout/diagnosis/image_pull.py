"""Why an image is not pulled.

Decides by the registry's words which refusals are final. The kubelet's first message has the cause, later ones only
say back-off, so events are searched for the first one. A refusal while the pull secret itself is missing is not
final: the Secret may arrive.
"""

import re
from collections.abc import Sequence
from datetime import timedelta

from prefect_cd.kube.objects import Object, as_text, created_at, latest, with_reason
from prefect_cd.rollout.diagnosis.cause import Category, Cause, Rule, explain, first
from prefect_cd.rollout.diagnosis.container import Container, trouble_began

PLATFORM = "build the image for the nodes' platform (kubectl get nodes -L kubernetes.io/arch)"

_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
            "SignatureValidationFailed", "ImageInspectError")  # fmt: skip

_BACK_OFF = timedelta(seconds=10)
"""The kubelet's shortest pause between two attempts (`imagePullBackOff`): what is closer belongs to one attempt."""

_RULES = (
    # "no match for platform in manifest …: not found" is containerd's; it must come before the plain "not found".
    Rule(r"no match for platform|no matching manifest|no image found in (image index|manifest list)",
         Category.WRONG_ARCHITECTURE, True, "the image {image} has no variant for the node's processor",
         PLATFORM),
    # Denials: containerd, CRI-O and Docker Hub ("pull access denied, … may require authorization") in one.
    Rule(r"unauthori[sz]ed|(?<!permission )denied|forbidden|authentication required|authorization failed"
         r"|no basic auth|\b40[13]\b|signature", Category.IMAGE_DENIED, True,
         "the registry refuses to give out {image}",
         "check the imagePullSecrets of the pod's service account in namespace {namespace}"),
    Rule(r"no such host|dial tcp|i/o timeout|connection re(fused|set)|deadline exceeded|tls:|x509|\bEOF\b"
         r"|server gave HTTP response|too ?many ?requests|\b429\b|\b50[0234]\b|RegistryUnavailable|misbehaving",
         Category.REGISTRY_UNREACHABLE, False, "the node cannot reach the registry of {image}",
         "check the registry's host name and that the nodes can reach it"),
    Rule(r"ErrImageNeverPull", Category.IMAGE_NOT_FOUND, False,
         "the image {image} is not on the node, and imagePullPolicy Never forbids to pull it",
         "load the image on the nodes, or set imagePullPolicy to IfNotPresent"),
    Rule(r"not found|NotFound|manifest unknown|name unknown|does not exist",
         Category.IMAGE_NOT_FOUND, True, "the image {image} does not exist",
         "push the image, or correct its name in the manifest"),
    Rule(r"InvalidImageName|couldn't parse image|invalid reference format",
         Category.IMAGE_NAME_INVALID, True, "{image!r} is not a valid image name",
         "correct the image name in the manifest"),
    Rule(r"", Category.UNKNOWN, False, "the image {image} cannot be pulled",
         "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_SECRET_MISSING = Rule(
    r"", Category.MISSING_CONFIG, False,
    "the registry refuses to give out {image}, and its pull secret is not there: {words}",
    "add the Secret to the namespace, or correct imagePullSecrets (kubectl -n {namespace} get secrets)",
)  # fmt: skip


def unpulled(container: Container, events: Sequence[Object]) -> Cause | None:
    """The image that keeps a container waiting."""
    reason = container.waiting.get("reason")
    if reason not in _REASONS:
        return None
    told = container.told(events)
    failed = [event for event in with_reason(told, "Failed", "InspectFailed") if about_the_image(event)]
    said = as_text(container.waiting.get("message"))
    if re.fullmatch(r'(Back-off pulling image "[^"]*")?', said):  # older kubelets say no more than this
        messages = [as_text(event.get("message")) for event in failed]
        said = next((text for text in messages if text.startswith("Failed to pull image")), said)
    image = as_text(container.spec.get("image")) or as_text(container.status.get("image"))
    rule = first(_RULES, f"{reason}: {said}", image)
    if rule.category in (Category.IMAGE_DENIED, Category.IMAGE_NOT_FOUND) and (
        missing := _missing_secret(events, failed)
    ):
        rule, said = _SECRET_MISSING, missing
    begun, ended = latest(with_reason(told, "Pulling")), latest(failed)
    trying = begun is not None and ended is not None and begun > ended
    return explain(rule, container.pod, said or str(reason), container=container.name, image=image, trying=trying,
                   since=trouble_began(container, failed),
                   seen=latest(failed) or created_at(container.pod))  # fmt: skip


def about_the_image(event: Object) -> bool:
    """Whether a failure that the kubelet reports is about the image, and not about what comes after it."""
    message = as_text(event.get("message"))
    return re.search(r"^Failed to \w+( default)? image|^Error: \w*Image\w*$|pull policy", message) is not None


def _missing_secret(events: Sequence[Object], failed: Sequence[Object]) -> str:
    """The kubelet's words about a pull secret that was missing at the latest attempt, too; empty when it was there."""
    missing = with_reason(events, "FailedToRetrieveImagePullSecret")
    noted = latest(missing)
    refused = latest([event for event in failed if as_text(event.get("message")).startswith("Failed to pull image")])
    if noted is None or (refused is not None and refused - noted >= _BACK_OFF):
        return ""
    return as_text(missing[-1].get("message"))
