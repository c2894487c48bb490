"""Whose object is it: taking in orphans that a selector takes, letting go of what it takes no more.

Rules: the documentation of label selectors and of the ReplicaSet's "non-template pod acquisitions". What another
controller owns is left alone whatever its labels.
"""

from collections.abc import Iterable, Mapping

from prefect_cd.local.client import MERGE, ApiError, Client, Object, Resource
from prefect_cd.local.controllers.loop import Cache
from prefect_cd.local.controllers.objects import (
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


def selects(selector: Object, wearer: Mapping[str, str]) -> bool:
    """Tell whether a LabelSelector takes these labels; an empty one takes all."""
    pairs = (selector.get("matchLabels") or {}).items()
    return pairs <= wearer.items() and all(_fits(each, wearer) for each in selector.get("matchExpressions") or [])


def _fits(expression: Object, wearer: Mapping[str, str]) -> bool:
    has = expression["key"] in wearer
    match expression["operator"]:
        case "In":
            return has and wearer[expression["key"]] in expression["values"]
        case "NotIn":
            return not has or wearer[expression["key"]] not in expression["values"]
        case "Exists":
            return has
        case _:
            return not has


def claimants(obj: Object, owners: Cache) -> list[Key]:
    """Give who should look at an object that changed: its controller, or whoever might adopt an orphan."""
    reference, (namespace, _) = controller_of(obj), key_of(obj)
    if reference is None:
        return [key_of(owner) for owner in owners.all(namespace)]
    return [(namespace, reference["name"])] if reference["kind"] == owners.resource.kind else []


async def claim(client: Client, owner: Object, kind: Resource, cache: Cache, found: Iterable[Object]) -> list[Object]:
    """Give those that are the owner's, after adopting and releasing what is due.

    Args:
        client: for the writes.
        owner: a ReplicaSet or Deployment.
        kind: of the owner.
        cache: of what may be owned.
        found: what may be the owner's.
    """
    mine = []
    for obj in found:
        fits = selects(owner["spec"]["selector"], labels(obj))
        if is_controlled_by(obj, owner):
            if fits:
                mine.append(obj)
            elif not is_ending(owner):
                await _refer(client, cache, obj, [each for each in owners_of(obj) if each["uid"] != uid_of(owner)])
        elif controller_of(obj) is None and fits and not is_ending(obj) and await _is_still_there(client, owner, kind):
            adopted = await _refer(client, cache, obj, [*owners_of(obj), reference_to(owner)])
            mine += [adopted] if adopted else []
    return mine


async def _is_still_there(client: Client, owner: Object, kind: Resource) -> bool:
    """Ask the server whether the owner still is who it was; a cache may be late."""
    if is_ending(owner):
        return False
    namespace, name = key_of(owner)
    fresh = await client.find(kind, name, namespace)
    return fresh is not None and uid_of(fresh) == uid_of(owner) and not is_ending(fresh)


async def _refer(client: Client, cache: Cache, obj: Object, references: list[Object]) -> Object | None:
    """Write owner references, unless the object is gone or someone else wrote meanwhile (409)."""
    meta = {key: obj["metadata"][key] for key in ("uid", "resourceVersion")}
    namespace, name = key_of(obj)
    change = {"metadata": {**meta, "ownerReferences": references or None}}
    try:
        written = await client.patch(cache.resource, name, namespace, change, MERGE)
    except ApiError as error:
        if error.code in {_NOT_FOUND, _INVALID}:  # gone, or a namesake
            return None
        raise
    cache.put(written)
    return written
