"""What quotas limit, and how much of it pods use. Pure.

Which quota leaves no room for what is decided in `way_back` and `requirements`.
"""

from collections.abc import Iterable
from decimal import Decimal

from prefect_cd.kube.objects import Object, as_objects, dig, dig_mapping
from prefect_cd.kube.quantities import quantity
from prefect_cd.manifests.pod_templates import PodTemplate, resolve_amount

POD_AMOUNTS = {
    "pods": "pods",
    "count/pods": "pods",
    "cpu": "requests.cpu",
    "memory": "requests.memory",
    **{name: name for name in ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")},
}
"""What a quota limits -> what pods use of it."""


def has_scopes(quota: Object) -> bool:
    """Whether a quota counts only some pods."""
    return bool(dig(quota, "spec", "scopes") or dig(quota, "spec", "scopeSelector"))


def plain(amount: Decimal) -> str:
    """An amount for people, without an exponent."""
    return f"{amount.normalize():f}"


def amounts(values: Object) -> dict[str, Decimal]:
    """The amounts in a quota's status as numbers."""
    return {name: amount for name, value in values.items() if (amount := quantity(value)) is not None}


def total(templates: Iterable[PodTemplate]) -> dict[str, Decimal]:
    """What all pods of these workloads use."""
    used: dict[str, Decimal] = {}
    for template in templates:
        for name, amount in of_pod(template).items():
            used[name] = used.get(name, Decimal(0)) + amount * template.replicas
    return used


def of_pod(pods: PodTemplate) -> dict[str, Decimal]:
    """What one pod uses: its containers together, or its largest init container."""
    used = {"pods": Decimal(1)}
    init = [item for item in as_objects(pods.spec.get("initContainers")) if item.get("restartPolicy") != "Always"]
    for section, read in (("requests", _requests), ("limits", _limits)):
        for resource in ("cpu", "memory"):
            together = sum((read(item, resource) for item in pods.containers), Decimal(0))
            used[f"{section}.{resource}"] = max([together, *(read(item, resource) for item in init)])
    return used


def needs_surge(pods: PodTemplate) -> bool:
    """Whether an old pod ends only after a new one has started."""
    if pods.kind != "Deployment" or not pods.replicas or dig(pods.workload, "strategy", "type") == "Recreate":
        return False
    update = dig_mapping(pods.workload, "strategy", "rollingUpdate")
    return resolve_amount(update.get("maxUnavailable", "25%"), pods.replicas, up=False) == 0


def _limits(container: Object, resource: str) -> Decimal:
    return quantity(dig(container, "resources", "limits", resource)) or Decimal(0)


def _requests(container: Object, resource: str) -> Decimal:
    """A request that is not set is the limit, as the API server has it."""
    return quantity(dig(container, "resources", "requests", resource)) or _limits(container, resource)


__all__ = ["POD_AMOUNTS", "amounts", "has_scopes", "needs_surge", "of_pod", "plain", "total"]
