"""Prefect's starter of flow runs: it starts forks, and new interpreters where forks are not possible."""

import asyncio
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.runner import Runner, _starter_engine
from prefect.runner._starter_engine import EngineCommandStarter
from prefect.utilities.processutils import run_process

from prefect_cd.deployments import run_starter
from prefect_cd.deployments.forkserver import Forked, ForkServer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _prefects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back after each test what `install` replaces."""
    monkeypatch.setattr(_starter_engine, "run_process", run_process)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that stands in for `prefect.engine`, which would ask a server for the run; and stops the fork server."""
    act = tmp_path / "act.py"
    (tmp_path / "sitecustomize.py").write_text(
        "import runpy\nreal = runpy.run_module\n"
        "def run_module(name, *rest, **more):\n"
        f"    return runpy.run_path({str(act)!r}) if name == 'prefect.engine' else real(name, *rest, **more)\n"
        "runpy.run_module = run_module\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield act
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


async def start(starter: EngineCommandStarter, flow_run: FlowRun) -> Any:  # noqa: ANN401
    """What the runner gets of the run's process, after the process has ended."""
    async with anyio.create_task_group() as group:
        return await group.start(starter.start, flow_run)


def test_prefects_starter_starts_a_run_as_a_fork_with_all_that_the_runner_asks_for(
    engine: Path, tmp_path: Path
) -> None:
    engine.write_text(
        "import os, pathlib, sys\n"
        f"pathlib.Path({str(tmp_path / 'run.txt')!r}).write_text(os.environ['PREFECT__FLOW_RUN_ID'])\n"
        "sys.exit(3 if 'prefect_cd.flows.release' in sys.modules else 4)\n"
    )
    assert run_starter.install()
    flow_run: FlowRun = FlowRun.model_validate({"flow_id": "00000000-0000-4000-8000-000000000000"})
    handle = asyncio.run(start(EngineCommandStarter(deployment_name="shop", heartbeat_seconds=30), flow_run))
    assert isinstance(handle.raw_process, Forked)
    assert (tmp_path / "run.txt").read_text() == str(flow_run.id)
    assert handle.returncode == 3  # 4: the flows were not loaded
    assert handle.pid
    assert not handle.is_alive()
    handle.close()


def test_the_runner_of_serve_uses_this_starter() -> None:
    assert vars(sys.modules[Runner.__module__])["EngineCommandStarter"] is EngineCommandStarter


@pytest.mark.parametrize("changed", ["module", "function", "replaced"])
def test_with_another_prefect_runs_start_its_own_way_and_serve_warns(
    changed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if changed == "module":
        monkeypatch.setitem(sys.modules, _starter_engine.__name__, None)  # type: ignore[arg-type]
    if changed == "function":
        monkeypatch.setitem(sys.modules, _starter_engine.__name__, ModuleType("changed"))
    if changed == "replaced":
        monkeypatch.setattr(_starter_engine, "run_process", print)
    assert not run_starter.install()
    assert "cannot start runs as forks" in caplog.text
    assert not isinstance(getattr(_starter_engine.run_process, "__self__", None), ForkServer)


def test_where_forks_are_not_safe_prefect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_starter.forkserver, "is_usable", lambda: False)
    assert not run_starter.install()
    assert _starter_engine.run_process is run_process
