"""Stage: become an environment's only writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

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
    with hold(target.access(), target.ownership, holder, wait=wait) as lock:
        log().info("writer of %s as %s", target.name, lock.holder)
        yield lock
