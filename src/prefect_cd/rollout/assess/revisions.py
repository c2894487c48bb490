"""Which pods are new, what creates them, and what distinguishes one revision from the next.

Pod templates and the labels that the controllers set decide; only pods of the new revision are assessed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_cd.kube.objects import Object, as_int, as_text, dig, uid_of
from prefect_cd.rollout.assess.model import Observation

_REVISION, _HASH = "deployment.kubernetes.io/revision", "pod-template-hash"
_CONTROLLER_HASH, _GENERATION = "controller-revision-hash", "pod-template-generation"


@dataclass(frozen=True)
class Revision:
    """The new revision: the object that creates its pods, and its pods."""

    owner: Object | None
    pods: tuple[Object, ...]


def revision_id(workload: Object) -> str:
    """An identifier that changes with every new pod template, and not by scaling or with the controller's progress."""
    template = _comparable(dig(workload, "spec", "template"))
    if not template:
        return f"{uid_of(workload)}/{as_int(dig(workload, 'metadata', 'generation'))}"
    digest = hashlib.sha256(json.dumps(template, sort_keys=True, default=str).encode()).hexdigest()
    return f"{uid_of(workload)}/{digest[:16]}"


def sort_key(item: Object) -> tuple[str, str, str]:
    """A key that sorts objects by age, so that the order in which the API listed them does not matter."""
    return (
        as_text(dig(item, "metadata", "creationTimestamp")),
        as_text(dig(item, "metadata", "name")),
        uid_of(item),
    )


def deployment_revision(observation: Observation) -> Revision:
    """The ReplicaSet whose template is the Deployment's; of several, the oldest, as the controller chooses.

    Templates written before an upgrade of the cluster can differ by new defaults: then the revision number decides.
    """
    workload = observation.workload
    replica_sets = [item for item in observation.revisions if item.get("kind") == "ReplicaSet"]
    template = _comparable(dig(workload, "spec", "template"))
    candidates = [item for item in replica_sets if _comparable(dig(item, "spec", "template")) == template]
    if not candidates and (number := dig(workload, "metadata", "annotations", _REVISION)):
        candidates = [item for item in replica_sets if dig(item, "metadata", "annotations", _REVISION) == number]
    if not candidates:
        return Revision(None, ())
    oldest = min(candidates, key=sort_key)
    return Revision(oldest, _with_label(observation.pods, _HASH, dig(oldest, "metadata", "labels", _HASH)))


def stateful_set_revision(observation: Observation) -> Revision:
    """The pods that a StatefulSet has updated."""
    value = dig(observation.workload, "status", "updateRevision")
    return Revision(observation.workload, _with_label(observation.pods, _CONTROLLER_HASH, value))


def daemon_set_revision(observation: Observation) -> Revision:
    """The pods of a DaemonSet's newest ControllerRevision."""
    revisions = [item for item in observation.revisions if item.get("kind") == "ControllerRevision"]
    newest = max(revisions, key=lambda item: (as_int(item.get("revision")), sort_key(item)), default={})
    if value := dig(newest, "metadata", "labels", _CONTROLLER_HASH):
        return Revision(observation.workload, _with_label(observation.pods, _CONTROLLER_HASH, value))
    # Before the first ControllerRevision is written, the older generation label distinguishes the pods.
    value = dig(observation.workload, "metadata", "annotations", "deprecated.daemonset.template.generation")
    return Revision(observation.workload, _with_label(observation.pods, _GENERATION, value))


def only_revision(observation: Observation) -> Revision:
    """All pods, for kinds without revisions."""
    return Revision(observation.workload, observation.pods)


def _with_label(pods: Sequence[Object], label: str, value: object) -> tuple[Object, ...]:
    return tuple(pod for pod in pods if value and dig(pod, "metadata", "labels", label) == value)


def _comparable(template: object) -> object:
    """A pod template without the label that the controller adds, and with absent and empty values made equal."""
    if isinstance(template, dict):
        pairs = {name: _comparable(value) for name, value in template.items() if name != _HASH}
        return {name: value for name, value in pairs.items() if value not in (None, {}, [], "")}
    return [_comparable(item) for item in template] if isinstance(template, list) else template
