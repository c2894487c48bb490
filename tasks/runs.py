"""What a run does to runs in Prefect: name and tag itself, and end older ones that still wait for an approval."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run

from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import git
from prefect_cd.release.model import Commit
from prefect_cd.tasks import workspace
from prefect_cd.tasks.stage import log
from prefect_cd.untrusted_text import visible

_APPLICATION, _COMMIT, _OUTCOME = "application:", "commit:", "outcome:"
_COMPLETED = "Completed"
_WAITS = ": approve until "
_LONGEST_SUBJECT = 32
"""Of the name of a run: lists cut long names, and the end says how the run ended."""


def show(name: str, *tags: str) -> None:
    """Name the current flow run, and add tags to it: people filter by application, environment, commit and outcome.

    Where Prefect's server does not answer, the run goes on without them.

    Args:
        name: of the run; empty: it keeps its name.
        tags: of which a run has one `outcome:` at most, the newest.
    """
    if flow_run.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(flow_run.id))
            client.update_flow_run(run.id, name=name or run.name, tags=_with(run.tags, tags))
    except Exception as error:  # noqa: BLE001  whatever the server's client may raise
        log().warning("the run is not shown as %s: %s", ", ".join(filter(None, [name, *tags])), error)


def title_of(commit: Commit, environment: str = "") -> str:
    """The name of a run that releases a commit, and where it is.

    Args:
        commit: its subject is shortened, and control characters are made visible.
        environment: where the release is being brought to; empty before the first.
    """
    subject = visible(commit.subject)
    subject = subject if len(subject) <= _LONGEST_SUBJECT else f"{subject[: _LONGEST_SUBJECT - 1].rstrip()}…"
    return f"{commit.short} {subject}" + (f" → {environment}" if environment else "")


def waiting_title(title: str, until: datetime) -> str:
    """The name of a run that waits for an approval."""
    return f"{title}{_WAITS}{until.astimezone(timezone.utc):%b %d %H:%M} UTC (Resume)"


def end(title: str, outcome: str) -> None:
    """Show the outcome of the current flow run: as a tag, at the end of its name, and by an event for automations.

    Args:
        title: the run's name until now; empty: it keeps its name.
        outcome: in one or two words; `Completed` is not shown in the name.
    """
    shown = f"{title}: {outcome.lower()}" if title and outcome != _COMPLETED else title
    show(shown, _outcome_tag(outcome))
    if flow_run.id and flow_run.flow_name:
        _send_event(flow_run.flow_name, deployment.name or "", flow_run.id, outcome)


def end_waiting(client: SyncPrefectClient, run: FlowRun, state: StateType, outcome: str, message: str) -> None:
    """End a release that waits for an approval, and has no process that could do it; show its outcome as `end` does.

    Args:
        client: of Prefect's server.
        run: the run.
        state: the type of its state.
        outcome: in one word.
        message: why.
    """
    name = f"{run.name.rpartition(_WAITS)[0] or run.name}: {outcome.lower()}"
    ended: State[None] = State(type=state, message=f"{outcome}: {message}")
    client.set_flow_run_state(run.id, ended, force=True)
    client.update_flow_run(run.id, name=name, tags=_with(run.tags, [_outcome_tag(outcome)]))
    _send_event("release", _tagged(run, _APPLICATION) or "", str(run.id), outcome)


def _send_event(flow: str, application: str, run: str, outcome: str) -> None:
    emit_event(
        f"prefect-cd.{flow}.{_slug(outcome)}",
        resource={"prefect.resource.id": f"prefect-cd.application.{application or 'unnamed'}"},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
    )


def _outcome_tag(outcome: str) -> str:
    """The tag that people filter by."""
    return f"{_OUTCOME}{_slug(outcome)}"


def _slug(outcome: str) -> str:
    return outcome.lower().replace(" ", "-")


def _with(before: Iterable[str], tags: Sequence[str]) -> list[str]:
    """The tags of a run with others added; it has one outcome at most."""
    replaced = any(tag.startswith(_OUTCOME) for tag in tags)
    kept = (tag for tag in before if not (replaced and tag.startswith(_OUTCOME)))
    return sorted({*kept, *tags})


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
            older = _tagged(run, _COMMIT)
            if str(run.id) != flow_run.id and older and _contains(tree, older, commit):
                message = f"{commit.short} contains {older} and asks in its place"
                end_waiting(client, run, StateType.CANCELLED, "Superseded", message)
                log().info("%s is superseded: %s", run.name, message)


def _tagged(run: FlowRun, prefix: str) -> str | None:
    """What a tag of a run says, such as its commit."""
    return next((tag.removeprefix(prefix) for tag in run.tags if tag.startswith(prefix)), None)


def _contains(tree: Path, older: str, commit: Commit) -> bool:
    """Whether `commit` contains `older`, and is not `older` itself: then both runs are the same release."""
    return not commit.sha.startswith(older) and bool(git.is_ancestor(tree, older, commit.sha))
