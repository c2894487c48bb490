"""The other workloads of a release: a program may crash because its database, in the same release, is not ready yet.

Decides which crashes are deferred for that reason, and for how long. All times are the cluster's. Nothing is deferred
forever: two workloads may wait for each other, and a workload that never starts is no reason to wait.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

from prefect_cd.rollout.assess.model import Patience, Peers, Phase, Verdict
from prefect_cd.rollout.diagnosis.cause import Category, Cause

_Key = TypeVar("_Key", bound=Hashable)
MAY_NEED_PEERS = (Category.CRASH, Category.INIT_CONTAINER)
"""Problems that a peer may cause which is not ready yet; docs/categories.md lists them."""
_MORE_CRASHES = 2
"""Crashes tolerated beyond the setting; by the pauses of the kubelet (10, 20, 40 s) that is about a minute."""


def find_peers(verdicts: Mapping[_Key, Verdict], patience: Patience) -> dict[_Key, Peers]:
    """For each workload of a release, the state of the others by their latest verdicts.

    A workload that crashes too often does not count as starting, unless it may be waiting for a third.
    """
    ready_times = {
        key: verdict.unchanged_since
        for key, verdict in verdicts.items()
        if verdict.phase is Phase.COMPLETE and verdict.unchanged_since
    }
    ready = Peers(ready_at=max(ready_times.values(), default=None))
    starting = {
        key
        for key, verdict in verdicts.items()
        if verdict.phase is Phase.PROGRESSING and not _fails_by_itself(verdict, ready, patience)
    }
    # For the workload that became ready last, the one before it is the last of its peers.
    last_two = sorted(ready_times, key=ready_times.__getitem__, reverse=True)[:2]
    return {
        key: Peers(
            starting=any(other != key for other in starting),
            ready_at=next((ready_times[other] for other in last_two if other != key), None),
        )
        for key in verdicts
    }


def _fails_by_itself(verdict: Verdict, peers: Peers, patience: Patience) -> bool:
    """Whether a workload crashes too often, although all its peers were ready."""
    crashes = [cause for cause in verdict.causes if cause.counted and cause.times >= patience.crashes]
    return any(not _may_be_early(cause, peers) for cause in crashes)


def defer_early_crash(cause: Cause, peers: Peers, patience: Patience) -> Cause:
    """Defer a crash that may be due to missing peers, until a run ends that began after the peers were ready."""
    limit = patience.crashes + _MORE_CRASHES
    if cause.category not in MAY_NEED_PEERS or cause.deferred or cause.times >= limit:
        return cause
    if not _may_be_early(cause, peers):
        return cause
    reason = (
        "other workloads are still starting"
        if peers.starting
        else "waiting for a retry now that the other workloads are ready"
    )
    return replace(cause, deferred=f"{reason}: fails after {limit} crashes")


def _may_be_early(cause: Cause, peers: Peers) -> bool:
    """Whether the run that ended began before all peers were ready."""
    return peers.starting or bool(peers.ready_at and cause.last_seen and cause.last_seen <= peers.ready_at)
