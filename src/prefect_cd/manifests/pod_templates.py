"""The pod templates in a set of manifests. Pure.

It knows where a workload has its pod template, how many pods there will be at least, and how amounts are read (the API
reference's IntOrString). What is good or bad about them is decided by `lint`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_cd.kube.objects import Object, as_int, as_objects, as_text, dig, dig_mapping, kind_and_name

_MAX_NAME_LENGTH = 200
_NO_UID = "00000000-0000-0000-0000-000000000000"
_TEMPLATE_METADATA = frozenset({"labels", "annotations"})


@dataclass(frozen=True)
class PodTemplate:
    """The pods that one workload will have.

    Attributes:
        where: kind and name of the workload.
        kind: its kind.
        namespace: empty where the manifest does not set it.
        workload: the spec of the workload.
        labels: the labels of the pods.
        spec: the spec of the pods.
        replicas: how many pods there are at least; a HorizontalPodAutoscaler may raise it.
    """

    where: str
    kind: str
    namespace: str
    workload: Object
    labels: Mapping[str, str]
    spec: Object
    replicas: int

    @property
    def containers(self) -> tuple[Object, ...]:
        """Those that run as long as the pod: an init container with restartPolicy Always is a sidecar."""
        init_containers = as_objects(self.spec.get("initContainers"))
        sidecars = [container for container in init_containers if container.get("restartPolicy") == "Always"]
        return (*as_objects(self.spec.get("containers")), *sidecars)


def pod_template_of(item: Object, manifests: Sequence[Object]) -> PodTemplate | None:
    """The pods of a workload of any kind, or None for an object without a pod template.

    Args:
        item: the workload, or a bare pod.
        manifests: the set that it belongs to; an autoscaler in it determines how many pods there are at least.
    """
    spec = dig_mapping(item, "spec")
    if item.get("kind") == "Pod":
        template: Any = item
    else:
        template = dig(spec, "template") or dig(spec, "jobTemplate", "spec", "template")
    containers = as_objects(dig(template, "spec", "containers"))
    if not containers:
        return None
    return PodTemplate(
        where=kind_and_name(item),
        kind=as_text(item.get("kind")),
        namespace=as_text(dig(item, "metadata", "namespace")),
        workload=spec,
        labels=dig_mapping(template, "metadata", "labels"),
        spec=template["spec"],
        replicas=_replicas(item, manifests),
    )


def pod_templates_of(items: Iterable[Object], manifests: Sequence[Object]) -> list[PodTemplate]:
    """The pods of those of the objects that have any; see `pod_template_of`."""
    return [template for item in items if (template := pod_template_of(item, manifests))]


def dry_run_pod(workload: Object) -> Object | None:
    """A pod of a workload as its controller would create it, for a dry run; None for an object without a pod template.

    It names a controller, as policies against pods without one want it.
    """
    spec, metadata = dig_mapping(workload, "spec"), workload["metadata"]
    template = dig_mapping(spec, "template") or dig_mapping(spec, "jobTemplate", "spec", "template")
    pod_spec = dig_mapping(template, "spec")
    if not as_objects(pod_spec.get("containers")):
        return None
    # as the StatefulSet controller does: a volume for each claim template
    claims = sorted(own_claims(workload))
    claim_volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    others = [volume for volume in as_objects(pod_spec.get("volumes")) if volume.get("name") not in claims]
    owner = {
        "apiVersion": as_text(workload.get("apiVersion")),
        "kind": as_text(workload.get("kind")),
        "name": metadata["name"],
        "uid": _NO_UID,
        "controller": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **{key: value for key, value in dig_mapping(template, "metadata").items() if key in _TEMPLATE_METADATA},
            "name": f"{metadata['name'][:_MAX_NAME_LENGTH]}-prefect-cd-dry-run",
            "namespace": as_text(metadata.get("namespace")),
            "ownerReferences": [owner],
        },
        "spec": {**pod_spec, "volumes": [*others, *claim_volumes]},
    }


def own_claims(workload: Object) -> frozenset[str]:
    """The volumes that a claim of its own gets made for, in each pod of a StatefulSet."""
    templates = as_objects(dig(workload, "spec", "volumeClaimTemplates"))
    return frozenset(as_text(dig(template, "metadata", "name")) for template in templates)


def _replicas(item: Object, manifests: Sequence[Object]) -> int:
    """How many pods a workload has at least: its own number, or the minimum of its autoscaler if that is more."""
    replicas = dig(item, "spec", "replicas")
    if replicas == 0:  # scaled down on purpose; an autoscaler is inactive then, too
        return 0
    minimums = [
        as_int(dig(other, "spec", "minReplicas")) or 1
        for other in manifests
        if other.get("kind") == "HorizontalPodAutoscaler"
        and dig(other, "metadata", "namespace") == dig(item, "metadata", "namespace")
        and dig(other, "spec", "scaleTargetRef", "kind") == item.get("kind")
        and dig(other, "spec", "scaleTargetRef", "name") == dig(item, "metadata", "name")
    ]
    return max([1 if replicas is None else as_int(replicas), *minimums])


def resolve_amount(value: object, replicas: int, *, up: bool) -> int:
    """A number of pods from a number or a percentage of `replicas`, rounded up or down; anything else counts as 0."""
    if isinstance(value, str) and value.removesuffix("%").isdigit() and value.endswith("%"):
        share = int(value[:-1]) * replicas / 100
        return math.ceil(share) if up else math.floor(share)
    return value if isinstance(value, int) else 0


__all__ = ["PodTemplate", "dry_run_pod", "own_claims", "pod_template_of", "pod_templates_of", "resolve_amount"]
