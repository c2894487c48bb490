"""Find what will lose requests during a rollout, or run another image than the tested one, before it starts. Pure.

Decides from the manifests alone, with the defaults of the API server (one replica, 25 % surge and unavailable, 30 s
grace period). Only pods behind a Service of the same set are checked for lost requests: a worker without a Service
receives none.
The findings are warnings with a fix and never fail a release: an application may shut down gracefully by itself.

Sources of the rules: Kubernetes' documentation of pod termination (a pod is removed from endpoints at the same time as
its containers get SIGTERM, so requests still arrive for a while), and kubernetes/kubernetes
`pkg/controller/deployment/util` `ResolveFenceposts` (surge rounds up, unavailable rounds down, and where both come to 0
one pod may be unavailable).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from prefect_cd.kube.objects import Object, as_int, as_objects, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.kube.selectors import has_selector, selector_matches, service_selects
from prefect_cd.manifests.image_references import moving_references
from prefect_cd.manifests.pod_templates import PodTemplate, pod_template_of, resolve_amount
from prefect_cd.release.model import Result

_DEFAULT_GRACE_SECONDS = 30  # terminationGracePeriodSeconds, when it is not set
_SLEEP = re.compile(r"\bsleep\s+([0-9.]+)(s?)(?![\w.])")


class Rule(str, Enum):
    """What a finding is about. The values are a stable contract: users filter on them."""

    NO_PODS = "service-selects-nothing"
    NO_PORT = "service-port-name"
    NOT_READY = "not-ready-addresses"
    NO_READINESS = "no-readiness"
    NO_PRE_STOP = "no-pre-stop"
    KILLED_EARLY = "killed-early"
    RECREATE = "recreate"
    ALL_AT_ONCE = "all-at-once"
    NO_BUDGET = "no-disruption-budget"
    BLOCKING_BUDGET = "blocking-disruption-budget"
    MOVING_TAG = "moving-tag"
    REPLACED = "replaced"
    IRREVERSIBLE = "irreversible"
    NOT_DRY_RUN = "not-dry-run"


class RuleText(NamedTuple):
    """What the documentation says about a rule (docs/lint.md is generated from these texts)."""

    finding: str
    consequence: str
    fix: str


RULE_TEXTS = {
    Rule.NO_PODS: RuleText(
        "A Service's selector matches no pod template of the release.",
        "Requests to the Service get no answer.",
        "Make `spec.selector` match the labels of a pod template, unless its pods are deployed elsewhere.",
    ),
    Rule.NO_PORT: RuleText(
        "A Service's targetPort is a name that no container of its pods declares.",
        "Connections to the port fail.",
        "Give a container port this name, or use the name of an existing one.",
    ),
    Rule.NOT_READY: RuleText(
        "A Service that is not headless sets `publishNotReadyAddresses`.",
        "It sends requests to pods that are not ready.",
        "Remove `publishNotReadyAddresses`, or set it on a headless Service only.",
    ),
    Rule.NO_READINESS: RuleText(
        "A container that serves requests has no readiness probe and no startup probe, and its pod no readiness gate.",
        "It receives requests before it listens.",
        "Add a `readinessProbe` that succeeds once the application can answer.",
    ),
    Rule.NO_PRE_STOP: RuleText(
        "A container that serves requests has no preStop hook that waits.",
        "It ends while it still receives requests: a pod gets SIGTERM while it is being removed from endpoints.",
        "Add `lifecycle: {preStop: {sleep: {seconds: 5}}}`, or serve for some seconds after SIGTERM.",
    ),
    Rule.KILLED_EARLY: RuleText(
        "The preStop hook waits as long as the termination grace period, or longer.",
        "The container is killed together with the requests in progress.",
        "Set `terminationGracePeriodSeconds` well above the hook's wait.",
    ),
    Rule.RECREATE: RuleText(
        "A Deployment has the strategy Recreate.",
        "All old pods end before the first new one starts.",
        "Use `strategy: {type: RollingUpdate}`, or announce the downtime.",
    ),
    Rule.ALL_AT_ONCE: RuleText(
        "All replicas may be unavailable at once during the rollout; a StatefulSet with one replica always is.",
        "Requests fail until a new pod is ready.",
        "Set `maxUnavailable: 0` and `maxSurge: 1`, or more replicas.",
    ),
    Rule.NO_BUDGET: RuleText(
        "Two or more replicas have no PodDisruptionBudget.",
        "Draining nodes may evict all pods at once.",
        "Add a PodDisruptionBudget with `maxUnavailable: 1` and the selector of these pods.",
    ),
    Rule.BLOCKING_BUDGET: RuleText(
        "A PodDisruptionBudget allows no eviction.",
        "Draining a node hangs.",
        "Use `maxUnavailable: 1`, with two replicas or more.",
    ),
    Rule.MOVING_TAG: RuleText(
        "A field outside of containers and volumes names the pipeline's image by a tag, or by none.",
        "What runs from it may be another image than the tested one, and changes without a release.",
        "Add the field's path to `image.fields` of the pipeline file: the digest is filled in there.",
    ),
    Rule.REPLACED: RuleText(
        "An immutable ConfigMap or Secret, a Job's pod template or a Pod changes, which cannot be done in place; or a "
        "ConfigMap or Secret becomes immutable, which a rollback cannot undo in place.",
        "The object is deleted and created again; a Job runs again, and once more after a rollback.",
        "Give the new content a new name, as Kustomize's generators do. For a Job that may run twice, nothing.",
    ),
    Rule.IRREVERSIBLE: RuleText(
        "A change that a rollback cannot undo, such as a larger PersistentVolumeClaim.",
        "After a rollback it stays, and the message of the run names it; everything else goes back.",
        "Release it alone, before what needs it.",
    ),
    Rule.NOT_DRY_RUN: RuleText(
        "A custom resource whose CustomResourceDefinition comes with the same release.",
        "Its mistakes are found after the definition is written, and before anything else is.",
        "Release the definition first, where that matters.",
    ),
}
"""The documentation of every rule."""


class Finding(Result):
    """One problem of one object, and its fix in one sentence."""

    rule: Rule
    where: str
    summary: str
    fix: str

    @property
    def loses_requests(self) -> bool:
        """Whether requests are lost because of it during the rollout."""
        return self.rule is not Rule.MOVING_TAG and not self.cannot_be_undone

    @property
    def cannot_be_undone(self) -> bool:
        """Whether a rollback does not simply write the object as it was."""
        return self.rule in {Rule.REPLACED, Rule.IRREVERSIBLE, Rule.NOT_DRY_RUN}


def lint(manifests: Sequence[Object], image: str = "") -> tuple[Finding, ...]:
    """What will lose requests, or run another image; the same finding of an object is reported once.

    Args:
        manifests: the full set of objects of an environment, with their image pinned.
        image: the pipeline's image without a tag; empty: references to it are not checked.
    """
    templates = [template for item in manifests if (template := pod_template_of(item, manifests))]
    services = [item for item in manifests if item.get("kind") == "Service" and has_selector(item)]
    findings = [finding for service in services for finding in _service(service, templates)]
    for pods in templates:
        their_services = [service for service in services if _selects(service, pods)]
        if their_services and pods.replicas:
            findings += [*_containers(pods, their_services), *_strategy(pods), *_budget(pods, manifests)]
    findings += [finding for item in manifests if image for finding in _moving_tags(item, image)]
    return tuple({(finding.rule, finding.where, finding.summary): finding for finding in findings}.values())


def _selects(service: Object, pods: PodTemplate) -> bool:
    same_namespace = (dig(service, "metadata", "namespace") or "") == pods.namespace
    return same_namespace and service_selects(service, pods.labels)


def _moving_tags(item: Object, image: str) -> Iterator[Finding]:
    for reference in moving_references(item, image):
        yield Finding(
            rule=Rule.MOVING_TAG,
            where=kind_and_name(item),
            summary=f"{reference.path} names {reference.text}, which may become another image than the tested one",
            fix=f"add `{reference.path}` to `image.fields` of the pipeline file: the digest is filled in there",
        )


# --- services --------------------------------------------------------------------------------------------------------


def _service(service: Object, templates: Sequence[PodTemplate]) -> Iterator[Finding]:
    where = kind_and_name(service)
    selected = [pods for pods in templates if _selects(service, pods)]
    if not selected:
        labels = dig_mapping(service, "spec", "selector")
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        yield Finding(
            rule=Rule.NO_PODS,
            where=where,
            summary=f"selector {selector} matches no pod template of this release, so its requests get no answer",
            fix="make `spec.selector` match the labels of a pod template, unless its pods are deployed elsewhere",
        )
    for port in as_objects(dig(service, "spec", "ports")):
        target = port.get("targetPort")
        for pods in selected:
            names = sorted(filter(None, (as_text(port.get("name")) for port in _ports(pods.containers))))
            if isinstance(target, str) and not target.isdigit() and target not in names:
                yield Finding(
                    rule=Rule.NO_PORT,
                    where=where,
                    summary=f"targetPort {target!r}: {pods.where} has no port of this name, so connections fail",
                    fix=f"name a container port {target!r}, or use one of the existing: {', '.join(names) or 'none'}",
                )
    if dig(service, "spec", "publishNotReadyAddresses") and dig(service, "spec", "clusterIP") != "None":
        yield Finding(
            rule=Rule.NOT_READY,
            where=where,
            summary="publishNotReadyAddresses: it sends requests to pods that are not ready",
            fix="remove `publishNotReadyAddresses`, or set it on a headless Service only",
        )


def _ports(containers: Iterable[Object]) -> list[Object]:
    return [port for container in containers for port in as_objects(container.get("ports"))]


# --- start and end of a pod ------------------------------------------------------------------------------------------


def _containers(pods: PodTemplate, services: Sequence[Object]) -> Iterator[Finding]:
    grace = pods.spec.get("terminationGracePeriodSeconds")
    grace = _DEFAULT_GRACE_SECONDS if grace is None else as_int(grace)
    for container in _serving(pods, services):
        name = as_text(container.get("name"))
        if not (container.get("readinessProbe") or container.get("startupProbe") or pods.spec.get("readinessGates")):
            yield Finding(
                rule=Rule.NO_READINESS,
                where=pods.where,
                summary=f"container {name!r} has no readinessProbe: it receives requests before it listens",
                fix="add a `readinessProbe` that succeeds once the application can answer",
            )
        hook = _PreStop.of(container)
        if not hook.waits:
            yield Finding(
                rule=Rule.NO_PRE_STOP,
                where=pods.where,
                summary=f"container {name!r} has no preStop hook that waits: it ends while it still receives requests",
                fix="add `lifecycle: {preStop: {sleep: {seconds: 5}}}`, or serve for some seconds after SIGTERM",
            )
        elif hook.seconds >= grace:
            yield Finding(
                rule=Rule.KILLED_EARLY,
                where=pods.where,
                summary=f"container {name!r} waits {hook.seconds:g} s in preStop and is killed after {grace} s, "
                "together with the requests in progress",
                fix=f"set `terminationGracePeriodSeconds` well above {hook.seconds:g}",
            )


def _serving(pods: PodTemplate, services: Sequence[Object]) -> list[Object]:
    """The containers that the Services send requests to; a guess where no container declares their ports."""
    service_ports = [port for service in services for port in as_objects(dig(service, "spec", "ports"))]
    targets = [port.get("targetPort") or port.get("port") for port in service_ports]

    def is_target(container: Object) -> bool:
        return any(port.get("name") in targets or port.get("containerPort") in targets for port in _ports([container]))

    declared = [container for container in pods.containers if is_target(container)]
    if declared or len(pods.containers) == 1:
        return declared or list(pods.containers)
    # Ports need not be declared. Containers with a readiness probe are the likely servers, the others sidecars.
    with_probe = [container for container in pods.containers if container.get("readinessProbe")]
    return with_probe or list(pods.containers[:1])


@dataclass(frozen=True)
class _PreStop:
    """How long a container's preStop hook delays SIGTERM; `seconds` is 0 where the hook does not say."""

    waits: bool
    seconds: float = 0

    @classmethod
    def of(cls, container: Object) -> "_PreStop":
        hook = dig_mapping(container, "lifecycle", "preStop")
        if "sleep" in hook:
            seconds = as_int(dig(hook, "sleep", "seconds"))
            return cls(seconds > 0, seconds)
        command = dig(hook, "exec", "command")
        command = " ".join(map(str, command)) if isinstance(command, list) else ""
        sleep = _SLEEP.search(command)
        return cls(bool(hook), float(sleep[1].rstrip(".")) if sleep else 0)


