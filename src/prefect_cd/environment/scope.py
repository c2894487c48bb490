"""Whether what a record contains may be written to its environment: the same rules as for a commit's manifests.

A record lies where the environment's own pods may be able to write. So before anything comes out of it, its objects
have to be in the environment's namespace, or cluster-scoped of a kind that the pipeline file allows now. Whatever the
pipeline file allowed when the record was written does not count: only the operator changes that file.
"""

from collections.abc import Iterable

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record
from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object, dig
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.irreversible import definitions_of
from prefect_cd.manifests.load import Manifest, refuse_malformed
from prefect_cd.manifests.prepare import refuse_out_of_scope
from prefect_cd.manifests.reserved import reserved_name

_Scopes = dict[tuple[str, str], bool]
"""(apiVersion, kind) -> whether its objects live in a namespace."""


async def scope_problem(cluster: Cluster, ownership: Ownership, record: Record) -> InvalidManifest | None:
    """Why a record is not one of this environment; None where everything in it may be written here.

    Args:
        cluster: the API server, which knows which kinds live in namespaces.
        ownership: the environment.
        record: as it was read.
    """
    objects = [*record.objects, *record.replaced]
    try:
        for item in objects:
            refuse_malformed(item, "the record")
            if problem := reserved_name(item):
                raise InvalidManifest(problem.problem)
        _refuse_other_namespaces(ownership, (*record.known, *record.pruned))
        scopes = await _scopes(cluster, objects)
        for item in objects:
            refuse_out_of_scope(Manifest(item, ""), ownership.namespace, scopes, ownership.cluster_scoped)
            if scopes[item["apiVersion"], item["kind"]] and not item["metadata"].get("namespace"):
                raise InvalidManifest(f"{Ref.of(item)} is in no namespace")
    except InvalidManifest as error:
        return error
    return None


def _refuse_other_namespaces(ownership: Ownership, refs: Iterable[Ref]) -> None:
    for ref in refs:
        if ref.namespace not in {"", ownership.namespace}:
            raise InvalidManifest(f"{ref} is in namespace {ref.namespace!r}, not in {ownership.namespace!r}")


async def _scopes(cluster: Cluster, objects: Iterable[Object]) -> _Scopes:
    """The scopes of all kinds of these objects, also of those whose definitions are among them."""
    objects = list(objects)
    kinds = sorted({(item["apiVersion"], item["kind"]) for item in objects})
    served = await parallel(cluster.is_served(*kind) for kind in kinds)
    scopes: _Scopes = {}
    for (api_version, name), is_served in zip(kinds, served, strict=True):
        if is_served:
            scopes[api_version, name] = (await cluster.kind(api_version, name)).namespaced
        else:
            scopes[api_version, name] = _is_defined_in_namespaces(api_version, name, objects)
    return scopes


def _is_defined_in_namespaces(api_version: str, kind: str, objects: Iterable[Object]) -> bool:
    """The scope of a kind that the server does not have: as a definition among the objects says, else a namespace's."""
    group = api_version.rpartition("/")[0]
    return not any(
        (dig(item, "spec", "group"), dig(item, "spec", "names", "kind")) == (group, kind)
        and dig(item, "spec", "scope") != "Namespaced"
        for item in definitions_of(objects)
    )


__all__ = ["scope_problem"]
