"""Ownership: adopt orphans that match a selector, release objects that no longer match.

Rules: the documentation of label selectors and of the ReplicaSet's "non-template pod acquisitions". Objects of another
controller are left alone, whatever their labels.
"""

from collections.abc import Iterable, Mapping

from prefect_cd_local.client import MERGE, ApiError, Client, Object, Resource
from prefect_cd_local.controllers.loop import Cache
from prefect_cd_local.controllers.objects import (
    Key,
    controller_of,
    is_controlled_by,
    is_ending,
    key_of,
    labels,
    owners_of,
    reference_to,
    uid_of,
)

_NOT_FOUND, _INVALID = 404, 422


def selects(selector: Object, labels_of_object: Mapping[str, str]) -> bool:
    """Return whether a LabelSelector matches these labels; an empty one matches all."""
    pairs = (selector.get("matchLabels") or {}).items()
    return pairs <= labels_of_object.items() and all(
        _fits(expression, labels_of_object) for expression in selector.get("matchExpressions") or []
    )


def _fits(expression: Object, labels_of_object: Mapping[str, str]) -> bool:
    has = expression["key"] in labels_of_object
    match expression["operator"]:
        case "In":
            return has and labels_of_object[expression["key"]] in expression["values"]
        case "NotIn":
            return not has or labels_of_object[expression["key"]] not in expression["values"]
        case "Exists":
            return has
        case _:
            return not has


def owners_to_sync(obj: Object, owners: Cache) -> list[Key]:
    """Return the owners to reconcile when an object changes: its controller, or all that might adopt an orphan."""
    reference, (namespace, _) = controller_of(obj), key_of(obj)
    if reference is None:
        return [key_of(owner) for owner in owners.all(namespace)]
    return [(namespace, reference["name"])] if reference["kind"] == owners.resource.kind else []


async def claim(
    client: Client, owner: Object, kind: Resource, cache: Cache, candidates: Iterable[Object]
) -> list[Object]:
    """Return the owner's objects, after adopting and releasing.

    Args:
        client: for the writes.
        owner: a ReplicaSet or Deployment.
        kind: of the owner.
        cache: of the objects.
        candidates: objects that may belong to the owner.
    """
    mine = []
    for obj in candidates:
        fits = selects(owner["spec"]["selector"], labels(obj))
        if is_controlled_by(obj, owner):
            if fits:
                mine.append(obj)
            elif not is_ending(owner):
                await _write_owner_references(
                    client, cache, obj, [reference for reference in owners_of(obj) if reference["uid"] != uid_of(owner)]
                )
        elif controller_of(obj) is None and fits and not is_ending(obj) and await _is_still_there(client, owner, kind):
            adopted = await _write_owner_references(client, cache, obj, [*owners_of(obj), reference_to(owner)])
            mine += [adopted] if adopted else []
    return mine


async def _is_still_there(client: Client, owner: Object, kind: Resource) -> bool:
    """Ask the server whether the owner still exists, since the cache may be late."""
    if is_ending(owner):
        return False
    namespace, name = key_of(owner)
    fresh = await client.find(kind, name, namespace)
    return fresh is not None and uid_of(fresh) == uid_of(owner) and not is_ending(fresh)


async def _write_owner_references(client: Client, cache: Cache, obj: Object, references: list[Object]) -> Object | None:
    """Write owner references, unless the object is gone; raises 409 where another writer was faster."""
    meta = {key: obj["metadata"][key] for key in ("uid", "resourceVersion")}
    namespace, name = key_of(obj)
    change = {"metadata": {**meta, "ownerReferences": references or None}}
    try:
        written = await client.patch(cache.resource, name, namespace, change, MERGE)
    except ApiError as error:
        if error.code in {_NOT_FOUND, _INVALID}:  # gone, or replaced by another object of that name
            return None
        raise
    cache.put(written)
    return written
