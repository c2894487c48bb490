"""Bringing an environment to a set of objects: plan, write, prune.

Everything is dry-run on the server before anything is written; what has not changed is not written; what an earlier
release added and this one no longer contains is pruned; an object that is not ours is not taken over unasked, also
where the server sees no conflict. Who may write, and when, is decided by the caller's guard.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import Enum
from typing import Any, TypeVar

from prefect_cd import manifests
from prefect_cd.cluster import ApiError, Cluster, Guard, Ref, unguarded
from prefect_cd.errors import Forbidden, Invalid, InvalidManifest, OwnershipConflict
from prefect_cd.release import Object, Result, digest_of

_PARALLEL = 16
_RECORD = manifests.PREFIX + "record"
_MADE_ENDPOINTS = "endpoints.kubernetes.io/managed-by"  # Endpoints have the labels of their Service, and no owner
_T = TypeVar("_T")
# deleting one of these deletes what nobody can apply again: that is for a person to do
_HOLDS_DATA = frozenset({"Namespace", "PersistentVolume", "PersistentVolumeClaim", "CustomResourceDefinition"})


@dataclass(frozen=True)
class Place:
    """Where an application's environment lives: the namespace, and the labels that mark its objects as ours."""

    application: str
    environment: str
    namespace: str

    @property
    def selector(self) -> str:
        """The label selector of everything that we applied here."""
        return (
            f"{manifests.MANAGED_BY}={manifests.MANAGER},{manifests.APPLICATION}={self.application},"
            f"{manifests.ENVIRONMENT}={self.environment}"
        )

    def label(self, item: Object, release: str = "") -> Object:
        """The object as ours; see `manifests.label`."""
        return manifests.label(item, self.application, self.environment, release)

    def owns(self, live: Object) -> bool:
        """Whether a live object is one that we applied here."""
        labels = live["metadata"].get("labels") or {}
        return all(labels.get(key) == value for key, value in (pair.split("=") for pair in self.selector.split(",")))


class Action(str, Enum):
    """What happens to one object."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    PRUNED = "pruned"


class Change(Result):
    """One object, and what happens to it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    action: Action
    diff: str = ""

    @property
    def ref(self) -> Ref:
        """Which object."""
        return Ref(self.api_version, self.kind, self.namespace, self.name)


class ChangeSet(Result):
    """What changes in an environment, object by object."""

    changes: tuple[Change, ...]

    def count(self, action: Action) -> int:
        """How many objects have this action."""
        return sum(change.action == action for change in self.changes)

    @property
    def changes_something(self) -> bool:
        """Whether anything would be written."""
        return self.count(Action.UNCHANGED) < len(self.changes)

    def __str__(self) -> str:
        counted = ((self.count(action), action.value) for action in Action)
        return ", ".join(f"{number} {what}" for number, what in counted if number) or "nothing"

    @property
    def digest(self) -> str:
        """Identity of the change: which lines of which object change how. 64 hex digits.

        Lines around a change are left out: what others write beside it does not make it another change.
        """
        return digest_of(
            [
                [
                    *astuple(change.ref),
                    change.action.value,
                    [line for line in change.diff.splitlines() if line[:1] in "+-"],
                ]
                for change in sorted(self.changes, key=lambda change: change.ref)
                if change.action != Action.UNCHANGED
            ]
        )


