"""The story of the sample shop, as in its README: each fixture is one step, and the tests check its result."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from prefect_cd.gates.browser.executable import find_browser
from prefect_cd.manifests.diff import strip
from tests.cluster.harness import (
    RBAC,
    REGISTRY,
    SHOP,
    Application,
    Repository,
    Run,
    Server,
    config_map,
    get,
    holder,
    images,
    pods,
    records,
    shop_files,
    shop_pipeline,
    states,
    tags,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.browser, pytest.mark.timeout(600)]
_CLICKS_AGAIN = 10.0  # seconds
CONFIG = "k8s/production/configmap.yaml"
ANNOUNCEMENT = "Free samples with every order this month"
KINDS = ("configmap/shop-config", "configmap/delivery", "deployment/shop", "service/shop")


class Commits(NamedTuple):
    """Versions 1 to 3 of the shop; version 3 also changes production's settings and adds an object there."""

    v1: str
    v2: str
    v3: str


def written(namespace: str) -> dict[str, Any]:
    """The environment's objects without what the server writes."""
    objects = ((what, get(namespace, what)) for what in KINDS)
    return {what: strip(item) for what, item in objects if item}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("shop") / "repository")


@pytest.fixture(scope="module")
def commits(repository: Repository) -> Commits:
    v1 = repository.commit(shop_files(), "The shop")
    v2 = repository.patch(SHOP / "versions" / "v2.patch", "Staff picks are 15 % off")
    changed = repository.read(CONFIG).replace(ANNOUNCEMENT, "Free delivery from today")
    extra = {CONFIG: changed, "k8s/production/delivery.yaml": config_map("delivery", FREE_FROM="50")}
    return Commits(v1, v2, repository.patch(SHOP / "versions" / "v3.patch", "Free delivery", extra))


@pytest.fixture(scope="module")
def shop(server: Server, repository: Repository, commits: Commits) -> Iterator[Application]:
    assert commits.v3
    with server.serving(shop_pipeline("story", repository.path)) as (application,):
        yield application


@pytest.fixture(scope="module")
def ui(server: Server) -> Iterator[Page]:
    """A page of the Prefect UI in the installed browser."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        opened = started.new_page(base_url=server.url, viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        yield opened
        started.close()


# ------------------------------------------------------------------------------------------------------- chapters


@pytest.fixture(scope="module")
def first(shop: Application, commits: Commits) -> Run:
    """Version 1, started by command, approved through the API."""
    run = shop.run_by_command("release", revision=commits.v1).wait("Suspended")
    return run.answer(comment="the first one").wait("Completed")


@pytest.fixture(scope="module")
def before_again(shop: Application, first: Run) -> tuple[Any, ...]:
    assert first.ended
    return [pod["metadata"]["uid"] for pod in pods(shop.production)], records(shop.production), tags_of_the_shop()


@pytest.fixture(scope="module")
def again(shop: Application, commits: Commits, before_again: object) -> Run:
    """The same commit once more."""
    assert before_again
    return shop.release(commits.v1).wait("Completed")


@pytest.fixture(scope="module")
def asked(shop: Application, commits: Commits, again: Run) -> Run:
    """Version 2 waits for an approval."""
    assert again.ended
    return shop.release(commits.v2).wait("Suspended")


@pytest.fixture(scope="module")
def form(asked: Run, ui: Page) -> Page:
    """The form, opened by clicking."""
    ui.goto(f"/runs/flow-run/{asked.id}")
    ui.get_by_role("button", name="Resume").first.click()
    expect(ui.get_by_role("heading", name=f"{asked.application.name} ")).to_be_visible()
    return ui


@pytest.fixture(scope="module")
def second(asked: Run, form: Page) -> Run:
    """Version 2, approved by clicking."""
    form.locator(".p-modal .p-select-button__icon").click()  # only the arrow opens Prefect's list
    form.locator(".p-select-option", has_text="approve").click()
    name, comment = form.locator(".p-modal textarea").all()
    name.fill("approver two")
    comment.fill("looks good to me")
    submit = form.get_by_role("button", name="Submit")
    clicked = float("-inf")

    def arrived() -> bool:
        """A server that is busy refuses the click and the form stays open: a user waits a little and clicks again."""
        nonlocal clicked
        if time.monotonic() - clicked > _CLICKS_AGAIN and submit.is_visible():
            with suppress(PlaywrightTimeoutError):  # it may close just now
                submit.click(timeout=2000)
            clicked = time.monotonic()
        return asked.name != "Suspended"

    wait_for(arrived, "the click does not arrive")
    form.goto("about:blank")  # the page of a run takes a fifth of a core for as long as it is open
    return asked.wait("Completed")


@pytest.fixture(scope="module")
def version_2(shop: Application, second: Run) -> dict[str, Any]:
    """What production consists of while version 2 runs."""
    assert second.ended
    return written(shop.production)


@pytest.fixture(scope="module")
def third(shop: Application, version_2: object) -> Run:
    """Version 3 by the branch's name, approved; it fails in production only."""
    assert version_2
    return shop.start("release").wait("Suspended").answer().wait("Rolled back")


@pytest.fixture(scope="module")
def back(shop: Application, third: Run) -> Run:
    """A user rolls back to the previous release."""
    assert third.ended
    return shop.start("rollback").wait("Completed")


