"""The story after a crash: find what a dead process left half done, and bring the known-good back.

It runs on a schedule, when `serve` starts, and when a run crashed or was cancelled; the next release does the same by
itself. None of these alone is enough: a dead server sends no event, a dead runner calls no hook.
"""

from typing import Any

from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from prefect_cd import tasks
from prefect_cd.environment.lease import TAKEOVER
from prefect_cd.errors import ClusterUnreachable, DeliveryError, EnvironmentBusy, Errored
from prefect_cd.flows import served
from prefect_cd.flows.deploy import restore_known_good
from prefect_cd.flows.outcome import returning_state, state_name
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target

_look_once = tasks.read_state.with_options(retries=0)
"""The schedule is the retry: while a cluster is away, runs would pile up."""


@flow(name="recover", persist_result=True)
def recover() -> State[Any]:
    """Bring every environment of the served pipeline back to a whole version."""
    with returning_state() as ending:
        pipeline = served.pipeline().pipeline
        results = {each.name: _recover(pipeline, Target.of(pipeline, each.name)) for each in pipeline.environments}
        found = {name: error for name, error in results.items() if error}
        said = "; ".join(f"{name}: {error.reason}" for name, error in found.items())
        worst = next(iter(found.values()), None)
        ending.state = (
            Failed(name=state_name(worst), message=said) if worst else Completed(message="nothing was left half done")
        )
    return ending.state


def _recover(pipeline: Pipeline, target: Target) -> DeliveryError | None:
    """What is wrong with an environment now; None when nothing is, or somebody else is at work."""
    try:
        if _look_once(target).interrupted is None:
            return None
        with tasks.hold_lock(target, wait=TAKEOVER) as lock:
            standing = tasks.read_state(target)
            if standing.interrupted is None:
                return None
            cause = Errored(f"the rollout of {standing.interrupted.release_id} was interrupted: its process ended")
            return restore_known_good(pipeline, target, standing.interrupted, standing.known_good, lock, cause)
    except EnvironmentBusy as busy:
        log().info("%s; nothing to recover", busy.reason)
        return None
    except ClusterUnreachable as away:  # the other environments may be on another cluster
        return away


def start_recovery(flow: "Flow[..., Any]", flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  Prefect's names
    """Hook of a crashed or cancelled run: it has no time left, so a run of its own brings things in order."""
    if flow_run.deployment_id is None:
        return
    with get_client(sync_client=True) as client:
        name = client.read_deployment(flow_run.deployment_id).name
        try:
            recovery = client.read_deployment_by_name(f"recover/{name}")
        except ObjectNotFound:
            return
        client.create_flow_run_from_deployment(recovery.id, idempotency_key=f"recover-{flow_run.id}-{state.id}")
