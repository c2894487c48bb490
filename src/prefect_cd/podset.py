"""Which pods a set of manifests will make, and which of them a selector means. Pure.

It knows where a workload keeps its pod template, how many pods there will be, and how labels, selectors and
percentages are read (the API reference's LabelSelector and IntOrString). What is good or bad is for others to say.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prefect_cd.diagnosis.reading import count, dig, name_of, objects, selects, words
from prefect_cd.release import Object


@dataclass(frozen=True)
class Pods:
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
        early = [each for each in objects(self.spec.get("initContainers")) if each.get("restartPolicy") == "Always"]
        return (*objects(self.spec.get("containers")), *early)


def part(value: object, *path: str) -> Object:
    """The JSON object at `path`; empty where there is none."""
    found = dig(value, *path)
    return found if isinstance(found, dict) else {}


def pods_of(item: Object, manifests: Sequence[Object]) -> Pods | None:
    """The pods of a workload of any kind, or None where it makes none.

    Args:
        item: the workload, or a bare pod.
        manifests: the set that it belongs to; an autoscaler in it says how many pods there are at least.
    """
    spec = part(item, "spec")
    template = (
        item if item.get("kind") == "Pod" else dig(spec, "template") or dig(spec, "jobTemplate", "spec", "template")
    )
    containers = objects(dig(template, "spec", "containers"))
    if not containers:
        return None
    return Pods(
        where=name_of(item),
        kind=words(item.get("kind")),
        namespace=words(dig(item, "metadata", "namespace")),
        workload=spec,
        labels=part(template, "metadata", "labels"),
        spec=template["spec"],
        replicas=_replicas(item, manifests),
    )


def _replicas(item: Object, manifests: Sequence[Object]) -> int:
    written = dig(item, "spec", "replicas")
    scalers = [
        count(dig(each, "spec", "minReplicas")) or 1
        for each in manifests
        if each.get("kind") == "HorizontalPodAutoscaler"
        and dig(each, "metadata", "namespace") == dig(item, "metadata", "namespace")
        and dig(each, "spec", "scaleTargetRef", "kind") == item.get("kind")
        and dig(each, "spec", "scaleTargetRef", "name") == dig(item, "metadata", "name")
    ]
    return max([1 if written is None else count(written), *scalers]) if written != 0 else 0


def matches(selector: object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector means pods with these labels: an empty one means all, a missing one none."""
    if not isinstance(selector, dict):
        return False
    wanted = part(selector, "matchLabels")
    return (not wanted or selects(wanted, labels)) and all(
        _OPERATORS.get(words(each.get("operator")), _never)(
            labels.get(words(each.get("key"))), each.get("values") or ()
        )
        for each in objects(selector.get("matchExpressions"))
    )


def _never(_value: str | None, _values: Sequence[str]) -> bool:
    return False


_OPERATORS: dict[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def amount(value: object, replicas: int, *, up: bool) -> int:
    """A number of pods, written as a number or as a percentage of `replicas`; what is neither counts as 0."""
    if isinstance(value, str) and value.removesuffix("%").isdigit() and value.endswith("%"):
        share = int(value[:-1]) * replicas / 100
        return math.ceil(share) if up else math.floor(share)
    return value if isinstance(value, int) else 0


__all__ = ["Pods", "amount", "matches", "part", "pods_of"]
