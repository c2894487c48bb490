"""Observations for unit tests: the objects of a scenario as they were at our verdict, and twice before.

In the form of tests/unit/observations. Left out is what says nothing about a rollout and differs in every cluster.
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

_PLACE = "staging"
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
        objects = [_bare(each, run.seen[0].item["metadata"]["namespace"]) for each in at(run.seen, moment)]
        path = folder / f"{run.scenario.name}{'-' if name else ''}{name}.yaml"
        said = f"# {run.scenario.about}\n# Recorded {moment - run.applied:.1f} s after the apply. {_LEFT_OUT}\n"
        path.write_text(said + yaml.safe_dump(_observation(run, objects, moment), sort_keys=False, width=120))


_LEFT_OUT = (
    "Left out: managedFields, last-applied, the reporters of events,\n"
    "# addresses, tolerations and the token volume of pods; the namespace was renamed to staging."
)


def _observation(run: Run, objects: list[Object], moment: float) -> dict[str, Any]:
    kind, name = run.scenario.workload
    workload = next(each for each in objects if (each["kind"].lower(), each["metadata"]["name"]) == (kind, name))
    uid = workload["metadata"]["uid"]
    revisions = [each for each in _of(objects, *_REVISIONS) if _owned(each, {uid})]
    owners = {uid, *(each["metadata"]["uid"] for each in revisions)}
    pods = [each for each in _of(objects, "Pod") if _owned(each, owners)]
    about = owners | {each["metadata"]["uid"] for each in pods}
    return {
        "since": _time(run.applied),
        "now": _time(moment),
        "workload": workload,
        "revisions": revisions,
        "pods": pods,
        "events": [each for each in _of(objects, "Event") if each["involvedObject"].get("uid") in about],
        "services": list(_of(objects, "Service")),
        "endpoints": list(_of(objects, "EndpointSlice")),
    }


def _of(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def _owned(item: Object, uids: set[str]) -> bool:
    return any(each["uid"] in uids for each in item["metadata"].get("ownerReferences") or [])


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bare(item: Object, namespace: str) -> Object:
    renamed: Object = yaml.safe_load(yaml.safe_dump(item).replace(namespace, _PLACE))
    metadata = {key: value for key, value in renamed["metadata"].items() if key not in _IN_METADATA}
    if annotations := {k: v for k, v in (metadata.pop("annotations", None) or {}).items() if k != _LAST_APPLIED}:
        metadata["annotations"] = annotations
    found = {**renamed, "metadata": metadata}
    match item["kind"]:
        case "Event":
            return {key: value for key, value in found.items() if key not in _IN_EVENTS}
        case "Pod":
            status = {key: value for key, value in found["status"].items() if key not in _IN_POD_STATUS}
            return {**found, "spec": _without_token(found["spec"]), "status": status}
    return found


def _without_token(spec: Object) -> Object:
    """The projected volume of the service account's token is in every pod."""

    def kept(items: list[Object]) -> list[Object]:
        return [each for each in items if not each["name"].startswith("kube-api-access-")]

    found = {key: value for key, value in spec.items() if key != "tolerations"}
    found["volumes"] = kept(spec.get("volumes") or [])
    for kind in ("containers", "initContainers"):
        if kind in spec:
            found[kind] = [{**each, "volumeMounts": kept(each.get("volumeMounts") or [])} for each in spec[kind]]
    return found
