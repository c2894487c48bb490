"""The clusters on which the tests of this folder run: the embedded one always, a real one where KUBECONFIG names it.

`cluster` is a whole cluster; `controlled` and `stage` are also combinations of real and embedded parts. Tests that need
a program which is not on PATH, or a real cluster where there is none, are deselected, and the summary says so.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from conformance import clusters
from conformance.api import Api, client_of
from conformance.clusters import Cluster, in_a_thread

REAL = pytest.param("real_cluster", marks=pytest.mark.cluster)
REFERENCE = ("test_rollout_traces", "test_no_request_lost")
"""Modules whose long tests on a real cluster show only that Kubernetes still does what was recorded of it."""
PROGRAMS = {
    "ours_on_real": ("etcd", "kube-apiserver", "openssl"),
    "real_on_ours": ("kube-controller-manager",),
    "kubectl": ("kubectl",),
}


def missing_requirement(item: pytest.Item) -> str:
    """Return the first requirement of a test that this machine lacks; empty when it has all."""
    if item.get_closest_marker("cluster") and not (os.environ.get("KUBECONFIG") and os.environ.get("REGISTRY")):
        return "KUBECONFIG and REGISTRY are not set"
    fixtures = getattr(item, "fixturenames", [])
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [name for name in (*fixtures, *params) if isinstance(name, str)]
    programs = [program for name in names for program in PROGRAMS.get(name, ())]
    return next((f"no {program} on PATH" for program in programs if not shutil.which(program)), "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here == item.path.parent and item.path.stem in REFERENCE and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.reference)
        if here in item.path.parents and (missing := missing_requirement(item)):
            item.add_marker(pytest.mark.lacks(missing))


@pytest.fixture(scope="session")
def embedded_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One embedded cluster for all tests that do not need one of their own."""
    with in_a_thread(clusters.embedded(tmp_path_factory.mktemp("embedded"))) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def real_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real API server that has no controllers and no node."""
    with clusters.real_api_server(tmp_path_factory.mktemp("bare")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ours_on_real(real_api_server: Cluster) -> Iterator[Cluster]:
    """A real API server with our controllers and a paper node."""
    with in_a_thread(clusters.our_controllers(real_api_server)), in_a_thread(clusters.paper_node(real_api_server)):
        yield real_api_server


@pytest.fixture(scope="session")
def real_on_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The embedded API server with the real kube-controller-manager and a paper node."""
    folder = tmp_path_factory.mktemp("mixed")
    with (
        in_a_thread(clusters.embedded_api_server(folder)) as cluster,
        clusters.real_controllers(cluster, folder),
        in_a_thread(clusters.paper_node(cluster)),
    ):
        yield cluster


@pytest.fixture(scope="session")
def real_cluster() -> Cluster:
    """The cluster that KUBECONFIG names."""
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
    """Raw HTTP, and a namespace for the test."""
    name = f"prefect-cd-api-{uuid4().hex[:8]}"
    with client_of(cluster.kubeconfig) as client:
        api = Api(client, name)
        assert api.post("/api/v1/namespaces", {"metadata": {"name": name}}).status == 201
        yield api
        api.ask("DELETE", f"/api/v1/namespaces/{name}")
