"""A process dies in the middle of a rollout: what it leaves behind, and how recovery restores it."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.harness import (
    Application,
    Repository,
    Run,
    Server,
    Switch,
    get,
    hello_files,
    hello_manifests,
    hello_pipeline,
    holder,
    kubectl,
    records,
    states,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
PRODUCTION = "k8s/production/hello.yaml"
SLOW = 40  # seconds that a rollout takes that is going to be interrupted


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("recovery") / "repository")
    repository.commit(hello_files(), "Say hello")
    return repository


@pytest.fixture(scope="module")
def go_on() -> Iterator[Switch]:
    """While it is open, releases of "queued" come to their end in production."""
    with Switch() as switch:
        switch.open()
        yield switch


@pytest.fixture(scope="module")
def applications(server: Server, repository: Repository, go_on: Switch) -> Iterator[dict[str, Application]]:
    """Four applications; all but "first" run version 1 everywhere."""
    gate = {"name": "go on", "run": ["bash", "-c", f"until {go_on.test}; do sleep 0.2; done"]}
    pipelines = [hello_pipeline(name, repository.path) for name in ("killed", "cancelled")]
    pipelines.append(hello_pipeline("queued", repository.path, production={"gates": [gate]}))
    pipelines.append(hello_pipeline("first", repository.path))
    with server.serving(*pipelines) as served:
        for run in [application.release("main") for application in served if application.name != "first"]:
            run.wait("Completed")
        yield {application.name: application for application in served}


@pytest.fixture(scope="module")
def slow(repository: Repository) -> str:
    """A commit whose rollout in production takes long, and which changes the settings, too."""
    return repository.commit({PRODUCTION: hello_manifests(slow=SLOW, greeting="slow")}, "Take care")


def in_the_middle(application: Application, run: Run) -> Run:
    """Return when production is half changed: written, and not rolled out."""
    run.wait_for_log("production: 2 changed")
    wait_for(lambda: greeting(application) == "slow", run.log)
    assert states(application.production) in (["known-good", "applying"], ["known-good", "verifying"])
    return run


def greeting(application: Application) -> str:
    config_map = get(application.production, "configmap/hello-config")
    return str(config_map["data"]["GREETING"]) if config_map else ""


def is_whole(application: Application) -> bool:
    """Whether production is version 1 again: settings, workload and record."""
    return is_whole_with(application, records(application.production)[0])


def is_whole_with(application: Application, good: dict[str, Any]) -> bool:
    """Whether production is version 1, as this record has it."""
    deployment = get(application.production, "deployment/hello")
    assert deployment is not None
    return (
        greeting(application) == "hello"
        and deployment["spec"].get("minReadySeconds", 0) == 0
        and deployment["metadata"]["annotations"]["prefect-cd.dev/release"] == good["release_id"]
        and deployment["status"].get("updatedReplicas") == 1
        and deployment["status"].get("unavailableReplicas", 0) == 0
    )


def test_i4_a_killed_rollout_is_rolled_back_without_a_user(applications: dict[str, Application], slow: str) -> None:
    application = applications["killed"]
    run = in_the_middle(application, application.release(slow))
    dead = holder(application.production)
    assert run.id in dead
    recoveries = len(application.runs("recover"))
    os.kill(run.process_id(), signal.SIGKILL)
    run.wait("Crashed")
    wait_for(lambda: len(application.runs("recover")) > recoveries, "no recovery was started")
    done = wait_for(
        lambda: [run for run in application.runs("recover") if run.name == "Rolled back"] or None,
        "no recovery brought it back",
    )
    recovery = done[0]
    assert "was interrupted" in recovery.message
    assert is_whole(application)
    assert states(application.production) == ["known-good", "rolled-back"]
    assert states(application.staging) == ["known-good", "known-good"]
    assert holder(application.production) == ""
    recovery.wait_for_log("recover/")  # the lock of the dead holder was replaced


def test_i4_a_killed_first_release_leaves_nothing_and_the_next_one_succeeds(
    applications: dict[str, Application], repository: Repository, slow: str
) -> None:
    application = applications["first"]
    run = application.release(slow)
    wait_for(lambda: greeting(application) == "slow", run.log)
    os.kill(run.process_id(), signal.SIGKILL)
    run.wait("Crashed")
    wait_for(lambda: states(application.production) == ["rolled-back"], "production is not whole again")
    for what in ("deployment/hello", "configmap/hello-config", "service/hello"):
        assert get(application.production, what) is None
    application.release(repository.commit({PRODUCTION: hello_manifests()}, "Be quick")).wait("Completed")
    assert is_whole_with(application, records(application.production)[1])


def test_i4_a_cancelled_rollout_is_rolled_back_without_a_user(applications: dict[str, Application], slow: str) -> None:
    application = applications["cancelled"]
    run = in_the_middle(application, application.release(slow))
    run.cancel()
    run.wait("Cancelled")
    wait_for(lambda: is_whole(application), "production is not whole again")
    wait_for(lambda: states(application.production)[-1] == "rolled-back", "the record is not settled")


def test_i4_a_damaged_record_of_one_environment_keeps_no_other_one_from_recovery(
    applications: dict[str, Application], slow: str
) -> None:
    application = applications["cancelled"]
    before = len(states(application.production))
    run = application.release(slow, again=True)  # it was rolled back before
    wait_for(lambda: greeting(application) == "slow", run.log)
    secret = f"secret/prefect-cd.cancelled.{records(application.staging)[-1]['number']}"
    head = kubectl(
        "-n", application.staging, "get", secret, "-o", r"jsonpath={.metadata.annotations.prefect-cd\.dev/head}"
    )
    annotate = ("-n", application.staging, "annotate", "--overwrite", secret)
    kubectl(*annotate, "prefect-cd.dev/head={}")
    try:
        os.kill(run.process_id(), signal.SIGKILL)
        run.wait("Crashed")
        wait_for(lambda: states(application.production)[before:] == ["rolled-back"], "production is not whole again")
        assert is_whole(application)
        recovery = application.start("recover").wait("Failed")
        assert f"staging: [invalid] {secret}: the record is damaged: its annotation" in recovery.message
        assert "production: " not in recovery.message
    finally:
        kubectl(*annotate, f"prefect-cd.dev/head={head}")


def test_i3_a_second_release_waits_for_the_first_ones_rollout(
    applications: dict[str, Application], repository: Repository, go_on: Switch
) -> None:
    application = applications["queued"]
    first = repository.commit({PRODUCTION: hello_manifests(greeting="slow")}, "Take some care")
    second = repository.commit({PRODUCTION: hello_manifests(greeting="second")}, "Take none")
    go_on.close()
    one = in_the_middle(application, application.release(first))
    two = application.release(second)
    two.wait_for_log("waiting for the lock of production")
    assert one.id in holder(application.production)
    go_on.open()
    one.wait("Completed")
    two.wait("Completed")
    history = records(application.production)
    assert [record["state"] for record in history] == ["known-good"] * 3
    assert history[1]["settled_at"] <= history[2]["started_at"]
    assert greeting(application) == "second"
