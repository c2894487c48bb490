"""Stage: become an environment's only writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from prefect_cd.environment.lease import Lock, hold
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target

_WAIT = timedelta(minutes=30)


@contextmanager
def hold_lock(target: Target, *, wait: timedelta = _WAIT) -> Iterator[Lock]:
    """Hold the environment's lock, which every stage that writes to an environment takes as a parameter.

    Args:
        target: the environment; its namespace is created when it is missing.
        wait: how long to wait for another writer to end.

    Raises:
        EnvironmentBusy: another writer is still at work after `wait`.
    """
    holder = f"{flow_run.flow_name or 'prefect-cd'}/{flow_run.id or 'outside-of-a-run'}"
    log().info("waiting for the lock of %s", target.name)
    # the lock asks in a thread of its own, which has none of our context, such as Prefect's settings
    context = copy_context()

    def is_over(holder: str) -> bool:
        return context.run(run_is_over, holder)

    with hold(target.access(), target.ownership, holder, wait=wait, is_over=is_over) as lock:
        log().info("writer of %s as %s", target.name, lock.holder)
        yield lock


def run_is_over(holder: str) -> bool:
    """Whether the flow run that a holder's name contains has ended, by Prefect's server; False where it is no run."""
    *_, run, _ = ["", "", *holder.split("/")]
    try:
        run_id = UUID(run)
    except ValueError:
        return False
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
    return state is not None and state.is_final()
