"""Why a pod has no node, or its node cannot set it up: scheduler, volumes, sandbox, storage limits.

Decides by the scheduler's condition and by events; of these, only what has happened since counts as healed: an image
is pulled after the volumes are mounted, so a pull proves that they are.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from prefect_cd.kube.objects import (
    Object,
    as_text,
    as_time,
    condition,
    condition_holds,
    created_at,
    dig,
    first_time,
    later,
    latest,
    names_in,
    with_reason,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause, Rule, explain, first, without_preemption
from prefect_cd.rollout.diagnosis.container import NODE_REASONS, containers, is_transient

# The scheduler lists every reason with its number of nodes; the table's order is from the most telling to the least
# (kubernetes/kubernetes `pkg/scheduler/framework/plugins`, ErrReason…).
_NO_NODE_RULES = (
    Rule(r"persistentvolumeclaim|persistent ?volume|volume node affinity|volume\(s\)|max volume count",
         Category.VOLUME, False, "no node takes {object}: {words}",
         "add the PersistentVolumeClaim to the manifests, or correct its class and zone"),
    Rule(r"Insufficient|Too many pods|exceed", Category.UNSCHEDULABLE, False,
         "no node has enough left for {object}: {words}",
         "ask for less (resources.requests), or add a node (kubectl describe nodes)"),
    Rule(r"didn't match Pod's node (affinity|selector)|didn't match node selector", Category.UNSCHEDULABLE, False,
         "no node bears the labels that {object} asks for: {words}",
         "correct nodeSelector or affinity, or label a node (kubectl get nodes --show-labels)"),
    Rule(r"node\.kubernetes\.io/unschedulable|were unschedulable", Category.UNSCHEDULABLE, False,
         "the node for {object} is cordoned: {words}", "kubectl uncordon the node, or add one"),
    Rule(r"node\.kubernetes\.io/", Category.UNSCHEDULABLE, False,
         "the node for {object} is not well: {words}", "kubectl describe nodes"),
    Rule(r"affinity|topology|free ports", Category.UNSCHEDULABLE, False,
         "the rules of {object} about its neighbours leave no node: {words}",
         "correct podAntiAffinity, topologySpreadConstraints or hostPort"),
    # nearly every cluster has a tainted control plane: that is told when there is nothing else to tell
    Rule(r"taint", Category.UNSCHEDULABLE, False, "every node that is left has a taint that {object} does not "
         "tolerate: {words}", "add a toleration to the pod template, or take the taint away"),
    Rule(r"", Category.UNSCHEDULABLE, False, "no node takes {object}: {words}", "kubectl describe nodes"),
)  # fmt: skip

_MOUNT_RULES = (
    Rule(r"serviceaccounts? .*not found", Category.SERVICE_ACCOUNT, False,
         "a volume of {object} needs a service account that is not there: {words}",
         "add the ServiceAccount to the manifests, or correct serviceAccountName"),
    Rule(r"(configmap|secret) .*not found|references non-existent", Category.MISSING_CONFIG, False,
         "a volume of {object} needs configuration that is not there: {words}",
         "add it to the manifests, or correct the reference (kubectl -n {namespace} get configmaps,secrets)"),
    Rule(r"", Category.VOLUME, False, "a volume of {object} cannot be mounted: {words}",
         "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_SANDBOX_RULES = (
    Rule(r"OOM-killed|memory limit too low", Category.OUT_OF_MEMORY, True,
         "{object} cannot even be set up with so little memory: {words}", "raise resources.limits.memory"),
    Rule(r"", Category.NODE, False, "the node cannot set {object} up: {words}",
         "look at the network plugin and the container runtime of the node"),
)  # fmt: skip
_TURNED_AWAY = Rule(r"", Category.NODE, False, "the node refuses {object}: {words}",
                    "correct the pod template, or allow on the nodes what it asks for")  # fmt: skip
_FULL = Rule(r"", Category.STORAGE_LIMIT, False, "{object} was evicted, for it wrote more than its own limit: {words}",
             "raise limits.ephemeral-storage or the emptyDir's sizeLimit, or write less")  # fmt: skip


def unscheduled(pod: Object, events: Sequence[Object]) -> Cause | None:
    """No node takes the pod, and nobody is adding one."""
    placed = condition(pod, "PodScheduled")
    if placed.get("status") != "False" or placed.get("reason") != "Unschedulable":
        return None
    if with_reason(events, "TriggeredScaleUp", "Nominated"):
        return None  # cluster-autoscaler or Karpenter is already adding a node
    said = as_text(placed.get("message"))
    rule = first(_NO_NODE_RULES, without_preemption(said))
    return explain(rule, pod, said, since=as_time(placed.get("lastTransitionTime")) or created_at(pod), seen=None)


def unmounted(pod: Object, events: Sequence[Object]) -> Cause | None:
    """Missing volumes show in events only, so they count until something shows that all are mounted."""
    failed = [
        event
        for event in with_reason(events, "FailedMount", "FailedAttachVolume", "FailedMapVolume")
        if not is_transient(as_text(event.get("message")))
    ]
    if not failed or _set_up(pod) or later(latest(with_reason(events, "Pulling", "Pulled", "Created")), latest(failed)):
        return None
    # "Unable to attach or mount volumes … timed out" is the echo of an earlier message that has the cause.
    telling = [event for event in failed if "timed out waiting" not in as_text(event.get("message"))] or failed
    said = as_text(telling[0].get("message"))
    return explain(
        first(_MOUNT_RULES, said, *names_in(pod)), pod, said, since=first_time(telling[0]), seen=latest(telling)
    )


def unsandboxed(pod: Object, events: Sequence[Object]) -> Cause | None:
    """The node's runtime or network refuses the pod as a whole."""
    failed = with_reason(events, "FailedCreatePodSandBox", "FailedPodSandBoxStatus", "NetworkNotReady")
    if not failed or _set_up(pod) or later(latest(with_reason(events, "Pulling", "Pulled", "Created")), latest(failed)):
        return None
    said = as_text(failed[-1].get("message"))
    rule = first(_SANDBOX_RULES, said, *names_in(pod))
    return explain(rule, pod, said, since=first_time(failed[0]), seen=latest(failed))


