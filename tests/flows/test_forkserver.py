"""Runs as forks: what they are given, what is told of them, and when they are started otherwise."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from prefect.runner import _starter_engine

from prefect_cd.deployments import forkserver as ours
from prefect_cd.deployments.forkserver import Forked, ForkServer

pytestmark = pytest.mark.timeout(90)

RUN = "0123456789abcdef-the-run"


def environment(**of_one_run: str) -> dict[str, str]:
    return {**os.environ, **of_one_run}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands in for `prefect.engine`, which wants a server: does what the file `act.py` says."""
    (tmp_path / "sitecustomize.py").write_text(
        "import runpy\nreal = runpy.run_module\n"
        "def run_module(name, *rest, **more):\n"
        "    if name != 'prefect.engine':\n"
        "        return real(name, *rest, **more)\n"
        f"    return runpy.run_path({str(tmp_path / 'act.py')!r}, run_name='__main__')\n"
        "runpy.run_module = run_module\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "act.py").write_text(
        "import atexit, json, os, pathlib, sys\n"
        "told = {'run': os.environ.get('PREFECT__FLOW_RUN_ID'), 'pid': os.getpid(), 'cwd': os.getcwd(),\n"
        "        'name': pathlib.Path('/proc/self/comm').read_text().strip(),\n"
        "        'arguments': sys.argv[1:], 'loaded': 'prefect_cd.flows.release' in sys.modules}\n"
        f"atexit.register(pathlib.Path({str(tmp_path / 'told.json')!r}).write_text, json.dumps(told))\n"
        "sys.exit(3)\n"
    )
    yield tmp_path / "act.py"
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


async def run(server: ForkServer, **options: Any) -> Any:  # noqa: ANN401
    return await server.run(ours._ENGINE, stream_output=True, **options)


def test_prefect_still_offers_the_place_where_forks_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _starter_engine.run_process
    monkeypatch.setattr(_starter_engine, "run_process", before)
    ours.install()
    assert _starter_engine.run_process is not before


def test_an_interpreter_whose_fork_server_is_open_to_all_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _starter_engine.run_process
    monkeypatch.setattr(_starter_engine, "run_process", before)
    monkeypatch.setattr(ours.connection, "arbitrary_address", lambda _: "\0listener-1")
    ours.install()
    assert _starter_engine.run_process is before


def test_a_run_is_a_fork_with_its_own_variables_folder_and_name_and_says_how_it_ended(
    engine: Path, tmp_path: Path
) -> None:
    handles: list[Forked] = []
    ended = asyncio.run(
        run(
            ForkServer(),
            env=environment(PREFECT__FLOW_RUN_ID=RUN),
            cwd=tmp_path,
            task_status_handler=handles.append,
        )
    )
    told = json.loads((engine.parent / "told.json").read_text())  # written at exit
    assert told == {
        "run": RUN,
        "pid": ended.pid,
        "cwd": str(tmp_path),
        "name": RUN[:15],
        "arguments": [],
        "loaded": True,
    }
    assert ended.returncode == 3
    assert [each.pid for each in handles] == [ended.pid]


def test_a_run_that_is_killed_has_the_signal_as_its_exit_code(engine: Path) -> None:
    engine.write_text("import time\ntime.sleep(60)\n")

    def kill(handle: Forked) -> Forked:
        assert handle.returncode is None
        assert handle.pid
        os.kill(handle.pid, signal.SIGKILL)
        return handle

    ended = asyncio.run(run(ForkServer(), env=environment(), task_status_handler=kill))
    assert ended.returncode == -signal.SIGKILL


def test_a_run_that_nobody_waits_for_any_more_is_asked_to_end(engine: Path) -> None:
    engine.write_text("import time\ntime.sleep(60)\n")
    handles: list[Forked] = []

    async def story() -> None:
        running = asyncio.create_task(run(ForkServer(), env=environment(), task_status_handler=handles.append))
        while not handles:
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())
    assert handles[0].returncode == -signal.SIGTERM


def test_a_run_whose_fork_server_dies_is_waited_for_all_the_same(engine: Path, tmp_path: Path) -> None:
    engine.write_text(
        f"import pathlib, time\ntime.sleep(2)\npathlib.Path({str(tmp_path / 'told.json')!r}).write_text('done')\n"
    )

    def kill(_: Forked) -> None:
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]

    async def story() -> tuple[Any, Any]:
        server = ForkServer()
        first = await run(server, env=environment(), task_status_handler=kill)
        told = (tmp_path / "told.json").read_text()
        assert told == "done"
        return first, await run(server, env=environment())

    first, second = asyncio.run(story())
    assert first.returncode == 255  # nobody can tell
    assert (second.returncode, isinstance(second, Forked)) == (0, True)  # by a new server


def test_a_run_that_does_not_end_when_it_is_asked_is_killed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_GRACE_SECONDS", 1)
    engine.write_text(
        "import os, pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(os.environ['READY']).touch()\ntime.sleep(60)\n"
    )
    ready = engine.parent / "ready"
    handles: list[Forked] = []

    async def story() -> None:
        given = environment(READY=str(ready))
        running = asyncio.create_task(run(ForkServer(), env=given, task_status_handler=handles.append))
        while not ready.exists():
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await handles[0].wait()  # its server may need a moment to tell

    asyncio.run(story())
    assert handles[0].returncode == -signal.SIGKILL


def test_where_nothing_can_be_forked_a_run_is_started_as_prefect_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_process(*_: object, **__: object) -> str:
        return "as ever"

    def broken() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(ours, "run_process", run_process)
    monkeypatch.setattr(ours.forkserver, "ensure_running", broken)
    assert asyncio.run(run(ForkServer(), env=environment())) == "as ever"


def test_runs_with_other_settings_or_commands_are_started_as_prefect_starts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []

    async def run_process(command: list[str], **_: object) -> str:
        started.append(command)
        return "as ever"

    monkeypatch.setattr(ours, "run_process", run_process)
    server = ForkServer()
    server._settings = {"PREFECT_API_URL": "one"}
    other = {"PREFECT_API_URL": "other", "PREFECT__FLOW_RUN_ID": "x"}
    assert asyncio.run(run(server, env=other)) == "as ever"
    assert asyncio.run(server.run(["sh"], stream_output=True, env=server._settings)) == "as ever"
    assert asyncio.run(server.run(ours._ENGINE, env=server._settings)) == "as ever"
    assert started == [ours._ENGINE, ["sh"], ours._ENGINE]


def test_what_is_imported_before_a_fork_starts_no_thread() -> None:
    imports = "; ".join(f"import {name}" for name in ours._IMPORTED)
    code = f"{imports}; import threading; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_fork_server_has_the_settings_of_its_runs_and_ours_stay_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_CD_TEST", "ours")
    monkeypatch.delenv("PREFECT_CD_OTHER", raising=False)
    with ours._exported({"PREFECT_CD_TEST": "theirs", "PREFECT_CD_OTHER": "x"}):
        assert (os.environ["PREFECT_CD_TEST"], os.environ["PREFECT_CD_OTHER"]) == ("theirs", "x")
    assert os.environ["PREFECT_CD_TEST"] == "ours"
    assert "PREFECT_CD_OTHER" not in os.environ
