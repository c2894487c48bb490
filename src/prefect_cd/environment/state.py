"""What an environment's records and its lock say together: for the stages that decide by it, and for the status."""

import asyncio
from datetime import datetime, timezone

from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.journal import Damage, Entry
from prefect_cd.environment.lease import added_objects, lease_ref, open_record
from prefect_cd.environment.namespace import namespace_exists
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, lost_record
from prefect_cd.environment.records import RecordStore
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object


async def read_state(cluster: Cluster, ownership: Ownership) -> EnvironmentState:
    """The state of an environment; damaged records are named in it, and raise nothing.

    A record that the lock calls open and that is gone counts as interrupted.
    """
    return (await read_state_and_lease(cluster, ownership))[0]


async def read_state_and_lease(cluster: Cluster, ownership: Ownership) -> tuple[EnvironmentState, Object | None]:
    """As `read_state`, with the Lease that was read for it."""
    if not await namespace_exists(cluster, ownership.namespace):
        return EnvironmentState(), None
    store = RecordStore(cluster, ownership)
    journal, lease = await asyncio.gather(store.journal(), cluster.get(lease_ref(ownership)))
    damaged = list(journal.damaged)
    good = await _examine(store, journal.known_good, damaged)
    lost = journal.lost(open_record(lease))
    if lost is not None:
        newest: Record | None = lost_record(ownership, lost, datetime.now(timezone.utc), added_objects(lease))
    elif journal.newest == journal.known_good:
        newest = good
    else:
        newest = await _examine(store, journal.newest, damaged)
    state = EnvironmentState(newest=newest, known_good=good, entries=journal.entries, damaged=tuple(damaged))
    return state, lease


async def _examine(store: RecordStore, entry: Entry | None, damaged: list[Damage]) -> Record | None:
    """The record of an entry; where it is damaged, that is added to `damaged`."""
    record = await store.examine(entry.number) if entry else None
    if isinstance(record, Damage):
        damaged.append(record)
        return None
    return record
