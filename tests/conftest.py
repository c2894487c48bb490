"""For tests of stages and flows: a real Prefect server, started once, and a home for the files of runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server for the whole session: it takes seconds to start."""
    # imported here: tests of the core need no Prefect, whose import takes seconds
    from prefect.settings import (  # noqa: PLC0415
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415

    settings = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread sleeps in steps of 1 s, and each run waits for its end
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 150,
        PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("results"),
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=150):
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stage outside of a run keeps its files."""
    monkeypatch.setenv("PREFECT_CD_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "runs" / "no-run"
