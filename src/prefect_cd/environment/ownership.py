"""Which objects are ours: the environment's namespace and the labels that mark what we applied there."""

from dataclasses import dataclass

from prefect_cd.errors import Forbidden
from prefect_cd.kube.client import Cluster, Guard, unguarded
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests import labels as labels_module


@dataclass(frozen=True)
class Ownership:
    """Where an application's environment lives: the namespace, and the labels that mark its objects as ours."""

    application: str
    environment: str
    namespace: str

    @property
    def selector(self) -> str:
        """The label selector of everything that we applied here."""
        return (
            f"{labels_module.MANAGED_BY}={labels_module.MANAGER},{labels_module.APPLICATION}={self.application},"
            f"{labels_module.ENVIRONMENT}={self.environment}"
        )

    def label(self, item: Object, release: str = "") -> Object:
        """The object as ours; see `manifests.label`."""
        return labels_module.label(item, self.application, self.environment, release)

    def owns(self, live: Object) -> bool:
        """Whether a live object is one that we applied here."""
        labels = live["metadata"].get("labels") or {}
        return all(labels.get(key) == value for key, value in (pair.split("=") for pair in self.selector.split(",")))


async def ensure_namespace(cluster: Cluster, ownership: Ownership, *, guard: Guard = unguarded) -> None:
    """Create the namespace when it is missing."""
    if not await namespace_exists(cluster, ownership.namespace):
        item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ownership.namespace}}
        await cluster.apply(ownership.label(item), guard=guard)


async def namespace_exists(cluster: Cluster, namespace: str) -> bool:
    """Whether the namespace is there and stays; one that we may not look at is taken to be there."""
    try:
        live = await cluster.get(Ref("v1", "Namespace", "", namespace))
    except Forbidden:  # a Role of the namespace alone does not reach the Namespace object
        return True
    return live is not None and "deletionTimestamp" not in live["metadata"]
