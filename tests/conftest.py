"""For tests of stages and flows: a real Prefect server, started once, and a home for the files of runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.harness import Server


_NOT_WANTED = ("SCHEDULER", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP")
"""Services that would change runs beside the tests: only the code under test ends an approval that has expired."""


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A Prefect server for the whole session, for flows and clients in the tests' process. It changes no run by itself.

    Prefect's own `prefect_test_harness` migrates a new database each time, and keeps no log of its server.
    """
    # imported here: tests of the core need no Prefect, whose import takes seconds
    from prefect.settings import (  # noqa: PLC0415
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_UI_URL,
        temporary_settings,
    )

    from tests.cluster.harness import Server  # noqa: PLC0415

    with Server(tmp_path_factory.mktemp("prefect"), services_off=_NOT_WANTED).running() as server:
        settings = {
            PREFECT_API_URL: f"{server.url}/api",
            PREFECT_UI_URL: server.url,  # the environment may name that of another server of this session
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread sleeps in steps of 1 s; each run waits for its end
            PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("results"),
        }
        with temporary_settings(settings):
            yield server
            _send_what_is_queued()
        assert server.process.poll() is None, server.log


def _send_what_is_queued() -> None:
    """Send the last logs and events to Prefect's server before it ends; afterwards, each is retried for minutes."""
    from prefect.events.worker import EventsWorker  # noqa: PLC0415
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    APILogWorker.drain_all()
    EventsWorker.drain_all()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stage outside of a run keeps its files."""
    monkeypatch.setenv("PREFECT_CD_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "runs" / "no-run"
