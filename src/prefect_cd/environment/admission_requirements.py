"""What the cluster would refuse of a release's pods: by an answer to the dry run of one, and by its quotas. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefect_cd.environment.quotas import POD_AMOUNTS, amounts, has_scopes, needs_surge, plain, total
from prefect_cd.environment.requirements import COMES_WITH_NAMESPACE, Need, Unmet, unmet_references
from prefect_cd.kube.objects import Object, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.kube.quantities import quantity
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_references import API_VERSIONS, CLUSTER_SCOPED
from prefect_cd.manifests.pod_templates import pod_templates_of

_ADMISSION_KINDS = frozenset({"Namespace", "LimitRange", "ResourceQuota"})
"""Kinds that change what admission says about pods."""


@dataclass(frozen=True)
class Refusal:
    """What the API server would say to a pod.

    Attributes:
        unmet: the finding; None where the answer says nothing about the release.
        field: of the pod's spec, that can be left out to find what else is refused; empty: there is none.
    """

    unmet: Unmet | None
    field: str = ""


_ABSENT = (
    (r'error looking up service account \S+: serviceaccount "(?P<name>[^"]+)" not found', "ServiceAccount",
     "serviceAccountName"),
    (r"no PriorityClass with name (?P<name>\S+) was found", "PriorityClass", "priorityClassName"),
    (r'RuntimeClass "(?P<name>[^"]+)" not found', "RuntimeClass", "runtimeClassName"),
)  # fmt: skip
_SAME_AGAIN = "correct the pod template; the same template will be refused again"
_RULES = (
    # what a policy says follows these words, and may contain any other pattern
    (r"denied (the )?request", False, _SAME_AGAIN),
    (r"violates PodSecurity", True,
     f"set the securityContext that the namespace's Pod Security level requires; {_SAME_AGAIN}"),
    (r"exceeded quota:", True, "request less, have the quota raised, or free something in the namespace"),
    (r"failed quota:", True, f"set the requests and limits that the quota counts; {_SAME_AGAIN}"),
    (r"(maximum|minimum) .* usage per|usage to limit ratio", True,
     f"stay within the namespace's limits (kubectl -n {{namespace}} describe limitrange); {_SAME_AGAIN}"),
    (r"failed calling webhook", False,
     "check the webhook's own pods (kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations)"),
    (r"", False, _SAME_AGAIN),
)  # fmt: skip
"""Answers, whether they are about the pod itself and so the same for a controller's account, and what to do."""
_SAYS_NOTHING = r"does not support dry run|is being terminated"
_PREFIX = r'^pods "[^"]*" is forbidden: |^.*?(?=failed calling webhook)'


def refusal(message: str, workload: Object, objects: Sequence[Object]) -> Refusal:
    """What it means that the server refused a pod of a workload in a dry run.

    The verdict of a policy or a webhook is only likely: it may treat the controllers' accounts in another way.

    Args:
        message: of the API server.
        workload: whose pod it was.
        objects: of the release: a quota, a LimitRange or the Namespace among them will change the answer.
    """
    where, namespace = kind_and_name(workload), as_text(dig(workload, "metadata", "namespace"))
    text = re.sub(_PREFIX, "", message)
    if re.search(_SAYS_NOTHING, text):
        return Refusal(None)
    alone = _exceeds_alone(text)
    if "exceeded quota:" in text and not alone and not _starts_before_others_end(workload, objects):
        return Refusal(None)  # its old pods count until they have ended
    for pattern, kind, field in _ABSENT:
        if match := re.search(pattern, text):
            return Refusal(_absent_by_admission(where, namespace, kind, match["name"], field), field)
    changes_itself = any(item["kind"] in _ADMISSION_KINDS for item in objects)
    sure, fix = next((sure, fix) for pattern, sure, fix in _RULES if re.search(pattern, text))
    return Refusal(
        Unmet(
            where=where,
            summary=f"the cluster would refuse its pods: {text}",
            fix=fix.format(namespace=namespace),
            certain=sure and not changes_itself and ("exceeded quota:" not in text or alone),
        )
    )


def _starts_before_others_end(workload: Object, objects: Sequence[Object]) -> bool:
    return any(pods.kind == "Job" or needs_surge(pods) for pods in pod_templates_of([workload], objects))


def _absent_by_admission(where: str, namespace: str, kind: str, name: str, field: str) -> Unmet | None:
    if (kind, name) in COMES_WITH_NAMESPACE:
        return None
    scope = "" if kind in CLUSTER_SCOPED else namespace
    need = Need(Ref(API_VERSIONS[kind], kind, scope, name), frozenset(), (f"{where}: {field}",), needed=True)
    (unmet,) = unmet_references([need], {need.ref: None}, ())
    return unmet


def _exceeds_alone(message: str) -> bool:
    """Whether one pod requests more than a quota allows at all: `requested: pods=1, used: pods=0, limited: pods=0`."""
    sections = re.search(r"requested: (.*), used: .*, limited: (.*)$", message)
    if not sections:
        return False
    requested, limited = (
        {name: quantity(value) for name, _, value in (part.partition("=") for part in re.split(r",\s*", section))}
        for section in sections.groups()
    )
    return any(
        (amount := requested[name]) is not None and (limit := limited.get(name)) is not None and amount > limit
        for name in requested
    )


# --- quotas -----------------------------------------------------------------------------------------------------------


def unmet_quotas(quotas: Iterable[Object], workloads: Sequence[Object], objects: Sequence[Object]) -> list[Unmet]:
    """The quotas that are too small for one workload alone, whatever else is freed in the namespace.

    Args:
        quotas: the ResourceQuotas of the namespace.
        workloads: those that start.
        objects: of the release; a quota among them is not the one that will count.
    """
    inside = {Ref.of(item).identity for item in objects}
    found = []
    for quota in quotas:
        if has_scopes(quota) or Ref.of(quota).identity in inside:
            continue
        hard = amounts(dig_mapping(quota, "spec", "hard"))
        for pods in pod_templates_of(workloads, objects):
            used = total([pods])
            for name, limit in sorted(hard.items()):
                if used.get(POD_AMOUNTS.get(name, ""), 0) > limit:
                    needed = plain(used[POD_AMOUNTS[name]])
                    summary = f"its pods need {needed} of {name}, and {kind_and_name(quota)} allows {plain(limit)}"
                    fix = "request less, or have the quota raised"
                    found.append(Unmet(where=pods.where, summary=summary, fix=fix, certain=True))
            if pods.kind == "Deployment" and hard.get("count/replicasets.apps") == 0:
                summary = f"{kind_and_name(quota)} allows no ReplicaSet (count/replicasets.apps: 0)"
                fix = "have the quota raised"
                found.append(Unmet(where=pods.where, summary=summary, fix=fix, certain=True))
    return found


__all__ = ["Refusal", "refusal", "unmet_quotas"]
