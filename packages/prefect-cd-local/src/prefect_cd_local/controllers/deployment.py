"""The Deployment controller: observes a Deployment, its ReplicaSets and pods, and does what `planning` decides.

It creates, scales and removes ReplicaSets and writes the status; the ReplicaSet controller handles pods. Reasons and
messages of events are those of the real controller.
"""

from collections.abc import Iterable

from prefect_cd_local.client import DEPLOYMENTS, PODS, REPLICA_SETS, ApiError, Client, Object, is_namespace_ending
from prefect_cd_local.controllers import progress
from prefect_cd_local.controllers.loop import Caches, Queue
from prefect_cd_local.controllers.objects import (
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
from prefect_cd_local.controllers.ownership import claim, owners_to_sync
from prefect_cd_local.controllers.planning import plan
from prefect_cd_local.controllers.revisions import REVISION, newest_of
from prefect_cd_local.controllers.scaling import counted, wanted


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
        for key in owners_to_sync(rs, self._deployments):
            self.queue.add(key)

    def _pod_changed(self, pod: Object) -> None:
        """Check a Recreate again that waits for the end of the last old pod."""
        owner = controller_of(pod)
        rs = self._sets.get((pod["metadata"]["namespace"], owner["name"])) if owner else None
        if rs is not None:
            self._set_changed(rs)

    async def sync(self, key: Key) -> float | None:
        """Reconcile one Deployment; returns the seconds until its deadline must be checked."""
        deployment = self._deployments.get(key)
        if deployment is None:
            return None
        sets = await claim(self._client, deployment, DEPLOYMENTS, self._sets, self._sets.all(key[0]))
        due = plan(deployment, sets, now(), old_pods_run=self._old_pods_run(deployment, sets))
        for replica_set in due.write:
            await self._write(deployment, replica_set)
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

    async def _write(self, deployment: Object, replica_set: Object) -> None:
        """Create or update a ReplicaSet, with an event for its new size."""
        existing = self._sets.get(key_of(replica_set)) if "uid" in replica_set["metadata"] else None
        if existing:
            self._sets.put(await self._client.update(REPLICA_SETS, replica_set))
        else:
            await self._create(deployment, replica_set)
        before, size = wanted(existing), wanted(replica_set)
        if size != before:
            way = "up" if size > before else "down"
            text = f"Scaled {way} replica set {replica_set['metadata']['name']} from {before} to {size}"
            await self._notify(deployment, "ScalingReplicaSet", text)

    async def _create(self, deployment: Object, replica_set: Object) -> None:
        """Create a ReplicaSet; an error is recorded before it is raised, and the queue tries again later."""
        try:
            self._sets.put(await self._client.create(REPLICA_SETS, replica_set))
        except ApiError as error:
            if not is_namespace_ending(error):
                text = f'Failed to create new replica set "{replica_set["metadata"]["name"]}": {error.message}'
                await self._write_status(deployment, progress.refused(deployment, text, now()))
                await self._notify(deployment, "ReplicaSetCreateError", text, "Warning")
            raise

    async def _write_status(self, deployment: Object, status: Object, revision: str = "") -> None:
        """Write status and revision if either changed."""
        new_annotations = {**annotations(deployment), **({REVISION: revision} if revision else {})}
        if new_annotations == annotations(deployment) and same_status(status, deployment.get("status") or {}):
            return
        # As in the real controller: the revision annotation is written, and so owned, through the status.
        changed = {
            **deployment,
            "metadata": {**deployment["metadata"], "annotations": new_annotations},
            "status": status,
        }
        self._deployments.put(await self._client.update(DEPLOYMENTS, changed, "status"))

    async def _notify(self, deployment: Object, reason: str, text: str, kind: str = "Normal") -> None:
        await self._client.event(deployment, kind, reason, text, "deployment-controller")
