"""Where the tests of this folder play: on the embedded cluster always, on a real one where KUBECONFIG names it.

`cluster` is the whole thing; `controlled` and `stage` are also what is half real and half embedded. A test that needs a
program which is not on PATH is left out, and that is said.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conformance import clusters
from tests.conformance.api import Api, client_of
from tests.conformance.clusters import Cluster, in_a_thread

REAL = pytest.param("real_cluster", marks=pytest.mark.cluster)
PROGRAMS = {
    "ours_on_real": ("etcd", "kube-apiserver", "openssl"),
    "real_on_ours": ("kube-controller-manager",),
    "kubectl": ("kubectl",),
}
_LEFT_OUT = pytest.StashKey[dict[str, int]]()


def missing_program(item: pytest.Item) -> str:
    """The first program that a test's fixtures need and that is not there."""
    fixtures = getattr(item, "fixturenames", [])
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    needed = [name for each in (*fixtures, *params) if isinstance(each, str) for name in PROGRAMS.get(each, ())]
    return next((name for name in needed if not shutil.which(name)), "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = {item: missing_program(item) for item in items if here in item.path.parents}
    left_out = [item for item in items if missing.get(item)]
    items[:] = [item for item in items if not missing.get(item)]
    config.hook.pytest_deselected(items=left_out)
    names = [missing[item] for item in left_out]
    config.stash[_LEFT_OUT] = {name: names.count(name) for name in names}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, count in config.stash.get(_LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{count} conformance tests left out: no {name} on PATH", yellow=True)


@pytest.fixture(scope="session")
def embedded_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One embedded cluster for all tests that do not need one of their own."""
    with in_a_thread(clusters.embedded(tmp_path_factory.mktemp("embedded"))) as found:
        yield found


@pytest.fixture(scope="session")
def real_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real API server that has no controllers and no node."""
    with clusters.real_api_server(tmp_path_factory.mktemp("bare")) as found:
        yield found


@pytest.fixture(scope="session")
def ours_on_real(real_api_server: Cluster) -> Iterator[Cluster]:
    """A real API server with our controllers and a node of paper."""
    with in_a_thread(clusters.our_controllers(real_api_server)), in_a_thread(clusters.paper_node(real_api_server)):
        yield real_api_server


@pytest.fixture(scope="session")
def real_on_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The embedded API server with the real kube-controller-manager and a node of paper."""
    folder = tmp_path_factory.mktemp("mixed")
    with (
        in_a_thread(clusters.embedded_api_server(folder)) as found,
        clusters.real_controllers(found, folder),
        in_a_thread(clusters.paper_node(found)),
    ):
        yield found


@pytest.fixture(scope="session")
def real_cluster() -> Cluster:
    """The cluster that the environment names."""
    return Cluster(Path(os.environ["KUBECONFIG"]), f"{os.environ['REGISTRY']}/base/busybox:1")


@pytest.fixture(scope="session", params=["embedded_cluster", REAL])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A whole cluster."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="session", params=["embedded_cluster", "ours_on_real", REAL])
def controlled(request: pytest.FixtureRequest) -> Cluster:
    """A whole cluster, or our controllers on a real API server."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="session", params=["embedded_cluster", "ours_on_real", "real_on_ours", REAL])
def stage(request: pytest.FixtureRequest) -> Cluster:
    """A whole cluster, or an API server and controllers of different origin."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Iterator[Api]:
    """Raw HTTP, and a namespace of our own."""
    name = f"prefect-cd-api-{uuid4().hex[:8]}"
    with client_of(cluster.kubeconfig) as client:
        found = Api(client, name)
        assert found.post("/api/v1/namespaces", {"metadata": {"name": name}}).status == 201
        yield found
        found.ask("DELETE", f"/api/v1/namespaces/{name}")
