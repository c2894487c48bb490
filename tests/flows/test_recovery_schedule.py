"""The schedule of recovery: that a real Prefect server starts it, and the warning when the server does not."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from prefect_cd.deployments.recovery_schedule import PATIENCE_SECONDS, RecoverySchedule
from prefect_cd.deployments.serve import deployments_of
from prefect_cd.pipeline.load import load
from tests.cluster.harness import Server, process, read, wait_for
from tests.flows.conftest import write

pytestmark = pytest.mark.timeout(400)

SERVE = """
import os, sys
from datetime import timedelta
from pathlib import Path
from prefect_cd.deployments import recovery_schedule, serve
serve.RECOVER_EVERY = timedelta(seconds=5)
recovery_schedule.PATIENCE_SECONDS = float(sys.argv[2])
sys.stdout = open(os.devnull, "w")  # what remains in the log of this process is its stderr
serve.serve([Path(sys.argv[1])])
"""
WARNING = "recover/blog: the Prefect server has scheduled no next run"


@contextmanager
def serving(file: Path, environment: dict[str, str], patience: float = PATIENCE_SECONDS) -> Iterator[tuple[Path, int]]:
    """`prefect-cd serve` with a recovery every 5 s, on a machine that has no cluster; yields its log and pid."""
    log = file.with_suffix(".log")
    command = [sys.executable, "-c", SERVE, str(file), str(patience)]
    with process(command, {**environment, "KUBECONFIG": str(file.with_suffix(".no-cluster"))}, log) as served:
        yield log, served.pid
        assert served.poll() is None, log.read_text()


def commands_of_children(pid: int) -> list[bytes]:
    """The command lines of the processes that this process has started."""
    parents = {
        folder: read(folder / "stat").rpartition(b")")[2].split()[1:2] for folder in Path("/proc").glob("[0-9]*")
    }
    return [read(folder / "cmdline") for folder, parent in parents.items() if parent == [str(pid).encode()]]


def test_the_servers_scheduler_starts_recovery(tmp_path: Path) -> None:
    with Server(tmp_path).running() as server, serving(write(tmp_path, "blog"), server.environment) as (_, serve):

        def recovered_by_schedule() -> bool:
            runs: list[dict[str, Any]] = server.post("/flow_runs/filter", {"flows": {"name": {"any_": ["recover"]}}})
            return any(run["auto_scheduled"] and run["start_time"] for run in runs)

        wait_for(recovered_by_schedule, (tmp_path / "server.log").read_text, 200)
        commands = commands_of_children(serve)
        assert any(b"multiprocessing.forkserver" in command for command in commands), commands  # it forks runs


def test_serve_warns_on_stderr_when_the_server_schedules_no_recovery(tmp_path: Path, prefect_server: Server) -> None:
    with serving(write(tmp_path, "blog"), prefect_server.environment, patience=3) as (log, _):
        wait_for(lambda: WARNING in log.read_text(), log.read_text, 200)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def client(prefect_server: Server) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as opened:
        yield opened


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_it_warns_once_when_recovery_has_had_no_next_run_for_some_time(
    client: SyncPrefectClient, pipeline_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recover = deployments_of(load(pipeline_file))[2].apply()
    clock = Clock()
    schedule = RecoverySchedule(["shop", "not-registered-yet"], clock)
    schedule.check(client)
    clock.seconds = PATIENCE_SECONDS - 20
    schedule.check(client)
    assert warnings(caplog) == []
    for seconds in (PATIENCE_SECONDS, PATIENCE_SECONDS * 2):
        clock.seconds = seconds
        schedule.check(client)
    [warning] = warnings(caplog)
    assert warning.startswith("recover/shop: the Prefect server has scheduled no next run for 120 s")
    assert "log" in warning  # where to look

    client.request("POST", "/deployments/{id}/schedule", path_params={"id": recover})  # what the scheduler does
    clock.seconds = PATIENCE_SECONDS * 3
    schedule.check(client)
    assert "schedules runs again" in caplog.records[-1].getMessage()
    clock.seconds = PATIENCE_SECONDS * 9
    schedule.check(client)
    assert len(warnings(caplog)) == 1


def test_a_run_that_a_person_started_is_no_schedule(
    client: SyncPrefectClient, pipeline_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.create_flow_run_from_deployment(deployments_of(load(pipeline_file))[2].apply())
    clock = Clock()
    schedule = RecoverySchedule(["shop"], clock)
    schedule.check(client)
    clock.seconds = PATIENCE_SECONDS
    schedule.check(client)
    assert len(warnings(caplog)) == 1
