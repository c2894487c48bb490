"""What people see in both of Prefect's user interfaces, in a real Chromium."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Failed, State, Suspended

from prefect_cd.errors import DeliveryError, Errored, Expired, GateFailed, Rejected, RollbackFailed, RolledBack, Vetoed
from prefect_cd.flows.outcome import message_of
from prefect_cd.gates.browser.executable import find_browser
from prefect_cd.tasks.runs import end_waiting
from tests.cluster.harness import Server

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
