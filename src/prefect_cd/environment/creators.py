"""What may create an object that does not exist yet: other objects of a release or its namespace. Pure.

It prefers to believe that something may: what is then not missing is only found later, by the rollout.
"""

import re
from collections.abc import Iterator

from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_templates import pod_template_of

_CREATES_NO_SECRETS = frozenset({"gateway.networking.k8s.io", "networking.istio.io", "monitoring.coreos.com"})
"""Groups of custom resources that only refer to Secrets and ConfigMaps."""
_REFERRING_ANNOTATIONS = ("kubectl.kubernetes.io/", "reloader.stakater.com/", "prefect-cd.dev/")


def may_create(item: Object, ref: Ref) -> bool:
    """Whether an object may lead to the creation of another: some controller's resource, or a Job of the release.

    A SealedSecret has the name of its Secret, an ExternalSecret and a Certificate have it in their spec, and operators
    make names of their own from that of their resource (`db` makes `db-app`).
    """
    if Ref.of(item).identity == ref.identity:
        return False
    if any(_names(text, ref.name) for text in telling_annotations(item).values()):
        return True
    if is_custom(item):
        name = as_text(dig(item, "metadata", "name"))
        refers_only = item["apiVersion"].partition("/")[0] in _CREATES_NO_SECRETS
        return not refers_only and (any(_names(text, ref.name) for text in _texts(item)) or _names(ref.name, name))
    if item["kind"] == "Ingress":
        return any(tls.get("secretName") == ref.name for tls in as_objects(dig(item, "spec", "tls")))
    return _program_may_create(item, ref)


def _program_may_create(item: Object, ref: Ref) -> bool:
    """Whether the pods of a workload have an account of their own, and name what is missing in what they execute."""
    template = pod_template_of(item, ())
    if template is None or as_text(template.spec.get("serviceAccountName")) in {"", "default"}:
        return False
    containers = [*as_objects(template.spec.get("initContainers")), *as_objects(template.spec.get("containers"))]
    texts = [text for container in containers for key in ("command", "args") for text in _texts(container.get(key))]
    if item["kind"] in {"Job", "CronJob"}:
        texts += [as_text(variable.get("value")) for box in containers for variable in as_objects(box.get("env"))]
    return any(_names(text, ref.name) for text in texts)


def telling_annotations(item: Object) -> dict[str, str]:
    """The annotations that may tell a controller to create something."""
    annotations = dig_mapping(item, "metadata", "annotations")
    return {
        key: as_text(value)
        for key, value in annotations.items()
        if not any(known in key for known in _REFERRING_ANNOTATIONS)
    }


def _names(text: str, name: str) -> bool:
    """Whether a text contains a name as a whole word."""
    return bool(name) and re.search(rf"(?<![a-z0-9-]){re.escape(name)}(?![a-z0-9])", text) is not None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def is_custom(item: Object) -> bool:
    """Whether an object is a custom resource, whose controller may do anything."""
    return builtin_kind(item["apiVersion"], item["kind"]) is None


__all__ = ["is_custom", "may_create", "telling_annotations"]
