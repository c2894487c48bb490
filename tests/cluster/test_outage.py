"""The API server goes away in the middle of a rollout. Only this test restarts a component of the cluster."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import (
    REPOSITORY,
    Application,
    Repository,
    Server,
    hello_files,
    hello_manifests,
    hello_pipeline,
    states,
)

CLUSTER = Path(os.environ.get("KUBE_CLUSTER") or REPOSITORY.parent / "shared" / "cluster" / "cluster")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not CLUSTER.is_file(), reason=f"no program to restart the API server with: {CLUSTER}"),
]


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


def test_a_release_survives_a_restart_of_the_api_server(application: Application, repository: Repository) -> None:
    slow = {"k8s/production/hello.yaml": hello_manifests(slow=15, greeting="slow")}
    run = application.release(repository.commit(slow, "Take care"))
    run.says("production: 2 configured")
    done = subprocess.run([CLUSTER, "restart", "kube-apiserver", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run.wait("Completed")
    assert states(application.production) == ["known-good", "known-good"]
    assert "trying again" in run.log()
