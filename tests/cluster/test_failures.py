"""Releases that fail: early, with the reason, and with every environment whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.harness import (
    HELLO,
    REGISTRY,
    SHOP,
    Application,
    Repository,
    Server,
    Switch,
    create_namespace,
    get,
    hello_files,
    hello_manifests,
    hello_pipeline,
    images,
    kubectl,
    pods,
    records,
    shop_files,
    shop_pipeline,
    states,
    tags,
    untouched,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
STAGING, PRODUCTION = "k8s/staging/hello.yaml", "k8s/production/hello.yaml"
PASSES = "def test_it() -> None:\n    pass\n"
UNIT = "tests/unit/test_nothing.py"
E2E = "tests/e2e/test_page.py"
SUITE = """\
def test_the_page_greets(page, base_url) -> None:
    page.goto(base_url)
    assert "hello" in page.content()
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("failures") / "repository")
    repository.commit({**hello_files(), E2E: SUITE}, "Say hello")
    return repository


@pytest.fixture(scope="module")
def hello(server: Server, repository: Repository) -> Iterator[Application]:
    """The hello server with unit tests and a suite in a real browser; version 1 runs everywhere."""
    unit = ["python3", "-m", "pytest", "tests/unit", "--junitxml=junit.xml"]
    pipeline = hello_pipeline(
        "failures",
        repository.path,
        checks=[{"name": "unit tests", "run": unit, "report": "junit.xml"}],
        staging={"gates": [{"name": "E2E", "browser": "tests/e2e"}]},
        production={"requirement_check": "warn"},
    )
    with server.serving(pipeline) as (application,):
        application.release("main").wait("Completed")
        yield application


def test_i1_a_failing_browser_test_in_staging_keeps_production_untouched(
    hello: Application, repository: Repository
) -> None:
    before = get(hello.production, "deployment/hello"), states(hello.production)
    sha = repository.commit({"www/index.html": "good day\n", "tests/e2e/test_page.py": SUITE}, "Say good day")
    run = hello.release(sha).wait("Rolled back")
    assert "E2E failed" in run.message
    assert (get(hello.production, "deployment/hello"), states(hello.production)) == before
    assert states(hello.staging) == ["known-good", "rolled-back"]
    assert images(hello.staging) == images(hello.production)
    artifact = run.artifacts()["failures-staging-e2e-failed"]
    assert "1 failed" in artifact["description"]
    assert "assert 'hello' in" in artifact["data"]
    assert "data:image/" in artifact["data"]


def test_i1_a_failing_unit_test_reaches_no_environment_and_is_not_built_twice(
    hello: Application, repository: Repository
) -> None:
    before = states(hello.staging), states(hello.production)
    fails = "def test_sums() -> None:\n    assert 1 + 1 == 3\n"
    sha = repository.commit({UNIT: fails, "www/index.html": "hello\n"}, "Break a unit test")
    run = hello.release(sha).wait("Failed")
    assert "unit tests" in run.message
    assert "assert (1 + 1) == 3" in run.artifacts()["failures-unit-tests-failed"]["data"]
    wait_for(lambda: "build image" in "".join(run.tasks()), "the build is no task")
    again = hello.release(sha).wait("Failed")
    again.wait_for_log("nothing to build")
    assert (states(hello.staging), states(hello.production)) == before


def test_i1_no_tests_is_no_pass(hello: Application, repository: Repository) -> None:
    before = states(hello.staging)
    sha = repository.commit({UNIT: "# nothing here\n"}, "Remove the unit tests")
    run = hello.release(sha).wait("Errored")
    assert "no tests ran" in run.message
    assert states(hello.staging) == before
    repository.commit({UNIT: PASSES}, "Bring the unit tests back")


