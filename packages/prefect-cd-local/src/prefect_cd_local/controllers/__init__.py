"""The controllers of the embedded cluster: control loops that use an API server, the embedded or a real one.

    async with Client.from_kubeconfig(path, user_agent="kube-controller-manager") as client:
        await run_controllers(client, root_ca=pem)     # until cancelled; waits for a server that is not there yet

Decisions that need no cluster are in `planning` (with `scaling`, `revisions`, `progress`), `pods` and
`endpoints.slices_of`. The user agent becomes the field manager, as it does in a real cluster.
"""

import asyncio
from collections.abc import Callable, Sequence

from prefect_cd_local.client import ApiError, Client, Resource
from prefect_cd_local.controllers.deployment import DeploymentController
from prefect_cd_local.controllers.endpoints import EndpointsController
from prefect_cd_local.controllers.garbage import GarbageCollector
from prefect_cd_local.controllers.loop import Caches
from prefect_cd_local.controllers.namespace import NamespaceController
from prefect_cd_local.controllers.replicaset import ReplicaSetController

__all__ = ["run_controllers"]

_PAUSE = 0.1


async def run_controllers(client: Client, root_ca: str = "", ready: Callable[[], None] | None = None) -> None:
    """Run every controller until cancelled.

    Args:
        client: an open client.
        root_ca: the PEM text for the ConfigMap kube-root-ca.crt of every namespace.
        ready: called once when all caches are filled and the controllers work.
    """
    resources = await _discovered(client)
    caches = Caches(client)
    controllers = (
        DeploymentController(client, caches),
        ReplicaSetController(client, caches),
        EndpointsController(client, caches),
        GarbageCollector(client, caches, resources),
        NamespaceController(client, caches, resources, root_ca),
    )
    tasks = [asyncio.ensure_future(loop) for loop in caches.loops()]
    try:
        await caches.synced()  # a controller takes objects that its cache does not have for missing
        tasks += [asyncio.ensure_future(controller.queue.run()) for controller in controllers]
        if ready:
            ready()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _discovered(client: Client) -> Sequence[Resource]:
    while True:
        try:
            if resources := await client.discover():
                return resources
        except ApiError:
            pass
        await asyncio.sleep(_PAUSE)
