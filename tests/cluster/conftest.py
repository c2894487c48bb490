"""Fixtures for tests of flows on a real cluster."""

from collections.abc import Callable, Iterator

import pytest

from tests.cluster import control_plane
from tests.cluster.harness import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server for each worker: SQLite refuses writes where too many come at once."""
    with Server(tmp_path_factory.mktemp("prefect")).running() as running:
        yield running


@pytest.fixture
def restart() -> Iterator[Callable[..., None]]:
    """Ends a component of the control plane for some seconds; the next test finds the cluster well again."""
    yield control_plane.restart
    control_plane.recovered()