def test_i9_what_an_environment_lacks_ends_a_release_before_anything_is_built(
    hello: Application, repository: Repository
) -> None:
    before = states(hello.staging)
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "nobodys", "key": "token"}}}
    sidecar = {"name": "sidecar", "image": f"{REGISTRY}/test/nowhere:1", "env": [secret]}
    sha = repository.commit({STAGING: hello_manifests(extra=[sidecar])}, "Add a sidecar to staging")
    run = hello.release(sha).wait("Failed")
    assert "[requirement-missing] the release cannot run in staging" in run.message
    assert "deployment/hello: container sidecar, env TOKEN: secret/nobodys does not exist" in run.message
    assert f"the registry has no image {REGISTRY}/test/nowhere:1" in run.message
    run.wait_for_log(f"kubectl -n {hello.staging} create secret generic nobodys --from-literal=token=")
    assert states(hello.staging) == before
    assert not any("build" in task for task in run.tasks())
    repository.commit({STAGING: hello_manifests()}, "Remove the sidecar from staging")


def test_an_image_that_does_not_exist_fails_early_with_the_reason(hello: Application, repository: Repository) -> None:
    sidecar = {"name": "sidecar", "image": f"{REGISTRY}/test/nowhere:1"}
    sha = repository.commit({PRODUCTION: hello_manifests(extra=[sidecar])}, "Add a sidecar")
    good = records(hello.production)[-1]
    run = hello.release(sha).wait("Rolled back")
    assert "test/nowhere:1" in run.message
    artifact = run.artifacts()["failures-production-rollout-failed"]
    assert "test/nowhere:1" in artifact["description"]
    assert "What to do" in artifact["data"]
    assert states(hello.production)[-1] == "rolled-back"
    deployment = get(hello.production, "deployment/hello")
    assert deployment is not None
    assert deployment["metadata"]["annotations"]["prefect-cd.dev/release"] == good["release_id"]
    assert images(hello.production) == {good["image"]["name"] + "@" + good["image"]["digest"]}
    repository.commit({PRODUCTION: hello_manifests()}, "Remove the sidecar")


