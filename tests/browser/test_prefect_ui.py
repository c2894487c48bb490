"""What people see in both of Prefect's user interfaces, in a real Chromium."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Failed, State, Suspended

from prefect_cd.deployments.serve import link_to_environments
from prefect_cd.errors import DeliveryError, Errored, Expired, GateFailed, Rejected, RollbackFailed, RolledBack, Vetoed
from prefect_cd.flows.outcome import message_of, returning_state
from prefect_cd.gates.browser.executable import find_browser
from prefect_cd.pipeline.models import ClusterAccess
from prefect_cd.tasks.choices import PREVIOUS, with_choices
from prefect_cd.tasks.runs import end_waiting
from prefect_cd.tasks.summary import listed
from tests.cluster.harness import Server
from tests.tasks import examples

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
PAGES = {"V1": "/deployments/deployment/{}?tab=Runs", "V2": "/v2/deployments/deployment/{}?tab=Runs"}
ENDINGS: tuple[type[DeliveryError], ...] = (
    RolledBack,
    RollbackFailed,
    Rejected,
    Expired,
    Vetoed,
    Errored,
    GateFailed,
)


@flow(name="release")
def release() -> None:
    """A release."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1440, "height": 2000})
        browser.close()


@pytest.mark.parametrize("ui", PAGES)
def test_the_runs_of_a_deployment_are_listed_whatever_their_outcome(
    prefect_server: Server, page: Page, ui: str
) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(release), f"shop-{uuid4().hex[:8]}")
        names = []
        for kind in ENDINGS:
            run = client.create_flow_run_from_deployment(deployment, name=f"abc Picks: {kind.__name__}")
            client.set_flow_run_state(run.id, Failed(message=message_of(kind("it happened"))), force=True)
            names.append(run.name)
        older = client.create_flow_run_from_deployment(deployment, name="abc Picks → production")
        waits: State[None] = Suspended(timeout_seconds=60)
        client.set_flow_run_state(older.id, waits, force=True)
        end_waiting(client, older, StateType.CANCELLED, "Superseded", "another one asks in its place")
        names.append("abc Picks → production: superseded")
    page.goto(prefect_server.url + PAGES[ui].format(deployment))
    for name in names:
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=20_000)


@task(task_run_name="smoke on production")
@listed
def smoke() -> None:
    raise RolledBack(
        "abc failed in production, which runs the known-good again: 2 of 5 requests failed", hint="push a fix"
    )


def rolled_back_run(application: str) -> str:
    """The id of a run that was rolled back; the cluster does not answer."""
    away = examples.environment(name="production", cluster=ClusterAccess(kubeconfig="/nowhere/kubeconfig"))
    pipeline = examples.pipeline(away).model_copy(update={"application": application})
    ids: list[str] = []

    @flow(name="release")
    def run() -> State[Any]:
        ids.append(str(flow_run.id))
        with returning_state() as ending:
            ending.begin(pipeline, "abc1234 Picks → production")
            smoke()
        return ending.state

    run(return_state=True)
    return ids[0]


@pytest.mark.parametrize("ui", ["", "/v2"], ids=["V1", "V2"])
def test_the_summary_of_a_run_is_among_its_artifacts_and_says_what_happened_why_and_what_runs_now(
    prefect_server: Server, page: Page, ui: str
) -> None:
    run = rolled_back_run(f"shop-{uuid4().hex[:8]}")
    page.goto(f"{prefect_server.url}{ui}/runs/flow-run/{run}?tab=Artifacts")
    if not ui:
        page.get_by_text("Artifacts", exact=True).first.click(timeout=20_000)
    page.get_by_text(re.compile("^shop-.*-summary$")).last.click(timeout=20_000)
    heading = page.get_by_role("heading", name="Rolled back: abc1234 Picks → production")
    expect(heading).to_be_visible(timeout=20_000)
    why = "abc failed in production, which runs the known-good again: 2 of 5 requests failed"
    expect(page.get_by_text(why, exact=True).first).to_be_visible()
    expect(page.get_by_text("What to do: push a fix", exact=True)).to_be_visible()
    expect(page.get_by_role("cell", name="unknown")).to_be_visible()
    expect(page.get_by_role("cell", name="smoke on production")).to_be_visible()


@pytest.mark.parametrize("ui", ["", "/v2"], ids=["V1", "V2"])
def test_the_page_about_the_environments_is_a_click_away_from_a_deployment(
    prefect_server: Server, page: Page, ui: str
) -> None:
    application = f"shop-{uuid4().hex[:8]}"
    rolled_back_run(application)
    with get_client(sync_client=True) as client:
        description = link_to_environments(application)
        deployment = client.create_deployment(
            client.create_flow(release),
            application,
            description=description,
            entrypoint="prefect_cd.flows.release.release",  # without one, V2 shows no description
        )
    page.goto(f"{prefect_server.url}{ui}/deployments/deployment/{deployment}?tab=Description")
    if not ui:
        page.get_by_text("Description", exact=True).first.click(timeout=20_000)
    link = page.get_by_role("link", name="What runs where").get_attribute("href", timeout=20_000)
    page.goto(str(link))  # one of the interfaces opens it in a new tab
    expect(page.get_by_text("production: unknown").first).to_be_visible(timeout=20_000)


@pytest.mark.parametrize("ui", ["", "/v2"], ids=["V1", "V2"])
def test_the_form_of_a_rollback_offers_environments_and_the_releases_that_were_good(
    prefect_server: Server, page: Page, ui: str
) -> None:
    application = f"shop-{uuid4().hex[:8]}"
    schema = {
        "type": "object",
        "properties": {
            name: {"title": name, "position": position, "type": "string"}
            for position, name in enumerate(("environment", "to"))
        },
    }
    choice = "production: record 7: 303b6f2 Staff picks (2026-01-01 09:00 UTC)"
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(release),
            application,
            entrypoint="prefect_cd.flows.rollback.rollback",
            parameter_openapi_schema=with_choices(schema, ["staging", "production"], [choice]),
            enforce_parameter_schema=False,
        )
    page.goto(f"{prefect_server.url}{ui}/deployments/deployment/{deployment}/run")
    page.get_by_text(PREVIOUS).last.click(timeout=20_000)
    if not ui:
        page.keyboard.press("ArrowDown")
    expect(page.get_by_text(choice).last).to_be_visible(timeout=20_000)
