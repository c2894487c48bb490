"""The values of Secrets that pods may write into their output, so that they can be masked there.

Read when there is a text to show, and only Secrets that the pods refer to: in variables, volumes and pulls of images.
Where we may not read one, or the server does not answer soon, its values are masked by their shape only.
"""

import asyncio
import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field

import anyio

from prefect_cd.errors import DeliveryError, Forbidden
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping, namespace_of
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_templates import pod_template_of
from prefect_cd.masking import BY_SHAPE, Mask

_PATIENCE_SECONDS = 3
_MOST_SECRETS = 50


@dataclass
class SecretValues:
    """What is known of the Secrets in one cluster.

    Attributes:
        cluster: where they are.
        objects: the applied set; values of the Secrets in it are known from the beginning.
        mask: knows the values that have been read.
    """

    cluster: Cluster
    objects: InitVar[Sequence[Object]] = ()
    mask: Mask = BY_SHAPE
    _names: str = ""
    _read: set[Ref] = field(default_factory=set)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self, objects: Sequence[Object]) -> None:
        self._names = " ".join(f"{item['metadata']['name']} {namespace_of(item)}" for item in objects)
        self._add(value for item in objects if item["kind"] == "Secret" for value in values_of(item))

    async def learn(self, objects: Iterable[Object]) -> None:
        """Add the values of the Secrets that workloads and pods refer to; each Secret is read once."""
        refs = {ref for item in objects for ref in references(item)}
        async with self._lock:  # who comes second needs the values, too
            unread = sorted(refs - self._read)[:_MOST_SECRETS]
            for ref, values in zip(unread, await asyncio.gather(*map(self._values, unread)), strict=True):
                if values is not None:
                    self._read.add(ref)
                    self._add(values)

    async def _values(self, ref: Ref) -> list[bytes] | None:
        """The values of one Secret; none where we may not read it, and None where it may be read later."""
        with anyio.move_on_after(_PATIENCE_SECONDS):
            try:
                return values_of(await self.cluster.get(ref) or {})
            except Forbidden:
                return []
            except DeliveryError:
                return None
        return None

    def _add(self, values: Iterable[bytes]) -> None:
        # a user or a database often has the name of the application, which every message has
        secret = [value for value in values if value.decode(errors="replace").strip() not in self._names]
        if secret:
            self.mask = self.mask.with_values(secret)


async def mask_for(cluster: Cluster, objects: Sequence[Object]) -> Mask:
    """A mask for the output of pods, and of tests that talk to them.

    Args:
        cluster: where they run.
        objects: the applied set.
    """
    values = SecretValues(cluster, objects)
    await values.learn(objects)
    return values.mask


def references(item: Object) -> Iterator[Ref]:
    """The Secrets that the pods of a workload, or a pod, refer to; none for other objects."""
    template = pod_template_of(item, ())
    spec = template.spec if template else {}
    names = [as_text(pull.get("name")) for pull in as_objects(spec.get("imagePullSecrets"))]
    for container in [*as_objects(spec.get("initContainers")), *as_objects(spec.get("containers"))]:
        names += [as_text(dig(source, "secretRef", "name")) for source in as_objects(container.get("envFrom"))]
        names += [
            as_text(dig(variable, "valueFrom", "secretKeyRef", "name")) for variable in as_objects(container.get("env"))
        ]
    for volume in as_objects(spec.get("volumes")):
        names.append(as_text(dig(volume, "secret", "secretName")))
        names += [as_text(dig(source, "secret", "name")) for source in as_objects(dig(volume, "projected", "sources"))]
    return (Ref("v1", "Secret", namespace_of(item), name) for name in names if name)


def values_of(secret: Object) -> list[bytes]:
    """The values of a Secret."""
    values = [as_text(value).encode() for value in dig_mapping(secret, "stringData").values()]
    for value in dig_mapping(secret, "data").values():
        try:
            values.append(base64.b64decode(as_text(value)))
        except binascii.Error:  # a manifest that the server would refuse
            continue
    return values


__all__ = ["SecretValues", "mask_for", "references", "values_of"]
