"""Tables for `kubectl get`: the usual columns of each kind, with the names of a server of 1.36.

A column is a name (with + in wide output only) and a function of the object; other kinds show name and age.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any

from prefect_cd_local.apiserver.kinds import Kind

Object = dict[str, Any]
Cell = Callable[[Object], Any]
_UNKNOWN, _NONE = "<unknown>", "<none>"


def table(kind: Kind, items: Iterable[Object], metadata: Object, include: str, *, headers: bool = True) -> Object:
    """Make a Table of objects.

    Args:
        kind: their kind.
        items: the objects.
        metadata: of the list.
        include: what each row contains of its object: None, Metadata or Object.
        headers: whether the columns are described; once is enough in a watch.
    """
    columns = _COLUMNS.get(kind.kind, {"Name": _name, "Age": _age})
    described = [
        {
            "name": name.rstrip("+"),
            "type": "integer" if kind.kind == "ReplicaSet" and name in {"Desired", "Current", "Ready"} else "string",
            "format": "name" if name.startswith("Name") else "",
            "description": "",
            "priority": int(name.endswith("+")),
        }
        for name in columns
    ]
    along: dict[str, Callable[[Object], Object]] = {
        "None": lambda _: {},
        "Object": lambda item: {"object": item},
        "Metadata": lambda item: {"object": partial(item)},
    }
    rows = [{"cells": [cell(item) for cell in columns.values()], **along[include](item)} for item in items]
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    return {**head, "columnDefinitions": described if headers else None, "rows": rows}


def partial(item: Object) -> Object:
    """Return the metadata of an object alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def duration(seconds: int) -> str:
    """Format a time span for people: 93s, 5m10s, 34m, 3h5m, 25h, 2d3h, 9d."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    steps = (
        (120, f"{max(seconds, 0)}s", 0, ""),
        (10 * 60, f"{minutes}m", seconds % 60, "s"),
        (3 * 3600, f"{minutes}m", 0, ""),
        (8 * 3600, f"{hours}h", minutes % 60, "m"),
        (48 * 3600, f"{hours}h", 0, ""),
        (8 * 86400, f"{days}d", hours % 24, "h"),
        (730 * 86400, f"{days}d", 0, ""),
        (float("inf"), f"{days // 365}y", 0, ""),
    )
    _, large, small, unit = next(step for step in steps if seconds < step[0])
    return f"{large}{small}{unit}" if small else large


def _since(stamp: str | None) -> str:
    if not stamp:
        return _UNKNOWN
    then = datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return duration(int((datetime.now(timezone.utc) - then).total_seconds()))


def _at(path: str, absent: Any = "") -> Cell:  # noqa: ANN401  any JSON
    """Return a cell that shows the value at a path."""

    def cell(item: Object) -> Any:  # noqa: ANN401  any JSON
        at: Any = item
        for step in path.split("."):
            at = (at or {}).get(step)
        return at or absent

    return cell


_name, _status = _at("metadata.name"), _at("status.phase")


def _age(item: Object) -> str:
    return _since(item["metadata"].get("creationTimestamp"))


def _labels(path: str) -> Cell:
    """Return a cell that shows the labels of a selector."""
    labels_of = _at(path, {})
    return lambda item: ",".join(f"{key}={value}" for key, value in sorted(labels_of(item).items())) or _NONE


def _of_containers(key: str) -> Cell:
    return lambda item: ",".join(container.get(key, "") for container in item["spec"]["template"]["spec"]["containers"])


def _ready_of_wanted(item: Object) -> str:
    return f"{item['status'].get('readyReplicas', 0)}/{item['spec'].get('replicas', 0)}"


def _containers(item: Object) -> list[Object]:
    return item["status"].get("containerStatuses") or []


def _ready_containers(item: Object) -> str:
    return f"{sum(bool(container.get('ready')) for container in _containers(item))}/{len(item['spec']['containers'])}"


def _restarts(item: Object) -> str:
    count = sum(container.get("restartCount", 0) for container in _containers(item))
    ends = [
        ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        for container in _containers(item)
    ]
    last = max(filter(None, ends), default=None)
    return f"{count} ({_since(last)} ago)" if count and last else str(count)


def _pod_status(item: Object) -> str:
    """Return one word: deletion, else what delays an init container, else the problem of the first container."""
    status = item["status"]
    if "deletionTimestamp" in item["metadata"]:
        return "Terminating"
    for number, container in enumerate(status.get("initContainerStatuses") or ()):
        state = container.get("state") or {}
        if (state.get("terminated") or {"exitCode": 1}).get("exitCode") != 0:
            trouble = _container_reason(state)
            steps = f"{number}/{len(item['spec']['initContainers'])}"
            return f"Init:{steps if trouble in {'', 'PodInitializing'} else trouble}"
    otherwise = status.get("reason") or status.get("phase") or ""
    troubles = [
        word for word in (_container_reason(container.get("state") or {}) for container in _containers(item)) if word
    ]
    runs = any(
        container.get("ready") and (container.get("state") or {}).get("running") for container in _containers(item)
    )
    return "Running" if troubles[:1] == ["Completed"] and runs else str(next(iter(troubles), otherwise))


def _container_reason(state: Object) -> str:
    """Return why a container does not run."""
    if state.get("terminated"):
        ended = state["terminated"]
        number = f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"
        return str(ended.get("reason") or number)
    return str((state.get("waiting") or {}).get("reason") or "")


def _ports(item: Object) -> str:
    return ",".join(
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port['protocol']}"
        for port in item["spec"].get("ports") or ()
    )


def _outside(item: Object) -> str:
    spec = item["spec"]
    return {"LoadBalancer": "<pending>", "ExternalName": spec.get("externalName", "")}.get(spec["type"]) or _NONE


def _node_status(item: Object) -> str:
    conditions = {condition["type"]: condition["status"] for condition in item["status"].get("conditions") or ()}
    text = {"True": "Ready", "False": "NotReady"}.get(conditions.get("Ready", ""), "Unknown")
    return text + (",SchedulingDisabled" if item["spec"].get("unschedulable") else "")


def _internal_ip(item: Object) -> str:
    addresses = {address["type"]: address["address"] for address in item["status"].get("addresses") or ()}
    return str(addresses.get("InternalIP", _NONE))


def _last_seen(item: Object) -> str:
    return _since(item.get("lastTimestamp") or item.get("eventTime"))


def _subject(item: Object) -> str:
    return f"{item['involvedObject'].get('kind', '').lower()}/{item['involvedObject'].get('name', '')}"


def _entries(item: Object) -> int:
    return len(item.get("data") or ()) + len(item.get("binaryData") or ())


_WORKLOAD: dict[str, Cell] = {
    "Age": _age,
    "Containers+": _of_containers("name"),
    "Images+": _of_containers("image"),
    "Selector+": _labels("spec.selector.matchLabels"),
}
_COLUMNS: dict[str, dict[str, Cell]] = {
    "ConfigMap": {"Name": _name, "Data": _entries, "Age": _age},
    "Secret": {"Name": _name, "Type": _at("type"), "Data": _entries, "Age": _age},
    "Namespace": {"Name": _name, "Status": _status, "Age": _age},
    "Lease": {"Name": _name, "Holder": _at("spec.holderIdentity"), "Age": _age},
    "Event": {
        "Last Seen": _last_seen,
        "Type": _at("type"),
        "Reason": _at("reason"),
        "Object": _subject,
        "Message": _at("message"),
        "Count+": _at("count", 1),
        "Name+": _name,
    },
    "Node": {
        "Name": _name,
        "Status": _node_status,
        "Roles": lambda _: _NONE,
        "Age": _age,
        "Version": _at("status.nodeInfo.kubeletVersion"),
        "Internal-IP+": _internal_ip,
        "OS-Image+": _at("status.nodeInfo.osImage", _UNKNOWN),
        "Kernel-Version+": _at("status.nodeInfo.kernelVersion", _UNKNOWN),
        "Container-Runtime+": _at("status.nodeInfo.containerRuntimeVersion", _UNKNOWN),
    },
    "Pod": {
        "Name": _name,
        "Ready": _ready_containers,
        "Status": _pod_status,
        "Restarts": _restarts,
        "Age": _age,
        "IP+": _at("status.podIP", _NONE),
        "Node+": _at("spec.nodeName", _NONE),
        "Nominated Node+": _at("status.nominatedNodeName", _NONE),
        "Readiness Gates+": lambda _: _NONE,
    },
    "Service": {
        "Name": _name,
        "Type": _at("spec.type"),
        "Cluster-IP": _at("spec.clusterIP", _NONE),
        "External-IP": _outside,
        "Port(s)": lambda item: _ports(item) or _NONE,
        "Age": _age,
        "Selector+": _labels("spec.selector"),
    },
    "Deployment": {
        "Name": _name,
        "Ready": _ready_of_wanted,
        "Up-to-date": _at("status.updatedReplicas", 0),
        "Available": _at("status.availableReplicas", 0),
        **_WORKLOAD,
    },
    "ReplicaSet": {
        "Name": _name,
        "Desired": _at("spec.replicas", 0),
        "Current": _at("status.replicas", 0),
        "Ready": _at("status.readyReplicas", 0),
        **_WORKLOAD,
    },
}
