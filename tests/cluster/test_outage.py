"""The control plane fails in the middle of a release."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest

from tests.cluster.control_plane import answers, full_etcd, needs_restarts
from tests.cluster.harness import (
    Application,
    Repository,
    Run,
    Server,
    hello_files,
    hello_manifests,
    hello_pipeline,
    holder,
    kubectl,
    states,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(700), pytest.mark.restarts, needs_restarts]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("outage") / "repository")
    repository.commit(hello_files(), "Say hello")
    return repository


@pytest.fixture(scope="module")
def application(server: Server, repository: Repository) -> Iterator[Application]:
    with server.serving(hello_pipeline("outage", repository.path)) as (served,):
        served.release("main").wait("Completed")
        yield served


def in_the_middle(application: Application, repository: Repository, seconds: int, greeting: str) -> Run:
    """A release whose new pods run in production, and are not available for so many seconds."""
    manifests = hello_manifests(slow=seconds, greeting=greeting)
    number = len(states(application.production)) + 1
    run = application.release(repository.commit({"k8s/production/hello.yaml": manifests}, "Take care"))
    recorded = f"record {number} of production is in the cluster"
    wait_for(lambda: "old pending termination" in run.log().partition(recorded)[2], run.log)
    return run


def test_a_release_waits_until_a_full_etcd_has_space_again(application: Application, repository: Repository) -> None:
    run = in_the_middle(application, repository, 10, "full")
    with full_etcd():
        wait_for(lambda: since_renewal(application) > timedelta(seconds=20), run.log)  # the lock's lease is over
        assert states(application.production) == ["known-good", "applying"]
    run.wait("Completed")
    assert states(application.production) == ["known-good", "known-good"]
    assert holder(application.production) == ""


def since_renewal(application: Application) -> timedelta:
    """For how long the lock has not been renewed."""
    (lease,) = json.loads(kubectl("-n", application.production, "get", "leases", "-o", "json"))["items"]
    return datetime.now(timezone.utc) - datetime.fromisoformat(lease["spec"]["renewTime"].replace("Z", "+00:00"))


def test_a_release_survives_the_death_of_etcd_and_the_api_server(
    application: Application, repository: Repository, restart: Callable[..., None]
) -> None:
    run = in_the_middle(application, repository, 30, "slow")
    restart("etcd", 40, "KILL")  # longer than the lock's lease
    wait_for(lambda: not answers("/readyz"), "the API server is ready without etcd")
    restart("kube-apiserver", 30, "KILL")
    run.wait("Completed", seconds=400)  # the node, too, needs its time to find the server again
    assert states(application.production)[-2:] == ["known-good", "known-good"]
    assert "the API server has not answered since" in run.log()
