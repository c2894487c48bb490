"""A real Prefect server for tests of flows that need no cluster; it takes seconds to start, and is started once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings
from prefect.testing.utilities import prefect_test_harness

PIPELINE = """\
application: {name}
source: {{repository: https://example.org/{name}.git}}
image: {{name: registry.example.org/{name}}}
environments:
  - {{name: staging, namespace: {name}-staging, manifests: k8s/staging}}
  - {{name: production, namespace: {name}, manifests: k8s/production, approval: {{expires: 1h}}}}
"""


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    with (
        temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 150}),
        prefect_test_harness(server_startup_timeout=150),
    ):
        yield


@pytest.fixture
def pipeline_file(tmp_path: Path) -> Path:
    """A pipeline file of the application shop."""
    return write(tmp_path, "shop")


def write(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(PIPELINE.format(name=name))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs keep their files."""
    monkeypatch.setitem(os.environ, "PREFECT_CD_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "runs" / "no-run"
