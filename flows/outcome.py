"""The outcome of a run as its Prefect state: people filter on its name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed

from prefect_cd.errors import (
    DeliveryError,
    Errored,
    Expired,
    InvalidPipeline,
    Rejected,
    RollbackFailed,
    RolledBack,
    Superseded,
    Vetoed,
)
from prefect_cd.flows.results import reading_json_only
from prefect_cd.tasks import workspace
from prefect_cd.tasks.connection import CONNECTIONS
from prefect_cd.tasks.stage import log

_NAMES: tuple[tuple[type[DeliveryError], str], ...] = (
    (RolledBack, "Rolled back"),
    (RollbackFailed, "Rollback failed"),
    (Superseded, "Superseded"),
    (Vetoed, "Vetoed"),
    (Rejected, "Rejected"),
    (Expired, "Expired"),
    (Errored, "Errored"),
)
_FINAL = {name for kind, name in _NAMES if not issubclass(kind, Errored)}
_CODE = re.compile(r"\[[a-z]+(-[a-z]+)*] ")
"""What messages of ours begin with; see `summary`."""


def state_name(error: DeliveryError) -> str:
    """The state's name for an error."""
    return next((name for kind, name in _NAMES if isinstance(error, kind)), "Failed")


def summary(error: DeliveryError) -> str:
    """The error without its evidence, which is in the log and the artifacts; with all mistakes of a pipeline file."""
    message = f"{error.where}: {error.reason}" if error.where else error.reason
    message += f"\n{error.detail}" if isinstance(error, InvalidPipeline) else ""
    return f"[{error.code}] {message}" + (f"\nhint: {error.hint}" if error.hint else "")


def has_final_outcome(state: State[Any]) -> bool:
    """Whether a run that failed has put right by itself what it had begun.

    Not where it errored, and not where it ended with an exception that is none of ours: its message is Prefect's then.
    """
    if state.name in _FINAL:
        return True
    return state.name == "Failed" and bool(_CODE.match(state.message or ""))


class Outcome:
    """Holds the state that a flow returns."""

    state: State[Any]


@contextmanager
def returning_state() -> Iterator[Outcome]:
    """Turn the error that ends a flow into its state; at the end, remove checkouts and close connections.

    Stored results are read as JSON only.
    """
    outcome = Outcome()
    try:
        with reading_json_only():
            yield outcome
    except DeliveryError as error:
        log().error("%s", error)
        outcome.state = Failed(name=state_name(error), message=summary(error))
    finally:
        workspace.remove_trees()
        CONNECTIONS.close()
