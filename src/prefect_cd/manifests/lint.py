"""What in a set of objects will lose requests while it is rolled out, said before it is. Pure.

Decides from the manifests alone; what the API server would fill in (one replica, 25 % surge, 30 s to end) is filled in
here. Only pods that a Service of the set sends requests to are looked at: a worker that nobody calls has no user to
lose. These are warnings with a fix, and no verdict: an application may know how to end gently by itself.

Sources of the rules: Kubernetes' documentation of pod termination (endpoints are told of the end at the same time as
the container), and kubernetes/kubernetes `pkg/controller/deployment/util` `ResolveFenceposts` (surge rounds up,
unavailable rounds down, and where both come to 0 one pod may be unavailable).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from prefect_cd.kube.objects import Object, as_int, as_objects, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.kube.selectors import matches, matches_labels
from prefect_cd.manifests.pod_templates import PodTemplate, pod_template_of, resolve_amount
from prefect_cd.release.model import Result

_GRACE_SECONDS = 30
_SLEEP = re.compile(r"\bsleep\s+([0-9.]+)(s?)(?![\w.])")


class Rule(str, Enum):
    """What kind of weakness it is. The values are a stable contract: people filter on them."""

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


class Finding(Result):
    """One weakness of one object, and its fix in one sentence."""

    hazard: Rule
    where: str
    summary: str
    fix: str


def lint(manifests: Sequence[Object]) -> tuple[Finding, ...]:
    """What will lose requests, each weakness of an object once.

    Args:
        manifests: the full set that an environment gets.
    """
    pods = [each for item in manifests if (each := pod_template_of(item, manifests))]
    services = [item for item in manifests if item.get("kind") == "Service" and dig_mapping(item, "spec", "selector")]
    found = [weakness for service in services for weakness in _service(service, pods)]
    for each in pods:
        called = [item for item in services if _sends_to(item, each)]
        if called and each.replicas:
            found += [*_containers(each, called), *_strategy(each), *_budget(each, manifests)]
    return tuple({(weakness.hazard, weakness.where, weakness.summary): weakness for weakness in found}.values())


def _sends_to(service: Object, pods: PodTemplate) -> bool:
    same = (dig(service, "metadata", "namespace") or "") == pods.namespace
    return same and matches_labels(dig(service, "spec", "selector"), pods.labels)


# --- services --------------------------------------------------------------------------------------------------------


def _service(service: Object, pods: Sequence[PodTemplate]) -> Iterator[Finding]:
    where = kind_and_name(service)
    targets = [each for each in pods if _sends_to(service, each)]
    if not targets:
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(dig_mapping(service, "spec", "selector").items()))
        yield Finding(
            hazard=Rule.NO_PODS,
            where=where,
            summary=f"its selector ({wanted}) matches no pod template of this release, so nobody answers",
            fix="make `spec.selector` equal to labels of the pod template, unless somebody else deploys these pods",
        )
    for port in as_objects(dig(service, "spec", "ports")):
        target = port.get("targetPort")
        for each in targets:
            names = sorted(as_text(known.get("name")) for known in _ports(each.containers))
            if isinstance(target, str) and not target.isdigit() and target not in names:
                yield Finding(
                    hazard=Rule.NO_PORT,
                    where=where,
                    summary=f"its targetPort {target!r} is no port name of {each.where}, so connections are refused",
                    fix=f"name a container port {target!r}; there are: {', '.join(filter(None, names)) or 'none'}",
                )
    if dig(service, "spec", "publishNotReadyAddresses") and dig(service, "spec", "clusterIP") != "None":
        yield Finding(
            hazard=Rule.NOT_READY,
            where=where,
            summary="it sends requests to pods that are not ready, too (publishNotReadyAddresses)",
            fix="remove `publishNotReadyAddresses`, or keep it for a headless Service only",
        )


def _ports(containers: Iterable[Object]) -> list[Object]:
    return [port for container in containers for port in as_objects(container.get("ports"))]


# --- the beginning and the end of a pod ------------------------------------------------------------------------------


def _containers(pods: PodTemplate, services: Sequence[Object]) -> Iterator[Finding]:
    grace = pods.spec.get("terminationGracePeriodSeconds")
    grace = _GRACE_SECONDS if grace is None else as_int(grace)
    for container in _serving(pods, services):
        name = as_text(container.get("name"))
        if not (container.get("readinessProbe") or container.get("startupProbe") or pods.spec.get("readinessGates")):
            yield Finding(
                hazard=Rule.NO_READINESS,
                where=pods.where,
                summary=f"container {name!r} has no readinessProbe: it gets requests before it listens",
                fix="add a `readinessProbe` that succeeds once the application can answer",
            )
        hook = _PreStop.of(container)
        if not hook.waits:
            yield Finding(
                hazard=Rule.NO_PRE_STOP,
                where=pods.where,
                summary=f"container {name!r} ends while requests are still sent to it: it has no preStop wait",
                fix="add `lifecycle: {preStop: {sleep: {seconds: 5}}}`, or let it serve on for seconds after SIGTERM",
            )
        elif hook.seconds >= grace:
            yield Finding(
                hazard=Rule.KILLED_EARLY,
                where=pods.where,
                summary=f"container {name!r} waits {hook.seconds:g} s in preStop and is killed after {grace} s, "
                "with the requests that it is answering",
                fix=f"set `terminationGracePeriodSeconds` well above {hook.seconds:g}",
            )


def _serving(pods: PodTemplate, services: Sequence[Object]) -> list[Object]:
    """The containers that a Service's ports lead to; where that is not written down, all that might be."""
    ports = [port for each in services for port in as_objects(dig(each, "spec", "ports"))]
    wanted = [port.get("targetPort") or port.get("port") for port in ports]

    def leads_to(container: Object) -> bool:
        return any(port.get("name") in wanted or port.get("containerPort") in wanted for port in _ports([container]))

    named = [container for container in pods.containers if leads_to(container)]
    if named or len(pods.containers) == 1:
        return named or list(pods.containers)
    # undeclared ports: a pod with a careful container is not accused for its sidecars
    careful = [each for each in pods.containers if each.get("readinessProbe")]
    return careful or list(pods.containers[:1])


