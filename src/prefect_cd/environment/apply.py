"""Bringing an environment to a set of objects: plan, write, prune.

Everything is dry-run on the server before anything is written; what has not changed is not written; what an earlier
release added and this one no longer contains is pruned; an object that is not ours is not taken over unasked, also
where the server sees no conflict. Who may write, and when, is decided by the caller's guard.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from enum import Enum

from prefect_cd.environment.ownership import Ownership, namespace_exists
from prefect_cd.errors import Forbidden, Invalid, InvalidManifest, OwnershipConflict
from prefect_cd.kube.client import Cluster, Guard, unguarded
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests import diff as diff_module
from prefect_cd.manifests import labels as labels_module
from prefect_cd.manifests import load, prepare
from prefect_cd.manifests.labels import RECORD
from prefect_cd.release.model import Result, digest_of

_MADE_ENDPOINTS = "endpoints.kubernetes.io/managed-by"  # Endpoints have the labels of their Service, and no owner
# deleting one of these deletes what nobody can apply again: that is for a person to do
_HOLDS_DATA = frozenset({"Namespace", "PersistentVolume", "PersistentVolumeClaim", "CustomResourceDefinition"})


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


async def prepare_objects(
    cluster: Cluster, found: Sequence[load.Manifest], namespace: str, allowed: Sequence[str]
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
    return prepare.set_namespaces(found, namespace, namespaced, allowed)


async def validate(
    cluster: Cluster,
    ownership: Ownership,
    objects: Sequence[Object],
    written: Mapping[Ref, str],
    *,
    force: bool = False,
) -> None:
    """Ask the server what it thinks of every object; nothing is written.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and placed.
        written: where each object stands in the commit, for the complaint.
        force: take fields over from other managers.

    Raises:
        InvalidManifest: the server's own words, with file:line.
        OwnershipConflict: somebody else owns what would be changed.
    """
    there = await namespace_exists(cluster, ownership.namespace)

    async def one(item: Object) -> None:
        try:
            await (_dry_apply(cluster, ownership, item, None, force=force) if there else _dry_create(cluster, item))
        except (Invalid, OwnershipConflict) as error:
            error.where = f"{written[Ref.of(item)]}: {Ref.of(item)}"
            raise

    await parallel(one(item) for item in objects)


async def compute_changes(
    cluster: Cluster,
    ownership: Ownership,
    objects: Sequence[Object],
    *,
    force: bool = False,
    known_kinds: Iterable[tuple[str, str]] = (),
) -> ChangeSet:
    """What applying `objects` would change; nothing is written.

    Args:
        cluster: the API server.
        ownership: the environment, whose objects are looked for when pruning.
        objects: the full set, labelled and placed.
        force: take fields over from other managers.
        known_kinds: (apiVersion, kind) of earlier releases, so that what they added is found.

    Raises:
        InvalidManifest: the server refuses an object, in its own words.
        OwnershipConflict: somebody else owns what would be changed.
    """
    if not await namespace_exists(cluster, ownership.namespace):
        await parallel(_dry_create(cluster, item) for item in objects)
        return ChangeSet(changes=tuple(_change(item, Action.CREATED, diff_module.diff(None, item)) for item in objects))
    kinds = {(item["apiVersion"], item["kind"]) for item in objects} | set(known_kinds)
    ours = await _owned_objects(cluster, ownership, kinds)
    changes = await parallel(
        _dry_apply(cluster, ownership, item, ours.get(Ref.of(item)), force=force) for item in objects
    )
    wanted = {Ref.of(item) for item in objects}
    surplus = [live for ref, live in sorted(ours.items()) if ref not in wanted and _prunable(live)]
    pruned = [_change(live, Action.PRUNED, diff_module.diff(diff_module.strip(live), None)) for live in surplus]
    return ChangeSet(changes=(*changes, *pruned))


async def apply(
    cluster: Cluster, objects: Sequence[Object], planned: ChangeSet, *, force: bool = False, guard: Guard = unguarded
) -> None:
    """Write the objects that `planned` creates or configures, wave by wave; pruning is a step of its own."""
    writes = {change.ref for change in planned.changes if change.action in {Action.CREATED, Action.CONFIGURED}}
    for wave in prepare.waves([item for item in objects if Ref.of(item) in writes]):
        await parallel(cluster.apply(item, force=force, guard=guard) for item in wave)


async def prune(cluster: Cluster, ownership: Ownership, planned: ChangeSet, *, guard: Guard = unguarded) -> None:
    """Delete what `planned` prunes; an object that is no longer ours by now is left alone."""

    async def one(ref: Ref) -> None:
        live = await cluster.get(ref)
        if live is not None and ownership.owns(live) and _prunable(live):
            await cluster.delete(ref, uid=live["metadata"]["uid"], guard=guard)

    await parallel(one(change.ref) for change in planned.changes if change.action == Action.PRUNED)


async def unowned_objects(cluster: Cluster, ownership: Ownership, objects: Sequence[Object]) -> tuple[Object, ...]:
    """The live objects that `objects` names and that are not ours yet, as they are, fit for applying again."""
    found = await parallel(cluster.get(Ref.of(item)) for item in objects if item["kind"] != "Namespace")
    return tuple(diff_module.strip(live) for live in found if live is not None and not ownership.owns(live))


async def _owned_objects(cluster: Cluster, ownership: Ownership, kinds: Iterable[tuple[str, str]]) -> dict[Ref, Object]:
    """Live objects that carry our labels, by reference; records and the lock are not among them."""
    selector = f"{ownership.selector},!{RECORD}"

    async def listed(api_version: str, name: str) -> list[Object]:
        try:
            kind = await cluster.kind(api_version, name)
        except InvalidManifest:  # the kind itself is gone, and its objects with it
            return []
        return await cluster.list(kind, ownership.namespace if kind.namespaced else "", labels=selector)

    found = await parallel(listed(*each) for each in sorted(kinds))
    return {Ref.of(item): item for items in found for item in items}


def _prunable(live: Object) -> bool:
    """Neither made by a controller that copied our labels, nor one of our own records, nor what holds data."""
    metadata = live["metadata"]
    ours_to_keep = live["kind"] in _HOLDS_DATA or RECORD in metadata["labels"] or _MADE_ENDPOINTS in metadata["labels"]
    return not ours_to_keep and not metadata.get("ownerReferences") and "deletionTimestamp" not in metadata


async def _dry_apply(
    cluster: Cluster, ownership: Ownership, item: Object, live: Object | None, *, force: bool
) -> Change:
    """What applying `item` changes; `live` is what is there now, when it is known to be ours."""
    then = await cluster.apply(item, dry_run=True, force=force)
    if live is None and "resourceVersion" in then["metadata"]:
        live = await cluster.get(Ref.of(item))
        if live is not None and not force:
            _refuse_others(ownership, live)
    if live is None:
        return _change(item, Action.CREATED, diff_module.diff(None, item))
    before, after = diff_module.strip(live), diff_module.strip(then)
    if before == after:
        return _change(item, Action.UNCHANGED)
    return _change(item, Action.CONFIGURED, diff_module.diff(before, after))


def _refuse_others(ownership: Ownership, live: Object) -> None:
    """Refuse an object that was there before us: the server sees a conflict only where two want different values."""
    if live["kind"] == "Namespace" or ownership.owns(live):
        return
    labels = live["metadata"].get("labels") or {}
    managers = sorted({each.get("manager", "?") for each in live["metadata"].get("managedFields") or []})
    owner = " and ".join(managers) or "somebody else"
    if labels.get(labels_module.MANAGED_BY) == labels_module.MANAGER:
        application, environment = labels.get(labels_module.APPLICATION), labels.get(labels_module.ENVIRONMENT)
        owner = f"the application {application} in its environment {environment}"
    raise OwnershipConflict(
        f"{ownership.application} in {ownership.environment} would change what {owner} made",
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
