"""Which objects are ours: the environment's namespace and the labels that mark what we applied there."""

from dataclasses import dataclass

from prefect_cd.errors import Forbidden
from prefect_cd.kube.client import Cluster, Guard, unguarded
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.labels import label, ownership_labels


@dataclass(frozen=True)
class Ownership:
    """The namespace of an application's environment, and the labels that mark its objects as ours."""

    application: str
    environment: str
    namespace: str

    @property
    def labels(self) -> dict[str, str]:
        """The labels that mark what we applied here."""
        return ownership_labels(self.application, self.environment)

    @property
    def selector(self) -> str:
        """The same labels as a label selector, for list requests."""
        return ",".join(f"{key}={value}" for key, value in self.labels.items())

    def label(self, item: Object, release: str = "") -> Object:
        """The object as ours; see `manifests.labels.label`."""
        return label(item, self.application, self.environment, release)

    def owns(self, live: Object) -> bool:
        """Whether a live object is one that we applied here."""
        live_labels = live["metadata"].get("labels") or {}
        return all(live_labels.get(key) == value for key, value in self.labels.items())


async def ensure_namespace(cluster: Cluster, ownership: Ownership, *, guard: Guard = unguarded) -> None:
    """Create the namespace, labelled as ours, when it is missing."""
    if not await namespace_exists(cluster, ownership.namespace):
        item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ownership.namespace}}
        await cluster.apply(ownership.label(item), guard=guard)


async def namespace_exists(cluster: Cluster, namespace: str) -> bool:
    """Whether the namespace exists and is not being deleted; one that we may not read counts as existing."""
    try:
        live = await cluster.get(Ref("v1", "Namespace", "", namespace))
    except Forbidden:  # a Role grants nothing on the Namespace itself
        return True
    return live is not None and "deletionTimestamp" not in live["metadata"]
