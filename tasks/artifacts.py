"""Artifacts: where the pages of a run appear in the Prefect UI. Outside of a run there are none."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

from prefect_cd.environment.apply import ChangeSet
from prefect_cd.environment.records import Record
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.manifests.lint import Finding
from prefect_cd.rollout.watch.report import Report
from prefect_cd.tasks import markdown as markdown_module


def evidence(application: str, proved: Evidence, environment: str = "") -> None:
    """What a check or gate proved."""
    # a key of its own, so that the same gate passing after the rollback does not hide why there was one
    ending = "" if proved.outcome == Outcome.PASSED else proved.outcome.value
    _page([application, environment, proved.gate, ending], proved.summary, markdown_module.evidence(proved))


def planned_changes(
    application: str, environment: str, planned: ChangeSet, where: str, weak: Sequence[Finding]
) -> None:
    """What a release would change and where, and what of it may lose requests."""
    said = f"{environment}: {planned}" + ("; may lose requests" if weak else "")
    page = "\n\n".join(filter(None, [where, markdown_module.weaknesses(weak), markdown_module.changes(planned)]))
    _page([application, environment, "plan"], said, page)


def requests(application: str, environment: str, proved: Evidence, seen: Traffic) -> None:
    """What users saw of a rollout; one that lost requests is not hidden by the rollback's."""
    ending = "" if proved.outcome == Outcome.PASSED else proved.outcome.value
    _page([application, environment, proved.gate, ending], proved.summary, markdown_module.requests(proved, seen))


def pipeline_difference(application: str, name: str, diff: str) -> None:
    """How the commit's pipeline file differs from the served one."""
    said = f"{name} in the commit differs from the served one, which is obeyed"
    _page([application, "pipeline file"], said, markdown_module.fenced(diff, "diff"))


def failure(application: str, environment: str, report: Report) -> None:
    """Why a rollout failed."""
    said = report.troubles[0].summary if report.troubles else report.summary
    _page([application, environment, "rollout failed"], said, markdown_module.troubles(report))


def outcome(record: Record) -> None:
    """What became of a release in an environment."""
    said = f"{record.environment}: {record.release_id} is {record.state.value}"
    _page([record.application, record.environment, "outcome"], said, markdown_module.outcome(record))


class Progress:
    """A progress bar whose description is the table of pods."""

    def __init__(self, application: str, environment: str) -> None:
        self._key = _key([application, environment, "rollout"])
        self._artifact: UUID | None = None

    def show(self, report: Report) -> None:
        """Show the report as it is now."""
        if not _in_a_run():
            return
        said = f"{report.summary}\n\n{markdown_module.rollout(report)}"
        if self._artifact is None:
            self._artifact = _now(create_progress_artifact)(report.percent, key=self._key, description=said)
        else:
            _now(update_progress_artifact)(self._artifact, report.percent, description=said)


def _page(key: list[str], description: str, markdown: str) -> None:
    if _in_a_run():
        _now(create_markdown_artifact)(markdown, key=_key(key), description=description)


def _now(create: Callable[..., Any]) -> Callable[..., Any]:
    """Prefect's function in its blocking form, also where an event loop is running; its stubs leave `_sync` out."""
    return partial(create, _sync=True)


def _key(words: list[str]) -> str:
    """Prefect's keys are lower-case words with dashes."""
    return re.sub("[^a-z0-9]+", "-", "-".join(filter(None, words)).lower()).strip("-")


def _in_a_run() -> bool:
    return bool(FlowRunContext.get() or TaskRunContext.get())
