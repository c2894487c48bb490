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

from prefect_cd.errors import DeliveryError, EnvironmentBusy, Errored, GateErrored, LockLost
from prefect_cd.untrusted_text import visible

# the core logs each retry with its reason; stamina would log it again without one
stamina.instrumentation.set_on_retry_hooks([])

RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
}
"""Options of a task whose errored attempts may heal: three more attempts after 2, 4 and 8 s."""

PERSISTED: dict[str, Any] = {"persist_result": True, "result_serializer": "json", "cache_policy": DEFAULT}
"""Options of a task whose result a resumed run uses instead of running it again."""


def may_heal(_task: "Task[..., Any]", _run: TaskRun, state: State[Any]) -> bool:
    """Retry only errored attempts, and not those that have waited long enough already."""
    try:
        state.result()
    except (GateErrored, EnvironmentBusy, LockLost):
        return False
    except Errored:
        return True
    except BaseException:  # noqa: BLE001  anything else is an answer or a bug
        return False
    return False


RETRIES["retry_condition_fn"] = may_heal


def log() -> "logging.LoggerAdapter[Any]":
    """The run's logger; outside of a run, the package's. Texts of others cannot steer the terminal of `serve`."""
    in_a_run = FlowRunContext.get() or TaskRunContext.get()
    return _VisibleLog(get_run_logger() if in_a_run else logging.getLogger("prefect_cd"))


class _OutcomesInOneLine(logging.Filter):
    """Leaves a line of what Prefect logs about an error of ours: the code that came to it is not what went wrong.

    The traceback and the evidence go; the evidence is in the pages of the run.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, DeliveryError):
            record.msg, record.args = f"[{error.code}] {visible(error.reason)}", ()
            record.exc_info = record.exc_text = None
        elif not record.args and str(record.msg).startswith("Finished in state "):
            first, _, more = str(record.msg).partition("\\n")  # the message is shown as a literal
            record.msg = f"{first} …" if more else first
        return True


for _engine in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_engine).addFilter(_OutcomesInOneLine())


class _VisibleLog(logging.LoggerAdapter[Any]):
    """Makes control characters visible in what is filled into messages."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401  as of the base
        super().log(
            level, msg, *(arg if isinstance(arg, int | float) else visible(arg, "\n\t") for arg in args), **kwargs
        )


def live() -> Callable[[str], None]:
    """A function that writes a program's lines to the run's log as they arrive."""
    logger = log()
    return lambda line: logger.info("%s", line)
