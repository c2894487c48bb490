"""The two pages that answer the first questions of a person: the Summary of a run, and an application's environments.

Pure: what they say is data of this module, and becomes Markdown here.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from enum import Enum

from pydantic import Field

from prefect_cd.environment.status import EnvironmentStatus, Version
from prefect_cd.errors import DeliveryError
from prefect_cd.pipeline.models import Environment, Pipeline
from prefect_cd.release.model import Result
from prefect_cd.tasks.markdown_text import bold, bullets, code, fenced, inline, link, table, table_of_markdown

UNDER_WAY = ""
"""The outcome of a run that has not ended."""
_UNUSUAL_FACTOR, _UNUSUAL_SECONDS = 2, 10
"""A stage that takes so many times its usual time, and so much longer, is called unusual; that condemns nothing."""
_NOTHING = "nothing"
_SHOWN_RELEASES = 5
_LONGEST_DETAIL = 20_000
_MINUTE, _HOUR = 60, 3600


class StageOutcome(str, Enum):
    """How a stage stands."""

    RUNNING = "running"
    WAITING = "waits for an approval"
    PASSED = "passed"
    FAILED = "failed"
    ERRORED = "errored"
    INTERRUPTED = "interrupted"


_SIGNS = {
    StageOutcome.RUNNING: "…",
    StageOutcome.WAITING: "…",
    StageOutcome.PASSED: "✔",
    StageOutcome.FAILED: "✘",
    StageOutcome.ERRORED: "?",
    StageOutcome.INTERRUPTED: "✘",
}
_UNFINISHED = frozenset({StageOutcome.RUNNING, StageOutcome.WAITING})


class StageRow(Result):
    """A stage of a run."""

    name: str
    began: datetime
    seconds: float | None = Field(default=None, description="how long it took; None until it ends")
    usual: float | None = Field(default=None, description="the median of earlier runs, in seconds")
    outcome: StageOutcome = StageOutcome.RUNNING
    result: str = Field(default="", description="in one line")
    pages: tuple[str, ...] = Field(default=(), description="addresses of its pages")
    by_person: bool = Field(default=False, description="whether its time is that of a person who was waited for")

    @property
    def is_unfinished(self) -> bool:
        """Whether it has begun and not ended."""
        return self.outcome in _UNFINISHED


class EnvironmentRow(Result):
    """What runs in an environment."""

    environment: str
    runs: str = Field(description="commit and subject of the known-good")
    since: datetime | None = None
    approved_by: str = ""
    condition: str


class SummaryContent(Result):
    """What the Summary of a run says."""

    application: str
    title: str = Field(description="what the run releases, and where it is")
    outcome: str = Field(default=UNDER_WAY, description="in one or two words")
    message: str = Field(default="", description="what happened and why, in a sentence")
    next: str = Field(default="", description="what a person does next, or the command for it")
    detail: str = Field(default="", description="evidence, such as the last lines of a log")
    stages: tuple[StageRow, ...] = ()
    environments: tuple[EnvironmentRow, ...] = ()
    usual: float | None = Field(default=None, description="seconds that runs usually take, without people")

    @property
    def seconds(self) -> float:
        """How long the stages took, without people."""
        return sum(row.seconds or 0 for row in self.stages if not row.by_person)

    @property
    def headline(self) -> str:
        """The first line, which must be understandable alone."""
        if self.outcome:
            return f"{self.outcome}: {self.message}" if self.message else self.outcome
        now = next((row for row in reversed(self.stages) if row.is_unfinished), None)
        if now is None:
            return "Under way"
        if now.outcome is StageOutcome.WAITING:
            return f"Waits: {now.name} {now.result}"
        return f"Under way: {now.name}"

    def ended(self, outcome: str, message: str, hint: str = "", detail: str = "") -> "SummaryContent":
        """The same when the run is over: stages that were running have been interrupted."""
        stages = (
            row.model_copy(update={"outcome": StageOutcome.INTERRUPTED}) if row.is_unfinished else row
            for row in self.stages
        )
        ending = {"outcome": outcome, "message": message, "next": hint, "detail": detail[-_LONGEST_DETAIL:]}
        return self.model_copy(update={**ending, "stages": tuple(stages)})


def summary(content: SummaryContent, environments_page: str = "") -> str:
    """The Summary of a run.

    Args:
        content: what it says.
        environments_page: the address of the page about the environments.
    """
    sign = "✔" if content.outcome in GOOD_OUTCOMES else "✘" if content.outcome else "…"
    parts = [
        f"# {sign} {inline(f'{content.outcome}: {content.title}' if content.outcome else content.headline)}",
        inline(content.message) if content.outcome else bold(content.title),
        f"**What to do:** {inline(content.next)}" if content.next else "",
        "## What runs now" if content.environments else "",
        environment_table(content.environments) if content.environments else "",
        link("all about the environments", environments_page) if environments_page else "",
        f"## Stages{_in_all(content)}" if content.stages else "",
        stage_table(content.stages) if content.stages else "",
        "## Evidence" if content.detail else "",
        fenced(content.detail) if content.detail else "",
    ]
    return "\n\n".join(filter(None, parts))


def _in_all(content: SummaryContent) -> str:
    """How long the run took, or takes, in all."""
    parts = [f"{seconds_text(content.seconds)} in all"] if content.outcome else []
    parts += [f"usually {seconds_text(content.usual)}"] if content.usual is not None else []
    return f": {', '.join(parts)}" if parts else ""


GOOD_OUTCOMES = frozenset({"Completed"})


def stage_table(stages: Iterable[StageRow]) -> str:
    """The stages of a run in their order, with times, results and links to the details."""
    rows = [
        [
            _SIGNS[row.outcome],
            inline(row.name),
            _taken(row),
            _usual(row),
            inline(row.result or ("" if row.outcome is StageOutcome.PASSED else row.outcome.value)),
            " ".join(
                link(f"details {number}" if number > 1 else "details", page) for number, page in enumerate(row.pages, 1)
            ),
        ]
        for row in stages
    ]
    return table_of_markdown(["", "stage", "time", "usually", "result", ""], rows)


def _taken(row: StageRow) -> str:
    if row.seconds is None:
        return f"since {_clock(row.began)}"
    unusual = row.usual and row.seconds > row.usual * _UNUSUAL_FACTOR and row.seconds > row.usual + _UNUSUAL_SECONDS
    return f"{seconds_text(row.seconds)}{' (unusual)' if unusual else ''}"


def _usual(row: StageRow) -> str:
    return seconds_text(row.usual) if row.usual is not None else ""


def seconds_text(seconds: float) -> str:
    """A duration for people: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def environment_table(rows: Iterable[EnvironmentRow]) -> str:
    """What runs where."""
    head = ["environment", "runs", "since (UTC)", "approved by", "state"]
    cells = ([row.environment, row.runs, _day_and_clock(row.since), row.approved_by, row.condition] for row in rows)
    return table(head, cells)


