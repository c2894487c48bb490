"""The API server goes away in the middle of a release."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import needs_restarts
from tests.cluster.harness import (
    Application,
    Repository,
    Server,
    hello_files,
    hello_manifests,
    hello_pipeline,
    states,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(700), pytest.mark.restarts, needs_restarts]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.commit(hello_files(), "Say hello")
    return repository


@pytest.fixture
def application(server: Server, repository: Repository) -> Iterator[Application]:
    with server.serving(hello_pipeline("outage", repository.path)) as (served,):
        served.release("main").wait("Completed")
        yield served


def test_a_release_survives_a_restart_of_the_api_server(
    application: Application, repository: Repository, restart: Callable[..., None]
) -> None:
    slow = {"k8s/production/hello.yaml": hello_manifests(slow=30, greeting="slow")}
    run = application.release(repository.commit(slow, "Take care"))
    recorded = "record 2 of production is in the cluster"
    wait_for(lambda: "old pending termination" in run.log().partition(recorded)[2], run.log)
    restart("kube-apiserver", 30, "KILL")  # longer than the lock's lease
    run.wait("Completed", seconds=400)  # the node, too, needs its time to find the server again
    assert states(application.production) == ["known-good", "known-good"]
    assert "the API server has not answered since" in run.log()
