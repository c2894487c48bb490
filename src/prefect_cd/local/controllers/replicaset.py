"""The ReplicaSet controller: as many active pods as spec.replicas says, and a status that tells of them.

What goes first and what the status says is decided in `pods`. Pods that we made or ended are in the cache at once, so
that nothing is made or ended twice. Pods are made 1, 2, 4, 8 … at a time, and the first refusal ends that. Reasons and
messages of events are those of the real controller.
"""

import asyncio
from collections.abc import Sequence

from prefect_cd.local.client import PODS, REPLICA_SETS, ApiError, Client, Object, is_namespace_ending
from prefect_cd.local.controllers import pods as choice
from prefect_cd.local.controllers.loop import Caches, Queue
from prefect_cd.local.controllers.objects import (
    Key,
    is_active,
    is_controlled_by,
    is_ending,
    key_of,
    now,
    same_status,
    uid_of,
)
from prefect_cd.local.controllers.ownership import claim, claimants

_NOT_FOUND, _CONFLICT = 404, 409


class ReplicaSetController:
    """Makes and ends pods."""

    def __init__(self, client: Client, caches: Caches) -> None:
        self._client = client
        self._sets, self._pods = caches[REPLICA_SETS], caches[PODS]
        self.queue: Queue[Key] = Queue("replicaset", self.sync)
        self._sets.listen(lambda rs: self.queue.add(key_of(rs)))
        self._pods.listen(self._pod_changed)

    def _pod_changed(self, pod: Object) -> None:
        for key in claimants(pod, self._sets):
            self.queue.add(key)

    async def sync(self, key: Key) -> float | None:
        """Make or end pods, write the status; gives the seconds until the next pod becomes available."""
        rs = self._sets.get(key)
        if rs is None:
            return None
        there = list(self._pods.all(key[0]))
        active = await claim(self._client, rs, REPLICA_SETS, self._pods, filter(is_active, there))
        missing = 0 if is_ending(rs) else rs["spec"]["replicas"] - len(active)
        problem = await (self._create(rs, missing) if missing > 0 else self._end(rs, active, -missing))
        told = ("FailedCreate" if missing > 0 else "FailedDelete", problem.message) if problem else None
        # The status counts the pods that were there before the changes; their own events bring the next count.
        ending = sum(is_ending(pod) and is_controlled_by(pod, rs) for pod in there)
        status = choice.set_status(rs, active, ending, told, now())
        if not same_status(status, rs.get("status") or {}):
            self._sets.put(await self._client.update(REPLICA_SETS, {**rs, "status": status}, "status"))
        if problem:
            raise problem
        return choice.next_available(rs, active, now())

    async def _create(self, rs: Object, count: int) -> ApiError | None:
        """Make pods in growing batches until one is refused."""
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
            await self._tell(rs, "Warning", "FailedCreate", f"Error creating: {error.message}")
            return error
        self._pods.put(pod)
        await self._tell(rs, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return None

    async def _end(self, rs: Object, active: Sequence[Object], count: int) -> ApiError | None:
        """End the pods that can best be done without."""
        doomed = choice.first_to_go(active, count, now())
        problems = await asyncio.gather(*(self._end_one(rs, pod) for pod in doomed))
        return next(filter(None, problems), None)

    async def _end_one(self, rs: Object, pod: Object) -> ApiError | None:
        namespace, name = key_of(pod)
        try:
            answer = await self._client.delete(PODS, name, namespace, uid=uid_of(pod))
        except ApiError as error:
            if error.code in {_NOT_FOUND, _CONFLICT}:  # gone, or a namesake has come
                self._pods.drop(pod)
                return None
            await self._tell(rs, "Warning", "FailedDelete", f"Error deleting: {error.message}")
            return error
        if answer.get("kind") == "Pod" and is_ending(answer):
            self._pods.put(answer)
        else:
            self._pods.drop(pod)
        await self._tell(rs, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")
        return None

    async def _tell(self, rs: Object, kind: str, reason: str, text: str) -> None:
        await self._client.event(rs, kind, reason, text, "replicaset-controller")
