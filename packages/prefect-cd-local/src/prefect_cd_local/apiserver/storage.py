"""The store: objects, one resourceVersion for all of them, and a bounded log of changes for watches.

Objects are never changed in place, so that a list or an event stays as it was. Everything happens in one event loop:
between reading an object and committing the next state there is no await, and so no race. The store does not know the
rules of kinds. Source of what a client may expect: "Resource versions" and "Retrieving large results sets in chunks" of
the API concepts page.
"""

import asyncio
import base64
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from prefect_cd_local.apiserver.errors import Refusal
from prefect_cd_local.apiserver.kinds import Kind

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""
Matches = Callable[[Object], bool]


class Change(NamedTuple):
    """One write: the objects before and after it; `last` is the present object, or the last state of a removed one."""

    version: int
    kind: Kind
    key: Key
    old: Object | None
    new: Object | None
    last: Object


class Page(NamedTuple):
    """A part of a list, at one resourceVersion."""

    items: list[Object]
    version: int
    next: str = ""
    remaining: int = 0


class Store:
    """All objects of one server.

    Args:
        log: how many changes are remembered.
    """

    def __init__(self, log: int = 10_000) -> None:
        self.version = 1
        self._objects: dict[Kind, dict[Key, Object]] = defaultdict(dict)
        self._log: deque[Change] = deque(maxlen=log)
        self._forgotten = 0  # the newest version that is no longer in the log
        self._watchers: set[asyncio.Queue[Change]] = set()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return the object, or None."""
        return self._objects[kind].get((namespace, name))

    def put(self, kind: Kind, key: Key, item: Object, *, gone: bool = False) -> Object:
        """Commit the next state of an object, or the last one of a removed object, at the next resourceVersion."""
        objects = self._objects[kind]
        old = objects.pop(key, None)
        self.version += 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        if not gone:
            objects[key] = item
        if len(self._log) == self._log.maxlen:
            self._forgotten = self._log[0].version
        change = Change(self.version, kind, key, old, None if gone else item, item)
        self._log.append(change)
        for queue in self._watchers:
            queue.put_nowait(change)
        return item

    def all(self, kind: Kind, namespace: str = "") -> list[Object]:
        """Return all objects of a kind, in the order of a list."""
        return self.page(kind, namespace, lambda _: True).items

    def page(
        self, kind: Kind, namespace: str, matches: Matches, limit: int = 0, token: str = "", at: int | None = None
    ) -> Page:
        """Return a part of a list: every part shows the state of the first.

        Raises:
            Refusal: 410, the state of the token is no longer in the log; 400, the token is invalid.
        """
        start: Key = ("", "")
        if token:
            at, start = _decode(token)
        version = self.version if at is None else at
        state = self._at(kind, version, continued=bool(token))
        keys = [key for key in sorted(state) if key > start and namespace in {"", key[0]}]
        page: list[Object] = []
        for number, key in enumerate(keys, 1):
            if matches(state[key]):
                page.append(state[key])
            if limit and len(page) == limit and number < len(keys):
                return Page(page, version, _encode(version, key), len(keys) - number)
        return Page(page, version)

    def _at(self, kind: Kind, version: int, *, continued: bool) -> dict[Key, Object]:
        """Return the objects of a kind at an earlier version, by undoing later changes."""
        if version < self._forgotten:
            why = (
                "The provided continue parameter is too old to display a consistent list result. You must start a new "
                "list without the continue parameter."
            )
            plain = f"The resourceVersion for the provided list is too old: {version}"
            raise Refusal(410, "Expired", why if continued else plain)
        state = dict(self._objects[kind])
        for change in reversed(self._log):
            if change.version <= version:
                break
            if change.kind is kind and change.old is None:
                del state[change.key]
            elif change.kind is kind and change.old is not None:
                state[change.key] = change.old
        return state

    def since(self, kind: Kind, version: int) -> list[Change]:
        """Return the changes of a kind after a version.

        Raises:
            Refusal: 410, they are no longer in the log.
        """
        if version < self._forgotten:
            raise Refusal(410, "Expired", f"too old resource version: {version} ({self._forgotten + 1})")
        return [change for change in self._log if change.version > version and change.kind is kind]

    @contextmanager
    def watching(self) -> Iterator["asyncio.Queue[Change]"]:
        """Yield a queue that gets every change from now on."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)


def _encode(version: int, key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps([version, *key]).encode()).decode()


def _decode(token: str) -> tuple[int, Key]:
    try:
        version, namespace, name = json.loads(base64.urlsafe_b64decode(token))
        return int(version), (str(namespace), str(name))
    except (ValueError, TypeError) as error:
        raise Refusal(400, "BadRequest", "continue key is not valid") from error
