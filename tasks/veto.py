"""Part of a deployment: a release that the environment has given up does not come in again by itself."""

from prefect_cd.environment.journal import Entry
from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.veto import veto
from prefect_cd.kube.client import Cluster
from prefect_cd.release.model import Release
from prefect_cd.tasks.target import Target


def refuse_vetoed(target: Target, release: Release, *, again: bool) -> None:
    """Stop a release that was rolled back or withdrawn here, unless a user wants it again.

    Raises:
        Vetoed: see `veto.veto`.
    """

    async def run(cluster: Cluster) -> tuple[Entry, ...]:
        if not await namespace_exists(cluster, target.environment.namespace):
            return ()
        return await RecordStore(cluster, target.ownership).entries()

    if not again and (error := veto(target.name, release, target.run(run), again=again)):
        raise error
