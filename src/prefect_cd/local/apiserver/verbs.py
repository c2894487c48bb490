"""Create, update, patch, apply and delete: from a body that was sent to the object that is kept.

The order is the real server's: read by the schema (reading.py), fill in defaults, keep what cannot be written this way,
account for who owns what, let admission and validation speak, commit. Everything is synchronous; see storage.py. HTTP
is routes.py's.
"""

import ipaddress
from collections.abc import Callable
from typing import Any

from prefect_cd.local.apiserver import defaults, lifecycle, managers, patch, reading, schema, services, validation
from prefect_cd.local.apiserver.errors import (
    Cause,
    about,
    already_exists,
    invalid,
    not_found,
    unsupported,
)
from prefect_cd.local.apiserver.fieldset import Path
from prefect_cd.local.apiserver.kinds import Kind
from prefect_cd.local.apiserver.options import APPLY, JSON, MERGE, Options
from prefect_cd.local.apiserver.storage import Key, Store

Object = dict[str, Any]
Body = Any
Change = Callable[[Object], Object]
_POLICIES = ("Foreground", "Background", "Orphan", "nil")
_OF_THE_COLLECTOR = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
_SHOWN_WHEN_DELETED = {"Pod", "Service", "ServiceAccount", "Namespace"}
_RESET: dict[str, tuple[Path, ...]] = {"status": (("f:spec",),), "": (("f:status",),)}


