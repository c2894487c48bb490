"""Validation beyond types: names, required fields, closed lists, immutable fields.

Most rules come from the published schemas (`required`, `enum`) or apply to a struct wherever it occurs. Only common
mistakes are checked, with the messages of the real server (tests/conformance compares them).
"""

import base64
import json
from collections.abc import Callable
from typing import Any

from prefect_cd_local.apiserver import name_formats, schema
from prefect_cd_local.apiserver.errors import Cause, bad_value, forbidden_field, required, unsupported
from prefect_cd_local.apiserver.kinds import Kind
from prefect_cd_local.apiserver.name_formats import Causes
from prefect_cd_local.apiserver.schema import Type, canonical
from prefect_cd_local.apiserver.values import amount

Object = dict[str, Any]
_PORTS = range(1, 65536)
_NOT_NEGATIVE = "must be greater than or equal to 0"
_IMMUTABLE = "field is immutable"
_SHORT_NAMES = {"Namespace", "Service"}
_MAY_BE_EMPTY = {"HTTPHeader", "OwnerReference"}
_BYTES = 1024 * 1024
_DOCKER, _REDACTED = ".dockerconfigjson", '"<secret contents redacted>"'
_POD_FIXED = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def check(kind: Kind, item: Object) -> list[Cause]:
    """Return the errors of an object by itself, without its status, which controllers write."""
    name = item["metadata"].get("name", "")
    causes = [] if name else [required("metadata.name", "name or generateName is required")]
    if name:
        causes += (name_formats.LABEL if kind.kind in _SHORT_NAMES else name_formats.SUBDOMAIN).check(
            "metadata.name", name
        )
    wanted = {key: value for key, value in item.items() if key != "status"}
    for type_, struct, where in schema.walk(schema.of(kind), wanted):
        at = f"{where}." if where else ""
        if type_.name in _RULES:
            causes += _RULES[type_.name](struct, at)
        causes += _by_schema(type_, struct, at)
    return causes


def _by_schema(type_: Type, struct: Object, at: str) -> Causes:
    for name in type_.required:
        if not struct.get(name) and type_.fields[name].type.scalar == "string" and type_.name not in _MAY_BE_EMPTY:
            yield required(at + name)
    for name, value in struct.items():
        known = type_.fields[name].enum if name in type_.fields else ()
        if known and value and value not in known:
            yield unsupported(at + name, value, known)
        if name == "port" and isinstance(value, int) and type_.name not in {"EndpointPort", "PortStatus"}:
            yield from _port(at + name, value)


def _port(field: str, port: int) -> Causes:
    if port not in _PORTS:
        yield bad_value(field, str(port), "must be between 1 and 65535, inclusive")


def _metadata(metadata: Object, at: str) -> Causes:
    for key, value in (metadata.get("labels") or {}).items():
        yield from name_formats.qualified(f"{at}labels", key)
        yield from name_formats.LABEL_VALUE.check(f"{at}labels", value)
    for key in metadata.get("annotations") or {}:
        yield from name_formats.qualified(f"{at}annotations", key.lower())
    for finalizer in metadata.get("finalizers") or ():
        yield from name_formats.qualified(f"{at}finalizers", finalizer)


def _owner(owner: Object, at: str) -> Causes:
    for name in ("apiVersion", "kind", "name", "uid"):
        if not owner.get(name):
            yield bad_value(at + name, '""', "must not be empty")


def _deployment(spec: Object, at: str) -> Causes:
    yield from _replica_set(spec, at)
    for name in ("revisionHistoryLimit", "progressDeadlineSeconds"):
        yield from _not_negative(at + name, spec[name])
    if spec["progressDeadlineSeconds"] <= spec.get("minReadySeconds", 0):
        why = "must be greater than minReadySeconds"
        yield bad_value(f"{at}progressDeadlineSeconds", str(spec["progressDeadlineSeconds"]), why)


