"""What a run does to runs in Prefect: tag itself, and end older ones that still wait for an approval."""

from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runtime import deployment, flow_run

from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import git
from prefect_cd.release.model import Commit
from prefect_cd.tasks import workspace
from prefect_cd.tasks.stage import log

_COMMIT = "commit:"


def tag(*tags: str) -> None:
    """Add tags to the current flow run: people filter by application, environment and commit.

    Where Prefect's server does not answer, the run goes on without them.
    """
    if flow_run.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(flow_run.id))
            client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))
    except Exception as error:  # noqa: BLE001  whatever the server's client may raise
        log().warning("the run is not tagged with %s: %s", ", ".join(tags), error)


def supersede_older(pipeline: Pipeline, commit: Commit) -> None:
    """End older releases of this deployment that wait for an approval and whose commit ours contains."""
    if not deployment.id:
        return
    tree = workspace.tree(pipeline.source, commit)
    with get_client(sync_client=True) as client:
        waiting = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"]))),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        )
        for run in waiting:
            older = _commit_of(run)
            if str(run.id) != flow_run.id and older and _contains(tree, older, commit):
                message = f"{commit.short} contains {older} and asks in its place"
                state: State[None] = State(type=StateType.CANCELLED, name="Superseded", message=message)
                client.set_flow_run_state(run.id, state, force=True)
                log().info("%s is superseded: %s", run.name, message)


def _commit_of(run: FlowRun) -> str | None:
    return next((tag.removeprefix(_COMMIT) for tag in run.tags if tag.startswith(_COMMIT)), None)


def _contains(tree: Path, older: str, commit: Commit) -> bool:
    """Whether `commit` contains `older`, and is not `older` itself: then both runs are the same release."""
    return not commit.sha.startswith(older) and bool(git.is_ancestor(tree, older, commit.sha))
