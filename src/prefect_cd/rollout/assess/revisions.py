"""Which pods are the new ones, who creates them, and what tells one revision from the next.

Decides by templates and the labels that the controllers give; only pods of the new revision are judged.
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
    """The new revision: who creates its pods, and which they are."""

    owner: Object | None
    pods: tuple[Object, ...]


def identity(workload: Object) -> str:
    """What changes with every new revision, and with nothing else: not by scaling, not by the controller's pace."""
    template = _comparable(dig(workload, "spec", "template"))
    if not template:
        return f"{uid_of(workload)}/{as_int(dig(workload, 'metadata', 'generation'))}"
    digest = hashlib.sha256(json.dumps(template, sort_keys=True, default=str).encode()).hexdigest()
    return f"{uid_of(workload)}/{digest[:16]}"


def sort_key(thing: Object) -> tuple[str, str, str]:
    """An order that does not depend on the order in which the API listed things: the oldest first."""
    return (
        as_text(dig(thing, "metadata", "creationTimestamp")),
        as_text(dig(thing, "metadata", "name")),
        uid_of(thing),
    )


def newest_replica_set(observation: Observation) -> Revision:
    """The ReplicaSet whose template is the Deployment's; of several, the oldest, as the controller chooses.

    Templates written before an upgrade of the cluster can differ by new defaults: then the revision's number decides.
    """
    workload = observation.workload
    sets = sorted((each for each in observation.revisions if each.get("kind") == "ReplicaSet"), key=sort_key)
    template = _comparable(dig(workload, "spec", "template"))
    number = dig(workload, "metadata", "annotations", _REVISION)
    same = [each for each in sets if _comparable(dig(each, "spec", "template")) == template]
    same = same or [each for each in sets if number and dig(each, "metadata", "annotations", _REVISION) == number]
    if not same:
        return Revision(None, ())
    return Revision(same[0], _labelled(observation.pods, _HASH, dig(same[0], "metadata", "labels", _HASH)))


def updated_set(observation: Observation) -> Revision:
    """The pods that a StatefulSet has updated."""
    value = dig(observation.workload, "status", "updateRevision")
    return Revision(observation.workload, _labelled(observation.pods, _CONTROLLER_HASH, value))


def newest_daemons(observation: Observation) -> Revision:
    """The pods of a DaemonSet's newest ControllerRevision."""
    owned = [each for each in observation.revisions if each.get("kind") == "ControllerRevision"]
    newest = max(owned, key=lambda each: (as_int(each.get("revision")), sort_key(each)), default={})
    if value := dig(newest, "metadata", "labels", _CONTROLLER_HASH):
        return Revision(observation.workload, _labelled(observation.pods, _CONTROLLER_HASH, value))
    value = dig(observation.workload, "metadata", "annotations", "deprecated.daemonset.template.generation")
    return Revision(observation.workload, _labelled(observation.pods, _GENERATION, value))


def all_pods(observation: Observation) -> Revision:
    """Every pod: there is but one revision."""
    return Revision(observation.workload, observation.pods)


def _labelled(pods: Sequence[Object], label: str, value: object) -> tuple[Object, ...]:
    return tuple(pod for pod in pods if value and dig(pod, "metadata", "labels", label) == value)


def _comparable(template: object) -> object:
    """A pod template without what the controller adds, and with absent and empty made equal."""
    if isinstance(template, dict):
        pairs = {name: _comparable(value) for name, value in template.items() if name != _HASH}
        return {name: value for name, value in pairs.items() if value not in (None, {}, [], "")}
    return [_comparable(item) for item in template] if isinstance(template, list) else template
