"""The flow `recover`: find rollouts that were interrupted, and restore the known-good.

It runs on a schedule, when `serve` starts, and when a run crashed, was cancelled, or failed for an unknown reason. None
of these alone is enough: a dead server sends no event, a dead runner calls no hook. A release that comes first repairs
first (`tasks/deployment.py`).
"""

from typing import Any

from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment
from prefect.states import Completed, Failed

from prefect_cd import tasks
from prefect_cd.flows import served
from prefect_cd.flows.outcome import has_final_outcome, outcome_of, returning_state, short_text
from prefect_cd.tasks import Target, environments, summary
from prefect_cd.tasks.stage import log


def _run_name() -> str:
    return f"recover {deployment.name or ''}".strip()


@flow(name="recover", flow_run_name=_run_name, persist_result=True)
def recover() -> State[Any]:
    """Bring every environment of the served pipeline back to a whole version."""
    with returning_state() as ending:
        pipeline, _ = served.pipeline()
        targets = [Target.of(pipeline, environment.name) for environment in pipeline.environments]
        errors = {target.name: error for target in targets if (error := tasks.recover(pipeline, target))}
        if errors:
            for name, error in errors.items():
                log().error("%s: %s", name, error)
            ending.outcome = outcome_of(next(iter(errors.values())))
            message = "\n\n".join(f"{name}: {short_text(error)}" for name, error in errors.items())
            ending.state = Failed(message=f"{ending.outcome}: {message}")
        else:
            ending.state = Completed(message="no rollout was interrupted")
        environments.publish(pipeline, compare=True)
        summary.end_interrupted(pipeline.application)
    return ending.state


def start_recovery(flow: "Flow[..., Any]", flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  Prefect's names
    """Hook of a run that cannot put right what it has begun: a run of its own recovers the environments.

    A crashed or cancelled run has no time left. One that failed has gone back by itself, or knows that it did not.
    """
    if state.is_failed() and has_final_outcome(state):
        return
    if flow_run.deployment_id is None:
        return
    with get_client(sync_client=True) as client:
        name = client.read_deployment(flow_run.deployment_id).name
        try:
            recovery = client.read_deployment_by_name(f"recover/{name}")
        except ObjectNotFound:
            return
        client.create_flow_run_from_deployment(recovery.id, idempotency_key=f"recover-{flow_run.id}-{state.id}")
