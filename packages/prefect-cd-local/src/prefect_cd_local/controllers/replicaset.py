"""The ReplicaSet controller: as many active pods as spec.replicas, and a status.

`pods` decides which pods are deleted first, and the status. The cache has our own creations and deletions at once, so
that nothing is created or deleted twice. Pods are created 1, 2, 4, 8 … at a time, until the first error. Reasons and
messages of events are those of the real controller.
"""

import asyncio
from collections.abc import Sequence

from prefect_cd_local.client import PODS, REPLICA_SETS, ApiError, Client, Object, is_namespace_ending
from prefect_cd_local.controllers import pods as choice
from prefect_cd_local.controllers.loop import Caches, Queue
from prefect_cd_local.controllers.objects import (
    Key,
    is_active,
    is_controlled_by,
    is_ending,
    key_of,
    now,
    same_status,
    uid_of,
)
from prefect_cd_local.controllers.ownership import claim, owners_to_sync

_NOT_FOUND, _CONFLICT = 404, 409


class ReplicaSetController:
    """Creates and deletes pods."""

    def __init__(self, client: Client, caches: Caches) -> None:
        self._client = client
        self._sets, self._pods = caches[REPLICA_SETS], caches[PODS]
        self.queue: Queue[Key] = Queue("replicaset", self.sync)
        self._sets.listen(lambda rs: self.queue.add(key_of(rs)))
        self._pods.listen(self._pod_changed)

    def _pod_changed(self, pod: Object) -> None:
        for key in owners_to_sync(pod, self._sets):
            self.queue.add(key)

    async def sync(self, key: Key) -> float | None:
        """Create or delete pods and write the status; returns the seconds until the next pod becomes available."""
        rs = self._sets.get(key)
        if rs is None:
            return None
        all_pods = list(self._pods.all(key[0]))
        active = await claim(self._client, rs, REPLICA_SETS, self._pods, filter(is_active, all_pods))
        missing = 0 if is_ending(rs) else rs["spec"]["replicas"] - len(active)
        problem = await (self._create(rs, missing) if missing > 0 else self._end(rs, active, -missing))
        failure = ("FailedCreate" if missing > 0 else "FailedDelete", problem.message) if problem else None
        # The status counts the pods before these changes; the events of the changes bring the next count.
        ending = sum(is_ending(pod) and is_controlled_by(pod, rs) for pod in all_pods)
        status = choice.set_status(rs, active, ending, failure, now())
        if not same_status(status, rs.get("status") or {}):
            self._sets.put(await self._client.update(REPLICA_SETS, {**rs, "status": status}, "status"))
        if problem:
            raise problem
        return choice.next_available(rs, active, now())

    async def _create(self, rs: Object, count: int) -> ApiError | None:
        """Create pods in growing batches until the first error."""
        batch = 1
        while count > 0:
            batch = min(batch, count)
            problems = await asyncio.gather(*(self._create_one(rs) for _ in range(batch)))
            if problem := next(filter(None, problems), None):
                return problem
            count, batch = count - batch, batch * 2
        return None

    async def _create_one(self, rs: Object) -> ApiError | None:
        try:
            pod = await self._client.create(PODS, choice.new_pod(rs))
        except ApiError as error:
            if is_namespace_ending(error):
                return None
            await self._notify(rs, "Warning", "FailedCreate", f"Error creating: {error.message}")
            return error
        self._pods.put(pod)
        await self._notify(rs, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return None

    async def _end(self, rs: Object, active: Sequence[Object], count: int) -> ApiError | None:
        """Delete the least useful pods."""
        victims = choice.pods_to_delete(active, count, now())
        problems = await asyncio.gather(*(self._end_one(rs, pod) for pod in victims))
        return next(filter(None, problems), None)

    async def _end_one(self, rs: Object, pod: Object) -> ApiError | None:
        namespace, name = key_of(pod)
        try:
            answer = await self._client.delete(PODS, name, namespace, uid=uid_of(pod))
        except ApiError as error:
            if error.code in {_NOT_FOUND, _CONFLICT}:  # gone, or replaced by another pod of that name
                self._pods.drop(pod)
                return None
            await self._notify(rs, "Warning", "FailedDelete", f"Error deleting: {error.message}")
            return error
        if answer.get("kind") == "Pod" and is_ending(answer):
            self._pods.put(answer)
        else:
            self._pods.drop(pod)
        await self._notify(rs, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")
        return None

    async def _notify(self, rs: Object, kind: str, reason: str, text: str) -> None:
        await self._client.event(rs, kind, reason, text, "replicaset-controller")
