"""The story of going back on purpose: to the previous known-good, or to a named release."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from prefect_cd import tasks
from prefect_cd.environment.records import State as RecordState
from prefect_cd.errors import DeliveryError, Invalid
from prefect_cd.flows import served
from prefect_cd.flows.deploy import restore_known_good, roll_out
from prefect_cd.flows.outcome import returning_state
from prefect_cd.flows.recover import start_recovery
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks.record import withdraw
from prefect_cd.tasks.runs import tag
from prefect_cd.tasks.target import Target


def _run_name() -> str:
    given = flow_run.parameters
    return f"rollback {given.get('environment') or ''} to {given.get('to') or 'the previous release'}".replace(
        "  ", " "
    )


@flow(
    name="rollback",
    flow_run_name=_run_name,
    persist_result=True,
    on_crashed=[start_recovery],
    on_cancellation=[start_recovery],
)
def rollback(environment: str = "", to: str = "") -> State[Any]:
    """Bring an environment back to a release that was good there.

    Args:
        environment: its name; empty: the last one of the pipeline file.
        to: release id or record number; empty: the known-good before what runs now.
    """
    with returning_state() as ending:
        pipeline = served.pipeline().pipeline
        target = _target(pipeline, environment)
        tag(f"application:{pipeline.application}", f"environment:{target.name}")
        with tasks.hold_lock(target) as lock:
            chosen = tasks.find_record(target, to)
            planned = tasks.plan(target, chosen)
            record = tasks.record_start(planned, lock)
            try:
                evidence = roll_out(pipeline, planned, lock)
            except DeliveryError as error:
                raise restore_known_good(pipeline, target, record, planned.running, lock, error) from error
            tasks.record_outcome(target, record, RecordState.KNOWN_GOOD, lock, evidence=evidence)
            withdraw(target, chosen, record, lock)
        ending.state = Completed(message=f"{target.name} runs {chosen.release_id} again")
    return ending.state


def _target(pipeline: Pipeline, environment: str) -> Target:
    try:
        return Target.of(pipeline, environment or pipeline.environments[-1].name)
    except KeyError as error:
        raise Invalid(str(error.args[0]), hint="correct the parameter `environment`") from error