@pytest.fixture(scope="module")
def forth(shop: Application, back: Run) -> Run:
    """A user rolls back to a named release: the one that the previous rollback left."""
    assert back.ended
    to = records(shop.production)[1]["release_id"]
    return shop.start("rollback", environment="production", to=to).wait("Completed")


# ---------------------------------------------------------------------------------------------------------- tests


def test_a_release_goes_from_a_commit_to_production(shop: Application, first: Run, commits: Commits) -> None:
    (record,) = records(shop.production)
    assert record["commit"]["sha"] == commits.v1
    assert first.message == f"story {record['release_id']} runs in production"
    assert commits.v1 in tags_of_the_shop()
    reference = f"{record['image']['name']}@{record['image']['digest']}"
    for namespace in (shop.staging, shop.production):
        assert images(namespace) == {reference}
        deployment = get(namespace, "deployment/shop")
        assert deployment is not None
        assert deployment["metadata"]["annotations"]["prefect-cd.dev/release"] == record["release_id"]
        assert "prefect-cd.dev/release" not in str(deployment["spec"]["template"])
        assert states(namespace) == ["known-good"]
        assert holder(namespace) == ""


def test_the_record_has_the_approver_and_the_results_of_gates(shop: Application, first: Run) -> None:
    (record,) = records(shop.production)
    assert (record["decision"]["name"], record["decision"]["comment"]) == ("approver one", "the first one")
    assert [(gate["name"], gate["outcome"]) for gate in record["gates"]] == [
        ("smoke", "passed"),
        ("front page", "passed"),
    ]
    assert record["run"].endswith(first.id)


def test_the_tests_leave_reports_with_pictures(first: Run) -> None:
    artifacts = first.artifacts()
    assert " passed in " in artifacts["story-unit-tests"]["description"]
    assert "6 passed" in artifacts["story-staging-e2e"]["description"]
    assert "](data:image/" in artifacts["story-staging-e2e"]["data"]
    assert "known-good" in artifacts["story-production-outcome"]["description"]


def test_i8_the_same_commit_once_more_builds_nothing_and_changes_nothing(
    shop: Application, again: Run, before_again: tuple[Any, ...]
) -> None:
    again.wait_for_log("nothing to build")
    again.wait_for_log("production runs")
    pods_now = [pod["metadata"]["uid"] for pod in pods(shop.production)]
    assert (pods_now, records(shop.production), tags_of_the_shop()) == before_again


def test_the_form_shows_what_changes_what_was_tested_and_what_the_browser_saw(form: Page, commits: Commits) -> None:
    modal = form.locator(".p-modal")
    expect(modal).to_contain_text(f"story {commits.v2[:7]} → production")
    expect(modal).to_contain_text(re.compile("unit tests: [0-9]+ passed"))
    expect(modal).to_contain_text("E2E: 6 passed")
    expect(modal).to_contain_text(f"{commits.v2[:7]} Staff picks are 15 % off (Test Author)")
    expect(modal).to_contain_text(f"image: {REGISTRY}/test/shop@sha256:")
    expect(modal).not_to_contain_text("The shop (Test Author)")
    picture = modal.locator("img[src^='data:image/']").first
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()
    assert picture.evaluate("img => img.naturalWidth") > 100


def test_a_click_approves(shop: Application, second: Run, commits: Commits) -> None:
    assert second.name == "Completed"
    record = records(shop.production)[-1]
    assert (record["commit"]["sha"], record["state"]) == (commits.v2, "known-good")
    assert (record["decision"]["name"], record["decision"]["comment"]) == ("approver two", "looks good to me")
    assert images(shop.production) == {f"{REGISTRY}/test/shop@{record['image']['digest']}"}


def test_a_failure_in_production_only_is_rolled_back(
    shop: Application, third: Run, version_2: dict[str, Any], commits: Commits
) -> None:
    if RBAC:  # a Role in a namespace gives no addresses of nodes, and a port-forward does not show what users see
        assert "smoke failed: GET /api/products: 500 instead of 200" in third.message
    else:  # the probe noticed, before any gate was run
        assert "zero downtime failed" in third.message
        assert "with status 500" in third.message
    assert states(shop.production) == ["known-good", "known-good", "rolled-back"]
    assert written(shop.production) == version_2
    assert images(shop.production) == {f"{REGISTRY}/test/shop@{records(shop.production)[1]['image']['digest']}"}
    on_staging = records(shop.staging)[-1]
    assert (on_staging["commit"]["sha"], on_staging["state"]) == (commits.v3, "known-good")
    assert images(shop.staging) == {f"{REGISTRY}/test/shop@{on_staging['image']['digest']}"}


def test_a_user_rolls_back_to_the_previous_release(shop: Application, back: Run, commits: Commits) -> None:
    newest = records(shop.production)[:4]
    assert [record["commit"]["sha"] for record in newest] == [commits.v1, commits.v2, commits.v3, commits.v1]
    assert back.message == f"production runs {newest[0]['release_id']} again"
    assert newest[3]["restores"] == 1
    assert newest[3]["state"] == "known-good"


def test_a_user_rolls_back_to_a_named_release(shop: Application, forth: Run, version_2: dict[str, Any]) -> None:
    assert forth.name == "Completed"
    assert records(shop.production)[-1]["restores"] == 2
    assert states(shop.production)[-1] == "known-good"
    assert written(shop.production) == version_2


def tags_of_the_shop() -> set[str]:
    return tags(f"{REGISTRY}/test/shop")
