"""Stage: become an environment's only writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from prefect.runtime import flow_run
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target

from prefect_cd.lock import Lock, hold

_WAIT = timedelta(minutes=30)


@contextmanager
def hold_lock(target: Target, *, wait: timedelta = _WAIT) -> Iterator[Lock]:
    """Hold the environment's lock: what writes to an environment takes it as a parameter.

    Args:
        target: the environment; its namespace is created when it is missing.
        wait: for another writer to end.

    Raises:
        EnvironmentBusy: another writer is still at work after `wait`.
    """
    holder = f"{flow_run.flow_name or 'run'}/{flow_run.name or ''}/{flow_run.id or 'outside-of-a-run'}"
    log().info("waiting for the lock of %s", target.name)
    with hold(target.access(), target.place, holder, wait=wait) as lock:
        log().info("writer of %s as %s", target.name, holder)
        yield lock
