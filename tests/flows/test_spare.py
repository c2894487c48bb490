import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.abc
import pytest
from prefect.runner import _starter_engine

from prefect_cd.deployments import spare
from prefect_cd.deployments.spare import Spare

pytestmark = pytest.mark.timeout(90)


def environment(**of_one_run: str) -> dict[str, str]:
    return {**os.environ, **of_one_run}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for `prefect.engine`, which wants a server: writes down what it was given."""
    package = tmp_path / "prefect_stand_in.py"
    out = tmp_path / "told.json"
    package.write_text(
        "import json, os, sys, pathlib\n"
        f"pathlib.Path({str(out)!r}).write_text(json.dumps("
        "{'run': os.environ.get('PREFECT__FLOW_RUN_ID'), 'pid': os.getpid(), 'cwd': os.getcwd(),"
        " 'loaded': 'prefect_cd.flows.release' in sys.modules}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    starter = tmp_path / "start.py"
    starter.write_text(
        "import runpy, sys\nreal = runpy.run_module\n"
        "runpy.run_module = lambda name, **more: real('prefect_stand_in', run_name='__main__')\n"
        "from prefect_cd.deployments.spare import wait_and_run\nwait_and_run()\n"
    )
    monkeypatch.setattr(spare, "__name__", "start")
    return out


async def started(pool: Spare) -> anyio.abc.Process:
    while pool._waiting is None:
        await asyncio.sleep(0.05)
    return pool._waiting[0]


def test_prefect_still_offers_the_place_where_the_spare_process_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_starter_engine, "run_process", _starter_engine.run_process)
    before = _starter_engine.run_process
    spare.install()
    assert _starter_engine.run_process is not before


def test_a_run_takes_the_spare_process_with_its_own_variables_and_folder(engine: Path, tmp_path: Path) -> None:
    pids: list[int] = []

    def note(process: anyio.abc.Process) -> int:
        pids.append(process.pid)
        return process.pid

    async def story() -> tuple[int, int]:
        pool = Spare(after=0)
        pool._prepare(environment())
        waiting = await started(pool)
        ended = await pool.run(
            spare._ENGINE,
            stream_output=True,
            env=environment(PREFECT__FLOW_RUN_ID="the-run"),
            cwd=tmp_path,
            task_status_handler=note,
        )
        await (await started(pool)).aclose()
        return waiting.pid, ended.returncode or 0

    pid, code = asyncio.run(story())
    told = json.loads(engine.read_text())
    assert told == {"run": "the-run", "pid": pid, "cwd": str(tmp_path), "loaded": True}
    assert code == 0
    assert pids == [pid]


def test_a_run_with_other_settings_does_not_take_it() -> None:
    async def story() -> bool:
        pool = Spare(after=0)
        pool._waiting = (await anyio.open_process([sys.executable, "-c", "input()"]), {"PREFECT_API_URL": "one"})
        process = pool._waiting[0]
        taken = pool._take({"PREFECT_API_URL": "other", "PREFECT__FLOW_RUN_ID": "x"})
        fits = pool._take({"PREFECT_API_URL": "one", "PREFECT__FLOW_RUN_ID": "x"})
        process.terminate()
        await process.aclose()
        return taken is None and fits is process

    assert asyncio.run(story())


def test_the_spare_process_ends_when_its_parent_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-m", "prefect_cd.deployments.spare"], stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.close()
    assert process.wait(timeout=60) == 0
