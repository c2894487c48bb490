"""What a run does to runs in Prefect: name and tag itself, and end older ones that still wait for an approval."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
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
from prefect_cd.tasks import summary, workspace
from prefect_cd.tasks.pages import prefect_client
from prefect_cd.tasks.stage import log
from prefect_cd.untrusted_text import visible

_APPLICATION, _COMMIT, _OUTCOME = "application:", "commit:", "outcome:"
_COMPLETED = "Completed"
_WAITS = ": approve until "
_LONGEST_SUBJECT = 32
"""Of the name of a run: lists cut long names, and the end says how the run ended."""
_LONGEST_TITLE = 200
"""Of the title of a Summary."""


def show(name: str, *tags: str) -> None:
    """Name the current flow run, and add tags to it: people filter by application, environment, commit and outcome.

    Where Prefect's server does not answer, the run goes on without them.

    Args:
        name: of the run; empty: it keeps its name.
        tags: of which a run has one `outcome:` at most, the newest.
    """
    _change(lambda before: name or before, tags)


def _change(named: Callable[[str], str], tags: Sequence[str]) -> None:
    """Give the current flow run the name that `named` makes of the one that it has, and add tags."""
    if flow_run.id is None:
        return
    try:
        client = prefect_client()
        run = client.read_flow_run(UUID(flow_run.id))
        client.update_flow_run(run.id, name=named(run.name), tags=_with(run.tags, tags))
    except Exception as error:  # noqa: BLE001  whatever the server's client may raise
        log().warning("Prefect's server does not show the name or tags of this run (%s): %s", ", ".join(tags), error)


def title_of(commit: Commit, environment: str = "", *, longest: int = _LONGEST_SUBJECT) -> str:
    """The name of a run that releases a commit, and where it is.

    Args:
        commit: control characters in its subject are made visible.
        environment: where the release is being brought to; empty before the first.
        longest: how many characters of the subject are shown.
    """
    subject = visible(commit.subject)
    subject = subject if len(subject) <= longest else f"{subject[: longest - 1].rstrip()}…"
    return f"{commit.short} {subject}" + (f" → {environment}" if environment else "")


def show_release(pipeline: Pipeline, commit: Commit, environment: str = "") -> None:
    """Show in the name, the tags and the Summary of the run what it releases, and where it is."""
    tag = f"environment:{environment}" if environment else f"{_COMMIT}{commit.short}"
    show(title_of(commit, environment), tag)
    summary.show(title_of(commit, environment, longest=_LONGEST_TITLE), pipeline)


def waiting_title(title: str, until: datetime) -> str:
    """The name of a run that waits for an approval."""
    return f"{title}{_WAITS}{until.astimezone(timezone.utc):%b %d %H:%M} UTC (Resume)"


def end(outcome: str) -> None:
    """Show the outcome of the current flow run: as a tag, at the end of its name, and by an event for automations.

    Args:
        outcome: in one or two words; `Completed` is not shown in the name.
    """
    _change(lambda name: _ended_name(name, outcome), [_outcome_tag(outcome)])
    if flow_run.id and flow_run.flow_name:
        _send_event(flow_run.flow_name, deployment.name or "", flow_run.id, outcome)


def _ended_name(name: str, outcome: str) -> str:
    """The name of a run that ended with this outcome; it waits no more."""
    before = name.rpartition(_WAITS)[0] or name
    return before if outcome == _COMPLETED else f"{before}: {outcome.lower()}"


def end_waiting(client: SyncPrefectClient, run: FlowRun, state: StateType, outcome: str, message: str) -> None:
    """End a release that waits for an approval, and has no process that could do it; show its outcome as `end` does.

    Args:
        client: of Prefect's server.
        run: the run.
        state: the type of its state.
        outcome: in one word.
        message: why.
    """
    ended: State[None] = State(type=state, message=f"{outcome}: {message}")
    client.set_flow_run_state(run.id, ended, force=True)
    client.update_flow_run(run.id, name=_ended_name(run.name, outcome), tags=_with(run.tags, [_outcome_tag(outcome)]))
    summary.end_other(client, run.id, outcome, message)
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
    client = prefect_client()
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
