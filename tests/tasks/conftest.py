"""For tests of stages: a fake API server, a git repository, and runs on a Prefect server."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, State, TaskRun
from prefect.runtime import flow_run

from prefect_cd.pipeline.models import ClusterAccess, Environment
from prefect_cd.tasks import pages
from prefect_cd.tasks.connection import CONNECTIONS
from prefect_cd.tasks.target import Target
from tests.cluster.harness import Server
from tests.tasks import examples
from tests.tasks.examples import GitRepository, HeldLock
from tests.unit.fake_api import FakeApi


@pytest.fixture(autouse=True)
def _files(home: Path) -> Path:
    """No test leaves files in the user's home."""
    return home


@pytest.fixture(autouse=True)
def _pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that ended Prefect's server leaves the pages of the next ones alone."""
    monkeypatch.setattr(pages._unavailable, "until", 0.0)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """An API server with the namespace shop."""
    server = FakeApi()
    server.put("namespaces", "shop")
    with server.serving():
        yield server
        CONNECTIONS.close()


@pytest.fixture
def access(api: FakeApi, tmp_path: Path) -> ClusterAccess:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(api.kubeconfig))
    return ClusterAccess(kubeconfig=str(kubeconfig))


@pytest.fixture
def environment(access: ClusterAccess) -> Environment:
    return examples.environment(cluster=access)


@pytest.fixture
def target(environment: Environment) -> Target:
    """The environment staging of the shop, on the fake API server."""
    return Target(application="shop", environment=environment)


@pytest.fixture
def lock() -> Any:  # noqa: ANN401  stages want the lock of a real Lease
    return HeldLock()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitRepository:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return GitRepository(tmp_path / "repository")


@dataclass
class Run:
    """A flow run that has ended."""

    id: UUID
    name: str
    state: State[Any]
    tags: list[str]
    artifacts: list[Artifact] = field(default_factory=list)

    @property
    def result(self) -> Any:  # noqa: ANN401
        return self.state.result()

    def tasks(self, count: int) -> list[TaskRun]:
        """The task runs, once the server has the final state of all of them, which takes a moment."""
        of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[self.id]))
        with get_client(sync_client=True) as client:
            while True:
                runs = client.read_task_runs(flow_run_filter=of_this_run)
                if len(runs) >= count and all(run.state and run.state.is_final() for run in runs):
                    return runs
                time.sleep(0.05)

    @property
    def descriptions(self) -> dict[str, str]:
        """The description of each artifact by its key."""
        return {str(artifact.key): str(artifact.description) for artifact in self.artifacts}


@pytest.fixture
def run(prefect_server: Server) -> Callable[[Callable[[], Any]], Run]:  # noqa: ARG001
    """Runs a function as a flow on the Prefect server, and reads what became of the run."""

    def play(work: Callable[[], Any]) -> Run:
        ids: list[str] = []

        @flow(name="tests", validate_parameters=False)
        def tests() -> Any:  # noqa: ANN401
            ids.append(str(flow_run.id))
            return work()

        state: State[Any] = tests(return_state=True)
        by_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(ids[0])]))
        with get_client(sync_client=True) as client:
            ended = client.read_flow_run(UUID(ids[0]))
            # those without a key are Prefect's own
            artifacts = [page for page in client.read_artifacts(artifact_filter=by_run) if page.key]
        return Run(ended.id, ended.name, state, ended.tags, artifacts)

    return play