def _replica_set(spec: Object, at: str) -> Causes:
    for name in ("replicas", "minReadySeconds"):
        yield from _not_negative(at + name, spec.get(name, 0))
    selector, labels = spec.get("selector"), spec["template"]["metadata"].get("labels")
    if selector is None:
        yield required(f"{at}selector")
    elif not selector:
        yield bad_value(f"{at}selector", "{}", "empty selector is invalid for deployment")
    wanted = (selector or {}).get("matchLabels") or {}
    differs = any((labels or {}).get(key) != value for key, value in wanted.items())
    if selector is None or differs:
        why = "`selector` does not match template `labels`"
        yield bad_value(f"{at}template.metadata.labels", canonical(labels), why)
    policy = spec["template"]["spec"]["restartPolicy"]
    if policy != "Always":
        yield unsupported(f"{at}template.spec.restartPolicy", policy, ("Always",))


def _not_negative(field: str, value: int) -> Causes:
    if value < 0:
        yield bad_value(field, str(value), _NOT_NEGATIVE)


def _strategy(strategy: Object, at: str) -> Causes:
    rolling = strategy.get("rollingUpdate")
    if strategy["type"] == "Recreate" and rolling is not None:
        yield forbidden_field(f"{at}rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")


def _rolling_update(rolling: Object, at: str) -> Causes:
    fine = True
    for name, value in rolling.items():
        wrong = list(
            name_formats.PERCENT.check(at + name, value) if isinstance(value, str) else _not_negative(at + name, value)
        )
        if not wrong and name == "maxUnavailable" and isinstance(value, str) and int(value[:-1]) > 100:  # noqa: PLR2004
            wrong = [bad_value(at + name, canonical(value), "must not be greater than 100%")]
        yield from wrong
        fine = fine and not wrong
    if fine and all(str(rolling[name]).rstrip("%") == "0" for name in ("maxUnavailable", "maxSurge")):
        yield bad_value(
            f"{at}maxUnavailable", canonical(rolling["maxUnavailable"]), "may not be 0 when `maxSurge` is 0"
        )


def _pod(spec: Object, at: str) -> Causes:
    if not spec.get("containers"):
        yield required(f"{at}containers")
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    seen: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or ()):
            here = f"{at}{group}[{index}]."
            if container["name"] and container["name"] in seen:
                yield Cause("FieldValueDuplicate", f"Duplicate value: {canonical(container['name'])}", f"{here}name")
            seen.add(container["name"])
            for number, mount in enumerate(container.get("volumeMounts") or ()):
                if mount["name"] not in volumes:
                    message = f"Not found: {canonical(mount['name'])}"
                    yield Cause("FieldValueNotFound", message, f"{here}volumeMounts[{number}].name")
            yield from _sleep(container, here, spec["terminationGracePeriodSeconds"])


def _sleep(container: Object, at: str, grace: int) -> Causes:
    sleep = ((container.get("lifecycle") or {}).get("preStop") or {}).get("sleep")
    if sleep and not 0 <= sleep["seconds"] <= grace:
        why = f"must be non-negative and less than terminationGracePeriodSeconds ({grace})"
        yield bad_value(f"{at}lifecycle.preStop.sleep", str(sleep["seconds"]), why)


