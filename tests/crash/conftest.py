"""Fixtures for tests of crashes: a Prefect server, an API server without TLS, and a git repository with two commits."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.harness import Server
from tests.crash.trial import Scene
from tests.tasks.examples import GitRepository


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server that the processes find in their environment."""
    server = Server(tmp_path_factory.mktemp("prefect"))
    with server.running(), pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def api_server() -> Iterator[str]:
    """The URL of the cluster's API server behind `kubectl proxy`, which adds TLS and credentials."""
    command = ["kubectl", "proxy", "--port=0", "--disable-filter=true", "--append-server-path"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as proxy:
        assert proxy.stdout
        address = re.search(r"127\.0\.0\.1:\d+", proxy.stdout.readline())
        assert address
        yield f"http://{address[0]}"
        proxy.terminate()


@pytest.fixture(scope="session")
def scene(prefect: Server, api_server: str, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    assert prefect
    folder = tmp_path_factory.mktemp("crash")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        repository = GitRepository(folder / "repository")
        first, second = (repository.commit({"version": version}).sha for version in ("1", "2"))
    image = os.environ.get("BASE_IMAGE") or f"{os.environ.get('REGISTRY', '')}/base/busybox:1"
    return Scene(api_server, image, repository.path, first, second, folder)