@dataclass(frozen=True)
class _PreStop:
    """How long a container's preStop hook holds SIGTERM back; `seconds` is 0 where that cannot be read."""

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
        found = _SLEEP.search(command)
        return cls(bool(hook), float(found[1].rstrip(".")) if found else 0)


# --- how many at once ------------------------------------------------------------------------------------------------


def _strategy(pods: PodTemplate) -> Iterator[Finding]:
    if pods.kind == "Deployment":
        strategy = dig_mapping(pods.workload, "strategy")
        if strategy.get("type") == "Recreate":
            yield Finding(
                hazard=Rule.RECREATE,
                where=pods.where,
                summary="strategy Recreate ends every old pod before the first new one starts",
                fix="use `strategy: {type: RollingUpdate}`; else tell your users when it is down",
            )
        elif (gone := _unavailable(dig_mapping(strategy, "rollingUpdate"), pods.replicas)) >= pods.replicas:
            yield Finding(
                hazard=Rule.ALL_AT_ONCE,
                where=pods.where,
                summary=f"{gone} of {pods.replicas} replicas may be away at once: nobody answers meanwhile",
                fix="set `maxUnavailable: 0` and `maxSurge: 1`, or more replicas",
            )
    elif pods.kind == "StatefulSet" and pods.replicas == 1:
        yield Finding(
            hazard=Rule.ALL_AT_ONCE,
            where=pods.where,
            summary="a StatefulSet ends a pod before it starts its successor, and there is only one",
            fix="use two replicas or more, or a Deployment",
        )


def _unavailable(rolling: Object, replicas: int) -> int:
    """How many pods a rolling update may take away at once."""
    away = resolve_amount(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    surge = resolve_amount(rolling.get("maxSurge", "25%"), replicas, up=True)
    return 1 if away == 0 and surge == 0 else away


def _budget(pods: PodTemplate, manifests: Sequence[Object]) -> Iterator[Finding]:
    if pods.kind not in {"Deployment", "StatefulSet"}:
        return
    budgets = [
        item
        for item in manifests
        if item.get("kind") == "PodDisruptionBudget"
        and (dig(item, "metadata", "namespace") or "") == pods.namespace
        and matches(dig(item, "spec", "selector"), pods.labels)
    ]
    if not budgets and pods.replicas > 1:  # one replica cannot be kept: a budget would only block
        yield Finding(
            hazard=Rule.NO_BUDGET,
            where=pods.where,
            summary=f"no PodDisruptionBudget: a drain of nodes may end all {pods.replicas} pods at once",
            fix="add a PodDisruptionBudget with `maxUnavailable: 1` and the selector of these pods",
        )
    for budget in budgets:
        if not _allowed(budget, pods.replicas):
            yield Finding(
                hazard=Rule.BLOCKING_BUDGET,
                where=kind_and_name(budget),
                summary=f"it lets none of the {pods.replicas} pods of {pods.where} go, so a drain of their node hangs",
                fix="use `maxUnavailable: 1`" + ("" if pods.replicas > 1 else " and two replicas or more"),
            )


def _allowed(budget: Object, replicas: int) -> int:
    """How many pods a budget lets go at once; percentages of it round up, both of them."""
    if (most := dig(budget, "spec", "maxUnavailable")) is not None:
        return resolve_amount(most, replicas, up=True)
    return replicas - resolve_amount(dig(budget, "spec", "minAvailable") or 0, replicas, up=True)


__all__ = ["Finding", "Rule", "lint"]