def _set_up(pod: Object) -> bool:
    """Whether volumes and network are there: something ran, or waits for reasons of its own."""
    if condition_holds(pod, "PodReadyToStartContainers"):
        return True
    return any(each.running or each.last_end or _explains(each.waiting) for each in containers(pod))


def _explains(waiting: Object) -> bool:
    return bool(waiting) and waiting.get("reason") not in ("ContainerCreating", "PodInitializing", None)


def turned_away(pods: Sequence[Object]) -> list[Object]:
    """The pods that their node refused before any container ran: sysctls, devices, CPUs that it does not give.

    They are Failed with the kubelet's reason (kubernetes/kubernetes `pkg/kubelet/lifecycle`), and replaced for ever.
    """
    return [
        pod
        for pod in pods
        if dig(pod, "status", "phase") == "Failed"
        and as_text(dig(pod, "status", "reason")) not in ("", *NODE_REASONS)
        and not condition_holds(pod, "DisruptionTarget")
        and not any(each.running or each.last_end for each in containers(pod))
    ]


def refused(pod: Object, times: int) -> Cause:
    """A node that refuses pods of this template, as the latest of them tells."""
    status = dig(pod, "status")
    said = ": ".join(filter(None, (as_text(dig(status, "reason")), as_text(dig(status, "message")))))
    found = explain(_TURNED_AWAY, pod, said, since=created_at(pod), seen=created_at(pod))
    so_far = f", {times} times" if times > 1 else ""
    return replace(found, times=times, counts=True, summary=found.summary + so_far)


def overfull(pods: Sequence[Object]) -> Cause | None:
    """Pods that were evicted because of their own limits: the next one will write as much.

    The message is the kubelet's (kubernetes/kubernetes `pkg/kubelet/eviction/eviction_manager.go`); an eviction because
    the node is short of something says otherwise, and is nobody's fault.
    """
    full = [
        pod
        for pod in pods
        if dig(pod, "status", "reason") == "Evicted"
        and re.search(r"exceed(s|ed) (the |its )?.*limit", as_text(dig(pod, "status", "message")))
    ]
    if not full:
        return None
    last = max(full, key=lambda pod: (str(created_at(pod)), as_text(dig(pod, "metadata", "name"))))
    found = explain(_FULL, last, as_text(dig(last, "status", "message")), since=created_at(last), seen=created_at(last))
    so_far = f", {len(full)} pods so far" if len(full) > 1 else ""
    return replace(found, times=len(full), counts=True, summary=found.summary + so_far)
