"""The story of the sample shop, as its README tells it: each fixture is one chapter, and the tests look at its end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from prefect_cd.browser import find_browser
from tests.cluster.harness import (
    SHOP,
    Application,
    Repository,
    Run,
    Server,
    config_map,
    get,
    pods,
    shop_files,
    shop_pipeline,
    states,
)

pytestmark = [pytest.mark.cluster, pytest.mark.browser, pytest.mark.timeout(400)]
PRODUCTION_CONFIG = "k8s/production/configmap.yaml"
CONFIG = "configmap/shop-config"
ANNOUNCEMENT = "Free samples with every order this month"


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Version 1 to 3 of the shop; version 3 also changes production's settings and adds an object."""
    repository = Repository(tmp_path_factory.mktemp("shop") / "repository")
    v1 = repository.commit(shop_files(), "The shop")
    v2 = repository.patch(SHOP / "versions" / "v2.patch", "Staff picks are 15 % off")
    config = repository.read(PRODUCTION_CONFIG).replace(ANNOUNCEMENT, "Free delivery from today")
    extra = {PRODUCTION_CONFIG: config, "k8s/production/delivery.yaml": config_map("delivery", FREE_FROM="50")}
    v3 = repository.patch(SHOP / "versions" / "v3.patch", "Free delivery", extra)
    return {"v1": v1, "v2": v2, "v3": v3, "path": str(repository.path)}


@pytest.fixture(scope="module")
def shop(server: Server, commits: dict[str, str]) -> Iterator[Application]:
    with server.serving(shop_pipeline("story", Path(commits["path"]))) as (application,):
        yield application


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    """A page of the Prefect UI in the installed browser."""
    browser = find_browser()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser.executable, args=["--no-sandbox", "--disable-gpu"])
        opened = started.new_page(base_url=server.url, viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(20_000)
        yield opened
        started.close()


# ------------------------------------------------------------------------------------------------------- chapters


@pytest.fixture(scope="module")
def first(shop: Application, commits: dict[str, str]) -> Run:
    """Version 1 by the command line, approved."""
    run = shop.run_by_command("release", revision=commits["v1"])
    return run.wait("Suspended", seconds=240).answer(comment="the first one").wait("Completed")


@pytest.fixture(scope="module")
def again(shop: Application, commits: dict[str, str], first: Run) -> tuple[Run, dict[str, Any]]:
    """The same commit once more; with what production was before."""
    assert first.ended
    before = {"pods": [pod["metadata"]["uid"] for pod in pods(shop.production)], "states": states(shop.production)}
    before["deployment"] = deployment(shop.production)["metadata"]["resourceVersion"]
    return shop.release(commits["v1"]).wait("Completed"), before


@pytest.fixture(scope="module")
def asked(shop: Application, commits: dict[str, str], again: object) -> Run:
    """Version 2 waits for a person."""
    assert again
    return shop.release(commits["v2"]).wait("Suspended", seconds=240)


@pytest.fixture(scope="module")
def second(asked: Run, page: Page) -> Run:
    """Version 2, approved by clicking."""
    page.goto(f"/runs/flow-run/{asked.id}")
    page.get_by_role("button", name="Resume").first.click()
    form = page.get_by_role("dialog")
    fill(form, "Ada")
    return asked.wait("Completed")


def test_a_release_goes_from_a_commit_to_production(shop: Application, first: Run, commits: dict[str, str]) -> None:
    assert first.name == "Completed"


def test_approve(second: Run) -> None:
    assert second.name == "Completed"


def deployment(namespace: str) -> dict[str, Any]:
    found = get(namespace, "deployment/shop")
    assert found
    return found
