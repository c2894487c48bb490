"""Bring an environment to a set of objects: write what was planned, and prune. What to write is planned in `changes`.

Objects that cannot be changed in place are deleted and created again. Before custom resources are written, the server
must have established their definitions; only then can they be dry-run, so that is done before anything else is written.

Two things decide whether we may write: the guard of the lock, before each request, and the API server. Every write says
which object it was planned for, by uid and resourceVersion, and an object that is to be created must not exist. So a
request of a process that lost its lock changes nothing that its successor has written since. Others may write, too:
controllers set the status of what they control many times a second. So a refused write is no error while the lock is
ours: the object is dry-run again, and written if it still differs.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Protocol

from prefect_cd.environment.change_set import Action, Change, ChangeSet, created, version_of
from prefect_cd.environment.changes import is_prunable
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.planner import Planner
from prefect_cd.errors import Errored, Failed, InvalidManifest
from prefect_cd.kube.client import Cluster, Conflict, unguarded
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object, condition, condition_holds
from prefect_cd.kube.resources import Identity, Ref
from prefect_cd.kube.responses import FIELD_MANAGER
from prefect_cd.manifests.irreversible import definitions_of, with_kept
from prefect_cd.manifests.labels import EPOCH
from prefect_cd.manifests.managed_fields import fields_to_take, with_fields
from prefect_cd.manifests.prepare import waves

_DELETION_TIMEOUT = timedelta(minutes=2)
"""How long to wait for an object that is being deleted before it is created again; a load balancer takes a minute."""
_ESTABLISHED_TIMEOUT = timedelta(minutes=1)
_SCHEMA_TIMEOUT = timedelta(seconds=10)
_INTERVAL = timedelta(milliseconds=200)
"""Between two looks at an object that is being deleted or established."""
_ATTEMPTS = 20
"""Of one write, while others write to the same object; at most about ten seconds."""
_FIRST_DELAY, _LAST_DELAY = 0.05, 1.0  # seconds
_WRITTEN = frozenset({Action.CREATED, Action.CHANGED, Action.RECREATED, Action.REPLACED})


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


async def apply(
    cluster: Cluster,
    ownership: Ownership,
    objects: Sequence[Object],
    planned: ChangeSet,
    *,
    force: bool = False,
    take_back: bool = False,
    restoring: bool = False,
    lock: Writer = UNLOCKED,
) -> None:
    """Write the objects that `planned` creates, configures or replaces, wave by wave; `prune` is a separate step.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        planned: what `compute_changes` returned for it.
        force: take fields over from other managers.
        take_back: as in `compute_changes`.
        restoring: as in `compute_changes`.
        lock: the right to write.

    Raises:
        LockLost: we are no longer the writer.
        InvalidManifest: the server refuses a custom resource whose definition came with the release; nothing but the
            definitions was written.
        OwnershipConflict: another manager took an object or a field over since the plan.
        Failed: an object that has to be created again is still being deleted, or a definition is not accepted.
        Errored: an object changes faster than it can be written.
    """
    planner = Planner(cluster, ownership, force=force, take_back=take_back, restoring=restoring)
    changes = {change.ref.identity: change for change in planned.changes}
    for wave in waves(objects):
        pairs = [(item, changes[Ref.of(item).identity]) for item in wave if Ref.of(item).identity in changes]
        await parallel(_write(planner, item, change, lock) for item, change in pairs if change.action in _WRITTEN)
        if definitions := definitions_of(wave):
            changes |= await _checked(planner, objects, definitions, changes)


async def _checked(
    planner: Planner, objects: Sequence[Object], definitions: Sequence[Object], changes: dict[Identity, Change]
) -> dict[Identity, Change]:
    """The changes that could not be dry-run before, now that the server serves their kinds."""
    unchecked = [item for item in objects if (change := changes.get(Ref.of(item).identity)) and not change.checked]
    if not unchecked:
        return {}
    await parallel(_until_established(planner.cluster, definition) for definition in definitions)
    give_up = time.monotonic() + _SCHEMA_TIMEOUT.total_seconds()
    while True:
        try:
            checked = await parallel(planner.change_of(item, None) for item in unchecked)
        except InvalidManifest:  # the server may not know the new schema of an established definition yet
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(_INTERVAL.total_seconds())
        else:
            _raise_for_kept(checked)
            return {change.ref.identity: change for change in checked}


async def _until_established(cluster: Cluster, definition: Object) -> None:
    """Return when the server serves the kind of a CustomResourceDefinition."""
    ref, give_up = Ref.of(definition), time.monotonic() + _ESTABLISHED_TIMEOUT.total_seconds()
    while True:
        live = await cluster.get(ref) or {}
        if condition_holds(live, "Established") and await _is_served(cluster, live):
            return
        names = condition(live, "NamesAccepted")
        if time.monotonic() > give_up or names.get("status") == "False":
            raise Failed(
                f"the server does not establish it: {names.get('message') or 'no condition says why'}",
                where=str(ref),
                hint=f"`kubectl describe {ref}` shows its conditions; does another definition use its names?",
            )
        await asyncio.sleep(_INTERVAL.total_seconds())


async def _is_served(cluster: Cluster, definition: Object) -> bool:
    """Whether discovery has every served version of an established definition; it follows a moment later."""
    spec = definition["spec"]
    versions = [f"{spec['group']}/{version['name']}" for version in spec["versions"] if version.get("served")]
    return all(await parallel(cluster.is_served(version, spec["names"]["kind"]) for version in versions))


async def prune(cluster: Cluster, ownership: Ownership, planned: ChangeSet, *, lock: Writer = UNLOCKED) -> None:
    """Delete what `planned` prunes, except objects that are no longer ours by now.

    Raises:
        LockLost: we are no longer the writer.
        Failed: objects could not be brought back as they were; everything else was.
        Errored: an object changes faster than it can be deleted.
    """
    surplus = [change for change in planned.changes if change.action == Action.PRUNED]
    await parallel(_delete(cluster, ownership, change, lock=lock) for change in surplus)
    _raise_for_kept(planned.changes)


def _raise_for_kept(changes: Iterable[Change]) -> None:
    """Fail where objects could not go back; it comes last, so that everything else has."""
    if kept := [change for change in changes if change.action == Action.KEPT]:
        raise Failed(
            f"it went back, except {', '.join(str(change.ref) for change in kept)}",
            detail="\n".join(f"{change.ref}: {field}" for change in kept for field in change.kept),
            hint="bring these objects back yourself, or delete them; then roll back once more",
        )


async def _write(planner: Planner, item: Object, change: Change, lock: Writer) -> None:
    """Write one object as planned; where the live object is another one by now, plan it again."""
    cluster, ref = planner.cluster, Ref.of(item)
    for delay in _delays():
        try:
            if change.action in {Action.RECREATED, Action.REPLACED}:
                if change.action == Action.REPLACED:
                    await cluster.delete(change.ref, uid=change.uid, version=change.version, guard=lock.guard)
                await _until_gone(cluster, change)
                change = created(item)
            version = await _take_fields(cluster, item, change, lock) if change.takes_fields else change.version
            body = with_kept(item, change.kept)
            if change.action == Action.CREATED:
                body = _in_epoch(body, lock.epoch)
            await cluster.apply(body, force=change.force, uid=change.uid, version=version, guard=lock.guard)
        except Conflict:
            await lock.confirm(cluster)
            await asyncio.sleep(delay)
            live = await cluster.get(ref)
            ours = live if live is not None and planner.ownership.owns(live) else None
            change = await planner.change_of(item, ours)
            # that nothing differs is only certain where the dry run saw the object that we compared with
            if change.action == Action.UNCHANGED and ours and version_of(ours) == change.version:
                return
            _raise_for_kept([change])
        else:
            return
    raise _too_busy(change)


async def _take_fields(cluster: Cluster, item: Object, change: Change, lock: Writer) -> str:
    """Become the manager of the fields that the apply shall remove; the object's version after that.

    Raises:
        Conflict: the object is not the one of the plan any more.
    """
    live = await cluster.get(change.ref)
    if live is None or version_of(live) != change.version:
        raise Conflict("it has changed since the plan", where=str(change.ref))
    fields = fields_to_take(live, item, FIELD_MANAGER, client_side=change.force)
    entries = with_fields(live, fields, FIELD_MANAGER)
    taken = await cluster.take_fields(change.ref, entries, uid=change.uid, version=change.version, guard=lock.guard)
    return version_of(taken)


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
            if live is None or not ownership.owns(live) or not is_prunable(live):
                return
            uid, version = live["metadata"]["uid"], version_of(live)
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
        await asyncio.sleep(_INTERVAL.total_seconds())
