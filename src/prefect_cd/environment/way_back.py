"""What would keep a rollback from working, as far as it can be known before a release is written. Pure.

Decides what a rollback would write and which pods it would start again, what these pods refer to, and whether quotas
leave room for them. The requests that find the rest out are in `tasks.way_back`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping
from prefect_cd.kube.quantities import quantity
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_templates import PodTemplate, pod_template_of, resolve_amount
from prefect_cd.release.model import Result


class Obstacle(str, Enum):
    """What would keep a rollback from working. The values are a stable contract: users filter on them."""

    IMAGE = "image-missing"
    REFERENCE = "reference-missing"
    REFUSED = "rollback-refused"
    QUOTA = "quota-exceeded"
    UNKNOWN = "not-checked"


class WayBackFinding(Result):
    """One obstacle on the way back to the known-good, and what to do about it."""

    obstacle: Obstacle
    where: str
    summary: str
    fix: str


@dataclass(frozen=True)
class Reference:
    """A ConfigMap or Secret that pods cannot start without.

    Attributes:
        ref: the object.
        keys: those that must be in it.
        where: the workload.
    """

    ref: Ref
    keys: frozenset[str]
    where: str


# --- what a rollback does --------------------------------------------------------------------------------------------


def restored(base: Sequence[Object], candidate: Sequence[Object]) -> list[Object]:
    """The objects of the known-good that a rollback would write, since the candidate changes or removes them."""
    after = {Ref.of(item).identity: item for item in candidate}
    return [item for item in base if after.get(Ref.of(item).identity) != item]


def restarted(base: Sequence[Object], candidate: Sequence[Object]) -> list[Object]:
    """The workloads of the known-good whose pods a rollback would start again."""
    after = {Ref.of(item).identity: item for item in candidate}
    return [
        item
        for item in restored(base, candidate)
        if pod_template_of(item, base) and not _same_pods(item, after.get(Ref.of(item).identity))
    ]


def _same_pods(item: Object, other: Object | None) -> bool:
    return dig(item, "spec", "template") is not None and dig(item, "spec", "template") == dig(other, "spec", "template")


# --- references ------------------------------------------------------------------------------------------------------


def references(workloads: Iterable[Object], contained: Sequence[Object]) -> list[Reference]:
    """What the pods of these workloads need of ConfigMaps and Secrets that are not part of the release.

    Args:
        workloads: of the known-good.
        contained: all objects of the known-good: what is among them is restored with them.
    """
    inside = {Ref.of(item).identity for item in contained}
    found: dict[tuple[Ref, str], set[str]] = {}
    for workload in workloads:
        template = pod_template_of(workload, contained)
        namespace = as_text(dig(workload, "metadata", "namespace"))
        for kind, name, keys in _in_pods(template) if template else ():
            ref = Ref("v1", kind, namespace, name)
            if name and ref.identity not in inside and template:
                found.setdefault((ref, template.where), set()).update(keys)
    return [Reference(ref, frozenset(keys), where) for (ref, where), keys in sorted(found.items(), key=lambda f: f[0])]


def missing(reference: Reference, live: Object | None) -> WayBackFinding | None:
    """The finding about a reference whose object, as it is live, lacks something; None if it lacks nothing."""
    if live is None:
        lacks = f"{reference.ref} does not exist"
    else:
        keys = {*dig_mapping(live, "data"), *dig_mapping(live, "binaryData")}
        absent = sorted(reference.keys - keys)
        if not absent:
            return None
        lacks = f"{reference.ref} has no key {', '.join(absent)}"
    return WayBackFinding(
        obstacle=Obstacle.REFERENCE,
        where=reference.where,
        summary=f"its pods in the known-good need what is missing: {lacks}",
        fix=f"create it again in namespace {reference.ref.namespace}, or make it part of the manifests",
    )


_Named = tuple[str, str, Sequence[str]]
"""Kind, name and keys."""


def _in_pods(pods: PodTemplate) -> Iterator[_Named]:
    containers = [*as_objects(pods.spec.get("containers")), *as_objects(pods.spec.get("initContainers"))]
    for container in containers:
        for source in as_objects(container.get("envFrom")):
            yield from _named(source, "configMapRef", "secretRef")
        for variable in as_objects(container.get("env")):
            yield from _named(dig_mapping(variable, "valueFrom"), "configMapKeyRef", "secretKeyRef")
    for volume in as_objects(pods.spec.get("volumes")):
        yield from _named(volume, "configMap", "secret")
        for source in as_objects(dig(volume, "projected", "sources")):
            yield from _named(source, "configMap", "secret")


def _named(source: Object, config_map: str, secret: str) -> Iterator[_Named]:
    """What a source of variables or files names; nothing that is optional."""
    for field, kind in ((config_map, "ConfigMap"), (secret, "Secret")):
        value = dig_mapping(source, field)
        if not value or value.get("optional") is True:
            continue
        items = [as_text(item.get("key")) for item in as_objects(value.get("items"))]
        keys = [key for key in (as_text(value.get("key")), *items) if key]
        yield kind, as_text(value.get("name") or value.get("secretName")), keys


# --- quotas ----------------------------------------------------------------------------------------------------------

_Amounts = Mapping[str, Decimal]
_NAMES = {
    "pods": "pods",
    "count/pods": "pods",
    "cpu": "requests.cpu",
    "memory": "requests.memory",
    **{name: name for name in ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")},
}
"""What a quota limits -> what pods use of it."""


def quota_findings(
    quotas: Iterable[Object], workloads: Sequence[Object], base: Sequence[Object], candidate: Sequence[Object]
) -> list[WayBackFinding]:
    """Which quotas leave no room for the pods of a rollback.

    Args:
        quotas: the ResourceQuotas of the namespace; those with scopes are left out, since not all pods count.
        workloads: of the known-good, whose pods a rollback starts again.
        base: all objects of the known-good.
        candidate: all objects of the release.
    """
    after = {Ref.of(item).identity: item for item in candidate}
    templates = [template for item in workloads if (template := pod_template_of(item, base))]
    replacing = [pod_template_of(after[Ref.of(item).identity], candidate) for item in workloads if _is_in(item, after)]
    added = _total([template for template in replacing if template])
    removed = _total(templates)
    surging = [_of_pod(template) for template in templates if _needs_surge(template)]
    findings: list[WayBackFinding] = []
    for quota in quotas:
        if dig(quota, "spec", "scopes") or dig(quota, "spec", "scopeSelector"):
            continue
        hard, used = (_amounts(dig_mapping(quota, "status", key)) for key in ("hard", "used"))
        for name, limit in sorted(hard.items()):
            if name not in _NAMES:
                continue
            key, now = _NAMES[name], used.get(name, Decimal(0))
            with_candidate = now + added.get(key, Decimal(0)) - removed.get(key, Decimal(0))
            one_more = max((pod.get(key, Decimal(0)) for pod in surging), default=Decimal(0))
            if templates and (now > limit or (one_more and with_candidate + one_more > limit)):
                findings.append(_exceeded(quota, name, limit, max(now, with_candidate + one_more)))
    return findings


def _is_in(item: Object, objects: Mapping[tuple[str, str, str, str], Object]) -> bool:
    return Ref.of(item).identity in objects


def _exceeded(quota: Object, name: str, limit: Decimal, needed: Decimal) -> WayBackFinding:
    return WayBackFinding(
        obstacle=Obstacle.QUOTA,
        where=f"resourcequota/{dig(quota, 'metadata', 'name')}",
        summary=f"a rollback needs {_plain(needed)} of {name} at its peak, and the quota allows {_plain(limit)}",
        fix="raise the quota, or free something in the namespace",
    )


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def _amounts(values: Object) -> dict[str, Decimal]:
    return {name: amount for name, value in values.items() if (amount := quantity(value)) is not None}


def _needs_surge(pods: PodTemplate) -> bool:
    """Whether an old pod ends only after a new one has started."""
    if pods.kind != "Deployment" or not pods.replicas or dig(pods.workload, "strategy", "type") == "Recreate":
        return False
    update = dig_mapping(pods.workload, "strategy", "rollingUpdate")
    return resolve_amount(update.get("maxUnavailable", "25%"), pods.replicas, up=False) == 0


def _total(templates: Iterable[PodTemplate]) -> dict[str, Decimal]:
    """What all pods of these workloads use."""
    total: dict[str, Decimal] = {}
    for template in templates:
        for name, amount in _of_pod(template).items():
            total[name] = total.get(name, Decimal(0)) + amount * template.replicas
    return total


def _of_pod(pods: PodTemplate) -> dict[str, Decimal]:
    """What one pod uses: its containers together, or its largest init container."""
    used = {"pods": Decimal(1)}
    init = [item for item in as_objects(pods.spec.get("initContainers")) if item.get("restartPolicy") != "Always"]
    for section, read in (("requests", _requests), ("limits", _limits)):
        for resource in ("cpu", "memory"):
            together = sum((read(item, resource) for item in pods.containers), Decimal(0))
            used[f"{section}.{resource}"] = max([together, *(read(item, resource) for item in init)])
    return used


def _limits(container: Object, resource: str) -> Decimal:
    return quantity(dig(container, "resources", "limits", resource)) or Decimal(0)


def _requests(container: Object, resource: str) -> Decimal:
    """A request that is not set is the limit, as the API server has it."""
    return quantity(dig(container, "resources", "requests", resource)) or _limits(container, resource)


__all__ = [
    "Obstacle",
    "Reference",
    "WayBackFinding",
    "missing",
    "quota_findings",
    "references",
    "restarted",
    "restored",
]
