"""What would keep a rollback from working, as far as it can be known before a release is written. Pure.

Decides what a rollback would write and which pods it would start again, what these pods refer to, and whether quotas
leave room for them. The requests that find the rest out are in `tasks.way_back`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from prefect_cd.environment.quotas import POD_AMOUNTS, amounts, has_scopes, needs_surge, of_pod, plain, total
from prefect_cd.kube.objects import Object, as_text, dig, dig_mapping
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_references import pod_references
from prefect_cd.manifests.pod_templates import pod_template_of
from prefect_cd.release.model import Result

_CONTENTS = frozenset({"ConfigMap", "Secret"})


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
        for reference in pod_references(template.spec) if template else ():
            ref = Ref("v1", reference.kind, namespace, reference.name)
            if reference.kind in _CONTENTS and reference.needed and ref.identity not in inside and template:
                found.setdefault((ref, template.where), set()).update(reference.keys)
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


# --- quotas ----------------------------------------------------------------------------------------------------------


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
    added = total([template for template in replacing if template])
    removed = total(templates)
    surging = [of_pod(template) for template in templates if needs_surge(template)]
    findings: list[WayBackFinding] = []
    for quota in quotas:
        if has_scopes(quota):
            continue
        hard, used = (amounts(dig_mapping(quota, "status", key)) for key in ("hard", "used"))
        for name, limit in sorted(hard.items()):
            if name not in POD_AMOUNTS:
                continue
            key, now = POD_AMOUNTS[name], used.get(name, Decimal(0))
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
        summary=f"a rollback needs {plain(needed)} of {name} at its peak, and the quota allows {plain(limit)}",
        fix="raise the quota, or free something in the namespace",
    )


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
