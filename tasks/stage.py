"""How a stage behaves as a Prefect task: what is retried, what is kept, what its log says."""

import logging
from collections.abc import Callable
from typing import Any

import stamina.instrumentation
from prefect.cache_policies import DEFAULT
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.tasks import Task, exponential_backoff

from prefect_cd.errors import EnvironmentBusy, Errored, GateErrored, LockLost

# the core logs each retry with its reason; stamina's own line would say it again without one
stamina.instrumentation.set_on_retry_hooks([])

RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
}
"""Options of a task whose errored attempts may heal: three more attempts after 2, 4 and 8 s."""

KEPT: dict[str, Any] = {"persist_result": True, "result_serializer": "json", "cache_policy": DEFAULT}
"""Options of a task whose result a resumed run takes over instead of running it again."""


def may_heal(_task: "Task[..., Any]", _run: TaskRun, state: State[Any]) -> bool:
    """Retry only what could not be found out, and not what already waited its time."""
    try:
        state.result()
    except (GateErrored, EnvironmentBusy, LockLost):
        return False
    except Errored:
        return True
    except BaseException:  # noqa: BLE001  anything else is an answer, or a mistake of ours
        return False
    return False


RETRIES["retry_condition_fn"] = may_heal


def log() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """The run's logger, or this package's outside of a run."""
    if FlowRunContext.get() or TaskRunContext.get():
        return get_run_logger()
    return logging.getLogger("prefect_cd")


def live() -> Callable[[str], None]:
    """A sink that shows a program's lines in the run's log as they come."""
    logger = log()
    return lambda line: logger.info("%s", line)