def _container(container: Object, at: str) -> Causes:
    if container["name"]:
        yield from name_formats.LABEL.check(f"{at}name", container["name"])
    if not container.get("image"):
        yield required(f"{at}image")
    for name in ("livenessProbe", "startupProbe"):
        if (container.get(name) or {}).get("successThreshold", 1) != 1:
            yield bad_value(f"{at}{name}.successThreshold", str(container[name]["successThreshold"]), "must be 1")
    limits = container["resources"].get("limits") or {}
    for name, request in (container["resources"].get("requests") or {}).items():
        if name in limits and amount(request) > amount(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            yield bad_value(f"{at}resources.requests", canonical(request), why)


def _container_port(port: Object, at: str) -> Causes:
    if port["containerPort"]:
        yield from _port(f"{at}containerPort", port["containerPort"])
    else:
        yield required(f"{at}containerPort")


def _probe(probe: Object, at: str) -> Causes:
    handlers = [name for name in ("exec", "grpc", "httpGet", "tcpSocket") if probe.get(name) is not None]
    if not handlers:
        yield required(at.rstrip("."), "must specify a handler type")
    for name in handlers[1:]:
        yield forbidden_field(at + name, "may not specify more than 1 handler type")


def _service(spec: Object, at: str) -> Causes:
    ports = spec.get("ports") or ()
    if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        yield required(f"{at}ports")
    for index, port in enumerate(ports):
        if len(ports) > 1 and not port.get("name"):
            yield required(f"{at}ports[{index}].name")
        if isinstance(port["targetPort"], int):
            yield from _port(f"{at}ports[{index}].targetPort", port["targetPort"])


def _data(item: Object, _: str) -> Causes:
    texts = {**(item.get("data") or {}), **(item.get("binaryData") or {})}
    for group in ("data", "binaryData"):
        for key in item.get(group) or {}:
            yield from name_formats.CONFIG_KEY.check(f"{group}[{key}]", key)
    is_secret = item["kind"] == "Secret"
    if sum(len(text) * 3 // 4 if is_secret else len(text.encode()) for text in texts.values()) > _BYTES:
        message = f"Too long: may not be more than {_BYTES} bytes"
        yield Cause("FieldValueTooLong", message, "data" if is_secret else "")


def _secret(item: Object, at: str) -> Causes:
    yield from _data(item, at)
    if item.get("type") != "kubernetes.io/dockerconfigjson":
        return
    value, field = (item.get("data") or {}).get(_DOCKER), f"data[{_DOCKER}]"
    if value is None:
        yield required(field)
        return
    try:
        if not isinstance(json.loads(base64.b64decode(value)), dict):
            yield bad_value(field, _REDACTED, "not a JSON object")
    except ValueError:
        yield bad_value(field, _REDACTED, "not JSON")


_RULES: dict[str, Callable[[Object, str], Causes]] = {
    "ObjectMeta": _metadata,
    "OwnerReference": _owner,
    "DeploymentSpec": _deployment,
    "DeploymentStrategy": _strategy,
    "RollingUpdateDeployment": _rolling_update,
    "ReplicaSetSpec": _replica_set,
    "PodSpec": _pod,
    "Container": _container,
    "ContainerPort": _container_port,
    "Probe": _probe,
    "ServiceSpec": _service,
    "ConfigMap": _data,
    "Secret": _secret,
}
_FIXED = {"Secret": ("type",), "EndpointSlice": ("addressType",)}


def check_update(kind: Kind, old: Object, new: Object) -> Causes:
    """Return the errors in the change from one state to the next."""
    late = set(new["metadata"].get("finalizers") or ()) - set(old["metadata"].get("finalizers") or ())
    if late and "deletionTimestamp" in old["metadata"]:
        listed = ", ".join(f'"{finalizer}"' for finalizer in sorted(late))
        why = (
            f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}"
        )
        yield forbidden_field("metadata.finalizers", why)
    for name in _FIXED.get(kind.kind, ()):
        if old[name] != new[name]:
            yield bad_value(name, canonical(new[name]), _IMMUTABLE)
    if kind.kind in {"ConfigMap", "Secret"} and old.get("immutable"):
        for name in ("immutable", "data", "binaryData"):
            if old.get(name) != new.get(name):
                yield forbidden_field(name, "field is immutable when `immutable` is set")
    if kind.kind in {"Deployment", "ReplicaSet"} and old["spec"]["selector"] != new["spec"]["selector"]:
        yield bad_value("spec.selector", canonical(new["spec"]["selector"]), _IMMUTABLE)
    if kind.kind == "Pod" and _fixed_of_pod(old["spec"]) != _fixed_of_pod(new["spec"]):
        yield forbidden_field("spec", _POD_FIXED)


def _fixed_of_pod(spec: Object) -> Object:
    kept = {key: value for key, value in spec.items() if key not in {"activeDeadlineSeconds", "tolerations"}}
    for group in ("containers", "initContainers"):
        kept[group] = [
            {key: value for key, value in container.items() if key != "image"} for container in spec.get(group) or ()
        ]
    return kept
