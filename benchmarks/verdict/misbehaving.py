"""Run the registry that misbehaves (`faulty_registry.py`) in a pod on the network of every node.

The kubelet reaches it at localhost, where container runtimes accept a registry without TLS.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from api import Api, collection_of
from scenario import FAULTY_PORT, FOLDER, filled
from stage import is_up

_SOURCE = Path(__file__).with_name("faulty_registry.py")
_POLL_SECONDS = 0.5
_LOCAL = ("localhost", "127.0.0.1")


def _upstream(server: str) -> str:
    """The address of the real registry for a node; `localhost` is replaced by this machine's address in its network."""
    host, _, port = filled("$REGISTRY", "").partition(":")
    if host not in _LOCAL:
        return f"{host}:{port}" if port else host
    url = urlsplit(server)
    with socket.create_connection((url.hostname, url.port or 443), timeout=5) as connection:
        return f"{connection.getsockname()[0]}:{port}"


@contextlib.asynccontextmanager
async def misbehaving(api: Api, namespace: str, names: Sequence[str]) -> AsyncIterator[None]:
    """The registry runs inside the context if one of the scenarios needs it."""
    if not any("$FAULTY" in (FOLDER / f"{name}.yaml").read_text() for name in names):
        yield
        return
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    in_namespace = {"namespace": namespace}
    await api.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "program", **in_namespace},
            "data": {"registry.py": _SOURCE.read_text()},
        }
    )
    labels = {"app": "registry"}
    container = {
        "name": "registry",
        "image": filled("$REGISTRY/base/python:3.11", namespace),
        "command": ["python3", "/program/registry.py", str(FAULTY_PORT)],
        "env": [{"name": "UPSTREAM", "value": _upstream(api.server)}],
        "readinessProbe": {"httpGet": {"port": FAULTY_PORT, "path": "/v2/"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "program", "mountPath": "/program"}],
    }
    pod = {
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "program", "configMap": {"name": "program"}}],
    }
    daemons = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "registry", **in_namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
    try:
        await api.apply(daemons)
        path = f"{collection_of('apps/v1', 'DaemonSet', namespace)}/registry"
        while not is_up(await api.get(path)):  # noqa: ASYNC110  a condition in the API server has no local event
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        await asyncio.shield(api.delete(f"{collection_of('v1', 'Namespace')}/{namespace}"))
