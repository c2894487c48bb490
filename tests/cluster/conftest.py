"""Fixtures for tests of flows on a real cluster."""

from collections.abc import Iterator

import pytest

from tests.cluster.harness import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server with a home of its own."""
    with Server(tmp_path_factory.mktemp("prefect")).running() as running:
        yield running
