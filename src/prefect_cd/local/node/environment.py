"""What a container's program gets told: its environment, its command line, and the fields it may ask for.

Sources: kubernetes.io/docs/concepts/workloads/pods/downward-api for the fields, .../services-networking/service for the
variables of Services; order and messages were recorded on Kubernetes 1.36. Whether a missing thing matters is said
here; what follows from it is said in `container`.
"""

import base64
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any

from prefect_cd.local.client import CONFIG_MAPS, SECRETS, Object, Resource

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
    """Something that a container needs is not there."""


def quantity(text: str) -> Decimal:
    """A quantity of Kubernetes as a number: '250m' -> 0.25, '1Ki' -> 1024."""
    found = re.fullmatch(r"([0-9.eE+-]*?[0-9.])([mkMGTP]i?|Ki|)", str(text))
    return Decimal(found[1]) * _SUFFIXES[found[2]] if found else Decimal(0)


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace $(NAME) by what is known; $$ is a dollar, and what is not known stays."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda found: "$" if found[0] == "$$" else known.get(found[1], found[0]),
        text,
    )


def field(pod: Object, path: str) -> str:
    """A field of the downward API.

    Raises:
        ConfigError: there is no such field.
    """
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((meta.get(found[1]) or {}).get(found[2], ""))
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
    """A resource field of the downward API: a limit that is not set is what the node has."""
    name = selector.get("containerName") or container
    spec = next(each for each in pod["spec"]["containers"] if each["name"] == name)
    which, _, kind = selector["resource"].partition(".")
    given = (spec.get("resources") or {}).get(which) or {}
    value = quantity(given.get(kind) or (allocatable.get(kind, "0") if which == "limits" else "0"))
    divisor = quantity(selector.get("divisor") or "1") or Decimal(1)
    return str(math.ceil(value / divisor))


async def variables(
    pod: Object, container: Object, find: Find, *, base: Mapping[str, str], allocatable: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a container.

    Args:
        pod: with its address in its status.
        container: its specification.
        find: looks an object up.
        base: of the image and of Services.
        allocatable: of the node.

    Raises:
        ConfigError: in the kubelet's words.
    """
    namespace = pod["metadata"]["namespace"]
    result = dict(base)
    for source in container.get("envFrom") or []:
        found = await _all_of(source, namespace, find)
        result.update({source.get("prefix", "") + key: value for key, value in found.items() if _NAME.fullmatch(key)})
    for entry in container.get("env") or []:
        name, origin = entry["name"], entry.get("valueFrom")
        if origin is None:
            result[name] = expand(entry.get("value", ""), result)
        elif "fieldRef" in origin:
            result[name] = field(pod, origin["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in origin:
            result[name] = resource(pod, origin["resourceFieldRef"], container["name"], allocatable)
        else:
            found, (kind, selector) = await _all_of(origin, namespace, find), _source(origin)
            if selector["key"] in found:
                result[name] = found[selector["key"]]
            elif not selector.get("optional"):
                raise ConfigError(f"couldn't find key {selector['key']} in {kind} {namespace}/{selector['name']}")
    return result


async def _all_of(source: Object, namespace: str, find: Find) -> dict[str, str]:
    kind, selector = _source(source)
    found = await contents(kind, selector["name"], namespace, find)
    if found is None and not selector.get("optional"):
        raise ConfigError(f'{kind.lower()} "{selector["name"]}" not found')
    return {key: value.decode(errors="replace") for key, value in (found or {}).items()}


def _source(source: Object) -> tuple[str, Object]:
    """Kind and selector of what `envFrom` or `valueFrom` names."""
    secret = source.get("secretRef") or source.get("secretKeyRef")
    return ("Secret", secret) if secret else ("ConfigMap", source.get("configMapRef") or source["configMapKeyRef"])


async def contents(kind: str, name: str, namespace: str, find: Find) -> dict[str, bytes] | None:
    """The keys of a ConfigMap or Secret, or None where there is none."""
    found = await find(CONFIG_MAPS if kind == "ConfigMap" else SECRETS, name, namespace)
    if found is None:
        return None
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return {**plain, **{key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}}


def of_services(services: list[Object], namespace: str, *, links: bool) -> dict[str, str]:
    """The variables that name Services: always the API server's, and with `links` those of the namespace."""
    result: dict[str, str] = {}
    for service in services:
        meta, spec = service["metadata"], service["spec"]
        master = (meta["namespace"], meta["name"]) == ("default", "kubernetes")
        address, ports = spec.get("clusterIP"), spec.get("ports")
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
    """The program and its arguments: `command` replaces ENTRYPOINT and, with it, CMD; `args` replaces CMD."""
    given, arguments = container.get("command"), container.get("args")
    entry = given or image.get("Entrypoint") or []
    rest = arguments or ([] if given else image.get("Cmd") or [])
    if not entry and not rest:
        raise ConfigError("no command specified")
    return [*(expand(each, known) for each in given or []), *([] if given else entry),
            *(expand(each, known) if arguments else each for each in rest)]  # fmt: skip