class Verbs:
    """The writing verbs over one store."""

    def __init__(self, store: Store, network: ipaddress.IPv4Network) -> None:
        self._store = store
        self._network = network

    def find(self, kind: Kind, key: Key) -> Object:
        """The object.

        Raises:
            Refusal: 404.
        """
        found = self._store.get(kind, *key)
        if found is None:
            raise not_found(kind, key[1])
        return found

    def create(self, kind: Kind, namespace: str, body: Body, options: Options) -> Object:
        """A new object from a body.

        Raises:
            Refusal: it exists, is invalid, or its namespace is not there.
        """
        item = reading.read(kind, (namespace, ""), body, options)
        defaults.fill(kind, item)
        lifecycle.admit(self._store, kind, item)  # what is refused is called by the beginning of its name
        item = lifecycle.named(item)
        return self._bear(kind, managers.record_update(kind, None, item, options.manager, reset=_reset(kind)), options)

    def replace(self, kind: Kind, key: Key, body: Body, options: Options, subresource: str = "") -> Object:
        """The object as it is sent.

        Raises:
            Refusal: see `update`.
        """
        return self.update(kind, key, lambda _: reading.read(kind, key, body, options), options, subresource)

    def patch(
        self, kind: Kind, key: Key, body: Body, how: str, options: Options, below: str = ""
    ) -> tuple[Object, bool]:
        """The object after a patch of it or its subresource, and whether it was created (by an apply only).

        Raises:
            Refusal: the patch cannot be carried out, or see `update`.
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
            return reading.read(kind, key, patched, options)

        return self.update(kind, key, change, options, below), False

    def update(self, kind: Kind, key: Key, change: Change, options: Options, subresource: str = "") -> Object:
        """Commit what `change` makes of an object; nothing is written when nothing changes.

        Raises:
            Refusal: it is not there, was changed by others since, or would be invalid.
        """
        live = self.find(kind, key)
        item = change(live)
        reading.refuse_stale(kind, live, item)
        item = self._settled(kind, live, item, subresource)
        item = managers.record_update(kind, live, item, options.manager, subresource)
        return self._commit(kind, live, item, options, subresource)

    def _apply(self, kind: Kind, key: Key, body: Body, options: Options, subresource: str) -> tuple[Object, bool]:
        applied = reading.applied(kind, key, body)
        live = self._store.get(kind, *key)
        if live is None and subresource:
            raise not_found(kind, key[1])
        if live is not None and applied["metadata"].get("resourceVersion"):
            reading.refuse_stale(kind, live, applied)
        reset = _reset(kind, subresource)
        merged = managers.apply(
            kind, live, applied, options.manager, force=options.force, subresource=subresource, reset=reset
        )
        item = reading.read(kind, key, merged, options)
        if live is None:
            defaults.fill(kind, item)
            lifecycle.admit(self._store, kind, item)
            return self._bear(kind, item, options), True
        claims = managers.claims_of(item)
        item = managers.with_claims(self._settled(kind, live, item, subresource), claims)
        return self._commit(kind, live, item, options, subresource), False

    def _settled(self, kind: Kind, live: Object, item: Object, subresource: str) -> Object:
        """What is wanted, with defaults, and with what cannot be written this way as it is."""
        defaults.fill(kind, item)
        item = lifecycle.isolated(kind, live, item, subresource)
        if kind.kind == "Service" and not subresource:
            return services.addressed(self._store, item, live, self._network)
        return item

    def _bear(self, kind: Kind, item: Object, options: Options) -> Object:
        item = lifecycle.born(kind, item)
        if kind.kind == "Service":
            item = services.addressed(self._store, item, None, self._network)
        name = item["metadata"].get("name", "")
        _refuse_invalid(kind, name, validation.check(kind, item))
        key = (item["metadata"].get("namespace", ""), name)
        if self._store.get(kind, *key) is not None:
            raise already_exists(kind, name)
        return item if options.dry_run else self._store.put(kind, key, item)

    def _commit(self, kind: Kind, live: Object, item: Object, options: Options, subresource: str) -> Object:
        namespace, name = live["metadata"].get("namespace", ""), live["metadata"]["name"]
        item = lifecycle.aged(kind, live, item)
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
        if subresource != "status":
            _refuse_invalid(kind, name, [*validation.check(kind, item), *validation.check_update(kind, live, item)])
        if _same(live, item):
            return live
        if options.dry_run:
            return item
        gone = lifecycle.finished(item)
        put = self._store.put(kind, (namespace, name), item, gone=gone)
        return item if gone else put

    def bind(self, kind: Kind, key: Key, node: str, options: Options) -> None:
        """Assign a pod to a node.

        Raises:
            Refusal: 404, or 409 when it has a node.
        """
        pod = lifecycle.bound(kind, self.find(kind, key), node)
        if not options.dry_run:
            self._store.put(kind, key, pod)

    def delete(self, kind: Kind, key: Key, asked: Object) -> Object:
        """End an object, or mark it for its end; the answer is the object or a Status.

        Args:
            kind: its kind.
            key: which one.
            asked: DeleteOptions.

        Raises:
            Refusal: it is not there, or a precondition does not hold.
        """
        policy = asked.get("propagationPolicy")
        if policy is not None and policy not in _POLICIES:
            wrong = unsupported("propagationPolicy", str(policy), _POLICIES)
            raise invalid("DeleteOptions", "meta.k8s.io", "", [wrong])
        if policy is None and asked.get("orphanDependents") is not None:
            policy = "Orphan" if asked["orphanDependents"] else "Background"
        live = self.find(kind, key)
        lifecycle.refuse_delete(kind, live, asked.get("preconditions") or {})
        finalizers = list(live["metadata"].get("finalizers") or ())
        if policy is not None:
            finalizers = [each for each in finalizers if each not in _OF_THE_COLLECTOR.values()]
            finalizers += [_OF_THE_COLLECTOR[policy]] if policy in _OF_THE_COLLECTOR else []
        item = lifecycle.dying(kind, live, asked.get("gracePeriodSeconds"), finalizers)
        ends = lifecycle.finished(item)
        if ends and kind.kind != "Pod":  # what goes at once is shown as it was
            item = live
        if not asked.get("dryRun") and (ends or not _same(live, item)):
            item = self._store.put(kind, key, item, gone=ends)
        if not ends or kind.kind in _SHOWN_WHEN_DELETED:
            return item
        details = about(kind, key[1], uid=live["metadata"]["uid"])
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _reset(kind: Kind, subresource: str = "") -> tuple[Path, ...]:
    return _RESET.get(subresource, ()) if kind.subresource("status") else ()


def _same(old: Object, new: Object) -> bool:
    """Whether nothing differs but when who wrote it."""

    def timeless(item: Object) -> Object:
        entries = item["metadata"].get("managedFields") or ()
        bare = [{key: each for key, each in entry.items() if key != "time"} for entry in entries]
        return {**item, "metadata": {**item["metadata"], "managedFields": sorted(bare, key=schema.canonical)}}

    return timeless(old) == timeless(new)


def _refuse_invalid(kind: Kind, name: str, causes: list[Cause]) -> None:
    if causes:
        raise invalid(kind.kind, kind.group, name, causes)
