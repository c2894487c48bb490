"""Bring an environment to a set of objects: compute the changes, write them, prune.

All objects are dry-run on the server before the first one is written, and unchanged objects are not written at all.
Objects that an earlier release added and this one no longer contains are pruned. An object of another manager is taken
over only on request (`force`), also where the server sees no conflict.

Two things decide whether we may write: the guard of the lock, before each request, and the API server. Every write says
which object it was planned for, by uid and resourceVersion, and an object that is to be created must not exist. So a
request of a process that lost its lock changes nothing that its successor has written since. Others may write, too:
controllers set the status of what they control many times a second. So a refused write is no error while the lock is
ours: the object is dry-run again, and written if it still differs.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from datetime import timedelta
from enum import Enum
from typing import Protocol

from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import Errored, Failed, Forbidden, Invalid, InvalidManifest, OwnershipConflict
from prefect_cd.kube.client import ABSENT, Cluster, Conflict, unguarded
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Identity, Ref, group_of
from prefect_cd.manifests.diff import changed_lines, diff, strip
from prefect_cd.manifests.labels import APPLICATION, ENVIRONMENT, EPOCH, RECORD
from prefect_cd.manifests.load import Manifest
from prefect_cd.manifests.prepare import set_namespaces, waves
from prefect_cd.release.model import Result, digest_of

# Its controller copies the labels of the Service to the Endpoints and sets no owner reference, so that an Endpoints
# object carries our labels though we did not apply it.
_ENDPOINTS_CONTROLLER = "endpoints.kubernetes.io/managed-by"
# Deleting one of these deletes data that applying it again does not bring back: the user has to do it.
HOLDS_DATA = frozenset({"Namespace", "PersistentVolume", "PersistentVolumeClaim", "CustomResourceDefinition"})
_DELETION_TIMEOUT = timedelta(minutes=2)
"""How long to wait for an object that is being deleted before it is created again; a load balancer takes a minute."""
_DELETION_INTERVAL = timedelta(milliseconds=200)
_ATTEMPTS = 20
"""Of one write, while others write to the same object; at most about ten seconds."""
_FIRST_DELAY, _LAST_DELAY = 0.05, 1.0  # seconds


class Writer(Protocol):
    """The right to write to an environment: a `Lock` is one.

    Attributes:
        epoch: its number among the writers; 0 where there is only one.
    """

    epoch: int

    async def guard(self) -> None:
        """Return while we may write; raise LockLost when we may not."""

    async def confirm(self, cluster: Cluster) -> None:
        """Return when the cluster, too, says that we may write; raise LockLost when it does not."""


class Unlocked:
    """The right to write where there is no lock, because nobody else writes."""

    epoch = 0

    async def guard(self) -> None:
        """Return at once."""
        await unguarded()

    async def confirm(self, cluster: Cluster) -> None:
        """Return at once."""


UNLOCKED = Unlocked()


class Action(str, Enum):
    """What happens to one object."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    RECREATED = "recreated"
    """It is being deleted: created again when it is gone."""
    PRUNED = "pruned"


class Change(Result):
    """One object, what happens to it, and the live object for which that was found out.

    `uid` and `version` are no part of what people see or approve: a controller may change the version at any time.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    action: Action
    diff: str = ""
    uid: str = ""
    version: str = ""

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

        The context of a diff is left out, so that a field that another manager writes nearby does not change it. So is
        whether an object to create is still being deleted, which ends at any time.
        """
        return digest_of(
            [
                [*astuple(change.ref), _DIGESTED.get(change.action, change.action).value, changed_lines(change.diff)]
                for change in sorted(self.changes, key=lambda change: change.ref)
                if change.action != Action.UNCHANGED
            ]
        )


_DIGESTED = {Action.RECREATED: Action.CREATED}
_WRITTEN = frozenset({Action.CREATED, Action.CONFIGURED, Action.RECREATED})


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
    known: Iterable[Ref] = (),
) -> ChangeSet:
    """What applying `objects` would change; nothing is written.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        force: take fields over from other managers.
        known: the objects that releases have brought in here, by the records. Only these are pruned, and only where
            they carry our labels, too: a copy of an object has its labels and another name.

    Raises:
        InvalidManifest: the server refuses an object; with the server's message.
        OwnershipConflict: another manager owns what would be changed.
    """
    if not await namespace_exists(cluster, ownership.namespace):
        await parallel(_dry_create(cluster, item) for item in objects)
        return ChangeSet(changes=tuple(_created(item) for item in objects))
    # the versions of the set come first: those are served, and live objects can be compared with what is applied
    known = sorted(known)
    kinds = [*((item["apiVersion"], item["kind"]) for item in objects), *((ref.api_version, ref.kind) for ref in known)]
    ours = await _owned_objects(cluster, ownership, kinds)
    changes = await parallel(
        _dry_apply(cluster, ownership, item, ours.get(Ref.of(item).identity), force=force) for item in objects
    )
    no_longer_wanted = {ref.identity for ref in known} - {Ref.of(item).identity for item in objects}
    surplus = [live for identity, live in sorted(ours.items()) if identity in no_longer_wanted and _prunable(live)]
    pruned = [_change(live, Action.PRUNED, diff(strip(live), None), live) for live in surplus]
    return ChangeSet(changes=(*changes, *pruned))


