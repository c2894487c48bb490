"""What bringing an environment to a set of objects would change; nothing is written.

All objects are dry-run on the server before the first one is written, and unchanged objects are not written at all.
Objects that an earlier release added and this one no longer contains are pruned. An object of another manager is taken
over only on request (`force`), also where the server sees no conflict. What becomes of one object decides `planner`.
"""

from collections.abc import Iterable, Mapping, Sequence

from prefect_cd.environment.change_set import Action, ChangeSet, change_to, is_being_deleted
from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.planner import Planner
from prefect_cd.errors import Invalid, InvalidManifest, OwnershipConflict
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Identity, Ref, group_of
from prefect_cd.manifests.diff import strip
from prefect_cd.manifests.irreversible import definitions_of
from prefect_cd.manifests.labels import RECORD
from prefect_cd.manifests.load import Manifest
from prefect_cd.manifests.prepare import set_namespaces

# Its controller copies the labels of the Service to the Endpoints and sets no owner reference, so that an Endpoints
# object carries our labels though we did not apply it.
_ENDPOINTS_CONTROLLER = "endpoints.kubernetes.io/managed-by"
# Deleting one of these deletes data that applying it again does not bring back: the user has to do it.
HOLDS_DATA = frozenset({"Namespace", "PersistentVolume", "PersistentVolumeClaim", "CustomResourceDefinition"})


async def prepare_objects(
    cluster: Cluster, manifests: Sequence[Manifest], namespace: str, allowed: Sequence[str]
) -> tuple[Object, ...]:
    """The manifests as objects in the environment's namespace; see `prepare.set_namespaces` for what is refused.

    Raises:
        InvalidManifest: also for a kind that neither the cluster nor the manifests have, with file:line.
    """
    cluster.expect(definitions_of(manifest.item for manifest in manifests))
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
    take_back: bool = False,
) -> None:
    """Dry-run every object on the server; nothing is written.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        locations: file:line of each object, for errors.
        force: take fields over from other managers.
        take_back: as in `compute_changes`.

    Raises:
        InvalidManifest: the server's message, with file:line.
        OwnershipConflict: another manager owns what would be changed.
    """
    has_namespace = await namespace_exists(cluster, ownership.namespace)
    definitions = tuple(definitions_of(objects))
    planner = Planner(cluster, ownership, force=force, take_back=take_back, definitions=definitions)

    async def dry_run(item: Object) -> None:
        try:
            await (planner.change_of(item, None) if has_namespace else planner.creation_of(item))
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
    take_back: bool = False,
    restoring: bool = False,
    known: Iterable[Ref] = (),
    runs: Sequence[Object] = (),
) -> ChangeSet:
    """What applying `objects` would change; nothing is written.

    Args:
        cluster: the API server.
        ownership: the environment.
        objects: the full set, labelled and with namespaces.
        force: take fields over from other managers.
        take_back: take fields of objects that are ours back from whoever changed them by hand.
        restoring: `objects` are those of an earlier version: fields of objects that are ours are taken over, and what
            cannot go back is kept.
        known: the objects that releases have brought in here, by the records. Only these are pruned, and only where
            they carry our labels, too: a copy of an object has its labels and another name.
        runs: the objects of the version that runs here. A Job among them that the cluster has removed, by its
            `ttlSecondsAfterFinished`, is not run again.

    Raises:
        InvalidManifest: the server refuses an object; with the server's message.
        OwnershipConflict: another manager owns what would be changed.
    """
    cluster.expect(definitions_of(objects))
    definitions = tuple(definitions_of(objects))
    planner = Planner(
        cluster,
        ownership,
        force=force,
        take_back=take_back,
        restoring=restoring,
        definitions=definitions,
        runs=tuple(runs),
    )
    if not await namespace_exists(cluster, ownership.namespace):
        return ChangeSet(changes=tuple(await parallel(planner.creation_of(item) for item in objects)))
    # the versions of the set come first: those are served, and live objects can be compared with what is applied
    known = sorted(known)
    kinds = [*((item["apiVersion"], item["kind"]) for item in objects), *((ref.api_version, ref.kind) for ref in known)]
    ours = await _owned_objects(cluster, ownership, kinds)
    changes = await parallel(planner.change_of(item, ours.get(Ref.of(item).identity)) for item in objects)
    no_longer_wanted = {ref.identity for ref in known} - {Ref.of(item).identity for item in objects}
    surplus = [live for identity, live in sorted(ours.items()) if identity in no_longer_wanted and is_prunable(live)]
    pruned = [change_to(live, Action.PRUNED, live, states=(strip(live), None)) for live in surplus]
    return ChangeSet(changes=(*changes, *pruned))


async def live_objects(cluster: Cluster, refs: Iterable[Ref]) -> tuple[Object, ...]:
    """Those of the objects that exist, stripped so that they can be applied again; namespaces excepted."""
    found = await parallel(cluster.get(ref) for ref in refs if ref.kind != "Namespace")
    return tuple(strip(live) for live in found if live is not None)


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
            if not await cluster.is_served(api_version, name):  # no longer, or with all objects of the kind, or not yet
                continue
            kind = await cluster.kind(api_version, name)
            return await cluster.list(kind, ownership.namespace if kind.namespaced else "", labels=selector)
        return []

    lists = await parallel(list_kind(name, api_versions) for (_, name), api_versions in sorted(versions.items()))
    return {Ref.of(item).identity: item for items in lists for item in items}


def is_prunable(live: Object) -> bool:
    """Whether an object with our labels may be deleted."""
    metadata = live["metadata"]
    is_record_or_lock = RECORD in metadata["labels"]
    made_by_controller = _ENDPOINTS_CONTROLLER in metadata["labels"] or bool(metadata.get("ownerReferences"))
    return not (live["kind"] in HOLDS_DATA or is_record_or_lock or made_by_controller or is_being_deleted(live))
