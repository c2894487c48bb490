"""Why a pod has no node, or its node cannot set it up: scheduler, volumes, sandbox, storage limits.

The scheduler's condition and events decide. An event does not go away when its problem does, so later events show what
has passed: an image is pulled after the volumes are mounted, so a pull proves that they are.
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
from prefect_cd.rollout.diagnosis.cause import Category, Cause, Rule, explain, matching_rule, without_preemption
from prefect_cd.rollout.diagnosis.container import NODE_REASONS, containers, is_transient

# The scheduler lists every reason with its number of nodes; the table goes from the most specific to the least
# (kubernetes/kubernetes `pkg/scheduler/framework/plugins`, ErrReason…).
_NO_NODE_RULES = (
    Rule(r"persistentvolumeclaim|persistent ?volume|volume node affinity|volume\(s\)|max volume count",
         Category.VOLUME, False, "no node takes {object}: {message}",
         "add the PersistentVolumeClaim to the manifests, or correct its class and zone"),
    Rule(r"Insufficient|Too many pods|exceed", Category.UNSCHEDULABLE, False,
         "no node has enough free resources for {object}: {message}",
         "lower resources.requests, or add a node (kubectl describe nodes)"),
    Rule(r"didn't match Pod's node (affinity|selector)|didn't match node selector", Category.UNSCHEDULABLE, False,
         "no node has the labels that {object} requires: {message}",
         "correct nodeSelector or affinity, or label a node (kubectl get nodes --show-labels)"),
    Rule(r"node\.kubernetes\.io/unschedulable|were unschedulable", Category.UNSCHEDULABLE, False,
         "the node for {object} is cordoned: {message}", "kubectl uncordon the node, or add one"),
    Rule(r"node\.kubernetes\.io/", Category.UNSCHEDULABLE, False,
         "the node for {object} has a problem: {message}", "kubectl describe nodes"),
    Rule(r"affinity|topology|free ports", Category.UNSCHEDULABLE, False,
         "the affinity, topology or host port rules of {object} leave no node: {message}",
         "correct podAntiAffinity, topologySpreadConstraints or hostPort"),
    # Nearly every cluster has a tainted control plane, so a taint is the reason only when there is no other.
    Rule(r"taint", Category.UNSCHEDULABLE, False, "every remaining node has a taint that {object} does not "
         "tolerate: {message}", "add a toleration to the pod template, or remove the taint"),
    Rule(r"", Category.UNSCHEDULABLE, False, "no node takes {object}: {message}", "kubectl describe nodes"),
)  # fmt: skip

_MOUNT_RULES = (
    Rule(r"serviceaccounts? .*not found", Category.SERVICE_ACCOUNT, False,
         "a volume of {object} needs a service account that does not exist: {message}",
         "add the ServiceAccount to the manifests, or correct serviceAccountName"),
    Rule(r"(configmap|secret) .*not found|references non-existent", Category.MISSING_CONFIG, False,
         "a volume of {object} needs configuration that does not exist: {message}",
         "add it to the manifests, or correct the reference (kubectl -n {namespace} get configmaps,secrets)"),
    Rule(r"", Category.VOLUME, False, "a volume of {object} cannot be mounted: {message}",
         "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_SANDBOX_RULES = (
    Rule(r"OOM-killed|memory limit too low", Category.OUT_OF_MEMORY, True,
         "the memory limit of {object} is too low to set it up: {message}", "raise resources.limits.memory"),
    Rule(r"", Category.NODE, False, "the node cannot set {object} up: {message}",
         "check the network plugin and the container runtime of the node"),
)  # fmt: skip
_REJECTED = Rule(r"", Category.NODE, False, "the node rejects {object}: {message}",
                 "correct the pod template, or allow on the nodes what it requests")  # fmt: skip
_OVER_LIMIT = Rule(r"", Category.STORAGE_LIMIT, False,
                   "{object} was evicted because it exceeded its own storage limit: {message}",
                   "raise limits.ephemeral-storage or the emptyDir's sizeLimit, or write less")  # fmt: skip


def scheduling_problem(pod: Object, events: Sequence[Object]) -> Cause | None:
    """Why no node can take the pod; None while a cluster autoscaler adds one."""
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    if with_reason(events, "TriggeredScaleUp", "Nominated"):
        return None  # cluster-autoscaler and Karpenter write these
    message = as_text(scheduled.get("message"))
    rule = matching_rule(_NO_NODE_RULES, without_preemption(message))
    since = as_time(scheduled.get("lastTransitionTime")) or created_at(pod)
    return explain(rule, pod, message, since=since, last_seen=None)


def mount_problem(pod: Object, events: Sequence[Object]) -> Cause | None:
    """Why a volume cannot be mounted; only events report it, so it holds until something shows that all are mounted."""
    failures = [
        event
        for event in with_reason(events, "FailedMount", "FailedAttachVolume", "FailedMapVolume")
        if not is_transient(as_text(event.get("message")))
    ]
    if not failures or _is_set_up(pod) or _container_progress_since(events, failures):
        return None
    # "Unable to attach or mount volumes … timed out" only repeats an earlier message, which has the cause.
    specific = [event for event in failures if "timed out waiting" not in as_text(event.get("message"))] or failures
    message = as_text(specific[0].get("message"))
    rule = matching_rule(_MOUNT_RULES, message, *names_in(pod))
    return explain(rule, pod, message, since=first_time(specific[0]), last_seen=latest(specific))


def sandbox_problem(pod: Object, events: Sequence[Object]) -> Cause | None:
    """Why the node's container runtime or network cannot create the pod's sandbox."""
    failures = with_reason(events, "FailedCreatePodSandBox", "FailedPodSandBoxStatus", "NetworkNotReady")
    if not failures or _is_set_up(pod) or _container_progress_since(events, failures):
        return None
    message = as_text(failures[-1].get("message"))
    rule = matching_rule(_SANDBOX_RULES, message, *names_in(pod))
    return explain(rule, pod, message, since=first_time(failures[0]), last_seen=latest(failures))


def _container_progress_since(events: Sequence[Object], failures: Sequence[Object]) -> bool:
    """Whether the kubelet began with an image or container after the last failure: volumes and sandbox come first."""
    return later(latest(with_reason(events, "Pulling", "Pulled", "Created")), latest(failures))


def _is_set_up(pod: Object) -> bool:
    """Whether volumes and network are set up: a container has run, or waits for a reason of its own."""
    if condition_holds(pod, "PodReadyToStartContainers"):
        return True
    return any(
        container.running or container.last_termination or _has_own_reason(container.waiting)
        for container in containers(pod)
    )


def _has_own_reason(waiting: Object) -> bool:
    return bool(waiting) and waiting.get("reason") not in ("ContainerCreating", "PodInitializing", None)


def rejected_pods(pods: Sequence[Object]) -> list[Object]:
    """The pods that their node rejected before any container ran, for example for sysctls or devices.

    Such pods are Failed with the kubelet's reason (kubernetes/kubernetes `pkg/kubelet/lifecycle`), and their controller
    replaces them without end.
    """
    return [
        pod
        for pod in pods
        if dig(pod, "status", "phase") == "Failed"
        and as_text(dig(pod, "status", "reason")) not in ("", *NODE_REASONS)
        and not condition_holds(pod, "DisruptionTarget")
        and not any(container.running or container.last_termination for container in containers(pod))
    ]


def node_rejection_problem(pod: Object, times: int) -> Cause:
    """Nodes reject pods of this template.

    Args:
        pod: the latest pod that was rejected.
        times: how often, counted in rounds of all replicas.
    """
    status = dig(pod, "status")
    message = ": ".join(filter(None, (as_text(dig(status, "reason")), as_text(dig(status, "message")))))
    cause = explain(_REJECTED, pod, message, since=created_at(pod), last_seen=created_at(pod))
    return replace(cause, times=times, counted=True)


def storage_limit_problem(pods: Sequence[Object]) -> Cause | None:
    """Pods that were evicted because they exceeded their own limits: their replacements will do the same.

    The message is the kubelet's (kubernetes/kubernetes `pkg/kubelet/eviction/eviction_manager.go`). An eviction because
    the node is short of a resource has another message, and does not count against the release.
    """
    evicted = [
        pod
        for pod in pods
        if dig(pod, "status", "reason") == "Evicted"
        and re.search(r"exceed(s|ed) (the |its )?.*limit", as_text(dig(pod, "status", "message")))
    ]
    if not evicted:
        return None
    newest = max(evicted, key=lambda pod: (str(created_at(pod)), as_text(dig(pod, "metadata", "name"))))
    message, created = as_text(dig(newest, "status", "message")), created_at(newest)
    cause = explain(_OVER_LIMIT, newest, message, since=created, last_seen=created)
    return replace(cause, times=len(evicted), unit="pods so far", counted=True)
