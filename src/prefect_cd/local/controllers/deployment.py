"""The Deployment controller: observes a Deployment, its ReplicaSets and pods, and does what `planning` decides.

It creates, scales and removes ReplicaSets and writes the status; pods are the ReplicaSets' business. Reasons and
messages of events are those of the real controller.
"""

from collections.abc import Iterable

from prefect_cd.local.client import DEPLOYMENTS, PODS, REPLICA_SETS, ApiError, Client, Object, is_namespace_ending
from prefect_cd.local.controllers import progress
from prefect_cd.local.controllers.loop import Caches, Queue
from prefect_cd.local.controllers.objects import (
    Key,
    annotations,
    controller_of,
    is_controlled_by,
    is_over,
    key_of,
    now,
    same_status,
    uid_of,
)
from prefect_cd.local.controllers.ownership import claim, claimants
from prefect_cd.local.controllers.planning import plan
from prefect_cd.local.controllers.revisions import REVISION, newest_of
from prefect_cd.local.controllers.scaling import counted, wanted


class DeploymentController:
    """Keeps every Deployment's ReplicaSets as its spec wants them."""

    def __init__(self, client: Client, caches: Caches) -> None:
        self._client = client
        self._deployments, self._sets, self._pods = caches[DEPLOYMENTS], caches[REPLICA_SETS], caches[PODS]
        self.queue: Queue[Key] = Queue("deployment", self.sync)
        self._deployments.listen(lambda deployment: self.queue.add(key_of(deployment)))
        self._sets.listen(self._set_changed)
        self._pods.listen(self._pod_changed)

    def _set_changed(self, rs: Object) -> None:
        for key in claimants(rs, self._deployments):
            self.queue.add(key)

    def _pod_changed(self, pod: Object) -> None:
        """Look again at a Recreate that waits for the last old pod to be over."""
        owner = controller_of(pod)
        rs = self._sets.get((pod["metadata"]["namespace"], owner["name"])) if owner else None
        if rs is not None:
            self._set_changed(rs)

    async def sync(self, key: Key) -> float | None:
        """Do what is due for one Deployment; gives the seconds until its deadline must be looked at."""
        deployment = self._deployments.get(key)
        if deployment is None:
            return None
        sets = await claim(self._client, deployment, DEPLOYMENTS, self._sets, self._sets.all(key[0]))
        due = plan(deployment, sets, now(), old_pods_run=self._old_pods_run(deployment, sets))
        for wish in due.write:
            await self._write(deployment, wish)
        for rs in due.remove:
            await self._client.delete(REPLICA_SETS, rs["metadata"]["name"], key[0], uid=uid_of(rs))
            self._sets.drop(rs)
        await self._write_status(deployment, due.status, due.revision)
        return due.look_again

    def _old_pods_run(self, deployment: Object, sets: Iterable[Object]) -> bool:
        new = newest_of(deployment, sets)
        old = [rs for rs in sets if rs is not new]
        pods = [pod for pod in self._pods.all(deployment["metadata"]["namespace"]) if not is_over(pod)]
        return any(counted(rs, "replicas") or any(is_controlled_by(pod, rs) for pod in pods) for rs in old)

    async def _write(self, deployment: Object, wish: Object) -> None:
        """Create or update a ReplicaSet; an event tells of its new size."""
        there = self._sets.get(key_of(wish)) if "uid" in wish["metadata"] else None
        if there:
            self._sets.put(await self._client.update(REPLICA_SETS, wish))
        else:
            await self._create(deployment, wish)
        before, size = wanted(there), wanted(wish)
        if size != before:
            way = "up" if size > before else "down"
            text = f"Scaled {way} replica set {wish['metadata']['name']} from {before} to {size}"
            await self._tell(deployment, "ScalingReplicaSet", text)

    async def _create(self, deployment: Object, wish: Object) -> None:
        """Create a ReplicaSet; a refusal is told before it is raised, and the whole is tried again later."""
        try:
            self._sets.put(await self._client.create(REPLICA_SETS, wish))
        except ApiError as error:
            if not is_namespace_ending(error):
                text = f'Failed to create new replica set "{wish["metadata"]["name"]}": {error.message}'
                await self._write_status(deployment, progress.refused(deployment, text, now()))
                await self._tell(deployment, "ReplicaSetCreateError", text, "Warning")
            raise

    async def _write_status(self, deployment: Object, status: Object, revision: str = "") -> None:
        """Write status and revision if either changed."""
        worn = {**annotations(deployment), **({REVISION: revision} if revision else {})}
        if worn == annotations(deployment) and same_status(status, deployment.get("status") or {}):
            return
        # The revision is an annotation, yet the real controller writes it with the status, and so it is owned.
        changed = {**deployment, "metadata": {**deployment["metadata"], "annotations": worn}, "status": status}
        self._deployments.put(await self._client.update(DEPLOYMENTS, changed, "status"))

    async def _tell(self, deployment: Object, reason: str, text: str, kind: str = "Normal") -> None:
        await self._client.event(deployment, kind, reason, text, "deployment-controller")