async def apply(
    cluster: Cluster,
    ownership: Ownership,
    objects: Sequence[Object],
    planned: ChangeSet,
    *,
    force: bool = False,
    lock: Writer = UNLOCKED,
) -> None:
    """Write the objects that `planned` creates or configures, wave by wave; `prune` is a separate step.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        planned: what `compute_changes` returned for it.
        force: take fields over from other managers.
        lock: the right to write.

    Raises:
        LockLost: we are no longer the writer.
        OwnershipConflict: another manager took an object or a field over since the plan.
        Failed: an object that has to be created again is still being deleted.
        Errored: an object changes faster than it can be written.
    """
    writes = {change.ref.identity: change for change in planned.changes if change.action in _WRITTEN}
    for wave in waves([item for item in objects if Ref.of(item).identity in writes]):
        await parallel(
            _write(cluster, ownership, item, writes[Ref.of(item).identity], force=force, lock=lock) for item in wave
        )


async def prune(cluster: Cluster, ownership: Ownership, planned: ChangeSet, *, lock: Writer = UNLOCKED) -> None:
    """Delete what `planned` prunes, except objects that are no longer ours by now.

    Raises:
        LockLost: we are no longer the writer.
        Errored: an object changes faster than it can be deleted.
    """
    surplus = [change for change in planned.changes if change.action == Action.PRUNED]
    await parallel(_delete(cluster, ownership, change, lock=lock) for change in surplus)


async def unowned_objects(cluster: Cluster, ownership: Ownership, objects: Sequence[Object]) -> tuple[Object, ...]:
    """The live objects that `objects` would take over, stripped so that they can be applied again."""
    live_objects = await parallel(cluster.get(Ref.of(item)) for item in objects if item["kind"] != "Namespace")
    return tuple(strip(live) for live in live_objects if live is not None and not ownership.owns(live))


async def _write(
    cluster: Cluster, ownership: Ownership, item: Object, change: Change, *, force: bool, lock: Writer
) -> None:
    """Write one object as planned; where the live object is another one by now, plan it again."""
    for delay in _delays():
        if change.action == Action.RECREATED:
            await _until_gone(cluster, change)
            change = _created(item)
        try:
            written = _in_epoch(item, lock.epoch) if change.action == Action.CREATED else item
            await cluster.apply(written, force=force, uid=change.uid, version=change.version, guard=lock.guard)
        except Conflict:
            await lock.confirm(cluster)
            await asyncio.sleep(delay)
            live = await cluster.get(Ref.of(item))
            ours = live if live is not None and ownership.owns(live) else None
            change = await _dry_apply(cluster, ownership, item, ours, force=force)
            # that nothing differs is only certain where the dry run saw the object that we compared with
            if change.action == Action.UNCHANGED and ours and _version(ours) == change.version:
                return
        else:
            return
    raise _too_busy(change)


async def _delete(cluster: Cluster, ownership: Ownership, change: Change, *, lock: Writer) -> None:
    """Delete one object as planned; where it is another one by now, only if that is ours, too."""
    uid, version = change.uid, change.version
    for delay in _delays():
        try:
            await cluster.delete(change.ref, uid=uid, version=version, guard=lock.guard)
        except Conflict:
            await lock.confirm(cluster)
            await asyncio.sleep(delay)
            live = await cluster.get(change.ref)
            if live is None or not ownership.owns(live) or not _prunable(live):
                return
            uid, version = live["metadata"]["uid"], _version(live)
        else:
            return
    raise _too_busy(change)


