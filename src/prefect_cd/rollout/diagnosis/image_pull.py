"""Why an image cannot be pulled.

The registry's message decides which refusals are permanent. The kubelet reports the cause in its first message only,
later ones just say back-off, so the events are searched for the first one. A refusal while the pull secret is missing
is not permanent: the Secret may still be created.
"""

import re
from collections.abc import Sequence
from datetime import timedelta

from prefect_cd.kube.objects import Object, as_text, created_at, latest, with_reason
from prefect_cd.rollout.diagnosis.cause import Category, Cause, Rule, explain, matching_rule
from prefect_cd.rollout.diagnosis.container import Container, problem_start

PLATFORM = "build the image for the nodes' platform (kubectl get nodes -L kubernetes.io/arch)"

_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
            "SignatureValidationFailed", "ImageInspectError")  # fmt: skip

_BACK_OFF = timedelta(seconds=10)
"""The kubelet's shortest pause between two attempts (`imagePullBackOff`): closer events are of one attempt."""

_RULES = (
    # containerd writes "no match for platform in manifest …: not found", so this must precede the plain "not found".
    Rule(r"no match for platform|no matching manifest|no image found in (image index|manifest list)",
         Category.WRONG_ARCHITECTURE, True, "the image {image} has no variant for the node's CPU architecture",
         PLATFORM),
    # containerd, CRI-O and Docker Hub ("pull access denied, … may require authorization").
    Rule(r"unauthori[sz]ed|(?<!permission )denied|forbidden|authentication required|authorization failed"
         r"|no basic auth|\b40[13]\b|signature", Category.IMAGE_DENIED, True,
         "the registry denies access to {image}",
         "check the imagePullSecrets of the pod's service account in namespace {namespace}"),
    Rule(r"no such host|dial tcp|i/o timeout|connection re(fused|set)|deadline exceeded|tls:|x509|\bEOF\b"
         r"|server gave HTTP response|too ?many ?requests|\b429\b|\b50[0234]\b|RegistryUnavailable|misbehaving",
         Category.REGISTRY_UNREACHABLE, False, "the node cannot reach the registry of {image}",
         "check the registry's host name and that the nodes can reach it"),
    Rule(r"ErrImageNeverPull", Category.IMAGE_NOT_FOUND, False,
         "the image {image} is not on the node, and imagePullPolicy Never forbids pulling it",
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
    "the registry denies access to {image}, and the pull secret does not exist: {message}",
    "add the Secret to the namespace, or correct imagePullSecrets (kubectl -n {namespace} get secrets)",
)  # fmt: skip


def image_pull_problem(container: Container, events: Sequence[Object]) -> Cause | None:
    """The reason why a container's image cannot be pulled; None when the container waits for something else."""
    reason = container.waiting.get("reason")
    if reason not in _REASONS:
        return None
    container_events = container.events_in(events)
    failures = [event for event in with_reason(container_events, "Failed", "InspectFailed") if is_about_image(event)]
    message = _pull_message(container, failures)
    image = as_text(container.spec.get("image")) or as_text(container.status.get("image"))
    rule = matching_rule(_RULES, f"{reason}: {message}", image)
    # Many registries answer "not found" instead of "denied" to a client without credentials.
    may_need_secret = rule.category in (Category.IMAGE_DENIED, Category.IMAGE_NOT_FOUND)
    if may_need_secret and (secret_message := _missing_secret_message(events, failures)):
        rule, message = _SECRET_MISSING, secret_message
    pull_started, pull_failed = latest(with_reason(container_events, "Pulling")), latest(failures)
    return explain(
        rule,
        container.pod,
        message or str(reason),
        container=container.name,
        image=image,
        retrying=pull_started is not None and pull_failed is not None and pull_started > pull_failed,
        since=problem_start(container, failures),
        last_seen=pull_failed or created_at(container.pod),
    )


def _pull_message(container: Container, failures: Sequence[Object]) -> str:
    """The kubelet's message with the cause of the failed pull."""
    message = as_text(container.waiting.get("message"))
    if not re.fullmatch(r'(Back-off pulling image "[^"]*")?', message):
        return message
    # Older kubelets write no more than this into the status; the cause is in the first event.
    event_messages = [as_text(event.get("message")) for event in failures]
    return next((text for text in event_messages if text.startswith("Failed to pull image")), message)


def is_about_image(event: Object) -> bool:
    """Whether a `Failed` event is about pulling the image, and not about creating or starting the container."""
    message = as_text(event.get("message"))
    return re.search(r"^Failed to \w+( default)? image|^Error: \w*Image\w*$|pull policy", message) is not None


def _missing_secret_message(events: Sequence[Object], failures: Sequence[Object]) -> str:
    """The kubelet's message that a pull secret was missing at the latest attempt; empty when the Secret existed."""
    missing = with_reason(events, "FailedToRetrieveImagePullSecret")
    reported_at = latest(missing)
    pulls = [event for event in failures if as_text(event.get("message")).startswith("Failed to pull image")]
    refused_at = latest(pulls)
    if reported_at is None or (refused_at is not None and refused_at - reported_at >= _BACK_OFF):
        return ""
    return as_text(missing[-1].get("message"))
