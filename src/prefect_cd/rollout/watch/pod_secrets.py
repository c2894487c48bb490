"""The secret values that a pod gets, to mask them in what it writes: each Secret is read once, and only for a log."""

import asyncio
import base64
import binascii
from collections.abc import Iterator
from typing import Any

from prefect_cd.errors import DeliveryError
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref

_REFERENCES = frozenset({"secretKeyRef", "secretRef", "secret"})


class PodSecrets:
    """Values of the Secrets that pods use, as far as we may read them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._reading: dict[tuple[str, str], asyncio.Task[frozenset[str]]] = {}

    async def of(self, pod: Object) -> frozenset[str]:
        """The values of all Secrets that the pod's specification names; empty where none can be read."""
        namespace = str(pod["metadata"]["namespace"])
        names = sorted(set(secret_names(pod.get("spec") or {})))
        return frozenset().union(*await asyncio.gather(*(self._values(namespace, name) for name in names)))

    @property
    def known(self) -> frozenset[str]:
        """The values that have been read until now."""
        done = (task for task in self._reading.values() if task.done() and not task.cancelled())
        return frozenset().union(*(task.result() for task in done))

    async def close(self) -> None:
        """Stop reading."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    async def _values(self, namespace: str, name: str) -> frozenset[str]:
        key = namespace, name
        if key not in self._reading:
            self._reading[key] = asyncio.create_task(self._read(namespace, name))
        return await asyncio.shield(self._reading[key])

    async def _read(self, namespace: str, name: str) -> frozenset[str]:
        try:
            secret = await self._cluster.get(Ref("v1", "Secret", namespace, name))
        except DeliveryError:  # forbidden, say: what shows its form is masked all the same
            return frozenset()
        values = (secret or {}).get("data") or {}
        return frozenset(text for value in values.values() if (text := _decoded(value)))


def secret_names(value: Any) -> Iterator[str]:  # noqa: ANN401  JSON is anything
    """The names of the Secrets in the specification of a pod."""
    if isinstance(value, list):
        for item in value:
            yield from secret_names(item)
    elif isinstance(value, dict):
        for key, below in value.items():
            if key in _REFERENCES and isinstance(below, dict):
                yield from filter(None, [str(below.get("secretName") or below.get("name") or "")])
            else:
                yield from secret_names(below)


def _decoded(value: object) -> str:
    try:
        return base64.b64decode(str(value)).decode()
    except (binascii.Error, UnicodeDecodeError):  # no text that a log could have
        return ""


__all__ = ["PodSecrets", "secret_names"]
