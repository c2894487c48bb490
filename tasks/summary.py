"""The Summary of a flow run: one page that says what happened, why, what runs now, and what to do next.

It stands at the run itself, not at one of its tasks. It is written when the run begins, and again as stages begin and
end. What it says is kept with the page as data, so that a run that was resumed goes on with it, and another process can
end it where the run's own was killed.

Like all pages it informs people and decides nothing. A flow that begins no Summary pays nothing for it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import wraps
from statistics import median
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from pydantic import ValidationError
from typing_extensions import ParamSpec

from prefect_cd.errors import DeliveryError, Errored
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.rollout.watch.report import Report
from prefect_cd.tasks import environments
from prefect_cd.tasks.markdown_summary import (
    GOOD_OUTCOMES,
    StageOutcome,
    StageRow,
    SummaryContent,
    seconds_text,
    summary,
)
from prefect_cd.tasks.markdown_text import inline
from prefect_cd.tasks.pages import data_of, deciding_nothing, key_of, metadata_of, prefect_client

_P = ParamSpec("_P")
_R = TypeVar("_R")
_INTERVAL_SECONDS = 2.0
"""Between two updates while stages begin and end: each costs a request."""
_EARLIER_RUNS = 10
_EARLIER_TO_END = 20


@dataclass
class _Summary:
    """The Summary of a run that this process executes."""

    run: UUID
    content: SummaryContent
    artifact: UUID | None = None
    written: float = field(default=-_INTERVAL_SECONDS)
    """When it was written the last time, by the monotonic clock."""

    def put(self, row: StageRow) -> None:
        """Add a stage, or replace the one of this name: a repeated attempt is the same stage."""
        rows = {one.name: one for one in self.content.stages}
        before = rows.get(row.name)
        rows[row.name] = row if before is None else row.model_copy(update={"usual": before.usual})
        self.content = self.content.model_copy(update={"stages": tuple(rows.values())})

    def stage(self, name: str) -> StageRow | None:
        return next((row for row in self.content.stages if row.name == name), None)

    @deciding_nothing
    def write(self) -> None:
        client = prefect_client()
        if self.artifact is None:
            self.artifact = _create(client, self.run, self.content)
        else:
            _update(client, self.artifact, self.content)
        self.written = time.monotonic()

    def write_soon(self) -> None:
        """Write it, unless that has just been done: the next change or the end of the run will."""
        if time.monotonic() - self.written >= _INTERVAL_SECONDS:
            self.write()


_SUMMARIES: dict[UUID, _Summary] = {}
_USUAL: dict[str, float] = {}


@deciding_nothing
def begin(pipeline: Pipeline, title: str) -> None:
    """Write the Summary of the current run for the first time, or go on with that of before the run was suspended.

    Args:
        pipeline: its environments are shown.
        title: what the run does.
    """
    if flow_run.id is None:
        return
    new = _Summary(UUID(flow_run.id), SummaryContent(application=pipeline.application, title=title))
    current = _resumed() or new
    _SUMMARIES[current.run] = current
    _learn_usual_times(current)
    show(current.content.title, pipeline)


@deciding_nothing
def show(title: str, pipeline: Pipeline) -> None:
    """Show what the run does now, and what runs in the environments now."""
    if current := _current():
        update = {"title": title, "environments": environments.rows(pipeline)}
        current.content = current.content.model_copy(update=update)
        current.write()


@deciding_nothing
def wait(pipeline: Pipeline, name: str, result: str) -> None:
    """Show that the run waits for a person, and what runs in the environments now.

    Args:
        pipeline: has the environments.
        name: of the stage.
        result: until when, and where the answer is given.
    """
    if current := _current():
        row = StageRow(name=name, began=_now(), outcome=StageOutcome.WAITING, result=result, by_person=True)
        current.put(row)
        show(current.content.title, pipeline)


@deciding_nothing
def answered(name: str, result: str, *, passed: bool) -> None:
    """Show what a person has answered."""
    if (current := _current()) is None:
        return
    began = row.began if (row := current.stage(name)) else _now()
    outcome = StageOutcome.PASSED if passed else StageOutcome.FAILED
    seconds = (_now() - began).total_seconds()
    row = StageRow(name=name, began=began, seconds=seconds, outcome=outcome, result=result, by_person=True)
    current.put(row)


@deciding_nothing
def end(pipeline: Pipeline, outcome: str, message: str, hint: str = "", detail: str = "") -> None:
    """Write how the run ended, and write the page about the environments anew.

    Args:
        pipeline: its environments are read.
        outcome: in one or two words.
        message: what happened and why, in a sentence.
        hint: what a person does next.
        detail: evidence, such as the last lines of a log.
    """
    rows = environments.publish(pipeline)
    if current := _current():
        content = current.content if rows is None else current.content.model_copy(update={"environments": tuple(rows)})
        current.content = content.ended(outcome, message, hint, detail)
        current.write()
        del _SUMMARIES[current.run]


@deciding_nothing
def end_other(client: SyncPrefectClient, run: UUID, outcome: str, message: str) -> None:
    """Write how another run ended, whose process cannot do it any more."""
    for artifact in _of_run(client, run):
        if content := _content_of(artifact):
            _update(client, artifact.id, content.ended(outcome, message))


@deciding_nothing
def end_interrupted(application: str) -> None:
    """Write how runs ended whose process was killed before it could: recovery calls it when it is done."""
    client = prefect_client()
    for artifact in _newest(client, application, _EARLIER_TO_END):
        content = _content_of(artifact)
        if content is None or content.outcome or artifact.flow_run_id is None:
            continue
        run = client.read_flow_run(artifact.flow_run_id)
        if run.state and run.state.is_final():
            _end_interrupted(client, artifact.id, run, content)


def _end_interrupted(client: SyncPrefectClient, artifact: UUID, run: FlowRun, content: SummaryContent) -> None:
    outcome = str(run.state.name) if run.state else "Unknown"
    message = str(run.state.message or "") if run.state else ""
    message = message or "the run ended before it could say why"
    rows = environments.latest(client, content.application) or content.environments
    ended = content.model_copy(update={"environments": rows}).ended(outcome, message.partition("\n")[0])
    _update(client, artifact, ended)


def listed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function of a task, which then is a stage in the Summary of its run."""

    @wraps(function)
    def stage(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        context, current = _of_task()
        if context is None or current is None:
            return function(*args, **kwargs)
        row = StageRow(name=context.task_run.name, began=_now(), usual=_USUAL.get(context.task_run.name))
        current.put(row)
        current.write_soon()
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            outcome = StageOutcome.ERRORED if isinstance(error, Errored) else StageOutcome.FAILED
            current.put(_ended(current, row, outcome, _reason(error)))
            current.write_soon()
            raise
        current.put(_ended(current, row, StageOutcome.PASSED, _result_text(result)))
        return result

    return stage


def add_page(url: str) -> None:
    """Link a page of the current stage from its row."""
    context, current = _of_task()
    row = current.stage(context.task_run.name) if context and current else None
    if current and row and url not in row.pages:
        current.put(row.model_copy(update={"pages": (*row.pages, url)}))


def _of_task() -> tuple[TaskRunContext | None, _Summary | None]:
    """The task that runs here, and the Summary of its run."""
    context = TaskRunContext.get()
    run = context.task_run.flow_run_id if context else None
    return context, _SUMMARIES.get(run) if run else None


def _ended(current: _Summary, row: StageRow, outcome: StageOutcome, result: str) -> StageRow:
    pages = now.pages if (now := current.stage(row.name)) else ()
    seconds = (_now() - row.began).total_seconds()
    return row.model_copy(update={"outcome": outcome, "seconds": seconds, "result": result, "pages": pages})


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, DeliveryError) else f"{type(error).__name__}: {error}".partition("\n")[0]


