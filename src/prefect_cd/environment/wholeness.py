"""Whether an environment is whole: exactly one version, and nothing half done. Pure.

It is asked last before a record gets its outcome, by `prefect-cd status` and `recover`, and by the tests that kill
runs. What the plan leaves alone is no defect: the replicas of a workload with an autoscaler, or a Job that was removed
when it had ended.
"""

from collections.abc import Iterable
from enum import Enum
from typing import Protocol

from prefect_cd.environment.eligibility import EnvironmentState, damage_problem
from prefect_cd.kube.resources import Ref
from prefect_cd.release.model import Result


class DefectKind(str, Enum):
    """What is not whole. The values are a stable contract: they are in the JSON of `prefect-cd status`."""

    DIFFERS = "differs"
    MISSING = "missing"
    SURPLUS = "surplus"
    TERMINATING = "terminating"
    OPEN_RECORD = "open record"
    DAMAGED_RECORD = "damaged record"


class Defect(Result):
    """One thing that keeps an environment from being whole."""

    kind: DefectKind
    where: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.kind.value}" + (f" ({self.detail})" if self.detail else "")


class PlannedChange(Protocol):
    """What applying a version would do with one object: a `Change`, whose module makes requests."""

    @property
    def action(self) -> str:
        """An `Action`."""

    @property
    def ref(self) -> Ref:
        """Which object."""


# compared by value: an Enum of text has the hash of its name
_BY_ACTION = (
    ("created", DefectKind.MISSING),
    ("changed", DefectKind.DIFFERS),
    ("replaced", DefectKind.DIFFERS),
    ("kept", DefectKind.DIFFERS),
    ("recreated", DefectKind.TERMINATING),
    ("pruned", DefectKind.SURPLUS),
)


def defects(
    changes: Iterable[PlannedChange], state: EnvironmentState, *, settling: int | None = None
) -> tuple[Defect, ...]:
    """What keeps an environment from being exactly one version; empty when it is whole.

    Args:
        changes: what bringing that version back would change now.
        state: what the records and the lock say.
        settling: the number of the record that is about to get its outcome, and so may be open.
    """
    problems: list[Defect] = []
    if damage := damage_problem(state):
        problems.append(Defect(kind=DefectKind.DAMAGED_RECORD, where=damage.where, detail=damage.reason))
    if (record := state.interrupted) and record.number != settling:
        where = f"record {record.number}"
        problems.append(Defect(kind=DefectKind.OPEN_RECORD, where=where, detail=record.reason or record.state.value))
    return (*problems, *object_defects(changes))


def object_defects(changes: Iterable[PlannedChange]) -> tuple[Defect, ...]:
    """As `defects`, of the objects alone."""
    return tuple(
        Defect(kind=kind, where=str(change.ref))
        for change in changes
        for action, kind in _BY_ACTION
        if change.action == action
    )
