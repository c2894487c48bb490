"""Create, update, patch, apply and delete: from a request body to the stored object.

The order is that of the real server: read by the schema (decoding.py), fill in defaults, restore what cannot be written
this way, update field ownership, run admission and validation, commit. Everything is synchronous; see storage.py.
routes.py handles HTTP.
"""

from collections.abc import Callable
from typing import Any

from prefect_cd_local.apiserver import (
    decoding,
    defaults,
    lifecycle,
    managed_fields,
    patch,
    schema,
    services,
    validation,
)
from prefect_cd_local.apiserver.errors import (
    Cause,
    Refusal,
    about,
    already_exists,
    conflict,
    invalid,
    not_found,
    unsupported,
)
from prefect_cd_local.apiserver.fieldset import Path
from prefect_cd_local.apiserver.kinds import Kind
from prefect_cd_local.apiserver.options import APPLY, JSON, MERGE, Options
from prefect_cd_local.apiserver.storage import Key, Store

Object = dict[str, Any]
Body = Any
Change = Callable[[Object], Object]
_POLICIES = ("Foreground", "Background", "Orphan", "nil")
_OF_THE_COLLECTOR = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
_SHOWN_WHEN_DELETED = {"Pod", "Service", "ServiceAccount", "Namespace"}
_RESET: dict[str, tuple[Path, ...]] = {"status": (("f:spec",),), "": (("f:status",),)}