# --- pods that are unavailable at once -------------------------------------------------------------------------------


def _strategy(pods: PodTemplate) -> Iterator[Finding]:
    if pods.kind == "Deployment":
        strategy = dig_mapping(pods.workload, "strategy")
        if strategy.get("type") == "Recreate":
            yield Finding(
                rule=Rule.RECREATE,
                where=pods.where,
                summary="strategy Recreate ends all old pods before the first new one starts",
                fix="use `strategy: {type: RollingUpdate}`, or announce the downtime",
            )
            return
        unavailable = _unavailable(dig_mapping(strategy, "rollingUpdate"), pods.replicas)
        if unavailable >= pods.replicas:
            yield Finding(
                rule=Rule.ALL_AT_ONCE,
                where=pods.where,
                summary=f"{unavailable} of {pods.replicas} replicas may be unavailable at once",
                fix="set `maxUnavailable: 0` and `maxSurge: 1`, or more replicas",
            )
    elif pods.kind == "StatefulSet" and pods.replicas == 1:
        yield Finding(
            rule=Rule.ALL_AT_ONCE,
            where=pods.where,
            summary="a StatefulSet ends a pod before it starts its replacement, and it has only one replica",
            fix="use two replicas or more, or a Deployment",
        )


def _unavailable(rolling: Object, replicas: int) -> int:
    """How many pods may be unavailable at once during a rolling update."""
    unavailable = resolve_amount(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    surge = resolve_amount(rolling.get("maxSurge", "25%"), replicas, up=True)
    return 1 if unavailable == 0 and surge == 0 else unavailable  # with neither, the rollout could not proceed


def _budget(pods: PodTemplate, manifests: Sequence[Object]) -> Iterator[Finding]:
    if pods.kind not in {"Deployment", "StatefulSet"}:
        return
    budgets = [
        item
        for item in manifests
        if item.get("kind") == "PodDisruptionBudget"
        and (dig(item, "metadata", "namespace") or "") == pods.namespace
        and selector_matches(dig(item, "spec", "selector"), pods.labels)
    ]
    if not budgets and pods.replicas > 1:  # for one replica, a budget would only block the drain of its node
        yield Finding(
            rule=Rule.NO_BUDGET,
            where=pods.where,
            summary=f"no PodDisruptionBudget: draining nodes may evict all {pods.replicas} pods at once",
            fix="add a PodDisruptionBudget with `maxUnavailable: 1` and the selector of these pods",
        )
    for budget in budgets:
        if not _disruptions_allowed(budget, pods.replicas):
            yield Finding(
                rule=Rule.BLOCKING_BUDGET,
                where=kind_and_name(budget),
                summary=f"it allows no eviction of the {pods.replicas} pods of {pods.where}: draining a node hangs",
                fix="use `maxUnavailable: 1`" + ("" if pods.replicas > 1 else " and two replicas or more"),
            )


def _disruptions_allowed(budget: Object, replicas: int) -> int:
    """How many pods may be evicted at once; both percentages round up (the API reference of PodDisruptionBudget)."""
    max_unavailable = dig(budget, "spec", "maxUnavailable")
    if max_unavailable is not None:
        return resolve_amount(max_unavailable, replicas, up=True)
    return replicas - resolve_amount(dig(budget, "spec", "minAvailable") or 0, replicas, up=True)


__all__ = ["RULE_TEXTS", "Finding", "Rule", "RuleText", "lint"]
