"""The garbage collector: deletes objects whose owners are gone.

Rules: the documentation pages on garbage collection and finalizers. An object is deleted when all of its owners are
gone (an object with the same name and another uid is not the owner). An owner deleted in the foreground waits for the
dependents that block it; with the orphan finalizer it first removes itself from its dependents. Without either
finalizer, deletion is in the background.
"""

from collections.abc import Sequence
from functools import partial

from prefect_cd_local.client import MERGE, ApiError, Client, Object, Resource
from prefect_cd_local.controllers.loop import Cache, Caches, Queue
from prefect_cd_local.controllers.objects import Key, is_ending, key_of, owners_of, uid_of

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_NOT_FOUND = 404
_IGNORED = {"events"}  # numerous, own nothing, and expire by themselves

Item = tuple[Cache, Key]


class GarbageCollector:
    """Follows every collection of the server and deletes objects without owners.

    Args:
        client: for reading single objects and for writes.
        caches: shared with the other controllers.
        resources: what the server serves, from `Client.discover`.
    """

    def __init__(self, client: Client, caches: Caches, resources: Sequence[Resource]) -> None:
        self._client = client
        followed = [caches[resource] for resource in resources if resource.plural not in _IGNORED]
        self._by_kind = {(_group(cache.resource.api_version), cache.resource.kind): cache for cache in followed}
        self.queue: Queue[Item] = Queue("garbage", self.sync)
        for cache in followed:
            cache.listen(partial(self._changed, cache))

    def _changed(self, cache: Cache, obj: Object) -> None:
        """Queue a changed object; for a removed one, its dependents and the owners that waited for its removal."""
        if cache.has(obj):
            if owners_of(obj) or is_ending(obj):
                self.queue.add((cache, key_of(obj)))
            return
        for item, _ in self._dependents(obj):
            self.queue.add(item)
        for reference in owners_of(obj):
            if item_of_owner := self._item(reference, obj):
                self.queue.add(item_of_owner)

    async def sync(self, item: Item) -> None:
        """Reconcile one object."""
        cache, key = item
        obj = cache.get(key)
        if obj is not None and is_ending(obj):
            await self._handle_finalizers(item, obj)
        elif obj is not None and owners_of(obj):
            await self._collect(item, obj)

    async def _handle_finalizers(self, item: Item, obj: Object) -> None:
        """Do what the finalizers of an object that is marked for deletion require."""
        finalizers, dependents = _finalizers(obj), self._dependents(obj)
        if ORPHAN in finalizers:
            for dependent, child in dependents:
                await self._remove_owners(dependent, child, {uid_of(obj)})
            await self._patch(
                item, obj, {"finalizers": [finalizer for finalizer in finalizers if finalizer != ORPHAN] or None}
            )
        elif FOREGROUND in finalizers:
            for dependent, child in dependents:
                if not is_ending(child):
                    self.queue.add(dependent)
            if not any(_blocks(child, obj) for _, child in dependents):
                kept = [finalizer for finalizer in finalizers if finalizer != FOREGROUND]
                await self._patch(item, obj, {"finalizers": kept or None})

    async def _collect(self, item: Item, obj: Object) -> None:
        """Delete an object without living owners; remove references to dead owners where others live."""
        lost, waited_for = set(), False
        for reference in owners_of(obj):
            owner = await self._owner(reference, obj)
            if owner is None:
                lost.add(reference["uid"])
            elif is_ending(owner) and FOREGROUND in _finalizers(owner):
                lost.add(reference["uid"])
                waited_for = True
        if len(lost) < len(owners_of(obj)):
            if lost:
                await self._remove_owners(item, obj, lost)
        elif ORPHAN in _finalizers(obj):
            await self._delete(item, obj, "Orphan")
        elif FOREGROUND in _finalizers(obj) or (waited_for and self._dependents(obj)):
            await self._delete(item, obj, "Foreground")
        else:
            await self._delete(item, obj, "Background")

    async def _owner(self, reference: Object, dependent: Object) -> Object | None:
        """Find an owner in the cache, or ask the server before anything is deleted because the owner is missing."""
        item = self._item(reference, dependent)
        if item is None:  # a kind that the server does not have: its owner counts as alive
            return {"metadata": {}}
        cache, (namespace, name) = item
        cached = cache.get(item[1])
        if cached is not None and uid_of(cached) == reference["uid"]:
            return cached
        live = await self._client.find(cache.resource, name, namespace or None)
        return live if live is not None and uid_of(live) == reference["uid"] else None

    def _item(self, reference: Object, dependent: Object) -> Item | None:
        """Return the cache and key of an owner."""
        cache = self._by_kind.get((_group(reference["apiVersion"]), reference["kind"]))
        if cache is None:
            return None
        return cache, (key_of(dependent)[0] if cache.resource.namespaced else "", reference["name"])

    def _dependents(self, obj: Object) -> list[tuple[Item, Object]]:
        """Return the objects that name this one as an owner; the cluster is small enough to check all objects."""
        return [
            ((cache, key_of(child)), child)
            for cache in self._by_kind.values()
            for child in cache.all()
            if any(reference["uid"] == uid_of(obj) for reference in owners_of(child))
        ]

    async def _delete(self, item: Item, obj: Object, policy: str) -> None:
        cache, (namespace, name) = item
        version = obj["metadata"]["resourceVersion"]
        try:
            await self._client.delete(
                cache.resource, name, namespace, uid=uid_of(obj), resource_version=version, propagation=policy
            )
        except ApiError as error:
            if error.code != _NOT_FOUND:
                raise

    async def _remove_owners(self, item: Item, obj: Object, uids: set[str]) -> None:
        kept = [owner for owner in owners_of(obj) if owner["uid"] not in uids]
        await self._patch(item, obj, {"ownerReferences": kept or None})

    async def _patch(self, item: Item, obj: Object, meta: Object) -> None:
        cache, (namespace, name) = item
        version = {"uid": uid_of(obj), "resourceVersion": obj["metadata"]["resourceVersion"]}
        patch = {"metadata": {**meta, **version}}
        try:
            answer = await self._client.patch(cache.resource, name, namespace, patch, MERGE)
        except ApiError as error:
            if error.code != _NOT_FOUND:
                raise
            return
        if is_ending(answer) and not _finalizers(answer):
            cache.drop(obj)
        else:
            cache.put(answer)


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def _finalizers(obj: Object) -> list[str]:
    return obj["metadata"].get("finalizers") or []


def _blocks(dependent: Object, owner: Object) -> bool:
    return any(entry["uid"] == uid_of(owner) and entry.get("blockOwnerDeletion") for entry in owners_of(dependent))