def _in_epoch(item: Object, epoch: int) -> Object:
    """A new object with the epoch in which it is created: the only thing that tells a late request from a good one."""
    if not epoch:
        return item
    metadata = item["metadata"]
    return {**item, "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), EPOCH: str(epoch)}}}


def _delays() -> Iterator[float]:
    """How long to wait after each refused attempt, in seconds: at random, so that two writers do not stay in step."""
    for attempt in range(_ATTEMPTS):
        yield random.uniform(0, min(_LAST_DELAY, _FIRST_DELAY * 2**attempt))  # noqa: S311  no secret


def _too_busy(change: Change) -> Errored:
    return Errored(
        f"it changed before each of {_ATTEMPTS} attempts to write it",
        where=str(change.ref),
        hint="which controllers write to it so often? `kubectl get --show-managed-fields -o yaml` names them",
    )


async def _until_gone(cluster: Cluster, change: Change) -> None:
    """Return when the object of the plan no longer exists."""
    give_up = time.monotonic() + _DELETION_TIMEOUT.total_seconds()
    while live := await cluster.get(change.ref):
        if live["metadata"]["uid"] != change.uid:
            return
        if time.monotonic() > give_up:
            finalizers = ", ".join(live["metadata"].get("finalizers") or ["none"])
            raise Failed(
                f"it cannot be created again before it is gone, and is still being deleted "
                f"after {_DELETION_TIMEOUT.total_seconds():.0f} s; finalizers: {finalizers}",
                where=str(change.ref),
                hint="does the controller that removes these finalizers run? "
                f"`kubectl describe {change.ref} -n {change.namespace or 'default'}` shows its events",
            )
        await asyncio.sleep(_DELETION_INTERVAL.total_seconds())


async def _owned_objects(
    cluster: Cluster, ownership: Ownership, kinds: Iterable[tuple[str, str]]
) -> dict[Identity, Object]:
    """Live objects that carry our labels, by identity; records and the lock are not among them.

    Each kind is listed once, in the first of its versions that the cluster serves.
    """
    selector = f"{ownership.selector},!{RECORD}"
    versions: dict[tuple[str, str], dict[str, None]] = {}
    for api_version, name in kinds:
        versions.setdefault((group_of(api_version), name), {})[api_version] = None

    async def list_kind(name: str, api_versions: Iterable[str]) -> list[Object]:
        for api_version in api_versions:
            try:
                kind = await cluster.kind(api_version, name)
            except InvalidManifest:  # the version is no longer served, or the kind was deleted with all its objects
                continue
            return await cluster.list(kind, ownership.namespace if kind.namespaced else "", labels=selector)
        return []

    lists = await parallel(list_kind(name, api_versions) for (_, name), api_versions in sorted(versions.items()))
    return {Ref.of(item).identity: item for items in lists for item in items}


def _prunable(live: Object) -> bool:
    """Whether an object with our labels may be deleted."""
    metadata = live["metadata"]
    is_record_or_lock = RECORD in metadata["labels"]
    made_by_controller = _ENDPOINTS_CONTROLLER in metadata["labels"] or bool(metadata.get("ownerReferences"))
    return not (live["kind"] in HOLDS_DATA or is_record_or_lock or made_by_controller or _is_being_deleted(live))


async def _dry_apply(
    cluster: Cluster, ownership: Ownership, item: Object, live: Object | None, *, force: bool
) -> Change:
    """What applying `item` changes; `live` is the live object when it is known to be ours."""
    ref = Ref.of(item)
    try:
        result = await cluster.apply(item, dry_run=True, force=force)
    except (InvalidManifest, OwnershipConflict):
        # An object that is being deleted cannot be changed in every way; what counts is whether it can be created.
        going = await cluster.get(ref)
        if going is None or not _is_being_deleted(going):
            raise
        await _dry_create(cluster, item, ref.namespace)
        result = going
    if _is_being_deleted(result):
        return _change(item, Action.RECREATED, diff(None, item), result)
    if not _version(result):
        return _created(item)
    if live is None or live["apiVersion"] != ref.api_version:  # not with our labels, or listed in another version
        listed, live = live, await cluster.get(ref)
        if live is None:
            return _created(item)
        if listed is None and not force:
            _refuse_others(ownership, live)
    before, after = strip(live), strip(result)
    if before == after:
        return _change(item, Action.UNCHANGED, "", result)
    return _change(item, Action.CONFIGURED, diff(before, after), result)


def _refuse_others(ownership: Ownership, live: Object) -> None:
    """Refuse to take an object over: the server reports a conflict only where two managers want different values."""
    if live["kind"] == "Namespace" or ownership.owns(live):
        return
    labels = live["metadata"].get("labels") or {}
    managers = sorted({entry.get("manager", "?") for entry in live["metadata"].get("managedFields") or []})
    owner = " and ".join(managers) or "another manager"
    if APPLICATION in labels:
        owner = f"application {labels[APPLICATION]} in environment {labels.get(ENVIRONMENT)}"
    raise OwnershipConflict(
        f"{ownership.application} in {ownership.environment} would change an object of {owner}",
        where=str(Ref.of(live)),
        hint="rename it, delete the existing object, or set `take_over: true` for the environment",
    )


async def _dry_create(cluster: Cluster, item: Object, namespace: str = "default") -> None:
    """Dry-run the creation of an object; in namespace `default` where its own does not exist yet."""
    metadata = item["metadata"]
    if "namespace" in metadata:
        item = {**item, "metadata": {**metadata, "namespace": namespace}}
    try:
        await cluster.create(item, dry_run=True)
    except Forbidden:  # we may write into the environment's namespace only, so the dry run has to wait for it
        return
    except Conflict as error:
        if error.cause != "AlreadyExists":
            raise


def _version(live: Object) -> str:
    """The resourceVersion; empty for a dry run of an object that does not exist."""
    return str(live["metadata"].get("resourceVersion", ""))


def _is_being_deleted(live: Object) -> bool:
    return "deletionTimestamp" in live["metadata"]


def _created(item: Object) -> Change:
    """The change of an object that does not exist."""
    return _change(item, Action.CREATED, diff(None, item))


def _change(item: Object, action: Action, unified_diff: str, live: Object | None = None) -> Change:
    """A change, and for which live object it was found out; None where there is none."""
    ref = Ref.of(item)
    return Change(
        api_version=ref.api_version,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        action=action,
        diff=unified_diff,
        uid=live["metadata"]["uid"] if live else "",
        version=_version(live) if live else ABSENT,
    )
