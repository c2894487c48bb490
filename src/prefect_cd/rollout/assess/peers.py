"""Who else comes up: a program may end because another workload of the same release, its database, is not up yet.

Decides which ends are excused by that, and for how long. All times are the cluster's. Nothing is excused for ever: what
waits for each other would, and what never comes up is no excuse.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from heapq import nlargest
from typing import TypeVar

from prefect_cd.rollout.assess.model import Patience, Peers, Phase, Verdict
from prefect_cd.rollout.diagnosis.cause import Category, Cause

_Key = TypeVar("_Key", bound=Hashable)
_MAY_NEED_OTHERS = (Category.CRASH, Category.INIT_CONTAINER)
_MORE = 2
"""So many ends more are borne meanwhile; by the pauses of the kubelet (10, 20, 40 s) that is about a minute."""


def find_peers(verdicts: Mapping[_Key, Verdict], patience: Patience) -> dict[_Key, Peers]:
    """What the other workloads of a release are to each of it, by the latest verdicts.

    One that crashes too often itself, and not for want of a third, is not coming up.
    """
    up = {key: at for key, each in verdicts.items() if each.phase is Phase.COMPLETE and (at := each.unchanged_since)}
    latest = nlargest(2, up.items(), key=lambda each: each[1])
    all_up = Peers(up_at=latest[0][1] if latest else None)
    coming = {
        key for key, each in verdicts.items() if each.phase is Phase.PROGRESSING and not _fails(each, all_up, patience)
    }
    return {
        key: Peers(
            coming=len(coming) > (key in coming),
            up_at=next((at for other, at in latest if other != key), None),
        )
        for key in verdicts
    }


def _fails(verdict: Verdict, others: Peers, patience: Patience) -> bool:
    """Whether it crashes too often, and that is its own fault."""
    counting = [each for each in verdict.causes if each.counts and each.times >= patience.crashes]
    return any(not _too_early(each, others) for each in counting)


def excused(cause: Cause, others: Peers, patience: Patience) -> Cause:
    """An end that may be for want of others is left to a run that begins when they are up."""
    most = patience.crashes + _MORE
    if cause.category not in _MAY_NEED_OTHERS or cause.left_to or cause.times >= most or not _too_early(cause, others):
        return cause
    now = "others are still coming up" if others.coming else "to be run again, now that the others are up"
    return replace(cause, left_to=f"{now}: given up at {most}")


def _too_early(cause: Cause, others: Peers) -> bool:
    """Whether the run that ended began before all others were up."""
    return others.coming or bool(others.up_at and cause.seen and cause.seen <= others.up_at)
