"""A local copy of all objects that a query selects, kept by a watch.

It decides when to go on and when to start over: a watch that drops is resumed where it was; where the server has
forgotten that place (410) or does not know it yet, everything is listed anew. An API server that starts may refuse
before it has read its roles, so what was granted once is not given up for one refusal. It knows nothing of rollouts.

The rules of list and watch: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timezone

from prefect_cd.errors import ClusterUnreachable, Forbidden
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Kind, WatchEvent
from prefect_cd.kube.responses import ApiError

_GONE = 410
_AHEAD = "too large resource version"
"""Said by a server that is behind the one that answered before (kube-apiserver, `storage/errors.go`)."""
_FIRST_WAIT, _LAST_WAIT = 0.1, 1.0
_SHORT_SECONDS = 1.0
_LOOKS = 3


@dataclass(frozen=True)
class Query:
    """What to mirror."""

    kind: Kind
    namespace: str
    labels: str = ""
    fields: str = ""


class Informer:
    """The objects of one query, as they are on the server, or were when it was last heard.

    Args:
        cluster: the server.
        query: which objects.
        told: called after every change with what changed; after a list with None.
        keep: whether to keep an object that the query selects.
    """

    def __init__(
        self,
        cluster: Cluster,
        query: Query,
        *,
        told: Callable[[Object | None], None] = lambda _: None,
        keep: Callable[[Object], bool] = lambda _: True,
    ) -> None:
        self.query = query
        self.objects: dict[str, Object] = {}  # by uid
        self.lost_since: datetime | None = None
        self.lists = 0
        self._cluster = cluster
        self._told = told
        self._keep = keep
        self._version = ""
        self._heard = datetime.now(timezone.utc)
        self._failures = 0

    async def look(self) -> None:
        """List everything now, whatever the watch has told.

        What it tells while the list is read may be newer, and is not told again: then the list is read once more. A
        watch that speaks during each of them is no dead one, and what it told is what a list would say.
        """
        query = self.query
        for _ in range(_LOOKS):
            before = self._version
            taken = await self._cluster.snapshot(query.kind, query.namespace, labels=query.labels, fields=query.fields)
            if self._version == before:
                self.objects = {_uid(item): _slim(item) for item in taken.items if self._keep(item)}
                self._version = taken.version
                self.lists += 1
                self._in_touch()
                self._told(None)
                return

    async def follow(self) -> None:
        """Take over every change; never returns.

        Raises:
            ClusterUnreachable: the server was not heard for longer than the cluster's patience.
            Forbidden: we may not watch this.
        """
        hasty = 0
        while True:
            began = time.monotonic()
            try:
                if not self._version:
                    await self.look()
                await self._watch()
            except ApiError as error:
                if error.status != _GONE:
                    raise
                self._version = ""
            except (ClusterUnreachable, Forbidden) as error:
                await self._wait(error)
                continue
            # one that ends at once is not asked for again at once: a proxy may not let it stream
            hasty = hasty + 1 if time.monotonic() - began < _SHORT_SECONDS else 0
            if hasty:
                await _pause(hasty)

    async def _watch(self) -> None:
        query, since = self.query, self._version
        watching = self._cluster.watch(
            query.kind, query.namespace, labels=query.labels, fields=query.fields, version=since
        )
        async with aclosing(watching) as changes:
            async for change in changes:
                self._take(change)

    def _take(self, change: WatchEvent) -> None:
        self._version = change.version
        self._in_touch()
        item = change.item
        if item is None or not self._keep(item):
            return
        if change.gone:
            self.objects.pop(_uid(item), None)
        else:
            self.objects[_uid(item)] = _slim(item)
        self._told(item)

    def _in_touch(self) -> None:
        self._heard, self._failures, self.lost_since = datetime.now(timezone.utc), 0, None

    async def _wait(self, error: ClusterUnreachable | Forbidden) -> None:
        """Until the next attempt, unless there is none."""
        now = datetime.now(timezone.utc)
        if not self.lost_since:
            silent = isinstance(error.__cause__, asyncio.TimeoutError)  # then it was lost before we noticed
            self.lost_since = self._heard if silent else now
        if not self.lists or now - self.lost_since > self._cluster.patience:
            raise error
        self._failures += 1
        if _AHEAD in error.reason.lower():
            self._version = ""
        await _pause(self._failures)


async def _pause(times: int) -> None:
    """Before the next attempt, longer after each."""
    wait = min(_FIRST_WAIT * 2**times, _LAST_WAIT)
    await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311  so that not all come back at one moment


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])


def _slim(item: Object) -> Object:
    """Without what nobody reads here, and what is half of an object's size."""
    item["metadata"].pop("managedFields", None)
    return item


__all__ = ["Informer", "Query"]
