"""Artifacts: where the pages of a run's stages appear in the Prefect UI. Outside of a run there are none.

A stage has one page of a kind: what a later attempt finds replaces what an earlier one has found.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.context import FlowRunContext, TaskRunContext
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.record import Record
from prefect_cd.environment.way_back import WayBackFinding
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.manifests.lint import Finding
from prefect_cd.rollout.watch.report import Report
from prefect_cd.tasks import markdown, markdown_changes, summary
from prefect_cd.tasks.markdown_text import fenced, inline
from prefect_cd.tasks.pages import deciding_nothing, key_of, prefect_client

_PAGES: dict[tuple[str, ...], UUID] = {}
"""The pages that this process has written, by the run, the key, and the task run unless there is one for the run."""


@deciding_nothing
def evidence(application: str, proof: Evidence, environment: str = "") -> None:
    """What a check or gate proved."""
    _page([application, environment, proof.gate, _failed(proof)], proof.summary, markdown.evidence(proof))


@deciding_nothing
def planned_changes(
    application: str,
    environment: str,
    changes: ChangeSet,
    place: str,
    findings: Sequence[Finding],
    way_back: Sequence[WayBackFinding] = (),
    content: str = "",
) -> str:
    """What a release would change and where, its risks, what may lose requests, and what is in the way of a rollback.

    Returns:
        The address of the page, from which the whole diff can be reached.
    """
    may_lose_requests = any(finding.loses_requests for finding in findings)
    description = f"{environment}: {changes}" + ("; may lose requests" if may_lose_requests else "")
    description += "; a rollback would not work" if way_back else ""
    if risks := sum(risk.new for change in changes.changes for risk in change.risks):
        description += f"; new risks: {risks}"
    key = [application, environment, "plan"]
    first, *pages = markdown_changes.pages(changes)
    others = [
        _page([*key, str(number)], f"{environment}: page {number} of the diff", page, of_the_run=True)
        for number, page in enumerate(pages, start=2)
    ]
    parts = [
        place,
        markdown_changes.risks(changes),
        markdown_changes.hand_edits(changes),
        markdown.way_back(way_back),
        markdown.may_lose_requests(findings),
    ]
    return _page(key, description, markdown.plan(first, others, *parts, content=content), of_the_run=True)


@deciding_nothing
def requests(application: str, environment: str, proof: Evidence, traffic: Traffic) -> None:
    """What became of the requests that were sent during a rollout."""
    key = [application, environment, proof.gate, _failed(proof)]
    _page(key, proof.summary, markdown.requests(proof, traffic))


@deciding_nothing
def pipeline_difference(application: str, name: str, diff: str) -> None:
    """How the commit's pipeline file differs from the served one."""
    description = f"{name} in the commit differs from the served one, which the run uses"
    _page([application, "pipeline file"], description, fenced(diff, "diff"))


@deciding_nothing
def failure(application: str, environment: str, report: Report) -> None:
    """Why a rollout failed."""
    description = report.problems[0].summary if report.problems else report.summary
    _page([application, environment, "rollout failed"], description, markdown.problems(report))


@deciding_nothing
def outcome(record: Record) -> None:
    """What became of a release in an environment."""
    version = f"{record.commit.short} {record.commit.subject}" if record.commit else record.release_id
    description = f"{record.environment}: {version}: {record.state.value}"
    _page([record.application, record.environment, "outcome"], description, markdown.outcome(record))


class Progress:
    """A progress bar whose description is the table of pods; a run has one of an environment."""

    def __init__(self, application: str, environment: str) -> None:
        self._key = key_of([application, environment, "rollout"])

    @deciding_nothing
    def show(self, report: Report) -> None:
        """Show the report as it is now."""
        if not _in_a_run():
            return
        expected = "" if report.complete else summary.expectation()
        headline = "; ".join(filter(None, [report.summary, expected]))
        description = f"{inline(headline)}\n\n{markdown.rollout(report)}"
        place = (str(flow_run.id), self._key)
        if artifact := _PAGES.get(place):
            _blocking(update_progress_artifact)(artifact, report.percent, description=description)
        else:
            create = _blocking(create_progress_artifact)
            _PAGES[place] = UUID(str(create(report.percent, key=self._key, description=description)))
        summary.add_page(_address(_PAGES[place]))


def _failed(proof: Evidence) -> str:
    """A part of the key: the same gate, passing after a rollback, must not hide why there was one."""
    return "failed" if proof.outcome is Outcome.FAILED else ""


def _page(key: list[str], description: str, page: str, *, of_the_run: bool = False) -> str:
    """Store a page, and return its address; empty outside of a run. The UI shows the description as Markdown.

    Args:
        key: words of its key.
        description: one line that can be understood alone.
        page: the page.
        of_the_run: whether the run has one such page; else each of its task runs has.
    """
    if not _in_a_run():
        return ""
    named, described = key_of(key), inline(description)
    place = (str(flow_run.id), named, *([] if of_the_run else [str(_task_run())]))
    artifact = _PAGES.get(place) or (_of_this_run(named) if of_the_run else None)
    if artifact is None:
        artifact = UUID(str(_blocking(create_markdown_artifact)(page, key=named, description=described)))
    else:
        client = prefect_client()
        client.update_artifact(artifact, ArtifactUpdate(data=page, description=described))
    _PAGES[place] = artifact
    address = _address(artifact)
    summary.add_page(address)
    return address


def _address(artifact: UUID) -> str:
    return f"{PREFECT_UI_URL.value()}/artifacts/artifact/{artifact}"


def _of_this_run(key: str) -> UUID | None:
    """The page that this run has written in another process, before it waited for an approval."""
    if not flow_run.id:
        return None
    of_run = ArtifactFilterFlowRunId(any_=[UUID(flow_run.id)])
    client = prefect_client()
    earlier = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=of_run, key=ArtifactFilterKey(any_=[key]))
    )
    return earlier[0].id if earlier else None


def _task_run() -> UUID | None:
    context = TaskRunContext.get()
    return context.task_run.id if context else None


def _blocking(create: Callable[..., Any]) -> Callable[..., Any]:
    """Prefect's function in its blocking form, even where an event loop is running; its stubs leave `_sync` out."""
    return partial(create, _sync=True)


def _in_a_run() -> bool:
    return bool(FlowRunContext.get() or TaskRunContext.get())
