"""Which pods a set of manifests will make, and which of them a selector means. Pure.

It knows where a workload keeps its pod template, how many pods there will be, and how labels, selectors and
percentages are read (the API reference's LabelSelector and IntOrString). What is good or bad is for others to say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefect_cd.kube.objects import Object, as_int, as_objects, as_text, dig, dig_mapping, kind_and_name


@dataclass(frozen=True)
class PodTemplate:
    """The pods that one workload will make.

    Args:
        where: kind and name of the workload.
        kind: its kind.
        namespace: empty where the manifest leaves it to others.
        workload: its spec.
        labels: what the pods carry.
        spec: what the pods are.
        replicas: how many, at least: those of a HorizontalPodAutoscaler's minimum where there is one.
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
        """Those that run as long as the pod: init containers that always restart are sidecars."""
        early = [each for each in as_objects(self.spec.get("initContainers")) if each.get("restartPolicy") == "Always"]
        return (*as_objects(self.spec.get("containers")), *early)


def pod_template_of(item: Object, manifests: Sequence[Object]) -> PodTemplate | None:
    """The pods of a workload of any kind, or None where it makes none.

    Args:
        item: the workload, or a bare pod.
        manifests: the set that it belongs to; an autoscaler in it says how many pods there are at least.
    """
    spec = dig_mapping(item, "spec")
    template = (
        item if item.get("kind") == "Pod" else dig(spec, "template") or dig(spec, "jobTemplate", "spec", "template")
    )
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


def _replicas(item: Object, manifests: Sequence[Object]) -> int:
    written = dig(item, "spec", "replicas")
    scalers = [
        as_int(dig(each, "spec", "minReplicas")) or 1
        for each in manifests
        if each.get("kind") == "HorizontalPodAutoscaler"
        and dig(each, "metadata", "namespace") == dig(item, "metadata", "namespace")
        and dig(each, "spec", "scaleTargetRef", "kind") == item.get("kind")
        and dig(each, "spec", "scaleTargetRef", "name") == dig(item, "metadata", "name")
    ]
    return max([1 if written is None else as_int(written), *scalers]) if written != 0 else 0


def resolve_amount(value: object, replicas: int, *, up: bool) -> int:
    """A number of pods, written as a number or as a percentage of `replicas`; what is neither counts as 0."""
    if isinstance(value, str) and value.removesuffix("%").isdigit() and value.endswith("%"):
        share = int(value[:-1]) * replicas / 100
        return math.ceil(share) if up else math.floor(share)
    return value if isinstance(value, int) else 0


__all__ = ["PodTemplate", "pod_template_of", "resolve_amount"]
