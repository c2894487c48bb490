"""The outcome of a run: its Prefect state, a tag, the end of its name, and an event.

Prefect's UI lists the runs of a deployment by the names of states that it knows, so all errors end in the state Failed.
What kind of end it was is the first words of the state's message; people filter by the tag `outcome:…`, and automations
wait for the event `prefect-cd.FLOW.OUTCOME`.
"""

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
    RequirementMissing,
    RollbackFailed,
    RolledBack,
    Superseded,
    Vetoed,
)
from prefect_cd.flows.results import reading_json_only
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks import runs, summary, workspace
from prefect_cd.tasks.connection import CONNECTIONS
from prefect_cd.tasks.stage import log

_WORDS: tuple[tuple[type[DeliveryError], str], ...] = (
    (RolledBack, "Rolled back"),
    (RollbackFailed, "Rollback failed"),
    (Superseded, "Superseded"),
    (Vetoed, "Vetoed"),
    (Rejected, "Rejected"),
    (Expired, "Expired"),
    (Errored, "Errored"),
    (DeliveryError, "Failed"),
)
_MESSAGE = re.compile(rf"(?P<outcome>{'|'.join(word for _, word in _WORDS)}): \[[a-z]+(-[a-z]+)*] ")
"""What messages of ours begin with; see `message_of`."""


def outcome_of(error: DeliveryError) -> str:
    """The outcome that an error is, in one or two words."""
    return next(word for kind, word in _WORDS if isinstance(error, kind))


def short_text(error: DeliveryError) -> str:
    """The error without its evidence, which is in the Summary; with all mistakes of a file, and all that is missing."""
    message = f"{error.where}: {error.reason}" if error.where else error.reason
    message += f"\n{error.detail}" if isinstance(error, InvalidPipeline | RequirementMissing) else ""
    return f"[{error.code}] {message}" + (f"\nhint: {error.hint}" if error.hint else "")


def message_of(error: DeliveryError) -> str:
    """The message of the state that a run ends in with this error."""
    return f"{outcome_of(error)}: {short_text(error)}"


def has_final_outcome(state: State[Any]) -> bool:
    """Whether a run that failed has put right by itself what it had begun.

    Not where it errored, and not where it ended with an exception that is none of ours: its message is Prefect's then.
    """
    message = _MESSAGE.match(state.message or "")
    return message is not None and message["outcome"] != "Errored"


class Ending:
    """How a flow ends.

    Attributes:
        state: what the flow returns.
        outcome: in one or two words, as `outcome_of` has them; where nothing failed, `Completed`.
        pipeline: the flow's, once it is known; its environments are in the Summary of the run.
    """

    state: State[Any]
    outcome = "Completed"
    pipeline: Pipeline | None = None

    def begin(self, pipeline: Pipeline, title: str, *tags: str) -> None:
        """Name and tag the run, and write its Summary for the first time."""
        self.pipeline = pipeline
        runs.show(title, f"application:{pipeline.application}", *tags)
        summary.begin(pipeline, title)

    def publish(self, message: str, hint: str = "", detail: str = "") -> None:
        """Show the outcome where people and automations look for it.

        Args:
            message: what happened and why.
            hint: what a person does next.
            detail: evidence, such as the last lines of a log.
        """
        runs.end(self.outcome)
        if self.pipeline:
            summary.end(self.pipeline, self.outcome, message, hint, detail)


@contextmanager
def returning_state() -> Iterator[Ending]:
    """Turn the error that ends a flow into its state; at the end, remove checkouts and close connections.

    Stored results are read as JSON only.
    """
    ending = Ending()
    try:
        with reading_json_only():
            yield ending
        ending.publish(ending.state.message or "")
    except DeliveryError as error:
        # the evidence is in the Summary, where there is one
        log().error("%s", message_of(error) if ending.pipeline else error)
        ending.state, ending.outcome = Failed(message=message_of(error)), outcome_of(error)
        ending.publish(error.reason, error.hint, error.detail)
    finally:
        workspace.remove_trees()
        CONNECTIONS.close()
