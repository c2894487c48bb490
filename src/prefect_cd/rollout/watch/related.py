"""What belongs to a workload: which objects, of all that a namespace holds, are about it.

Pure. Pods and revisions belong to it by its selector and by ownership, events by the name of what they are about,
Services by their selectors, EndpointSlices by their Services.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import matches

WATCHED = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job"})
REVISIONS = {"Deployment": "ReplicaSet", "StatefulSet": "ControllerRevision", "DaemonSet": "ControllerRevision"}
_BUILT_IN_GROUPS = frozenset({"", "apps", "batch", "autoscaling", "policy"})
ROUTINE_REASONS = ("Scheduled", "Started", "ScalingReplicaSet", "SuccessfulDelete")
"""Reasons of events that nothing is ever concluded from. `Pulling` and `Created` say that a trouble has passed."""
_WHOLE_NAME = 57
"""So much of its owner's name a pod's name keeps for sure (k8s.io/apiserver, `storage/names/generate.go`)."""


def has_rollout(item: Object) -> bool:
    """Whether there is anything to wait for: workloads, and objects of kinds never heard of."""
    group = item["apiVersion"].rpartition("/")[0]
    custom = group not in _BUILT_IN_GROUPS and not group.endswith(".k8s.io")
    return item["kind"] in WATCHED or custom


def owned(item: Object, uid: str) -> bool:
    """Whether the object with `uid` is an owner of `item`."""
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or [])


def labels_of(item: Object) -> dict[str, str]:
    """An object's labels; empty when it has none."""
    return item["metadata"].get("labels") or {}


def sends_to(service: Object, workload: Object) -> bool:
    """Whether a Service sends requests to a workload's pods."""
    wanted = (service.get("spec") or {}).get("selector") or {}
    template = (workload.get("spec") or {}).get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    return bool(wanted) and wanted.items() <= labels.items()


def assign_services(services: Sequence[Object], workloads: Sequence[Object]) -> dict[str, list[Object]]:
    """The Services of a namespace under the workloads (`deployment/shop`) that they are judged with.

    One whose selector matches none of them is no less wanted: it goes with the workload of its own name, or else
    with the first that serves, so that somebody says that it leads nowhere.
    """
    found: dict[str, list[Object]] = {}
    serving = [each for each in workloads if each["kind"] in WATCHED - {"Job"}]
    for service in services:
        if not (service.get("spec") or {}).get("selector"):
            continue  # its endpoints are somebody else's to write
        name = service["metadata"]["name"]
        behind = [each for each in serving if sends_to(service, each)]
        behind = behind or [each for each in serving if each["metadata"]["name"] == name] or serving[:1]
        for workload in behind:
            found.setdefault(str(Ref.of(workload)), []).append(service)
    return found


@dataclass
class WatchedWorkload:
    """A workload that is watched, with what has been found to belong to it."""

    ref: Ref
    selector: Object
    services: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    """What causes called missing (`configmap/shop`), and was found since."""
    stale: bool = True
    """Whether something changed since it was observed last."""

    def concerns(self, item: Object) -> bool:
        """Whether a change of `item` may change what is observed of this workload."""
        metadata = item["metadata"]
        if metadata.get("namespace", "") != self.ref.namespace:
            return False
        match item["kind"]:
            case "Event":
                return is_about(item, self.ref)
            case "Pod" | "ReplicaSet" | "ControllerRevision":
                return matches(self.selector, labels_of(item))
            case "EndpointSlice":
                return labels_of(item).get(SERVICE_NAME_LABEL) in self.services
            case "Service":
                return True  # whose it is may be what has changed
            case kind:
                return bool((kind, metadata["name"]) == (self.ref.kind, self.ref.name))


def is_about(event: Object, ref: Ref) -> bool:
    """Whether an event may be about a workload or what it has made: by name, since uids are learnt later."""
    return str((event.get("involvedObject") or {}).get("name", "")).startswith(ref.name[:_WHOLE_NAME])


__all__ = [
    "REVISIONS",
    "ROUTINE_REASONS",
    "WATCHED",
    "WatchedWorkload",
    "assign_services",
    "has_rollout",
    "is_about",
    "labels_of",
    "owned",
    "sends_to",
]
