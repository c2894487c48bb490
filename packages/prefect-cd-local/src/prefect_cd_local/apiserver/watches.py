"""Watches: the changes since a resourceVersion, then new changes, as events.

Source: "Efficient detection of changes" and "Streaming lists" of the API concepts page.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from prefect_cd_local.apiserver import schema, values
from prefect_cd_local.apiserver.errors import Refusal
from prefect_cd_local.apiserver.kinds import Kind
from prefect_cd_local.apiserver.storage import Change, Matches, Store

Object = dict[str, Any]
_BOOKMARK_SECONDS = 30.0
_DEFAULT_SECONDS = (1800, 3600)
_END_OF_LIST = "k8s.io/initial-events-end"


async def events(
    store: Store, kind: Kind, namespace: str, matches: Matches, query: dict[str, str], closing: asyncio.Event
) -> AsyncIterator[Object]:
    """Yield the events of a watch until its time is over or the server stops.

    Args:
        store: what is watched.
        kind: the kind.
        namespace: empty for all.
        matches: the selectors' predicate.
        query: resourceVersion, timeoutSeconds, allowWatchBookmarks, sendInitialEvents.
        closing: set when the server stops.
    """
    seconds = int(query.get("timeoutSeconds") or random.randint(*_DEFAULT_SECONDS))  # noqa: S311  spreads reconnects
    deadline = time.monotonic() + seconds
    bookmarks = query.get("allowWatchBookmarks") == "true"
    with store.watching() as queue:
        begun = store.version
        try:
            initial = list(_initial(store, kind, namespace, matches, query))
        except Refusal as refusal:
            initial, deadline = [{"type": "ERROR", "object": refusal.status()}], 0
        for event in initial:
            yield event
        async for change in _changes(queue, closing, deadline):
            if change is None and bookmarks:
                yield _bookmark(kind, store.version)
            elif change and change.kind is kind and change.version > begun:
                for event in _event_for(change, namespace, matches):
                    yield event


def _initial(store: Store, kind: Kind, namespace: str, matches: Matches, query: dict[str, str]) -> Iterator[Object]:
    """Yield the first events: all present objects, or the changes since a version."""
    version, initial = query.get("resourceVersion", ""), query.get("sendInitialEvents")
    if version not in {"", "0"} and initial != "true":
        for change in store.since(kind, int(version)):
            yield from _event_for(change, namespace, matches)
        return
    if initial != "false":
        yield from ({"type": "ADDED", "object": item} for item in store.page(kind, namespace, matches).items)
    if initial == "true" and query.get("allowWatchBookmarks") == "true":
        yield _bookmark(kind, store.version, {_END_OF_LIST: "true"})


async def _changes(
    queue: "asyncio.Queue[Change]", closing: asyncio.Event, deadline: float
) -> AsyncIterator[Change | None]:
    """Yield new changes; None after some time without any."""
    ended = asyncio.ensure_future(closing.wait())
    getter = asyncio.ensure_future(queue.get())
    try:
        while not ended.done() and (left := deadline - time.monotonic()) > 0:
            wait = min(left, _BOOKMARK_SECONDS)
            await asyncio.wait({getter, ended}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                yield getter.result()
                getter = asyncio.ensure_future(queue.get())
            elif not ended.done() and left > _BOOKMARK_SECONDS:
                yield None
    finally:
        ended.cancel()
        getter.cancel()


def _event_for(change: Change, namespace: str, matches: Matches) -> Iterator[Object]:
    """Yield the event of a change for a client that sees matching objects only."""
    if namespace not in {"", change.key[0]}:
        return
    before = change.old is not None and matches(change.old)
    if change.new is not None and matches(change.new):
        yield {"type": "MODIFIED" if before else "ADDED", "object": change.new}
    elif before and change.old is not None:
        last = change.last if change.new is None else change.old
        metadata = {**last["metadata"], "resourceVersion": str(change.version)}
        yield {"type": "DELETED", "object": {**last, "metadata": metadata}}


def _bookmark(kind: Kind, version: int, annotations: Object | None = None) -> Object:
    metadata = {"resourceVersion": str(version), **({"annotations": annotations} if annotations else {})}
    empty = {**values.zero(schema.of(kind)), "kind": kind.kind, "apiVersion": kind.api_version}
    return {"type": "BOOKMARK", "object": {**empty, "metadata": metadata}}