def environment_row(environment: str, answer: "EnvironmentStatus | DeliveryError") -> EnvironmentRow:
    """The row of an environment, or why nobody knows what runs there."""
    if isinstance(answer, DeliveryError):
        return EnvironmentRow(environment=environment, runs="unknown", condition=answer.reason)
    runs = answer.runs
    has_release = runs is not None and runs.commit is not None
    return EnvironmentRow(
        environment=environment,
        runs=version_text(runs) if runs else _NOTHING,
        since=runs.since if runs and has_release else None,
        approved_by=runs.decision.name if runs and runs.decision else "",
        condition=condition_text(answer),
    )


def version_text(version: Version) -> str:
    """A version for people."""
    return f"{version.commit.short} {version.commit.subject}" if version.commit else version.release_id


def condition_text(status: EnvironmentStatus) -> str:
    """The condition of an environment in a few words."""
    newest = f": {version_text(status.newest)}" if status.newest else ""
    texts = {
        "changing": f"changing now{newest}",
        "interrupted": f"half{newest} was interrupted; `recover` restores it",
        "frozen": "frozen: a rollback failed, a person is needed",
        "failed": f"left as it is after a failure{newest}",
        "drifted": "whole, but somebody has changed it since",
        "damaged": "a record cannot be read, a person is needed",
    }
    return texts.get(status.condition, status.condition)


def environments(pipeline: Pipeline, answers: Sequence["EnvironmentStatus | DeliveryError"]) -> str:
    """What runs where in an application, and the last releases of each environment."""
    rows = [environment_row(one.name, answer) for one, answer in zip(pipeline.environments, answers, strict=True)]
    parts = [
        f"# {inline(pipeline.application)}: what runs where",
        environment_table(rows),
        *(
            part
            for one, answer in zip(pipeline.environments, answers, strict=True)
            for part in _environment(one, answer)
        ),
        "Every run writes this page anew; `prefect-cd status pipeline.yaml` asks the clusters at once.",
    ]
    return "\n\n".join(filter(None, parts))


def _environment(environment: Environment, answer: "EnvironmentStatus | DeliveryError") -> Iterable[str]:
    yield f"## {inline(environment.name)}"
    if isinstance(answer, DeliveryError):
        yield inline(answer.reason)
        return
    yield bullets(
        f"namespace {code(environment.namespace)}",
        f"URL {code(environment.url)}" if environment.url else "",
        f"image {code(_short_reference(answer.runs.image))}" if answer.runs and answer.runs.image else "",
        *(f"damaged: {inline(damage.where)}: {inline(damage.problem)}" for damage in answer.damaged),
        *(f"not as released: {inline(defect)}" for defect in answer.defects),
        *(f"vetoed for triggers: {inline(entry.release_id)} ({entry.state.value})" for entry in answer.vetoed),
    )
    if answer.releases:
        yield "Last releases:"
        yield release_table(answer.releases[:_SHOWN_RELEASES])


def _short_reference(image: str) -> str:
    """A reference with the first digits of its digest: the page is narrow."""
    name, at, digest = image.partition("@")
    return f"{name}{at}{digest[:19]}…" if at else name


def release_table(releases: Iterable[Version]) -> str:
    """The last releases of an environment, newest first."""
    rows = [
        [
            inline(_day_and_clock(version.since)),
            inline(version_text(version)),
            inline(version.state.value),
            inline(version.decision.name if version.decision else ""),
            inline(version.reason.partition("\n")[0]),
            link("run", version.run) if version.run else "",
        ]
        for version in releases
    ]
    return table_of_markdown(["started (UTC)", "release", "outcome", "approved by", "why", ""], rows)


def environments_line(rows: Iterable[EnvironmentRow]) -> str:
    """All environments in one line: what the list of the page's versions shows, as a history of the environments."""
    return " · ".join(f"{row.environment}: {row.runs} ({row.condition})" for row in rows)


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone(timezone.utc):%H:%M:%S} UTC"


def _day_and_clock(moment: datetime | None) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M}" if moment else ""
