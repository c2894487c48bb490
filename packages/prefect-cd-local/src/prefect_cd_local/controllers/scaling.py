"""Sizes of a Deployment's ReplicaSets in the next step: a pure function of the Deployment and its ReplicaSets.

Rules: the documentation of Deployments (strategy, proportional scaling), and recordings of the real controller in
tests/conformance/rollouts. At most replicas + maxSurge pods are wanted at any time, and the controller leaves at least
replicas - maxUnavailable of them available.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prefect_cd_local.client import Object
from prefect_cd_local.controllers.objects import annotations
from prefect_cd_local.controllers.revisions import DESIRED, MAXIMUM, by_age


class Scale(NamedTuple):
    """A ReplicaSet and its next size; None stands for that of the present template, which is still to be created."""

    rs: Object | None
    replicas: int


def wanted(obj: Object | None) -> int:
    """Return spec.replicas; 0 for a missing ReplicaSet."""
    return int(obj["spec"].get("replicas") or 0) if obj else 0


def counted(obj: Object | None, name: str) -> int:
    """Return a counter of the status; 0 for a missing ReplicaSet."""
    return int(((obj or {}).get("status") or {}).get(name) or 0)


def total(sets: Iterable[Object | None]) -> int:
    """Return the number of pods that all of the ReplicaSets want."""
    return sum(wanted(rs) for rs in sets)


def active(sets: Iterable[Object | None]) -> list[Object]:
    """Return the ReplicaSets that want pods."""
    return [rs for rs in sets if rs and wanted(rs)]


def is_rolling(deployment: Object) -> bool:
    """Return whether old and new pods may run side by side."""
    return (deployment["spec"].get("strategy") or {}).get("type") != "Recreate"


def slack(deployment: Object) -> tuple[int, int]:
    """Return how many pods there may be above spec.replicas, and how many of them need not be available."""
    replicas = wanted(deployment)
    if not is_rolling(deployment):
        return 0, 0
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    surge = _part_of(rolling.get("maxSurge", 0), replicas, 99)
    unavailable = _part_of(rolling.get("maxUnavailable", 0), replicas, 0)
    return (
        (surge, min(unavailable, replicas)) if surge or unavailable else (0, min(1, replicas))
    )  # one of the two must not be 0


def _part_of(value: int | str, whole: int, rounding: int) -> int:
    """Return a number, or a percentage of the whole."""
    return value if isinstance(value, int) else (int(value.removesuffix("%")) * whole + rounding) // 100


def rolling(deployment: Object, new: Object | None, old: Sequence[Object]) -> list[Scale]:
    """Return one step of a rolling update: grow the newest ReplicaSet where there is room, else shrink old ones."""
    goal, size, surge = wanted(deployment), wanted(new), slack(deployment)[0]
    room = goal + surge - total([*old, new])
    next_size = size + max(0, min(room, goal - size)) if size < goal else goal
    return [Scale(new, next_size)] if new is None or next_size != size else _fewer(deployment, new, old)


def _fewer(deployment: Object, new: Object, old: Sequence[Object]) -> list[Scale]:
    """Shrink the old ReplicaSets as far as allowed: first pods that are not available, then available ones."""
    old = sorted(active(old), key=by_age)
    least = wanted(deployment) - slack(deployment)[1]
    available = [min(counted(rs, "availableReplicas"), wanted(rs)) for rs in old]  # those beyond are terminating
    new_available = counted(new, "availableReplicas")
    spare = total(old) + new_available - least  # new pods count once they are available
    if spare <= 0:
        return []
    sizes = [wanted(rs) for rs in old]
    broken = [max(0, size - count) for size, count in zip(sizes, available, strict=True)]
    sizes = _taken(sizes, broken, spare)
    sizes = _taken(sizes, sizes, sum(available) + new_available - least)
    return [Scale(rs, size) for rs, size in zip(old, sizes, strict=True) if size != wanted(rs)]


def _taken(sizes: Sequence[int], offers: Sequence[int], budget: int) -> list[int]:
    """Take a budget from sizes, in their order, from each at most what it can give."""
    left = []
    for size, offer in zip(sizes, offers, strict=True):
        gift = max(0, min(budget, offer))
        budget -= gift
        left.append(size - gift)
    return left


def recreating(deployment: Object, new: Object | None, old: Sequence[Object], *, old_pods_run: bool) -> list[Scale]:
    """Return one step of a Recreate: all old pods end before the first new one starts."""
    goal = wanted(deployment)
    if active(old) or old_pods_run:
        return [Scale(rs, 0) for rs in active(old)]
    return [Scale(new, goal)] if new is None or wanted(new) != goal else []


def is_resized(deployment: Object, sets: Iterable[Object]) -> bool:
    """Return whether spec.replicas has changed since the ReplicaSets were last sized."""
    noted = {annotations(rs).get(DESIRED, "") for rs in active(sets)}
    return any(note.isdecimal() and int(note) != wanted(deployment) for note in noted)


def proportional(deployment: Object, new: Object | None, old: Sequence[Object]) -> list[Scale]:
    """Spread a change of spec.replicas over the ReplicaSets in proportion to their sizes.

    A single one gets all of it; when the newest is complete, the old ones end. Where several share, ReplicaSets of
    unchanged size are returned, too, because their annotations must have the new spec.replicas.
    """
    goal, living = wanted(deployment), active([*old, new])
    if len(living) <= 1:
        only = living[0] if living else new or max(old, key=by_age, default=None)
        return [Scale(only, goal)] if only and wanted(only) != goal else []
    if new and annotations(new).get(DESIRED) == str(goal) == str(wanted(new)) == str(counted(new, "availableReplicas")):
        return [Scale(rs, 0) for rs in active(old)]
    return _shares(deployment, living) if is_rolling(deployment) else []


def _shares(deployment: Object, living: Sequence[Object]) -> list[Scale]:
    """Return each ReplicaSet's share of the change, larger ones first; the largest gets the rest of the rounding."""
    most = wanted(deployment) + slack(deployment)[0] if wanted(deployment) else 0
    change = left = most - total(living)
    # Among ReplicaSets of equal size the newest grows first, and the oldest shrinks first.
    ordered = sorted(sorted(living, key=by_age, reverse=change > 0), key=wanted, reverse=True)
    sizes = []
    for rs in ordered:
        share = _ideal(deployment, rs, most) - wanted(rs) if left else 0
        share = min(share, left) if change > 0 else max(share, left)
        left -= share
        sizes.append(wanted(rs) + share)
    sizes[0] = max(0, sizes[0] + left)
    return [Scale(rs, size) for rs, size in zip(ordered, sizes, strict=True)]


def _ideal(deployment: Object, rs: Object, most: int) -> int:
    """Return the size in proportion to the new total `most`; half a pod counts as one."""
    note = annotations(rs).get(MAXIMUM, "")
    before = int(note) if note.isdecimal() and int(note) else counted(deployment, "replicas")
    return (2 * wanted(rs) * most + before) // (2 * before) if before else wanted(rs)