def _result_text(result: object) -> str:
    """What a stage has found out, in one line; empty where its name says it."""
    if isinstance(result, Evidence | Report):
        return result.summary
    if isinstance(result, Commit):
        return f"{result.short} {result.subject}"
    if isinstance(result, BuiltImage):
        return "built" if result.built else "found in the registry, where an earlier build has left it"
    return ""


def _current() -> _Summary | None:
    return _SUMMARIES.get(UUID(flow_run.id)) if flow_run.id else None


@deciding_nothing
def _resumed() -> _Summary | None:
    """The Summary as it was when the run was suspended."""
    client = prefect_client()
    for artifact in _of_run(client, UUID(str(flow_run.id))):
        if content := _content_of(artifact):
            return _Summary(UUID(str(flow_run.id)), content, artifact.id)
    return None


@deciding_nothing
def _learn_usual_times(current: _Summary) -> None:
    """The median of what each stage took in the last runs in which it passed, and of whole runs that completed."""
    client = prefect_client()
    artifacts = _newest(client, current.content.application, _EARLIER_RUNS)
    contents = [content for artifact in artifacts if (content := _content_of(artifact))]
    taken: dict[str, list[float]] = {}
    for row in (row for content in contents for row in content.stages):
        if row.outcome is StageOutcome.PASSED and row.seconds is not None:
            taken.setdefault(row.name, []).append(row.seconds)
    _USUAL.clear()
    _USUAL.update({name: median(seconds) for name, seconds in taken.items()})
    if whole := [content.seconds for content in contents if content.outcome in GOOD_OUTCOMES]:
        current.content = current.content.model_copy(update={"usual": median(whole)})


def expectation() -> str:
    """What the current stage usually takes, and how long it has run; empty where earlier runs do not say it."""
    context, current = _of_task()
    row = current.stage(context.task_run.name) if context and current else None
    if row is None or row.usual is None:
        return ""
    return f"usually {seconds_text(row.usual)}, now {seconds_text((_now() - row.began).total_seconds())}"


def _of_run(client: SyncPrefectClient, run: UUID) -> list[Artifact]:
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(like_="%-summary"))
    return client.read_artifacts(artifact_filter=of_run)


def _newest(client: SyncPrefectClient, application: str, count: int) -> list[Artifact]:
    of_application = ArtifactFilter(key=ArtifactFilterKey(any_=[_key(application)]))
    return client.read_artifacts(artifact_filter=of_application, sort=ArtifactSort.CREATED_DESC, limit=count)


def _content_of(artifact: Artifact) -> SummaryContent | None:
    """What a Summary says; None where it is none of this version's."""
    try:
        return SummaryContent.model_validate_json(data_of(artifact.metadata_))
    except ValidationError:
        return None


def _create(client: SyncPrefectClient, run: UUID, content: SummaryContent) -> UUID:
    artifact = ArtifactCreate(key=_key(content.application), type="markdown", flow_run_id=run, **_fields(content))
    return client.create_artifact(artifact).id


def _update(client: SyncPrefectClient, artifact: UUID, content: SummaryContent) -> None:
    client.update_artifact(artifact, ArtifactUpdate(**_fields(content)))


def _fields(content: SummaryContent) -> dict[str, object]:
    return {
        "description": inline(content.headline),
        "data": summary(content, environments.address(content.application)),
        "metadata_": metadata_of(content.model_dump_json()),
    }


def _key(application: str) -> str:
    return key_of([application, "summary"])


def _now() -> datetime:
    return datetime.now(timezone.utc)
