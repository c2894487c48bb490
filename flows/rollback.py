"""The flow `rollback`, which a person starts: to the previous known-good, or to a named release."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from prefect_cd import tasks
from prefect_cd.errors import Invalid
from prefect_cd.flows import served
from prefect_cd.flows.outcome import returning_state
from prefect_cd.flows.recover import start_recovery
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks import Target
from prefect_cd.tasks.choices import PREVIOUS, release_of

_LONGEST = 60


def _run_name() -> str:
    environment = flow_run.parameters.get("environment") or ""
    release = str(flow_run.parameters.get("to") or PREVIOUS)[:_LONGEST]
    return " ".join(filter(None, ["rollback", environment, "to", release]))


@flow(
    name="rollback",
    flow_run_name=_run_name,
    persist_result=True,
    on_crashed=[start_recovery],
    on_cancellation=[start_recovery],
    on_failure=[start_recovery],
)
def rollback(environment: str = "", to: str = "") -> State[Any]:
    """Bring an environment back to a release that was good there.

    Args:
        environment: its name; empty: the last one of the pipeline file.
        to: a choice of the form, a release id or a record number; empty: the known-good before what runs now.
    """
    with returning_state() as ending:
        pipeline, _ = served.pipeline()
        target = _target(pipeline, environment)
        to = release_of(to, target.name)
        title = f"rollback {target.name} to {to or PREVIOUS}"
        ending.begin(pipeline, title, f"environment:{target.name}")
        deployed = tasks.rollback(pipeline, target, to)
        ending.state = Completed(message=f"{target.name} runs {deployed.release_id} again")
    return ending.state


def _target(pipeline: Pipeline, environment: str) -> Target:
    try:
        return Target.of(pipeline, environment or pipeline.environments[-1].name)
    except KeyError as error:
        raise Invalid(str(error.args[0]), hint="correct the parameter `environment`") from error
