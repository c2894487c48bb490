"""Faults that can be put into a run, one by one: tests of crashes must fail with each of them.

Each replaces one function, and names what it takes away. A variable of the environment chooses one.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

VARIABLE = "CRASH_MUTANT"
Method = Callable[..., Awaitable[Any]]


def _no_preconditions() -> None:
    """Writes do not say for which object they were planned."""
    from prefect_cd.kube.client import Cluster  # noqa: PLC0415

    def unconditional(write: Method) -> Method:
        async def write_anyway(*arguments: Any, uid: str = "", version: str = "", **options: Any) -> Any:  # noqa: ANN401
            del uid, version
            return await write(*arguments, **options)

        return write_anyway

    _replace(Cluster, "apply", unconditional(Cluster.apply))
    _replace(Cluster, "delete", unconditional(Cluster.delete))


def _delete_conflict_ignored() -> None:
    """A deletion that the server refuses, because the object has changed, counts as done."""
    from prefect_cd.kube.client import Cluster, Conflict  # noqa: PLC0415

    delete = Cluster.delete

    async def ignoring(*arguments: Any, **options: Any) -> None:  # noqa: ANN401
        try:
            await delete(*arguments, **options)
        except Conflict:
            return

    _replace(Cluster, "delete", ignoring)


def _every_label_is_ours() -> None:
    """Every object with our labels is pruned, whether a record knows it or not."""
    from prefect_cd.environment.changes import compute_changes  # noqa: PLC0415
    from prefect_cd.kube.client import Cluster  # noqa: PLC0415
    from prefect_cd.kube.resources import Ref  # noqa: PLC0415
    from prefect_cd.tasks import changes  # noqa: PLC0415

    async def by_kinds(cluster: Cluster, *arguments: Any, known: Iterable[Ref] = (), **options: Any) -> Any:  # noqa: ANN401
        ownership = arguments[0]
        known = set(known)
        for api_version, kind in {(ref.api_version, ref.kind) for ref in known}:
            served = await cluster.kind(api_version, kind)
            live = await cluster.list(served, ownership.namespace, labels=ownership.selector)
            known |= {Ref.of(item) for item in live}
        return await compute_changes(cluster, *arguments, known=known, **options)

    _replace(changes, "compute_changes", by_kinds)


def _being_deleted_is_unchanged() -> None:
    """An object that is being deleted counts as one that is there."""
    from prefect_cd.environment import planner  # noqa: PLC0415

    _replace(planner, "is_being_deleted", lambda _: False)


def _no_baseline() -> None:
    """What was there before the first release is not recorded."""
    from prefect_cd.environment.record import Record  # noqa: PLC0415
    from prefect_cd.environment.records import RecordStore  # noqa: PLC0415

    async def unwritten(_: RecordStore, record: Record, **_options: Any) -> Record:  # noqa: ANN401
        return record

    _replace(RecordStore, "start_baseline", unwritten)


def _objects_in_progress_are_forgotten() -> None:
    """Objects that only an interrupted release knows are not pruned."""
    from prefect_cd.environment.eligibility import EnvironmentState  # noqa: PLC0415
    from prefect_cd.kube.resources import Ref  # noqa: PLC0415

    def of_the_known_good(state: EnvironmentState) -> set[Ref]:
        return {Ref.of(item) for item in state.known_good.objects} if state.known_good else set()

    _replace(EnvironmentState, "known", property(of_the_known_good))


def _replace(owner: Any, name: str, by: object) -> None:  # noqa: ANN401  a class or a module
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name} any more: the fault has to be put elsewhere")
    setattr(owner, name, by)


MUTANTS: dict[str, Callable[[], None]] = {
    "no-preconditions": _no_preconditions,
    "delete-conflict-ignored": _delete_conflict_ignored,
    "every-label-is-ours": _every_label_is_ours,
    "being-deleted-is-unchanged": _being_deleted_is_unchanged,
    "no-baseline": _no_baseline,
    "objects-in-progress-forgotten": _objects_in_progress_are_forgotten,
}


def mutate(name: str = "") -> None:
    """Put a fault into this process: the named one, else the one that the environment names, else none."""
    if name := name or os.environ.get(VARIABLE, ""):
        MUTANTS[name]()
