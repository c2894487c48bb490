"""Which objects are related to a workload: its revisions, pods, events, Services and EndpointSlices.

Pure. Revisions and pods are related by the workload's selector and by ownership, events by the name of their object,
Services by their selectors, EndpointSlices by their Services.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object, dig, dig_mapping, template_of
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import has_selector, selector_matches, service_selects

WORKLOAD_KINDS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job"})
"""Kinds whose controllers create pods."""
WATCHED_KINDS = WORKLOAD_KINDS | {"Pod"}
"""Kinds whose pods are watched; of other kinds, the status alone."""
REVISION_KINDS = {"Deployment": "ReplicaSet", "StatefulSet": "ControllerRevision", "DaemonSet": "ControllerRevision"}
_BUILT_IN_GROUPS = frozenset({"", "apps", "batch", "autoscaling", "policy"})
ROUTINE_REASONS = ("Scheduled", "Started", "ScalingReplicaSet", "SuccessfulDelete")
"""Reasons of events that no rule reads. `Pulling` and `Created` are read: they show that a problem has passed."""
_UNCUT_LENGTH = 57
"""Characters of its owner's name that a pod's name is sure to begin with (k8s.io/apiserver,
`storage/names/generate.go`)."""


def has_rollout(item: Object) -> bool:
    """Whether an object has a rollout to wait for: workloads, and custom resources."""
    group = item["apiVersion"].rpartition("/")[0]
    custom = group not in _BUILT_IN_GROUPS and not group.endswith(".k8s.io")
    return item["kind"] in WATCHED_KINDS or custom


def removes_itself(item: Object) -> bool:
    """Whether the cluster deletes an object once it has ended: a Job with `ttlSecondsAfterFinished`."""
    return item["kind"] == "Job" and dig(item, "spec", "ttlSecondsAfterFinished") is not None


def is_owned_by(item: Object, uid: str) -> bool:
    """Whether the object with `uid` is an owner of `item`."""
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or [])


def labels_of(item: Object) -> dict[str, str]:
    """An object's labels; empty when it has none."""
    return item["metadata"].get("labels") or {}


def selects_pods_of(service: Object, workload: Object) -> bool:
    """Whether a Service sends requests to a workload's pods."""
    return service_selects(service, dig_mapping(template_of(workload), "metadata", "labels"))


def assign_services(services: Sequence[Object], workloads: Sequence[Object]) -> dict[str, list[Object]]:
    """The Services of a namespace, by the workload (`deployment/shop`) that they are assessed with.

    A Service is assessed with each workload whose pods it selects. One that selects no pods is a problem that must be
    reported, so it is assessed with the workload of its own name, else with the first workload that serves.
    """
    assigned: dict[str, list[Object]] = {}
    serving = [workload for workload in workloads if workload["kind"] in WATCHED_KINDS - {"Job"}]
    for service in services:
        if not has_selector(service):
            continue  # its endpoints do not depend on any pods
        for workload in _workloads_of(service, serving):
            assigned.setdefault(str(Ref.of(workload)), []).append(service)
    return assigned


def _workloads_of(service: Object, serving: Sequence[Object]) -> Sequence[Object]:
    selected = [workload for workload in serving if selects_pods_of(service, workload)]
    name = service["metadata"]["name"]
    of_same_name = [workload for workload in serving if workload["metadata"]["name"] == name]
    return selected or of_same_name or serving[:1]


@dataclass
class WatchedWorkload:
    """A workload that is watched.

    Args:
        ref: which object.
        selector: the LabelSelector of its pods.
        services: the names of the Services that it is assessed with.
        present: objects that causes reported as missing (`configmap/shop`) and that exist by now.
        stale: whether something changed since the last assessment.
    """

    ref: Ref
    selector: Object
    services: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    stale: bool = True

    def is_affected_by(self, item: Object) -> bool:
        """Whether a change of `item` may change the assessment of this workload."""
        metadata = item["metadata"]
        if metadata.get("namespace", "") != self.ref.namespace:
            return False
        match item["kind"]:
            case "Event":
                return may_be_about(item, self.ref)
            case "Pod" | "ReplicaSet" | "ControllerRevision" if self.ref.kind != "Pod":
                return selector_matches(self.selector, labels_of(item))
            case "EndpointSlice":
                return labels_of(item).get(SERVICE_NAME_LABEL) in self.services
            case "Service":
                return True  # its selector may have changed
            case kind:
                return bool((kind, metadata["name"]) == (self.ref.kind, self.ref.name))


def may_be_about(event: Object, ref: Ref) -> bool:
    """Whether an event may be about a workload, its revisions or its pods, whose names begin with the workload's.

    By name, since an event may arrive before the object whose uid it has.
    """
    return str(dig_mapping(event, "involvedObject").get("name", "")).startswith(ref.name[:_UNCUT_LENGTH])


__all__ = [
    "REVISION_KINDS",
    "ROUTINE_REASONS",
    "WATCHED_KINDS",
    "WORKLOAD_KINDS",
    "WatchedWorkload",
    "assign_services",
    "has_rollout",
    "is_owned_by",
    "labels_of",
    "may_be_about",
    "removes_itself",
    "selects_pods_of",
]
