"""The namespace of an environment: whether it exists, and its creation."""

from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import Forbidden
from prefect_cd.kube.client import Cluster, Guard, unguarded
from prefect_cd.kube.resources import Ref


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
