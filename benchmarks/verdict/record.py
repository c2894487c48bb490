"""Observations for unit tests: the objects of a scenario as they were at our verdict, and twice before.

In the form of tests/unit/observations. Fields that do not concern a rollout and differ in every cluster are left out.
"""

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from api import Object
from measure import Run
from tools import OURS
from witness import at

_NAMESPACE = "staging"
_REVISIONS = ("ReplicaSet", "ControllerRevision")
_IN_METADATA = ("managedFields", "selfLink")
_IN_EVENTS = ("source", "reportingComponent", "reportingInstance", "eventTime", "related", "action")
_IN_POD_STATUS = ("hostIP", "hostIPs", "podIP", "podIPs", "qosClass")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_MOMENTS = (("first", 1 / 3), ("midway", 2 / 3), ("", 1.0))


def record(run: Run, folder: Path) -> None:
    """Write one file for each moment, named by scenario and moment."""
    folder.mkdir(parents=True, exist_ok=True)
    until = run.answers[OURS].at
    for name, share in _MOMENTS:
        moment = run.applied + (until - run.applied) * share
        namespace = run.observations[0].item["metadata"]["namespace"]
        objects = [_normalized(item, namespace) for item in at(run.observations, moment)]
        path = folder / f"{run.scenario.name}{'-' if name else ''}{name}.yaml"
        comment = f"# {run.scenario.about}\n# Recorded {moment - run.applied:.1f} s after the apply. {_LEFT_OUT}\n"
        path.write_text(comment + yaml.safe_dump(_observation(run, objects, moment), sort_keys=False, width=120))


_LEFT_OUT = (
    "Left out: managedFields, last-applied, the reporters of events,\n"
    "# addresses, tolerations and the token volume of pods; the namespace was renamed to staging."
)


def _observation(run: Run, objects: list[Object], moment: float) -> dict[str, Any]:
    kind, name = run.scenario.workload
    workload = next(item for item in objects if (item["kind"].lower(), item["metadata"]["name"]) == (kind, name))
    uid = workload["metadata"]["uid"]
    revisions = [item for item in _of(objects, *_REVISIONS) if _owned(item, {uid})]
    owners = {uid, *(revision["metadata"]["uid"] for revision in revisions)}
    pods = [pod for pod in _of(objects, "Pod") if _owned(pod, owners)]
    subjects = owners | {pod["metadata"]["uid"] for pod in pods}
    return {
        "since": _time(run.applied),
        "now": _time(moment),
        "workload": workload,
        "revisions": revisions,
        "pods": pods,
        "events": [event for event in _of(objects, "Event") if event["involvedObject"].get("uid") in subjects],
        "services": list(_of(objects, "Service")),
        "endpoints": list(_of(objects, "EndpointSlice")),
    }


def _of(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [item for item in objects if item["kind"] in kinds]


def _owned(item: Object, uids: set[str]) -> bool:
    return any(owner["uid"] in uids for owner in item["metadata"].get("ownerReferences") or [])


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _normalized(item: Object, namespace: str) -> Object:
    """The object with the namespace renamed and without the fields that are left out."""
    renamed: Object = yaml.safe_load(yaml.safe_dump(item).replace(namespace, _NAMESPACE))
    metadata = {key: value for key, value in renamed["metadata"].items() if key not in _IN_METADATA}
    if annotations := {k: v for k, v in (metadata.pop("annotations", None) or {}).items() if k != _LAST_APPLIED}:
        metadata["annotations"] = annotations
    kept = {**renamed, "metadata": metadata}
    match item["kind"]:
        case "Event":
            return {key: value for key, value in kept.items() if key not in _IN_EVENTS}
        case "Pod":
            status = {key: value for key, value in kept["status"].items() if key not in _IN_POD_STATUS}
            return {**kept, "spec": _without_token(kept["spec"]), "status": status}
    return kept


def _without_token(spec: Object) -> Object:
    """A pod's spec without the projected volume of the service account's token, which every pod has."""

    def own(volumes: list[Object]) -> list[Object]:
        return [volume for volume in volumes if not volume["name"].startswith("kube-api-access-")]

    reduced = {key: value for key, value in spec.items() if key != "tolerations"}
    reduced["volumes"] = own(spec.get("volumes") or [])
    for kind in ("containers", "initContainers"):
        if kind in spec:
            reduced[kind] = [
                {**container, "volumeMounts": own(container.get("volumeMounts") or [])} for container in spec[kind]
            ]
    return reduced
