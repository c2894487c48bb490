"""A watch that lags behind our own writes: a fault that a real server shows too rarely for a test."""

import asyncio
from typing import Any

import pytest

from prefect_cd_local.client import PODS, REPLICA_SETS, ApiError, Resource
from prefect_cd_local.controllers.loop import Caches
from prefect_cd_local.controllers.replicaset import ReplicaSetController

Object = dict[str, Any]


class SlowServer:
    """Answers writes and never reports them; may refuse pods after the first few."""

    def __init__(self, room: int = 100) -> None:
        self.made: list[Object] = []
        self.ended: list[str] = []
        self.requests = 0
        self._room, self._version = room, 1000

    def _next(self, obj: Object, **meta: str) -> Object:
        self._version += 1
        return {**obj, "metadata": {**obj["metadata"], **meta, "resourceVersion": str(self._version)}}

    async def create(self, _resource: Resource, obj: Object) -> Object:
        self.requests += 1
        if len(self.made) >= self._room:
            raise ApiError(403, "Forbidden", "exceeded quota")
        name = f"web-{len(self.made)}"
        self.made.append(self._next({**obj, "kind": "Pod"}, name=name, uid=name))
        return self.made[-1]

    async def delete(self, _resource: Resource, name: str, _namespace: str, uid: str) -> Object:
        self.ended.append(uid)
        return {"kind": "Status", "metadata": {}, "status": "Success", "details": {"name": name}}

    async def update(self, _resource: Resource, obj: Object, _subresource: str) -> Object:
        return self._next(obj)

    async def event(self, *_what: object) -> None:
        pass


def replica_set(caches: Caches, replicas: int) -> Object:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}
    meta = {"name": "web", "namespace": "shop", "uid": "r", "generation": 1, "resourceVersion": f"{5 + replicas}"}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    rs = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec}
    caches[REPLICA_SETS]._objects["shop", "web"] = rs
    return rs


def test_pods_are_neither_created_nor_deleted_twice() -> None:
    async def run() -> None:
        server = SlowServer()
        caches = Caches(server)  # type: ignore[arg-type]
        controller = ReplicaSetController(server, caches)  # type: ignore[arg-type]
        replica_set(caches, 5)
        for _ in range(3):
            await controller.sync(("shop", "web"))
        assert len(server.made) == 5
        replica_set(caches, 2)
        for _ in range(3):
            await controller.sync(("shop", "web"))
        assert len(server.ended) == len(set(server.ended)) == 3
        assert len(list(caches[PODS].all("shop"))) == 2

    asyncio.run(run())


def test_the_first_error_ends_a_batch_and_shows_in_the_status() -> None:
    async def run() -> None:
        server = SlowServer(room=2)
        caches = Caches(server)  # type: ignore[arg-type]
        controller = ReplicaSetController(server, caches)  # type: ignore[arg-type]
        replica_set(caches, 50)
        with pytest.raises(ApiError, match="exceeded quota"):  # so that the queue tries again, with growing delays
            await controller.sync(("shop", "web"))
        assert server.requests == 3  # one, then two of which one was refused; not fifty
        rs = caches[REPLICA_SETS].get(("shop", "web"))
        assert rs
        assert rs["status"]["conditions"][0]["reason"] == "FailedCreate"

    asyncio.run(run())
