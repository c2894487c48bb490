"""Bring an environment to a set of objects: compute the changes, write them, prune.

All objects are dry-run on the server before the first one is written, and unchanged objects are not written at all.
Objects that an earlier release added and this one no longer contains are pruned. An object of another manager is taken
over only on request (`force`), also where the server sees no conflict. The caller's guard decides whether we may write.
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
from prefect_cd.manifests.diff import changed_lines, diff, strip
from prefect_cd.manifests.labels import APPLICATION, ENVIRONMENT, MANAGED_BY, MANAGER, RECORD
from prefect_cd.manifests.load import Manifest
from prefect_cd.manifests.prepare import set_namespaces, waves
from prefect_cd.release.model import Result, digest_of

# Its controller copies the labels of the Service to the Endpoints and sets no owner reference, so that an Endpoints
# object carries our labels though we did not apply it.
_ENDPOINTS_CONTROLLER = "endpoints.kubernetes.io/managed-by"
# Deleting one of these deletes data that applying it again does not bring back: the user has to do it.
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
        counts = {action: self.count(action) for action in Action}
        return ", ".join(f"{count} {action.value}" for action, count in counts.items() if count) or "nothing"

    @property
    def digest(self) -> str:
        """Identity of the changes: which lines of which objects are removed and added. 64 hex digits.

        The context of a diff is left out, so that a field that another manager writes nearby does not change it.
        """
        return digest_of(
            [
                [*astuple(change.ref), change.action.value, changed_lines(change.diff)]
                for change in sorted(self.changes, key=lambda change: change.ref)
                if change.action != Action.UNCHANGED
            ]
        )


async def prepare_objects(
    cluster: Cluster, manifests: Sequence[Manifest], namespace: str, allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The manifests as objects in the environment's namespace; see `prepare.set_namespaces` for what is refused.

    Raises:
        InvalidManifest: also for a kind that the cluster does not have, with file:line.
    """
    namespaced: dict[tuple[str, str], bool] = {}
    for manifest in manifests:
        api_version, kind = manifest.item["apiVersion"], manifest.item["kind"]
        try:
            namespaced[api_version, kind] = (await cluster.kind(api_version, kind)).namespaced
        except InvalidManifest as error:
            error.where = manifest.where
            raise
    return set_namespaces(manifests, namespace, namespaced, allowed)


