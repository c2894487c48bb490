"""Which pages appear in the Prefect UI, and under which keys."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prefect import task
from prefect.client.orchestration import get_client

from prefect_cd.environment.change_set import Action, Change, ChangeSet, created
from prefect_cd.environment.record import State
from prefect_cd.gates.evidence import Outcome
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.resources import Route
from prefect_cd.manifests.lint import Finding, lint
from prefect_cd.rollout.assess import Phase
from prefect_cd.tasks import artifacts, pages
from prefect_cd.tasks.markdown_text import inline
from tests.tasks.conftest import Run
from tests.tasks.examples import config_map, deployment, evidence, record, report, service

CREATED = ChangeSet(
    changes=(Change(api_version="v1", kind="ConfigMap", namespace="shop", name="shop", action=Action.CREATED),)
)
FINDINGS = lint([deployment(), service()])
PAGES: list[tuple[str, str, Callable[[], object]]] = [
    ("shop-staging-smoke", "passed in 1.0 s", lambda: artifacts.evidence("shop", evidence(), "staging")),
    ("shop-unit-tests", "passed in 1.0 s", lambda: artifacts.evidence("shop", evidence("Unit tests"))),
    (
        "shop-staging-smoke-failed",
        "failed in 1.0 s",
        lambda: artifacts.evidence("shop", evidence(outcome=Outcome.FAILED), "staging"),
    ),
    (
        "shop-staging-smoke",
        "errored in 1.0 s",
        lambda: artifacts.evidence("shop", evidence(outcome=Outcome.ERRORED), "staging"),
    ),
    (
        "shop-staging-plan",
        "staging: 1 created",
        lambda: artifacts.planned_changes("shop", "staging", CREATED, "a cluster", ()),
    ),
    (
        "shop-staging-plan",
        "staging: 1 created; may lose requests",
        lambda: artifacts.planned_changes("shop", "staging", CREATED, "a cluster", FINDINGS),
    ),
    (
        "shop-staging-zero-downtime",
        "passed in 1.0 s",
        lambda: artifacts.requests("shop", "staging", evidence("zero downtime"), Traffic(route=Route.URL)),
    ),
    (
        "shop-pipeline-file",
        "shop.yaml in the commit differs from the served one, which the run uses",
        lambda: artifacts.pipeline_difference("shop", "shop.yaml", "-a\n+b"),
    ),
    (
        "shop-staging-rollout-failed",
        "deployment/shop: 0 of 1 ready",
        lambda: artifacts.failure("shop", "staging", report(Phase.FAILED)),
    ),
    (
        "shop-staging-outcome",
        f"staging: {record(1).commit.short} Sell more: rolled-back",
        lambda: artifacts.outcome(record(1, State.ROLLED_BACK)),
    ),
]


@pytest.mark.parametrize(("key", "description", "create"), PAGES)
def test_every_page_has_a_key_that_stays_and_a_description_that_says_the_point(
    run: Callable[[Callable[[], Any]], Run], key: str, description: str, create: Callable[[], object]
) -> None:
    played = run(create)
    played.state.result()
    assert [(page.type, page.key, page.description) for page in played.artifacts] == [("markdown", key, description)]


def test_a_later_attempt_replaces_the_page_of_an_errored_one(run: Callable[[Callable[[], Any]], Run]) -> None:
    """A green run carries no page of an error."""

    def attempts() -> None:
        for outcome in (Outcome.ERRORED, Outcome.PASSED):
            artifacts.evidence("shop", evidence(outcome=outcome), "staging")

    assert run(attempts).descriptions == {"shop-staging-smoke": "passed in 1.0 s"}


def test_the_same_gate_in_another_task_hides_nothing(run: Callable[[Callable[[], Any]], Run]) -> None:
    """After a rollback the gates run again."""

    @task
    def gate(outcome: Outcome) -> None:
        artifacts.evidence("shop", evidence(outcome=outcome), "staging")

    played = run(lambda: [gate(outcome) for outcome in (Outcome.ERRORED, Outcome.PASSED)])
    assert {page.description for page in played.artifacts} == {"errored in 1.0 s", "passed in 1.0 s"}


def test_a_run_has_one_plan_of_an_environment(run: Callable[[Callable[[], Any]], Run]) -> None:
    """It is planned before an approver is asked, and again under the lock."""

    @task
    def plan(*findings: Finding) -> None:
        artifacts.planned_changes("shop", "staging", CREATED, "a cluster", findings)

    played = run(lambda: (plan(), plan(*FINDINGS)))
    assert [page.description for page in played.artifacts] == ["staging: 1 created; may lose requests"]


def test_a_plan_has_as_many_pages_as_its_diff_needs_and_the_first_one_leads_to_the_others(
    run: Callable[[Callable[[], Any]], Run],
) -> None:
    long = ChangeSet(changes=(created(config_map(**{f"key-{n}": "a value" for n in range(30_000)})),))
    played = run(lambda: artifacts.planned_changes("shop", "staging", long, "a cluster", (), content="c" * 64))
    pages = {str(page.key): page for page in played.artifacts}
    assert sorted(pages) == ["shop-staging-plan", "shop-staging-plan-2"]
    first, second = (pages[key] for key in sorted(pages))
    assert played.result.endswith(f"/artifacts/artifact/{first.id}")
    assert f"[page 2]({played.result.replace(str(first.id), str(second.id))})" in str(first.data)
    assert f"sha256:{'c' * 64}" in str(first.data)
    assert "+  key-0: a value" in str(first.data)
    assert "+  key-9999: a value" in str(second.data)


@pytest.mark.parametrize("words", ["[ok](https://evil.example)", "<!--", "https://evil.example"])
def test_i10_descriptions_which_the_interface_shows_as_markdown_are_escaped(
    run: Callable[[Callable[[], Any]], Run], words: str
) -> None:
    played = run(lambda: artifacts.evidence("shop", evidence(summary=words), "staging"))
    assert played.descriptions == {"shop-staging-smoke": inline(words)}
    assert inline(words) != words


@pytest.mark.usefixtures("prefect_server")
def test_outside_of_a_run_there_are_no_pages() -> None:
    with get_client(sync_client=True) as client:
        before = len(client.read_artifacts())
        for _, _, create in PAGES:
            create()
        artifacts.Progress("shop", "staging").show(report())
        assert len(client.read_artifacts()) == before


@pytest.fixture
def without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's server is away."""

    def unreachable(*_: object, **__: object) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(artifacts, "create_markdown_artifact", unreachable)
    monkeypatch.setattr(artifacts, "create_progress_artifact", unreachable)


