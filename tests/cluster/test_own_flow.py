"""The example of a team's own flow, run as its docstring says."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import (
    REPOSITORY,
    Application,
    Repository,
    Run,
    Server,
    get,
    hello_files,
    hello_manifests,
    hello_pipeline,
    kubeconfig_of,
    process,
    records,
    remove_namespaces,
    states,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
STAGING = "k8s/staging/hello.yaml"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.commit(hello_files(), "Say hello")
    return repository


@pytest.fixture
def application(server: Server, repository: Repository, tmp_path: Path) -> Iterator[Application]:
    """An application that is not served."""
    made = Application(server, hello_pipeline("own", repository.path, staging={"approval": {}}))
    made.write(tmp_path)
    made.kubeconfig = kubeconfig_of([made])
    yield made
    remove_namespaces([made.staging, made.production])


def deliver(application: Application, log: Path) -> int:
    """Run the example, answer its form, and return its exit code."""
    example = [sys.executable, REPOSITORY / "examples" / "own_flow.py", application.file, "staging", "main"]
    server = application.server
    before = {run["id"] for run in own_runs(server)}
    with process(example, {**server.environment, "KUBECONFIG": application.kubeconfig}, log) as started:
        runs = wait_for(lambda: [run for run in own_runs(server) if run["id"] not in before] or None, log.read_text)
        run = Run(application, runs[0]["id"])
        run.wait("Paused").answer()
        try:
            return started.wait(120)
        except subprocess.TimeoutExpired:
            raise AssertionError(log.read_text()) from None


def own_runs(server: Server) -> list[dict[str, str]]:
    return list(server.post("/flow_runs/filter", {"flows": {"name": {"any_": ["deliver"]}}}))


def test_a_custom_flow_deploys_and_rolls_back(application: Application, repository: Repository, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert deliver(application, log) == 0, log.read_text()
    assert states(application.staging) == ["known-good"]
    assert records(application.staging)[0]["decision"]["name"] == "approver one"
    changed = {STAGING: hello_manifests(greeting="good day"), "www/index.html": "good day\n"}
    repository.commit(changed, "Say something that the gate does not expect")
    assert deliver(application, log) != 0, log.read_text()
    assert states(application.staging) == ["known-good", "rolled-back"]
    config = get(application.staging, "configmap/hello-config")
    assert config is not None
    assert config["data"] == {"GREETING": "hello"}