async def validate(
    cluster: Cluster,
    ownership: Ownership,
    objects: Sequence[Object],
    locations: Mapping[Ref, str],
    *,
    force: bool = False,
) -> None:
    """Dry-run every object on the server; nothing is written.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        locations: file:line of each object, for errors.
        force: take fields over from other managers.

    Raises:
        InvalidManifest: the server's message, with file:line.
        OwnershipConflict: another manager owns what would be changed.
    """
    has_namespace = await namespace_exists(cluster, ownership.namespace)

    async def dry_run(item: Object) -> None:
        try:
            if has_namespace:
                await _dry_apply(cluster, ownership, item, None, force=force)
            else:
                await _dry_create(cluster, item)
        except (Invalid, OwnershipConflict) as error:
            error.where = f"{locations[Ref.of(item)]}: {Ref.of(item)}"
            raise

    await parallel(dry_run(item) for item in objects)


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
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        force: take fields over from other managers.
        known_kinds: (apiVersion, kind) of earlier releases, so that pruning finds objects of kinds that are no longer
            in the set.

    Raises:
        InvalidManifest: the server refuses an object; with the server's message.
        OwnershipConflict: another manager owns what would be changed.
    """
    if not await namespace_exists(cluster, ownership.namespace):
        await parallel(_dry_create(cluster, item) for item in objects)
        return ChangeSet(changes=tuple(_change(item, Action.CREATED, diff(None, item)) for item in objects))
    kinds = {(item["apiVersion"], item["kind"]) for item in objects} | set(known_kinds)
    ours = await _owned_objects(cluster, ownership, kinds)
    changes = await parallel(
        _dry_apply(cluster, ownership, item, ours.get(Ref.of(item)), force=force) for item in objects
    )
    wanted = {Ref.of(item) for item in objects}
    surplus = [live for ref, live in sorted(ours.items()) if ref not in wanted and _prunable(live)]
    pruned = [_change(live, Action.PRUNED, diff(strip(live), None)) for live in surplus]
    return ChangeSet(changes=(*changes, *pruned))


async def apply(
    cluster: Cluster, objects: Sequence[Object], planned: ChangeSet, *, force: bool = False, guard: Guard = unguarded
) -> None:
    """Write the objects that `planned` creates or configures, wave by wave; `prune` is a separate step."""
    writes = {change.ref for change in planned.changes if change.action in {Action.CREATED, Action.CONFIGURED}}
    for wave in waves([item for item in objects if Ref.of(item) in writes]):
        await parallel(cluster.apply(item, force=force, guard=guard) for item in wave)


async def prune(cluster: Cluster, ownership: Ownership, planned: ChangeSet, *, guard: Guard = unguarded) -> None:
    """Delete what `planned` prunes, except objects that are no longer ours by now."""

    async def delete(ref: Ref) -> None:
        live = await cluster.get(ref)
        if live is not None and ownership.owns(live) and _prunable(live):
            await cluster.delete(ref, uid=live["metadata"]["uid"], guard=guard)

    await parallel(delete(change.ref) for change in planned.changes if change.action == Action.PRUNED)


async def unowned_objects(cluster: Cluster, ownership: Ownership, objects: Sequence[Object]) -> tuple[Object, ...]:
    """The live objects that `objects` would take over, stripped so that they can be applied again."""
    live_objects = await parallel(cluster.get(Ref.of(item)) for item in objects if item["kind"] != "Namespace")
    return tuple(strip(live) for live in live_objects if live is not None and not ownership.owns(live))


async def _owned_objects(cluster: Cluster, ownership: Ownership, kinds: Iterable[tuple[str, str]]) -> dict[Ref, Object]:
    """Live objects that carry our labels, by reference; records and the lock are not among them."""
    selector = f"{ownership.selector},!{RECORD}"

    async def list_kind(api_version: str, name: str) -> list[Object]:
        try:
            kind = await cluster.kind(api_version, name)
        except InvalidManifest:  # its CustomResourceDefinition was deleted, and its objects with it
            return []
        return await cluster.list(kind, ownership.namespace if kind.namespaced else "", labels=selector)

    lists = await parallel(list_kind(api_version, name) for api_version, name in sorted(kinds))
    return {Ref.of(item): item for items in lists for item in items}


def _prunable(live: Object) -> bool:
    """Whether an object with our labels may be deleted."""
    metadata = live["metadata"]
    is_record_or_lock = RECORD in metadata["labels"]
    made_by_controller = _ENDPOINTS_CONTROLLER in metadata["labels"] or bool(metadata.get("ownerReferences"))
    is_being_deleted = "deletionTimestamp" in metadata
    return not (live["kind"] in _HOLDS_DATA or is_record_or_lock or made_by_controller or is_being_deleted)


async def _dry_apply(
    cluster: Cluster, ownership: Ownership, item: Object, live: Object | None, *, force: bool
) -> Change:
    """What applying `item` changes; `live` is the live object when it is known to be ours."""
    result = await cluster.apply(item, dry_run=True, force=force)
    if live is None and "resourceVersion" in result["metadata"]:  # it exists, but not with our labels
        live = await cluster.get(Ref.of(item))
        if live is not None and not force:
            _refuse_others(ownership, live)
    if live is None:
        return _change(item, Action.CREATED, diff(None, item))
    before, after = strip(live), strip(result)
    if before == after:
        return _change(item, Action.UNCHANGED)
    return _change(item, Action.CONFIGURED, diff(before, after))


def _refuse_others(ownership: Ownership, live: Object) -> None:
    """Refuse to take an object over: the server reports a conflict only where two managers want different values."""
    if live["kind"] == "Namespace" or ownership.owns(live):
        return
    labels = live["metadata"].get("labels") or {}
    managers = sorted({entry.get("manager", "?") for entry in live["metadata"].get("managedFields") or []})
    owner = " and ".join(managers) or "another manager"
    if labels.get(MANAGED_BY) == MANAGER:
        application, environment = labels.get(APPLICATION), labels.get(ENVIRONMENT)
        owner = f"application {application} in environment {environment}"
    raise OwnershipConflict(
        f"{ownership.application} in {ownership.environment} would change an object of {owner}",
        where=str(Ref.of(live)),
        hint="rename it, delete the existing object, or set `take_over: true` for the environment",
    )


async def _dry_create(cluster: Cluster, item: Object) -> None:
    """Dry-run an object whose namespace does not exist yet, in namespace `default`."""
    metadata = item["metadata"]
    if "namespace" in metadata:
        item = {**item, "metadata": {**metadata, "namespace": "default"}}
    try:
        await cluster.create(item, dry_run=True)
    except Forbidden:  # we may write into the environment's namespace only, so the dry run has to wait for it
        return
    except ApiError as error:
        if error.cause != "AlreadyExists":
            raise


def _change(item: Object, action: Action, unified_diff: str = "") -> Change:
    ref = Ref.of(item)
    return Change(
        api_version=ref.api_version,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        action=action,
        diff=unified_diff,
    )