class Verbs:
    """The writing verbs over one store."""

    def __init__(self, store: Store, service_ranges: services.Ranges) -> None:
        self._store = store
        self._service_ranges = service_ranges

    def find(self, kind: Kind, key: Key) -> Object:
        """Return the object.

        Raises:
            Refusal: 404.
        """
        item = self._store.get(kind, *key)
        if item is None:
            raise not_found(kind, key[1])
        return item

    def create(self, kind: Kind, namespace: str, body: Body, options: Options) -> Object:
        """Create an object from a body.

        Raises:
            Refusal: the object exists, is invalid, or its namespace does not exist.
        """
        item = decoding.read(kind, (namespace, ""), body, options)
        defaults.fill(kind, item)
        lifecycle.admit(self._store, kind, item)  # its errors show generateName, not a generated name
        item = lifecycle.with_generated_name(item)
        if not options.dry_run and item["metadata"].get("resourceVersion") not in {None, "", "0"}:
            raise Refusal(500, "", "resourceVersion should not be set on objects to be created")
        item = managed_fields.record_update(kind, None, item, options.manager, reset=_reset(kind))
        return self._insert(kind, item, options)

    def replace(self, kind: Kind, key: Key, body: Body, options: Options, subresource: str = "") -> tuple[Object, bool]:
        """Replace an object by a body; returns it, and whether it was created (which only some kinds allow).

        Raises:
            Refusal: the object is another one than that of the uid, or see `update`.
        """
        item = decoding.read(kind, key, body, options)
        live = self._store.get(kind, *key)
        creates = live is None and kind.created_by_put and not subresource
        if live is None and not creates:
            raise not_found(kind, key[1])
        decoding.refuse_other_uid(kind, key, live, item)
        if not creates:
            return self.update(kind, key, lambda _: item, options, subresource), False
        defaults.fill(kind, item)
        lifecycle.admit(self._store, kind, item)
        item = managed_fields.record_update(kind, None, item, options.manager, reset=_reset(kind))
        return self._insert(kind, item, options), True

    def patch(
        self, kind: Kind, key: Key, body: Body, how: str, options: Options, below: str = ""
    ) -> tuple[Object, bool]:
        """Patch an object or its subresource; returns it, and whether it was created (by an apply only).

        Raises:
            Refusal: the patch cannot be applied, or see `update`.
        """
        if how == APPLY:
            return self._apply(kind, key, body, options, below)

        def change(live: Object) -> Object:
            if how == JSON:
                patched = patch.json_patch(live, body)
            elif how == MERGE:
                patched = patch.merge_patch(live, body)
            else:
                patched = patch.strategic_merge(schema.of(kind), live, body)
            return decoding.read(kind, key, patched, options)

        return self.update(kind, key, change, options, below), False

    def update(self, kind: Kind, key: Key, change: Change, options: Options, subresource: str = "") -> Object:
        """Commit the result of `change`; nothing is written when nothing changes.

        Raises:
            Refusal: the object does not exist, was changed since, or would be invalid.
        """
        live = self.find(kind, key)
        item = change(live)
        decoding.refuse_stale(kind, live, item)
        item = self._prepared(kind, live, item, subresource)
        item = managed_fields.record_update(kind, live, item, options.manager, subresource)
        return self._commit(kind, live, item, options, subresource)

    def _apply(self, kind: Kind, key: Key, body: Body, options: Options, subresource: str) -> tuple[Object, bool]:
        applied = decoding.applied(kind, key, body)
        live = self._store.get(kind, *key)
        if live is None and subresource:
            raise not_found(kind, key[1])
        reset = _reset(kind, subresource)
        merged = managed_fields.apply(
            kind, live, applied, options.manager, force=options.force, subresource=subresource, reset=reset
        )
        uid = applied["metadata"].get("uid")
        if live is None and uid:
            why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise conflict(kind, key[1], why)
        item = decoding.read(kind, key, merged, options)
        if live is None:
            defaults.fill(kind, item)
            lifecycle.admit(self._store, kind, item)
            return self._insert(kind, item, options), True
        decoding.refuse_stale(kind, live, applied)
        claims = managed_fields.claims_of(item)
        item = managed_fields.with_claims(self._prepared(kind, live, item, subresource), claims)
        return self._commit(kind, live, item, options, subresource), False

    def _prepared(self, kind: Kind, live: Object, item: Object, subresource: str) -> Object:
        """Return the new object with defaults, and with what cannot be written this way as it was."""
        defaults.fill(kind, item)
        item = lifecycle.with_read_only_parts(kind, live, item, subresource)
        if kind.kind == "Service" and not subresource:
            return services.with_addresses(self._store, item, live, self._service_ranges)
        return item

    def _insert(self, kind: Kind, item: Object, options: Options) -> Object:
        item = lifecycle.initialized(kind, item)
        if kind.kind == "Service":
            item = services.with_addresses(self._store, item, None, self._service_ranges)
        name = item["metadata"].get("name", "")
        _refuse_invalid(kind, name, validation.check(kind, item))
        key = (item["metadata"].get("namespace", ""), name)
        if self._store.get(kind, *key) is not None:
            raise already_exists(kind, name)
        return item if options.dry_run else self._store.put(kind, key, item)

    def _commit(self, kind: Kind, live: Object, item: Object, options: Options, subresource: str) -> Object:
        namespace, name = live["metadata"].get("namespace", ""), live["metadata"]["name"]
        item = lifecycle.with_generation(kind, live, item)
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
        if subresource != "status":
            _refuse_invalid(kind, name, [*validation.check(kind, item), *validation.check_update(kind, live, item)])
        if _same(live, item):
            return live
        if options.dry_run:
            return item
        gone = lifecycle.is_removable(item)
        put = self._store.put(kind, (namespace, name), item, gone=gone)
        return item if gone else put

    def bind(self, kind: Kind, key: Key, node: str, options: Options) -> None:
        """Assign a pod to a node.

        Raises:
            Refusal: 404, or 409 when it has a node.
        """
        pod = lifecycle.assigned(kind, self.find(kind, key), node)
        if not options.dry_run:
            self._store.put(kind, key, pod)

    def delete(self, kind: Kind, key: Key, delete_options: Object) -> Object:
        """Delete an object, or mark it for deletion; returns the object or a Status.

        Args:
            kind: its kind.
            key: which one.
            delete_options: DeleteOptions.

        Raises:
            Refusal: the object does not exist, or a precondition does not hold.
        """
        policy = delete_options.get("propagationPolicy")
        if policy is not None and policy not in _POLICIES:
            wrong = unsupported("propagationPolicy", str(policy), _POLICIES)
            raise invalid("DeleteOptions", "meta.k8s.io", "", [wrong])
        if policy is None and delete_options.get("orphanDependents") is not None:
            policy = "Orphan" if delete_options["orphanDependents"] else "Background"
        live = self.find(kind, key)
        lifecycle.check_delete(kind, live, delete_options.get("preconditions") or {})
        finalizers = list(live["metadata"].get("finalizers") or ())
        if policy is not None:
            finalizers = [finalizer for finalizer in finalizers if finalizer not in _OF_THE_COLLECTOR.values()]
            finalizers += [_OF_THE_COLLECTOR[policy]] if policy in _OF_THE_COLLECTOR else []
        item = lifecycle.marked_for_deletion(kind, live, delete_options.get("gracePeriodSeconds"), finalizers)
        ends = lifecycle.is_removable(item)
        if ends and kind.kind != "Pod":  # the answer shows an object that is removed at once as it was
            item = live
        if not delete_options.get("dryRun") and (ends or not _same(live, item)):
            item = self._store.put(kind, key, item, gone=ends)
        if not ends or kind.kind in _SHOWN_WHEN_DELETED:
            return item
        details = about(kind, key[1], uid=live["metadata"]["uid"])
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _reset(kind: Kind, subresource: str = "") -> tuple[Path, ...]:
    return _RESET.get(subresource, ()) if kind.subresource("status") else ()


def _same(old: Object, new: Object) -> bool:
    """Return whether two objects differ in the times of managedFields only."""

    def timeless(item: Object) -> Object:
        entries = item["metadata"].get("managedFields") or ()
        bare = [{key: value for key, value in entry.items() if key != "time"} for entry in entries]
        return {**item, "metadata": {**item["metadata"], "managedFields": sorted(bare, key=schema.canonical)}}

    return timeless(old) == timeless(new)


def _refuse_invalid(kind: Kind, name: str, causes: list[Cause]) -> None:
    if causes:
        raise invalid(kind.kind, kind.group, name, causes)