def test_a_crash_fails_early_with_the_last_line_of_the_traceback(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository = Repository(tmp_path_factory.mktemp("crash") / "repository")
    repository.commit(shop_files(), "The shop")
    repository.patch(SHOP / "versions" / "crash.patch", "Tell people whom to ask")
    with server.serving(shop_pipeline("crash", repository.path)) as (shop,):
        run = shop.release("main").wait("Rolled back")
        assert "in staging, which is empty again" in run.message
        artifact = run.artifacts()["crash-staging-rollout-failed"]
        assert "KeyError: 'SHOP_SUPPORT_EMAIL'" in artifact["data"]
        assert states(shop.staging) == ["rolled-back"]
        assert untouched(shop.production)
        assert get(shop.staging, "deployment/shop") is None
        wait_for(lambda: not pods(shop.staging), "the pods of the failed release are still there")
        assert any(tag for tag in tags(f"{REGISTRY}/test/shop"))


@pytest.fixture
def outside() -> Iterator[Switch]:
    with Switch() as switch:
        yield switch


def test_i4_a_gate_that_fails_on_the_known_good_too_is_evidence_and_freezes_nothing(
    server: Server, tmp_path: Path, outside: Switch
) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit(hello_files(), "Say hello")
    pipeline = hello_pipeline("evidence", repository.path)
    gate = {"name": "outside world", "run": ["bash", "-c", outside.test]}
    pipeline["environments"] = [pipeline["environments"][0] | {"gates": [gate]}]
    outside.open()
    with server.serving(pipeline) as (application,):
        application.release("main").wait("Completed")
        outside.close()
        second = repository.commit({STAGING: hello_manifests(greeting="second")}, "Second")
        run = application.release(second).wait("Rolled back")
        assert "look at staging, too: not all gates pass on what it runs again" in run.message
        assert states(application.staging) == ["known-good", "rolled-back"]
        outside.open()
        vetoed = application.release(second).wait("Vetoed")
        assert "was rolled back in staging (record 2)" in vetoed.message
        assert states(application.staging) == ["known-good", "rolled-back"]
        application.release(second, again=True).wait("Completed")
        application.start("rollback", environment="staging").wait("Completed")
        assert "withdrawn by a rollback" in application.release(second).wait("Vetoed").message
        application.release(repository.commit({}, "Third")).wait("Completed")


def needs_outside(greeting: str) -> str:
    """A version whose pods need a ConfigMap that is not part of it, and whose old pods end before new ones start."""
    outside = {"configMapRef": {"name": "outside"}}
    container = {"name": "sidecar", "image": HELLO, "command": ["sh", "-c", "sleep 100000"], "envFrom": [outside]}
    objects = list(yaml.safe_load_all(hello_manifests(greeting=greeting, extra=[container])))
    objects[1]["spec"]["strategy"] = {"type": "Recreate"}
    return str(yaml.safe_dump_all(objects))


def test_i9_a_release_without_a_way_back_is_stopped_before_it_is_written(server: Server, tmp_path: Path) -> None:
    """What only the known-good needs is gone; the release would work, and a rollback would not."""
    repository = Repository(tmp_path / "repository")
    repository.commit({**hello_files(), STAGING: needs_outside("hello")}, "Say hello")
    pipeline = hello_pipeline("wayback", repository.path)
    pipeline["environments"] = [pipeline["environments"][0] | {"rollback_check": "stop"}]
    with server.serving(pipeline) as (application,):
        create_namespace(application.staging)
        kubectl("-n", application.staging, "create", "configmap", "outside", "--from-literal=A=1")
        application.release("main").wait("Completed")
        kubectl("-n", application.staging, "delete", "configmap", "outside")
        second = repository.commit({STAGING: hello_manifests(greeting="second")}, "Second")
        run = application.release(second).wait("Failed")
        assert "[no-way-back]" in run.message
        run.wait_for_log("deployment/hello: its pods in the known-good need what is missing: configmap/outside")
        assert "## Why a rollback would not work" in run.artifacts()["wayback-staging-plan"]["data"]
        assert states(application.staging) == ["known-good"]
        pipeline["environments"][0]["rollback_check"] = "warn"
        application.write(server.folder)
        application.release(second).wait("Completed")
        assert states(application.staging) == ["known-good", "known-good"]


def test_i6_a_rollback_that_fails_is_loud_and_freezes_the_environment(server: Server, tmp_path: Path) -> None:
    """Something that both versions need is gone."""
    repository = Repository(tmp_path / "repository")
    repository.commit({**hello_files(), STAGING: needs_outside("hello")}, "Say hello")
    pipeline = hello_pipeline("frozen", repository.path)
    impatient = {"settle": "0s", "patience": {"configuration": "5s"}}
    pipeline["environments"] = [pipeline["environments"][0] | {"rollout": impatient, "requirement_check": "warn"}]
    with server.serving(pipeline) as (application,):
        create_namespace(application.staging)
        outside = ("-n", application.staging, "create", "configmap", "outside", "--from-literal=A=1")
        kubectl(*outside)
        good = application.release("main").wait("Completed")
        good_id = records(application.staging)[0]["release_id"]
        assert good_id in good.message
        kubectl("-n", application.staging, "delete", "configmap", "outside")
        second = repository.commit({STAGING: needs_outside("second")}, "Second")
        run = application.release(second).wait("Rollback failed")
        command = f"prefect deployment run 'rollback/frozen' -p environment=staging -p to={good_id}"
        assert command in run.message
        assert states(application.staging) == ["known-good", "rollback-failed"]

        third = application.release(repository.commit({}, "Third")).wait("Failed")
        assert "environment-frozen" in third.message
        assert states(application.staging) == ["known-good", "rollback-failed"]

        recovery = application.start("recover").wait("Failed")
        assert "[environment-frozen] staging is frozen" in recovery.message
        assert "'rollback/frozen' -p environment=staging" in recovery.message
        kubectl(*outside)
        application.start("rollback", environment="staging", to=good_id).wait("Completed")
        assert states(application.staging)[-1] == "known-good"
        application.release("main").wait("Completed")
