"""Label and field selectors, with the grammar of "Labels and Selectors" and "Field Selectors" of the documentation."""

import re
from collections.abc import Callable
from typing import Any

from prefect_cd_local.apiserver.errors import bad_request
from prefect_cd_local.apiserver.kinds import Kind

Object = dict[str, Any]
Matches = Callable[[Object], bool]
_KEY = r"[^\s,()=!]+"
_TERMS = (
    rf"!\s*(?P<absent>{_KEY})",
    rf"(?P<key>{_KEY})\s+(?P<op>in|notin)\s*\((?P<set>[^)]*)\)",
    rf"(?P<name>{_KEY})\s*(?P<eq>==|=|!=)\s*(?P<value>[^\s,()=!]*)",
    rf"(?P<present>{_KEY})",
)
_TERM = re.compile(rf"\s*(?:{'|'.join(_TERMS)})\s*(?:,|$)")
_FIELD_TERM = re.compile(r"([^=!]*)(==|=|!=)(.*)")
_FIELDS = {
    "Pod": "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork status.phase "
    "status.podIP status.nominatedNodeName",
    "Event": "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid "
    "involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason reportingComponent "
    "source type",
    "Secret": "type",
    "Namespace": "status.phase",
    "Node": "spec.unschedulable",
    "ReplicaSet": "status.replicas",
    "Service": "spec.clusterIP spec.type",
}
_WHEN_ABSENT = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.replicas": "0"}


def labels(selector: str) -> Matches:
    """Return a predicate on objects: whether their labels match.

    Raises:
        Refusal: 400, the selector cannot be parsed.
    """
    tests: list[Callable[[dict[str, str]], bool]] = []
    at = 0
    while at < len(selector.rstrip()):
        match = _TERM.match(selector, at)
        if not match:
            rest = selector[at:].split()
            unparsed = rest[1] if len(rest) > 1 else selector[at:]
            raise bad_request(
                f"unable to parse requirement: found '{unparsed}', expected: in, notin, =, ==, !=, gt, lt"
            )
        at = match.end()
        tests.append(_label_test(match))
    return lambda item: all(test(item["metadata"].get("labels") or {}) for test in tests)


def _label_test(match: "re.Match[str]") -> Callable[[dict[str, str]], bool]:
    key = match["absent"] or match["key"] or match["name"] or match["present"]
    if match["absent"]:
        return lambda labels: key not in labels
    if match["present"]:
        return lambda labels: key in labels
    values = {value.strip() for value in match["set"].split(",")} if match["op"] else {match["value"]}
    wanted = match["op"] != "notin" and match["eq"] != "!="
    return lambda labels: (labels.get(key) in values) is wanted


def fields(kind: Kind, selector: str) -> Matches:
    """Return a predicate on objects: whether their fields match; each kind supports a few.

    Raises:
        Refusal: 400, the kind cannot be selected by that field.
    """
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get(kind.kind, "").split())
    tests: list[tuple[str, bool, str]] = []
    for term in filter(None, selector.split(",")):
        match = _FIELD_TERM.fullmatch(term)
        if not match:
            raise bad_request(f"invalid selector: '{selector}'; can't understand '{term}'")
        if match[1] not in known:
            bare = f'"{match[1]}" is not a known field selector: only "metadata.name", "metadata.namespace"'
            raise bad_request(f"field label not supported: {match[1]}" if kind.kind in _FIELDS else bare)
        tests.append((match[1], match[2] != "!=", match[3]))
    return lambda item: all((_field(item, field) == value) is wanted for field, wanted, value in tests)


def _field(item: Object, path: str) -> str:
    if path == "source":
        return str((item.get("source") or {}).get("component") or item.get("reportingComponent") or "")
    at: Any = item
    for step in path.split("."):
        at = (at or {}).get(step)
    if at is None:
        return _WHEN_ABSENT.get(path, "")
    return str(at).lower() if isinstance(at, bool) else str(at)
