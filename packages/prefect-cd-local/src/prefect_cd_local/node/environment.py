"""A container's environment variables, command line, and downward API fields.

Sources: kubernetes.io/docs/concepts/workloads/pods/downward-api for the fields, .../services-networking/service for the
variables of Services; order and messages were recorded on Kubernetes 1.36. This module finds what is missing;
`container` decides what follows.
"""

import base64
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any

from prefect_cd_local.client import CONFIG_MAPS, SECRETS, Object, Resource
from prefect_cd_local.controllers.objects import CLUSTER_IP_SERVED, is_withdrawn

Find = Callable[[Resource, str, str | None], Awaitable[Object | None]]

_LETTERS = "kMGTP"
_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate(_LETTERS, 1)},
    **{f"{letter.upper()}i": Decimal(1024) ** power for power, letter in enumerate(_LETTERS, 1)},
}
_PLAIN_FIELDS = (
    "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP",
    "status.hostIPs", "status.podIP", "status.podIPs",
)  # fmt: skip
_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class ConfigError(Exception):
    """Something that a container needs does not exist."""


def quantity(text: str) -> Decimal:
    """Return a quantity of Kubernetes as a number: '250m' -> 0.25, '1Ki' -> 1024."""
    match = re.fullmatch(r"([0-9.eE+-]*?[0-9.])([mkMGTP]i?|Ki|)", str(text))
    return Decimal(match[1]) * _SUFFIXES[match[2]] if match else Decimal(0)


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace $(NAME) by known variables; $$ is a dollar, and unknown names stay."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda match: "$" if match[0] == "$$" else known.get(match[1], match[0]),
        text,
    )


def field(pod: Object, path: str) -> str:
    """Return a field of the downward API.

    Raises:
        ConfigError: there is no such field.
    """
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = sorted((meta.get(path.partition(".")[2]) or {}).items())
        return "\n".join(f'{key}="{_escaped(value)}"' for key, value in pairs)
    section, _, name = path.partition(".")
    if path not in _PLAIN_FIELDS:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str({"metadata": meta, "spec": spec, "status": status}[section].get(name.replace("IPs", "IP"), ""))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource(pod: Object, selector: Object, container: str, allocatable: Mapping[str, str]) -> str:
    """Return a resource field of the downward API; a limit that is not set is the node's capacity."""
    name = selector.get("containerName") or container
    spec = next(entry for entry in pod["spec"]["containers"] if entry["name"] == name)
    which, _, kind = selector["resource"].partition(".")
    amounts = (spec.get("resources") or {}).get(which) or {}
    value = quantity(amounts.get(kind) or (allocatable.get(kind, "0") if which == "limits" else "0"))
    divisor = quantity(selector.get("divisor") or "1") or Decimal(1)
    return str(math.ceil(value / divisor))


async def variables(
    pod: Object, container: Object, find: Find, *, base: Mapping[str, str], allocatable: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a container.

    Args:
        pod: with its address in its status.
        container: its specification.
        find: looks an object up.
        base: of the image and of Services.
        allocatable: of the node.

    Raises:
        ConfigError: with the kubelet's message.
    """
    namespace = pod["metadata"]["namespace"]
    result = dict(base)
    for source in container.get("envFrom") or []:
        values = await _all_of(source, namespace, find)
        result.update({source.get("prefix", "") + key: value for key, value in values.items() if _NAME.fullmatch(key)})
    for entry in container.get("env") or []:
        name, origin = entry["name"], entry.get("valueFrom")
        if origin is None:
            result[name] = expand(entry.get("value", ""), result)
        elif "fieldRef" in origin:
            result[name] = field(pod, origin["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in origin:
            result[name] = resource(pod, origin["resourceFieldRef"], container["name"], allocatable)
        else:
            values, (kind, selector) = await _all_of(origin, namespace, find), _source(origin)
            if selector["key"] in values:
                result[name] = values[selector["key"]]
            elif not selector.get("optional"):
                raise ConfigError(f"couldn't find key {selector['key']} in {kind} {namespace}/{selector['name']}")
    return result


async def _all_of(source: Object, namespace: str, find: Find) -> dict[str, str]:
    kind, selector = _source(source)
    content = await contents(kind, selector["name"], namespace, find)
    if content is None and not selector.get("optional"):
        raise ConfigError(f'{kind.lower()} "{selector["name"]}" not found')
    return {key: value.decode(errors="replace") for key, value in (content or {}).items()}


def _source(source: Object) -> tuple[str, Object]:
    """Return kind and selector of `envFrom` or `valueFrom`."""
    secret = source.get("secretRef") or source.get("secretKeyRef")
    return ("Secret", secret) if secret else ("ConfigMap", source.get("configMapRef") or source["configMapKeyRef"])


async def contents(kind: str, name: str, namespace: str, find: Find) -> dict[str, bytes] | None:
    """Return the keys of a ConfigMap or Secret, or None where there is none."""
    source_object = await find(CONFIG_MAPS if kind == "ConfigMap" else SECRETS, name, namespace)
    if source_object is None:
        return None
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (source_object.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (source_object.get("data") or {}).items()}
    return {**plain, **{key: base64.b64decode(value) for key, value in (source_object.get("binaryData") or {}).items()}}


def of_services(services: list[Object], namespace: str, *, links: bool) -> dict[str, str]:
    """Return the variables for Services: always those of the API server, and with `links` those of the namespace."""
    result: dict[str, str] = {}
    for service in services:
        meta, spec = service["metadata"], service["spec"]
        master = (meta["namespace"], meta["name"]) == ("default", "kubernetes")
        address, ports = spec.get("clusterIP"), spec.get("ports")
        if is_withdrawn(service, CLUSTER_IP_SERVED):
            continue
        if not ports or address in (None, "", "None") or not (master or (links and meta["namespace"] == namespace)):
            continue
        name = meta["name"].upper().replace("-", "_")
        result[f"{name}_SERVICE_HOST"] = address
        result[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for number, port in enumerate(ports):
            protocol = port.get("protocol", "TCP")
            url = f"{protocol.lower()}://{address}:{port['port']}"
            prefix = f"{name}_PORT_{port['port']}_{protocol}"
            if port.get("name"):
                result[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
            if number == 0:
                result[f"{name}_PORT"] = url
            result.update({prefix: url, f"{prefix}_PROTO": protocol.lower(), f"{prefix}_PORT": str(port["port"]),
                           f"{prefix}_ADDR": address})  # fmt: skip
    return result


def command(container: Object, image: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
    """Return program and arguments: `command` replaces ENTRYPOINT and, with it, CMD; `args` replaces CMD."""
    own_command, arguments = container.get("command"), container.get("args")
    entry = own_command or image.get("Entrypoint") or []
    rest = arguments or ([] if own_command else image.get("Cmd") or [])
    if not entry and not rest:
        raise ConfigError("no command specified")
    return [*(expand(word, known) for word in own_command or []), *([] if own_command else entry),
            *(expand(word, known) if arguments else word for word in rest)]  # fmt: skip