@pytest.mark.usefixtures("without_a_server")
@pytest.mark.parametrize("create", [create for _, _, create in PAGES], ids=[key for key, _, _ in PAGES])
def test_i4_a_page_that_prefects_server_does_not_take_is_a_warning_and_ends_nothing(
    run: Callable[[Callable[[], Any]], Run], create: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    played = run(create)
    assert played.result is None
    assert played.artifacts == []
    assert "a page of this run is missing: connection refused" in caplog.text


@pytest.mark.usefixtures("without_a_server")
def test_i4_progress_that_cannot_be_shown_is_a_warning_and_is_shown_later(
    run: Callable[[Callable[[], Any]], Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    progress = artifacts.Progress("shop", "staging")

    def watch() -> None:
        progress.show(report(Phase.PROGRESSING))
        monkeypatch.undo()
        progress.show(report())  # not even tried: the server was gone a moment ago
        assert time.monotonic() < pages._unavailable.until
        monkeypatch.setattr(pages._unavailable, "until", 0.0)
        progress.show(report())

    (bar,) = run(watch).artifacts
    assert (bar.key, bar.data) == ("shop-staging-rollout", 100)
    assert "a page of this run is missing: connection refused" in caplog.text


def test_a_page_that_cannot_be_made_is_a_warning_too(
    run: Callable[[Callable[[], Any]], Run], caplog: pytest.LogCaptureFixture
) -> None:
    not_a_record: Any = None
    assert run(lambda: artifacts.outcome(not_a_record)).artifacts == []
    assert "a page of this run is missing: 'NoneType'" in caplog.text


def test_progress_is_one_bar_that_moves(run: Callable[[Callable[[], Any]], Run]) -> None:
    def watch() -> None:
        progress = artifacts.Progress("shop", "staging")
        progress.show(report(Phase.PROGRESSING))
        progress.show(report())

    (bar,) = run(watch).artifacts
    assert (bar.key, bar.type, bar.data) == ("shop-staging-rollout", "progress", 100)
    assert bar.description is not None
    assert bar.description.startswith("deployment/shop: 1 of 1 ready\n\n| workload | ready | state |")


@pytest.mark.parametrize("words", [["Shop", "E2E: buys a thing!"], ["shop", "", "e2e--buys a  thing"]])
def test_a_key_is_lower_case_words_with_dashes(words: list[str]) -> None:
    assert pages.key_of(words) == "shop-e2e-buys-a-thing"


def test_pages_are_written_from_inside_an_event_loop_too(run: Callable[[Callable[[], Any]], Run]) -> None:
    from prefect_cd.tasks.connection import Connections  # noqa: PLC0415

    connections = Connections()

    async def show() -> None:
        artifacts.outcome(record(1))

    played = run(lambda: connections.run(show))
    connections.close()
    assert list(played.descriptions) == ["shop-staging-outcome"]
    assert config_map()["metadata"]["name"] in played.artifacts[0].data
