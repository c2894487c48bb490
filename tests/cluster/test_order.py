"""Several releases of one application at once: which of them is deployed."""

from collections.abc import Iterator

import pytest

from tests.cluster.harness import (
    Application,
    Repository,
    Server,
    Switch,
    get,
    hello_files,
    hello_manifests,
    hello_pipeline,
    records,
    states,
    untouched,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
PRODUCTION = "k8s/production/hello.yaml"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("order") / "repository")


@pytest.fixture(scope="module")
def commits(repository: Repository) -> list[str]:
    first = repository.commit(hello_files(), "Say hello")
    return [first, repository.commit({PRODUCTION: hello_manifests(greeting="second")}, "Second")]


@pytest.fixture(scope="module")
def applications(server: Server, repository: Repository, commits: list[str]) -> Iterator[dict[str, Application]]:
    assert commits
    pipelines = [
        hello_pipeline("older", repository.path),
        hello_pipeline("waiting", repository.path, production={"approval": {"expires": "10m"}}),
    ]
    with server.serving(*pipelines) as served:
        yield {application.name: application for application in served}


def test_i8_an_older_commit_never_overwrites_a_newer_one(
    applications: dict[str, Application], commits: list[str]
) -> None:
    application = applications["older"]
    application.release(commits[1]).wait("Completed")
    before = get(application.staging, "deployment/hello"), get(application.production, "deployment/hello")
    run = application.release(commits[0]).wait("Superseded")
    assert f"runs {commits[1][:7]}, which contains {commits[0][:7]} already" in run.message
    assert "rollback/older" in run.message
    assert before == (get(application.staging, "deployment/hello"), get(application.production, "deployment/hello"))
    assert states(application.production) == ["known-good"]


def test_i8_the_same_commit_twice_is_one_release(applications: dict[str, Application], commits: list[str]) -> None:
    application = applications["older"]
    application.release(commits[1]).wait("Completed")
    before = get(application.production, "deployment/hello"), records(application.production)
    run = application.release("main").wait("Completed")
    run.wait_for_log("nothing to build")
    run.wait_for_log("production runs")
    assert before == (get(application.production, "deployment/hello"), records(application.production))


def test_i8_a_newer_release_asks_in_place_of_an_older_one_that_waits(
    applications: dict[str, Application], commits: list[str]
) -> None:
    application = applications["waiting"]
    older = application.release(commits[0]).wait("Suspended")
    newer = application.release(commits[1]).wait("Suspended")
    older.wait("Superseded")
    assert f"{commits[1][:7]} contains {commits[0][:7]} and asks in its place" in older.message
    wait_for(lambda: older.title.endswith("→ production: superseded"), older.title)
    assert untouched(application.production)
    newer.answer().wait("Completed")
    assert states(application.production) == ["known-good"]


@pytest.fixture
def go_on() -> Iterator[Switch]:
    with Switch() as switch:
        yield switch


def test_i8_an_older_release_that_did_not_know_of_a_newer_one_stops_before_production(
    server: Server, tmp_path_factory: pytest.TempPathFactory, go_on: Switch
) -> None:
    """The newer commit is pushed after the older one was checked out, and overtakes it."""
    repository = Repository(tmp_path_factory.mktemp("overtaken") / "repository")
    older_commit = repository.commit({**hello_files(), "wait": ""}, "Wait for the switch")
    wait = f"test $(git rev-parse HEAD) != {older_commit} || until {go_on.test}; do sleep 0.2; done"
    check = {"name": "slow check", "run": ["bash", "-c", wait]}
    with server.serving(hello_pipeline("overtaken", repository.path, checks=[check])) as (application,):
        older = application.release(older_commit)
        older.wait_for_log("/test/hello@sha256")
        newer_commit = repository.commit({"www/index.html": "hello, newer\n"}, "Overtake")
        application.release(newer_commit).wait("Completed")
        go_on.open()
        older.wait("Superseded")
        assert [record["commit"]["sha"] for record in records(application.production)] == [newer_commit]
