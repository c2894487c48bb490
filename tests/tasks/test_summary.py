"""The Summary of a run: what it says while the run goes on, when it has ended, and when its process was killed."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest
from prefect import task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed

from prefect_cd.errors import GateErrored, GateFailed
from prefect_cd.flows.outcome import returning_state
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Environment, Pipeline
from prefect_cd.rollout.assess import Phase
from prefect_cd.tasks import artifacts, summary
from prefect_cd.tasks.markdown_summary import StageOutcome, StageRow, SummaryContent
from prefect_cd.tasks.summary import listed
from tests.tasks.conftest import Run
from tests.tasks.examples import evidence, pipeline, report

Play = Callable[[Callable[[], Any]], Run]
NOW = datetime(2026, 1, 1, 9, tzinfo=timezone.utc)


@pytest.fixture
def shop(environment: Environment, request: pytest.FixtureRequest) -> Pipeline:
    """A pipeline with a name of its own for each test: Summaries of one application know of each other."""
    made = pipeline(environment)
    name = request.node.name.replace("_", "-").partition("[")[0][-60:].strip("-")
    return made.model_copy(update={"application": name})


def summaries(run: UUID) -> list[Artifact]:
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return [one for one in client.read_artifacts(artifact_filter=of_run) if str(one.key).endswith("-summary")]


def page(run: UUID) -> str:
    (artifact,) = summaries(run)
    return str(artifact.data)


@task(task_run_name="smoke on staging")
@listed
def gate(error: Exception | None = None) -> Evidence:
    artifacts.evidence("shop", evidence(), "staging")
    if error:
        raise error
    return evidence()


def test_a_run_has_one_summary_of_its_own_which_names_outcome_environments_and_stages(
    run: Play, shop: Pipeline
) -> None:
    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            gate()
            ending.state = Completed(message="shop 1 runs in staging")
        return ending.state

    played = run(work)
    (artifact,) = summaries(played.id)
    assert artifact.task_run_id is None
    assert artifact.description == "Completed: shop 1 runs in staging"
    text = str(artifact.data)
    assert text.startswith("# ✔ Completed: abc Picks\n\nshop 1 runs in staging\n\n## What runs now")
    assert "| staging | nothing |  |  | empty |" in text
    assert "| ✔ | smoke on staging | 0." in text
    assert "| passed in 1.0 s | [details](http" in text


def test_it_says_why_a_run_failed_and_what_to_do(run: Play, shop: Pipeline) -> None:
    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            gate(GateFailed("smoke failed on staging", hint="look at the pictures"))
        return ending.state

    played = run(work)
    text = page(played.id)
    why = "smoke failed on staging"
    assert text.startswith(f"# ✘ Failed: abc Picks\n\n{why}\n\n**What to do:** look at the pictures")
    assert "| ✘ | smoke on staging | 0." in text
    assert "| smoke failed on staging | [details](http" in text


def test_a_stage_that_could_not_find_out_is_no_failed_one(run: Play, shop: Pipeline) -> None:
    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            gate(GateErrored("no report"))
        return ending.state

    assert "| ? | smoke on staging |" in page(run(work).id)


def test_while_the_run_goes_on_it_says_which_stage_does(
    run: Play, shop: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "_INTERVAL_SECONDS", 0)
    seen: list[str] = []

    @task(task_run_name="rollout of staging")
    @listed
    def rollout() -> None:
        seen.append(page(UUID(flow_run.id)))

    def work() -> None:
        summary.begin(shop, "abc Picks")
        rollout()

    run(work)
    assert seen[0].startswith("# … Under way: rollout of staging\n")
    assert "| … | rollout of staging | since " in seen[0]


def test_while_it_waits_for_a_person_it_says_until_when_and_where_to_answer(run: Play, shop: Pipeline) -> None:
    def work() -> None:
        summary.begin(shop, "abc Picks")
        summary.wait(shop, "approval of production", "until Jan 02 09:00 UTC; press Resume to answer")

    text = page(run(work).id)
    assert text.startswith("# … Waits: approval of production until Jan 02 09:00 UTC; press Resume to answer\n")


def test_what_a_person_answered_is_a_stage_with_the_time_of_the_wait(run: Play, shop: Pipeline) -> None:
    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            summary.wait(shop, "approval of production", "until tomorrow")
            summary.answered("approval of production", "approved by Ada", passed=True)
            ending.state = Completed()
        return ending.state

    assert "| ✔ | approval of production | 0." in (text := page(run(work).id))
    assert "| approved by Ada |" in text


def test_a_resumed_run_goes_on_with_its_summary(run: Play, shop: Pipeline) -> None:
    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            gate()
            summary.wait(shop, "approval of staging", "until tomorrow")
            summary._SUMMARIES.clear()  # the process ends, and another one goes on
            ending.begin(shop, "abc Picks")
            summary.answered("approval of staging", "approved by Ada", passed=True)
            ending.state = Completed()
        return ending.state

    text = page(run(work).id)
    assert text.index("| ✔ | smoke on staging |") < text.index("| ✔ | approval of staging |")


def test_i4_recovery_ends_the_summary_of_a_run_that_was_killed(run: Play, shop: Pipeline) -> None:
    def work() -> None:
        summary.begin(shop, "abc Picks")
        gate()
        summary._current().put(StageRow(name="rollout of staging", began=NOW))  # type: ignore[union-attr]
        summary._current().write()  # type: ignore[union-attr]

    killed = run(work)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(killed.id, Crashed(message="exit code -9\nmore"), force=True)
    run(lambda: summary.end_interrupted(shop.application))
    text = page(killed.id)
    assert text.startswith("# ✘ Crashed: abc Picks\n\nexit code -9\n")
    assert "| ✘ | rollout of staging |" in text
    assert "| interrupted |" in text
    assert "| ✔ | smoke on staging |" in text


def test_recovery_leaves_the_summary_of_a_run_that_goes_on(run: Play, shop: Pipeline) -> None:
    def work() -> str:
        summary.begin(shop, "abc Picks")
        summary.end_interrupted(shop.application)
        return page(UUID(flow_run.id))

    assert run(work).result.startswith("# … Under way\n")


def test_a_waiting_run_that_another_process_ends_says_so(run: Play, shop: Pipeline) -> None:
    def work() -> None:
        summary.begin(shop, "abc Picks")
        summary.wait(shop, "approval of production", "until tomorrow")

    waited = run(work)
    with get_client(sync_client=True) as client:
        summary.end_other(client, waited.id, "Expired", "there was no decision in time")
    text = page(waited.id)
    assert text.startswith("# ✘ Expired: abc Picks\n\nthere was no decision in time\n")
    assert "| ✘ | approval of production |" in text


def test_stages_know_what_they_usually_take_and_what_is_unusual_is_named() -> None:
    def row(seconds: float) -> StageRow:
        return StageRow(name="build", began=NOW, seconds=seconds, usual=20, outcome=StageOutcome.PASSED)

    def shown(row: StageRow) -> str:
        return summary.summary(SummaryContent(application="shop", title="abc", stages=(row,)))

    assert "| 25 s | 20 s |" in shown(row(25))
    assert "| 1 min 15 s (unusual) | 20 s |" in shown(row(75))


def test_the_usual_time_is_the_median_of_runs_in_which_the_stage_passed(run: Play, shop: Pipeline) -> None:
    def earlier(seconds: float, outcome: StageOutcome) -> None:
        row = StageRow(name="smoke on staging", began=NOW, seconds=seconds, outcome=outcome)
        ended = "Completed" if outcome is StageOutcome.PASSED else "Failed"
        content = SummaryContent(application=shop.application, title="before", outcome=ended, stages=(row,))
        with get_client(sync_client=True) as client:
            summary._create(client, UUID(flow_run.id), content)

    for seconds in (10, 20, 90):
        run(lambda seconds=seconds: earlier(seconds, StageOutcome.PASSED))
    run(lambda: earlier(1000, StageOutcome.FAILED))

    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            gate()
            ending.state = Completed()
        return ending.state

    text = page(run(work).id)
    assert "| 20 s | passed in 1.0 s |" in text
    assert "## Stages: 0." in text
    assert " in all, usually 20 s\n" in text


def test_the_progress_of_a_rollout_says_what_it_usually_takes(run: Play, shop: Pipeline) -> None:
    def earlier() -> None:
        row = StageRow(name="rollout of staging", began=NOW, seconds=40, outcome=StageOutcome.PASSED)
        content = SummaryContent(application=shop.application, title="before", outcome="Completed", stages=(row,))
        with get_client(sync_client=True) as client:
            summary._create(client, UUID(flow_run.id), content)

    @task(task_run_name="rollout of staging")
    @listed
    def rollout() -> None:
        artifacts.Progress("shop", "staging").show(report(Phase.PROGRESSING))

    def work() -> None:
        summary.begin(shop, "abc Picks")
        rollout()

    run(earlier)
    assert "; usually 40 s, now 0." in run(work).descriptions["shop-staging-rollout"]


def test_the_time_of_people_is_not_that_of_a_run() -> None:
    rows = (
        StageRow(name="build", began=NOW, seconds=20, outcome=StageOutcome.PASSED),
        StageRow(name="approval", began=NOW, seconds=7200, outcome=StageOutcome.PASSED, by_person=True),
    )
    assert SummaryContent(application="shop", title="abc", stages=rows).seconds == 20


def test_i7_texts_of_others_begin_no_markdown() -> None:
    evil = "[x](https://evil.example) | <img> ` # x"
    row = StageRow(name=evil, began=NOW, seconds=1, outcome=StageOutcome.FAILED, result=evil)
    content = SummaryContent(application="shop", title=evil, outcome="Failed", message=evil, next=evil, stages=(row,))
    text = summary.summary(content)
    assert "[x](https" not in text
    assert "<img>" not in text


def test_a_flow_without_a_summary_writes_none(run: Play) -> None:
    assert summaries(run(gate).id) == []


@pytest.mark.parametrize("name", ["begin", "show", "wait", "answered", "end"])
def test_i4_a_summary_that_cannot_be_written_ends_no_run(
    run: Play, shop: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A bug in a page, or a server that is away, decides nothing about an environment."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    def work() -> object:
        with returning_state() as ending:
            if name != "begin":
                ending.begin(shop, "abc Picks")
            monkeypatch.setattr(summary, "_current", broken)
            monkeypatch.setattr(summary, "_resumed", broken)
            if name == "begin":
                ending.begin(shop, "abc Picks")
            elif name == "show":
                summary.show("abc", shop)
            elif name == "wait":
                summary.wait(shop, "approval", "until tomorrow")
            elif name == "answered":
                summary.answered("approval", "yes", passed=True)
            ending.state = Completed(message="done")
        return ending.state

    assert run(work).state.message == "done"
    assert "a page of this run is missing: a bug" in caplog.text


def test_the_evidence_of_a_failure_is_in_the_summary_and_the_log_has_a_line(
    run: Play, shop: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> object:
        with returning_state() as ending:
            ending.begin(shop, "abc Picks")
            gate(GateFailed("smoke failed", detail="line 1\nline 2"))
        return ending.state

    text = page(run(work).id)
    assert "## Evidence\n\n```\nline 1\nline 2\n```" in text
    assert "line 2" not in caplog.text
    assert "Traceback" not in caplog.text
    assert caplog.text.count("[gate-failed] smoke failed") >= 1


def test_the_traceback_of_a_bug_is_in_the_log(run: Play, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        gate(ZeroDivisionError("a bug"))

    run(work)
    assert "Traceback" in caplog.text
