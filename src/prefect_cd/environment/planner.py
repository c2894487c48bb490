"""What applying one object would change: by a dry run on the server, and where it refuses, by what can be done instead.

Where the server refuses a change in place, `manifests.irreversible` decides: the object is replaced, or refused. On the
way back to an earlier version, what cannot go back is kept and named, so that the rest does.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect_cd.environment.change_set import Action, Change, change_to, created, is_being_deleted, version_of
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import Forbidden, InvalidManifest, OwnershipConflict
from prefect_cd.kube.client import Cluster, Conflict
from prefect_cd.kube.objects import Object, dig, dig_mapping
from prefect_cd.kube.resources import Identity, Ref, group_of
from prefect_cd.kube.responses import FIELD_MANAGER
from prefect_cd.manifests.diff import strip
from prefect_cd.manifests.hand_edits import HandEdit, hand_edits
from prefect_cd.manifests.irreversible import (
    Kept,
    data_to_keep,
    has_finished,
    may_replace,
    refusal_hint,
    scaled_by,
    scaled_replicas,
    with_kept,
)
from prefect_cd.manifests.labels import APPLICATION, ENVIRONMENT, RELEASE
from prefect_cd.manifests.managed_fields import (
    fields_to_take,
    replaces_strategy,
    with_live_strategy,
    with_own_strategy,
    without_fields,
)

_SCALER = ("autoscaling/v2", "HorizontalPodAutoscaler")


@dataclass
class Planner:
    """Plans the changes of single objects.

    Args:
        cluster: the API server.
        ownership: the environment.
        force: take fields and objects over from other managers.
        take_back: take fields of objects that are ours back from whoever changed them by hand; a person is shown that.
        restoring: as in `compute_changes`.
        definitions: the CustomResourceDefinitions of the set.
        runs: as in `compute_changes`.
    """

    cluster: Cluster
    ownership: Ownership
    force: bool = False
    take_back: bool = False
    restoring: bool = False
    definitions: tuple[Object, ...] = ()
    runs: tuple[Object, ...] = ()
    _scaled: dict[Identity, str] | None = None
    _scaled_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def creation_of(self, item: Object) -> Change:
        """The change of an object whose namespace does not exist."""
        if not await self._is_served(item):
            return created(item, checked=False)
        await _dry_create(self.cluster, item)
        return created(item)

    async def change_of(self, item: Object, live: Object | None, kept: tuple[Kept, ...] = ()) -> Change:
        """What applying `item` changes.

        Args:
            item: the object.
            live: the live object where it is known to be ours.
            kept: fields that keep their live value.

        Raises:
            InvalidManifest, OwnershipConflict: the server or we refuse it; on the way back, it is kept instead.
        """
        if not await self._is_served(item):
            return created(item, checked=False)
        if self.restoring and live is None and await self._was_given_back(item):
            return change_to(item, Action.UNCHANGED)
        try:
            return await self._dry_apply(item, live, kept)
        except OwnershipConflict as error:
            return await self._conflicting(item, kept, error)
        except InvalidManifest as error:
            return await self._refused(item, kept, error)

    async def _dry_apply(
        self, item: Object, live: Object | None, kept: tuple[Kept, ...], *, take_back: bool = False
    ) -> Change:
        ref, force = Ref.of(item), self.force or take_back or (self.restoring and live is not None)
        scaler = await self._scaler_of(item)
        if live is None and (scaler or replaces_strategy(item)):
            live = await self.ours(ref)
        if live is not None:
            kept = (*kept, *(scaled_replicas(live, item, scaler) if scaler else ()))
        body = with_kept(item, kept)
        dry_run = body if live is None else with_live_strategy(live, body)
        result = await self.cluster.apply(dry_run, dry_run=True, force=force)
        if is_being_deleted(result):
            return change_to(item, Action.RECREATED, result, states=(None, item))
        if version_of(result) and (live is None or live["apiVersion"] != ref.api_version):
            listed, live = live, await self.cluster.get(ref)  # not with our labels, or listed in another version
            if live is not None and listed is None and not force:
                _refuse_others(self.ownership, live)
        if not version_of(result) or live is None:
            return change_to(item, Action.UNCHANGED) if self._has_vanished(item) else created(item)
        fields = fields_to_take(result, item, FIELD_MANAGER, client_side=force)
        before, after = strip(live), strip(with_own_strategy(without_fields(result, fields, FIELD_MANAGER), item))
        edits = hand_edits(live) if self.ownership.owns(live) else ()
        more: dict[str, Any] = {"kept": kept, "force": force, "takes_fields": bool(fields), "hand_edits": edits}
        if before == after and not fields:
            return change_to(item, Action.UNCHANGED, result, **more)
        runs_no_more = item["kind"] == "Pod" and has_finished(live) and before["spec"] != after["spec"]
        action = Action.REPLACED if runs_no_more else Action.CHANGED
        return change_to(item, action, result, states=(before, after), **more)

    async def _conflicting(self, item: Object, kept: tuple[Kept, ...], error: OwnershipConflict) -> Change:
        """The change of an object of which others own fields that `item` wants otherwise."""
        live = await self.ours(Ref.of(item))
        if live is not None and not is_being_deleted(live) and (edits := hand_edits(live)):
            if self.take_back:
                return await self._dry_apply(item, live, kept, take_back=True)
            _name_edits(error, edits)
        return await self._refused(item, kept, error)

    async def _refused(
        self, item: Object, kept: tuple[Kept, ...], error: InvalidManifest | OwnershipConflict
    ) -> Change:
        """The change of an object that cannot be changed as `item` wants it."""
        live = await self.cluster.get(Ref.of(item))
        if live is not None and is_being_deleted(live):  # what counts is whether it can be created
            await _dry_create(self.cluster, item, live["metadata"].get("namespace", ""))
            return change_to(item, Action.RECREATED, live, states=(None, item))
        if await self._has_new_definition(item):
            if live is None:
                return created(item, checked=False)
            return change_to(item, Action.CHANGED, live, states=(strip(live), item), checked=False)
        if live is not None and self.ownership.owns(live) and isinstance(error, InvalidManifest):
            if may_replace(live, error.reason, restoring=self.restoring) and await self._can_be_created(item):
                return change_to(item, Action.REPLACED, live, states=(strip(live), item))
            if self.restoring and not kept and (data := data_to_keep(live, item)):
                return await self.change_of(item, live, data)
            error.hint = refusal_hint(live, item) or error.hint
        if not self.restoring:
            raise error
        return change_to(item, Action.KEPT, live, kept=(Kept(path=(), value="", reason=error.reason),))

    async def _was_given_back(self, item: Object) -> bool:
        """Whether an object that we once took over is its owner's again, who decides about it from then on."""
        if self.ownership.owns(item):
            return False
        live = await self.cluster.get(Ref.of(item))
        return live is not None and not is_being_deleted(live) and not self.ownership.owns(live)

    async def ours(self, ref: Ref) -> Object | None:
        """The live object, where it carries our labels."""
        live = await self.cluster.get(ref)
        return live if live is not None and self.ownership.owns(live) else None

    async def _can_be_created(self, item: Object) -> bool:
        try:
            await _dry_create(self.cluster, item, item["metadata"].get("namespace", ""))
        except InvalidManifest:
            return False
        return True

    def _has_vanished(self, item: Object) -> bool:
        """Whether the cluster has removed a Job of the version that runs, because it had ended."""
        if item["kind"] != "Job" or dig(item, "spec", "ttlSecondsAfterFinished") is None:
            return False
        return any(_without_release(item) == _without_release(other) for other in self.runs)

    # --- custom resources --------------------------------------------------------------------------------------------

    def _definition_of(self, item: Object) -> Object | None:
        """The definition of the kind of an object, where the set has it."""
        kind = (group_of(item["apiVersion"]), item["kind"])
        specs = ((other, dig_mapping(other, "spec")) for other in self.definitions)
        return next((other for other, spec in specs if (spec.get("group"), dig(spec, "names", "kind")) == kind), None)

    async def _is_served(self, item: Object) -> bool:
        """Whether the server can dry-run an object; not where its definition comes with the set."""
        return not self._definition_of(item) or await self.cluster.is_served(item["apiVersion"], item["kind"])

    async def _has_new_definition(self, item: Object) -> bool:
        """Whether the definition of a custom resource changes: then the server refuses by the old one."""
        if (definition := self._definition_of(item)) is None:
            return False
        change = await self.change_of(definition, await self.ours(Ref.of(definition)))
        return change.action != Action.UNCHANGED

    # --- autoscalers -------------------------------------------------------------------------------------------------

    async def _scaler_of(self, item: Object) -> str:
        """The live autoscaler that sets the replicas of a workload; empty without one, or where we may not see it."""
        if not isinstance(dig(item, "spec", "replicas"), int):
            return ""
        async with self._scaled_lock:
            if self._scaled is None:
                self._scaled = scaled_by(await self._scalers())
        return self._scaled.get(Ref.of(item).identity, "")

    async def _scalers(self) -> list[Object]:
        if not await self.cluster.is_served(*_SCALER):
            return []
        try:
            return await self.cluster.list(await self.cluster.kind(*_SCALER), self.ownership.namespace)
        except Forbidden:
            return []


def _without_release(item: Object) -> Object:
    """An object without the release's id, which says nothing about its content."""
    metadata = item["metadata"]
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != RELEASE}
    return {**item, "metadata": {**metadata, "annotations": annotations}}


def _name_edits(error: OwnershipConflict, edits: Sequence[HandEdit]) -> None:
    """Say who changed what by hand in an object of ours, and what to do about it."""
    error.reason = f"somebody changed it by hand: {'; '.join(map(str, edits))}"
    error.hint = (
        "put that into the repository; or undo it, as a `rollback` to the release that runs does. Where an environment "
        "requires an approval, the form shows it, and approving takes the fields back; `take_over: true` always does"
    )


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