async def place(
    cluster: Cluster, found: Sequence[manifests.Manifest], namespace: str, allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The manifests as objects in the environment's namespace; see `manifests.place` for what is refused.

    Raises:
        InvalidManifest: also for a kind that the cluster does not have, with file:line.
    """
    namespaced: dict[tuple[str, str], bool] = {}
    for each in found:
        api_version, kind = each.item["apiVersion"], each.item["kind"]
        try:
            namespaced[api_version, kind] = (await cluster.kind(api_version, kind)).namespaced
        except InvalidManifest as error:
            error.where = each.where
            raise
    return manifests.place(found, namespace, namespaced, allowed)


async def validate(
    cluster: Cluster, where: Place, objects: Sequence[Object], written: Mapping[Ref, str], *, force: bool = False
) -> None:
    """Ask the server what it thinks of every object; nothing is written.

    Args:
        cluster: the API server.
        where: the environment.
        objects: the full set, labelled and placed.
        written: where each object stands in the commit, for the complaint.
        force: take fields over from other managers.

    Raises:
        InvalidManifest: the server's own words, with file:line.
        OwnershipConflict: somebody else owns what would be changed.
    """
    there = await namespace_exists(cluster, where.namespace)

    async def one(item: Object) -> None:
        try:
            await (_dry_apply(cluster, where, item, None, force=force) if there else _dry_create(cluster, item))
        except (Invalid, OwnershipConflict) as error:
            error.where = f"{written[Ref.of(item)]}: {Ref.of(item)}"
            raise

    await parallel(one(item) for item in objects)


async def plan(
    cluster: Cluster,
    where: Place,
    objects: Sequence[Object],
    *,
    force: bool = False,
    known_kinds: Iterable[tuple[str, str]] = (),
) -> ChangeSet:
    """What applying `objects` would change; nothing is written.

    Args:
        cluster: the API server.
        where: the environment, whose objects are looked for when pruning.
        objects: the full set, labelled and placed.
        force: take fields over from other managers.
        known_kinds: (apiVersion, kind) of earlier releases, so that what they added is found.

    Raises:
        InvalidManifest: the server refuses an object, in its own words.
        OwnershipConflict: somebody else owns what would be changed.
    """
    if not await namespace_exists(cluster, where.namespace):
        await parallel(_dry_create(cluster, item) for item in objects)
        return ChangeSet(changes=tuple(_change(item, Action.CREATED, manifests.diff(None, item)) for item in objects))
    kinds = {(item["apiVersion"], item["kind"]) for item in objects} | set(known_kinds)
    ours = await _ours(cluster, where, kinds)
    changes = await parallel(_dry_apply(cluster, where, item, ours.get(Ref.of(item)), force=force) for item in objects)
    wanted = {Ref.of(item) for item in objects}
    surplus = [live for ref, live in sorted(ours.items()) if ref not in wanted and _prunable(live)]
    pruned = [_change(live, Action.PRUNED, manifests.diff(manifests.strip(live), None)) for live in surplus]
    return ChangeSet(changes=(*changes, *pruned))


async def apply(
    cluster: Cluster, objects: Sequence[Object], planned: ChangeSet, *, force: bool = False, guard: Guard = unguarded
) -> None:
    """Write the objects that `planned` creates or configures, wave by wave; pruning is a step of its own."""
    writes = {change.ref for change in planned.changes if change.action in {Action.CREATED, Action.CONFIGURED}}
    for wave in manifests.waves([item for item in objects if Ref.of(item) in writes]):
        await parallel(cluster.apply(item, force=force, guard=guard) for item in wave)


async def prune(cluster: Cluster, where: Place, planned: ChangeSet, *, guard: Guard = unguarded) -> None:
    """Delete what `planned` prunes; an object that is no longer ours by now is left alone."""

    async def one(ref: Ref) -> None:
        live = await cluster.get(ref)
        if live is not None and where.owns(live) and _prunable(live):
            await cluster.delete(ref, uid=live["metadata"]["uid"], guard=guard)

    await parallel(one(change.ref) for change in planned.changes if change.action == Action.PRUNED)


async def ensure_namespace(cluster: Cluster, where: Place, *, guard: Guard = unguarded) -> None:
    """Create the namespace when it is missing."""
    if not await namespace_exists(cluster, where.namespace):
        item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where.namespace}}
        await cluster.apply(where.label(item), guard=guard)


async def namespace_exists(cluster: Cluster, namespace: str) -> bool:
    """Whether the namespace is there and stays; one that we may not look at is taken to be there."""
    try:
        live = await cluster.get(Ref("v1", "Namespace", "", namespace))
    except Forbidden:  # a Role of the namespace alone does not reach the Namespace object
        return True
    return live is not None and "deletionTimestamp" not in live["metadata"]


async def foreign(cluster: Cluster, where: Place, objects: Sequence[Object]) -> tuple[Object, ...]:
    """The live objects that `objects` names and that are not ours yet, as they are, fit for applying again."""
    found = await parallel(cluster.get(Ref.of(item)) for item in objects if item["kind"] != "Namespace")
    return tuple(manifests.strip(live) for live in found if live is not None and not where.owns(live))


async def _ours(cluster: Cluster, where: Place, kinds: Iterable[tuple[str, str]]) -> dict[Ref, Object]:
    """Live objects that carry our labels, by reference; records and the lock are not among them."""
    selector = f"{where.selector},!{_RECORD}"

    async def listed(api_version: str, name: str) -> list[Object]:
        try:
            kind = await cluster.kind(api_version, name)
        except InvalidManifest:  # the kind itself is gone, and its objects with it
            return []
        return await cluster.list(kind, where.namespace if kind.namespaced else "", labels=selector)

    found = await parallel(listed(*each) for each in sorted(kinds))
    return {Ref.of(item): item for items in found for item in items}


def _prunable(live: Object) -> bool:
    """Neither made by a controller that copied our labels, nor one of our own records, nor what holds data."""
    metadata = live["metadata"]
    ours_to_keep = live["kind"] in _HOLDS_DATA or _RECORD in metadata["labels"] or _MADE_ENDPOINTS in metadata["labels"]
    return not ours_to_keep and not metadata.get("ownerReferences") and "deletionTimestamp" not in metadata


async def _dry_apply(cluster: Cluster, where: Place, item: Object, live: Object | None, *, force: bool) -> Change:
    """What applying `item` changes; `live` is what is there now, when it is known to be ours."""
    then = await cluster.apply(item, dry_run=True, force=force)
    if live is None and "resourceVersion" in then["metadata"]:
        live = await cluster.get(Ref.of(item))
        if live is not None and not force:
            _refuse_others(where, live)
    if live is None:
        return _change(item, Action.CREATED, manifests.diff(None, item))
    before, after = manifests.strip(live), manifests.strip(then)
    if before == after:
        return _change(item, Action.UNCHANGED)
    return _change(item, Action.CONFIGURED, manifests.diff(before, after))


def _refuse_others(where: Place, live: Object) -> None:
    """Refuse an object that was there before us: the server sees a conflict only where two want different values."""
    if live["kind"] == "Namespace" or where.owns(live):
        return
    labels = live["metadata"].get("labels") or {}
    managers = sorted({each.get("manager", "?") for each in live["metadata"].get("managedFields") or []})
    owner = " and ".join(managers) or "somebody else"
    if labels.get(manifests.MANAGED_BY) == manifests.MANAGER:
        application, environment = labels.get(manifests.APPLICATION), labels.get(manifests.ENVIRONMENT)
        owner = f"the application {application} in its environment {environment}"
    raise OwnershipConflict(
        f"{where.application} in {where.environment} would change what {owner} made",
        where=str(Ref.of(live)),
        hint="give it another name, delete the one that is there, or set `take_over: true` for the environment",
    )


async def _dry_create(cluster: Cluster, item: Object) -> None:
    """What the server says of an object whose namespace is not there yet: asked in `default`, and never kept."""
    metadata = item["metadata"]
    there = {**item, "metadata": {**metadata, "namespace": "default"}} if "namespace" in metadata else item
    try:
        await cluster.create(there, dry_run=True)
    except Forbidden:  # we may write into our own namespace only: the real dry run has to wait for it
        return
    except ApiError as error:
        if error.cause != "AlreadyExists":
            raise


def _change(item: Object, action: Action, diff: str = "") -> Change:
    ref = Ref.of(item)
    return Change(
        api_version=ref.api_version, kind=ref.kind, namespace=ref.namespace, name=ref.name, action=action, diff=diff
    )


async def parallel(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all, at most 16 at a time, in order.

    After the first error nothing more is begun; it is raised when those that run have ended.
    """
    slots = asyncio.Semaphore(_PARALLEL)
    errors: list[Exception] = []

    async def one(each: Coroutine[Any, Any, _T]) -> _T | None:
        async with slots:
            if errors:
                each.close()
                return None
            try:
                return await each
            except Exception as error:  # noqa: BLE001  raised below, when nothing runs any more
                errors.append(error)
                return None

    results = await asyncio.gather(*(one(each) for each in work))
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]  # without errors nothing was left out
