"""A local copy of all objects that a query selects, kept up to date by a watch.

Decides when to resume and when to list again: a watch that drops is resumed at the last version; where the server no
longer has that version (410), or does not have it yet, everything is listed again. An API server that starts may refuse
requests until it has read its roles, so one refusal does not end an informer that had access before. Knows nothing of
rollouts.

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
from prefect_cd.kube.responses import GONE, ApiError

_VERSION_TOO_NEW = "too large resource version"
"""The error of a server that is behind the one that answered before (kube-apiserver, `storage/errors.go`)."""
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 1.0
_SHORT_WATCH_SECONDS = 1.0
_LIST_ATTEMPTS = 3


@dataclass(frozen=True)
class Query:
    """Which objects to watch."""

    kind: Kind
    namespace: str
    labels: str = ""
    fields: str = ""


class Informer:
    """The objects of one query, as they are on the server, or were at the last contact with it.

    Args:
        cluster: the server.
        query: which objects.
        on_change: called after every change with the changed object, after a list with None.
        keep: whether to keep an object that the query selects.
    """

    def __init__(
        self,
        cluster: Cluster,
        query: Query,
        *,
        on_change: Callable[[Object | None], None] = lambda _: None,
        keep: Callable[[Object], bool] = lambda _: True,
    ) -> None:
        self.query = query
        self.objects: dict[str, Object] = {}  # by uid
        self.lost_since: datetime | None = None
        self.list_count = 0
        self._cluster = cluster
        self._on_change = on_change
        self._keep = keep
        self._version = ""
        self._last_contact = datetime.now(timezone.utc)
        self._failures = 0

    async def refresh(self) -> None:
        """List everything now, independent of the watch.

        An event that arrives during a list may be newer than the list, and is not sent again, so such a list is
        discarded and repeated. When events arrive during each attempt, the watch is alive, and the objects are as new
        as a list would be.
        """
        query = self.query
        for _ in range(_LIST_ATTEMPTS):
            version_before = self._version
            snapshot = await self._cluster.snapshot(
                query.kind, query.namespace, labels=query.labels, fields=query.fields
            )
            if self._version == version_before:
                self.objects = {
                    _uid(item): _without_managed_fields(item) for item in snapshot.items if self._keep(item)
                }
                self._version = snapshot.version
                self.list_count += 1
                self._mark_contact()
                self._on_change(None)
                return

    async def run(self) -> None:
        """Follow every change; never returns.

        Raises:
            ClusterUnreachable: there was no contact with the server for longer than the cluster's patience.
            Forbidden: this identity may not watch these objects.
        """
        short_watches = 0
        while True:
            started = time.monotonic()
            try:
                if not self._version:
                    await self.refresh()
                await self._watch()
            except ApiError as error:
                if error.status != GONE:
                    raise
                self._version = ""
            except (ClusterUnreachable, Forbidden) as error:
                await self._pause_after(error)
                continue
            # a proxy that does not stream may end each watch at once: do not flood the server with new ones
            if time.monotonic() - started < _SHORT_WATCH_SECONDS:
                short_watches += 1
                await _pause(short_watches)
            else:
                short_watches = 0

    async def _watch(self) -> None:
        query = self.query
        watch = self._cluster.watch(
            query.kind, query.namespace, labels=query.labels, fields=query.fields, version=self._version
        )
        async with aclosing(watch) as events:
            async for event in events:
                self._handle(event)

    def _handle(self, event: WatchEvent) -> None:
        self._version = event.version
        self._mark_contact()
        item = event.item
        if item is None or not self._keep(item):
            return
        if event.deleted:
            self.objects.pop(_uid(item), None)
        else:
            self.objects[_uid(item)] = _without_managed_fields(item)
        self._on_change(item)

    def _mark_contact(self) -> None:
        self._last_contact, self._failures, self.lost_since = datetime.now(timezone.utc), 0, None

    async def _pause_after(self, error: ClusterUnreachable | Forbidden) -> None:
        """Pause until the next attempt; raises the error when there is none."""
        now = datetime.now(timezone.utc)
        if not self.lost_since:
            # a silent watch was lost before its timeout noticed
            timed_out = isinstance(error.__cause__, asyncio.TimeoutError)
            self.lost_since = self._last_contact if timed_out else now
        # an error before the first list is not a lost connection
        if not self.list_count or now - self.lost_since > self._cluster.patience:
            raise error
        self._failures += 1
        if _VERSION_TOO_NEW in error.reason.lower():
            self._version = ""
        await _pause(self._failures)


async def _pause(attempt: int) -> None:
    """Pause before the next attempt, longer after each; random, so that many informers do not return at once."""
    longest = min(_FIRST_PAUSE_SECONDS * 2**attempt, _LAST_PAUSE_SECONDS)
    await asyncio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])


def _without_managed_fields(item: Object) -> Object:
    """The object without `managedFields`, which is half of its size and is not read from copies."""
    item["metadata"].pop("managedFields", None)
    return item


__all__ = ["Informer", "Query"]
