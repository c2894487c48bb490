"""Artifacts: where the pages of a run appear in the Prefect UI. Outside of a run there are none.

A page informs people and decides nothing: one that cannot be made or stored is a warning in the log.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_UI_URL
from typing_extensions import ParamSpec

from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.record import Record
from prefect_cd.environment.way_back import WayBackFinding
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.manifests.lint import Finding
from prefect_cd.rollout.watch.report import Report
from prefect_cd.tasks import markdown, markdown_changes
from prefect_cd.tasks.markdown_text import fenced, inline
from prefect_cd.tasks.stage import log

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _deciding_nothing(show: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """The function, with its errors in the log: Prefect's server may be away while an environment is rolled back."""

    @wraps(show)
    def shown(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        if time.monotonic() < _unavailable.until:
            return None
        try:
            return show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever the server's client may raise
            if isinstance(error, httpx.TransportError):
                _unavailable.until = time.monotonic() + _UNAVAILABLE_SECONDS
            log().warning("a page of this run is missing: %s", error)
            return None

    return shown


@dataclass
class _Unavailable:
    """Until when no page is made, by the monotonic clock."""

    until: float = 0.0


_unavailable = _Unavailable()
_UNAVAILABLE_SECONDS = 120.0
"""Prefect's client tries each page for a minute before it fails, and so long a rollout would not be watched."""


@_deciding_nothing
def evidence(application: str, proof: Evidence, environment: str = "") -> None:
    """What a check or gate proved."""
    _page([application, environment, proof.gate, _unless_passed(proof)], proof.summary, markdown.evidence(proof))


@_deciding_nothing
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
        _page([*key, str(number)], f"{environment}: page {number} of the diff", page)
        for number, page in enumerate(pages, start=2)
    ]
    parts = [
        place,
        markdown_changes.risks(changes),
        markdown.way_back(way_back),
        markdown.may_lose_requests(findings),
    ]
    return _page(key, description, markdown.plan(first, others, *parts, content=content))


@_deciding_nothing
def requests(application: str, environment: str, proof: Evidence, traffic: Traffic) -> None:
    """What became of the requests that were sent during a rollout."""
    key = [application, environment, proof.gate, _unless_passed(proof)]
    _page(key, proof.summary, markdown.requests(proof, traffic))


@_deciding_nothing
def pipeline_difference(application: str, name: str, diff: str) -> None:
    """How the commit's pipeline file differs from the served one."""
    description = f"{name} in the commit differs from the served one, which the run uses"
    _page([application, "pipeline file"], description, fenced(diff, "diff"))


@_deciding_nothing
def failure(application: str, environment: str, report: Report) -> None:
    """Why a rollout failed."""
    description = report.problems[0].summary if report.problems else report.summary
    _page([application, environment, "rollout failed"], description, markdown.problems(report))


@_deciding_nothing
def outcome(record: Record) -> None:
    """What became of a release in an environment."""
    description = f"{record.environment}: {record.release_id} is {record.state.value}"
    _page([record.application, record.environment, "outcome"], description, markdown.outcome(record))


class Progress:
    """A progress bar whose description is the table of pods."""

    def __init__(self, application: str, environment: str) -> None:
        self._key = _key([application, environment, "rollout"])
        self._artifact: UUID | None = None

    @_deciding_nothing
    def show(self, report: Report) -> None:
        """Show the report as it is now."""
        if not _in_a_run():
            return
        description = f"{inline(report.summary)}\n\n{markdown.rollout(report)}"
        if self._artifact is None:
            create = _blocking(create_progress_artifact)
            self._artifact = create(report.percent, key=self._key, description=description)
        else:
            _blocking(update_progress_artifact)(self._artifact, report.percent, description=description)


def _unless_passed(proof: Evidence) -> str:
    """A part of the key: the same gate, passing after a rollback, must not hide why there was one."""
    return "" if proof.outcome == Outcome.PASSED else proof.outcome.value


def _page(key: list[str], description: str, page: str) -> str:
    """Store a page, and return its address; empty outside of a run. The UI shows the description as Markdown."""
    if not _in_a_run():
        return ""
    artifact = _blocking(create_markdown_artifact)(page, key=_key(key), description=inline(description))
    return f"{PREFECT_UI_URL.value()}/artifacts/artifact/{artifact}"


def _blocking(create: Callable[..., Any]) -> Callable[..., Any]:
    """Prefect's function in its blocking form, even where an event loop is running; its stubs leave `_sync` out."""
    return partial(create, _sync=True)


def _key(words: list[str]) -> str:
    """Prefect's keys are lower-case words with dashes."""
    return re.sub("[^a-z0-9]+", "-", "-".join(filter(None, words)).lower()).strip("-")


def _in_a_run() -> bool:
    return bool(FlowRunContext.get() or TaskRunContext.get())
