"""Flow runs as forks: what they inherit, how they end, and when they start in a new interpreter instead."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.deployments import forkserver as run_forkserver
from prefect_cd.deployments.forkserver import Forked, ForkServer

pytestmark = pytest.mark.timeout(180)

RUN = "0123456789abcdef-the-run"


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `act.py` runs in place of `prefect.engine`, which would ask a server for the run.

    One fork server serves all tests, since it imports Prefect for seconds; it ends with them.
    """
    folder = tmp_path_factory.mktemp("engine")
    (folder / "sitecustomize.py").write_text(
        "import runpy\nreal = runpy.run_module\n"
        "def run_module(name, *rest, **more):\n"
        "    if name != 'prefect.engine':\n"
        "        return real(name, *rest, **more)\n"
        f"    return runpy.run_path({str(folder / 'act.py')!r}, run_name='__main__')\n"
        "runpy.run_module = run_module\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def engine(folder: Path) -> Path:
    """What a run does: it reports where and as what it runs, and exits with 3."""
    (folder / "report.json").unlink(missing_ok=True)
    (folder / "act.py").write_text(
        "import atexit, ctypes, json, os, pathlib, sys\n"
        "report = {'run': os.environ.get('PREFECT__FLOW_RUN_ID'), 'pid': os.getpid(), 'cwd': os.getcwd(),\n"
        "          'readable': ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),\n"  # PR_GET_DUMPABLE
        "          'name': pathlib.Path('/proc/self/comm').read_text().strip(),\n"
        "          'arguments': sys.argv[1:], 'loaded': 'prefect_cd.flows.release' in sys.modules}\n"
        f"atexit.register(pathlib.Path({str(folder / 'report.json')!r}).write_text, json.dumps(report))\n"
        "sys.exit(3)\n"
    )
    return folder / "act.py"


async def run(server: ForkServer, **options: Any) -> Any:  # noqa: ANN401
    return await server.run(run_forkserver._ENGINE_COMMAND, stream_output=True, **options)


def test_no_fork_server_is_used_to_which_other_users_could_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_forkserver.is_usable()
    monkeypatch.setattr(run_forkserver.connection, "arbitrary_address", lambda _: "\0listener-1")
    assert not run_forkserver.is_usable()


def test_a_run_is_a_fork_with_its_own_variables_folder_name_and_exit_code(engine: Path, tmp_path: Path) -> None:
    handles: list[Forked] = []
    process = asyncio.run(
        run(
            ForkServer(),
            env=environment(PREFECT__FLOW_RUN_ID=RUN),
            cwd=tmp_path,
            task_status_handler=handles.append,
        )
    )
    report = json.loads((engine.parent / "report.json").read_text())  # written at exit
    assert (
        report
        == {
            "run": RUN,
            "pid": process.pid,
            "cwd": str(tmp_path),
            "readable": 0,  # by other processes of the user: /proc/PID/environ
            "name": RUN[:15],
            "arguments": [],
            "loaded": True,
        }
    )
    assert process.returncode == 3
    assert [handle.pid for handle in handles] == [process.pid]


def test_another_user_cannot_connect_to_the_fork_server(engine: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to become another user")
    assert engine.exists()
    asyncio.run(run(ForkServer(), env=environment()))
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({address!r})"
    done = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=False, user=65534, cwd="/")
    assert "PermissionError" in done.stderr


def test_the_helper_of_the_fork_server_that_others_can_read_has_no_variables_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "of-the-deployer")
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    ForkServer()
    helper = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    assert b"of-the-deployer" not in Path(f"/proc/{helper}/environ").read_bytes()
    assert os.environ["PREFECT_API_KEY"] == "of-the-deployer"


def test_the_exit_code_of_a_killed_run_is_the_negative_signal(engine: Path) -> None:
    engine.write_text("import time\ntime.sleep(60)\n")

    def kill(handle: Forked) -> Forked:
        assert handle.returncode is None
        assert handle.pid
        os.kill(handle.pid, signal.SIGKILL)
        return handle

    process = asyncio.run(run(ForkServer(), env=environment(), task_status_handler=kill))
    assert process.returncode == -signal.SIGKILL


def test_a_run_gets_sigterm_when_its_caller_is_cancelled(engine: Path) -> None:
    engine.write_text("import time\ntime.sleep(60)\n")
    handles: list[Forked] = []

    async def scenario() -> None:
        running = asyncio.create_task(run(ForkServer(), env=environment(), task_status_handler=handles.append))
        while not handles:
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
    assert handles[0].returncode == -signal.SIGTERM


def test_a_run_whose_fork_server_dies_is_still_waited_for(engine: Path) -> None:
    report = engine.parent / "report.json"
    engine.write_text(f"import pathlib, time\ntime.sleep(2)\npathlib.Path({str(report)!r}).write_text('done')\n")

    def kill(_: Forked) -> None:
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]

    async def scenario() -> tuple[Any, Any]:
        server = ForkServer()
        first = await run(server, env=environment(), task_status_handler=kill)
        assert report.read_text() == "done"
        return first, await run(server, env=environment())

    first, second = asyncio.run(scenario())
    assert first.returncode == 255  # the exit code is lost
    assert (second.returncode, isinstance(second, Forked)) == (0, True)  # a new server has started


def test_a_run_that_ignores_sigterm_is_killed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_forkserver, "_TERMINATION_SECONDS", 1)
    engine.write_text(
        "import os, pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(os.environ['READY']).touch()\ntime.sleep(60)\n"
    )
    ready = engine.parent / "ready"
    handles: list[Forked] = []

    async def scenario() -> None:
        variables = environment(READY=str(ready))
        running = asyncio.create_task(run(ForkServer(), env=variables, task_status_handler=handles.append))
        while not ready.exists():
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await handles[0].wait()  # the server may report its end a moment later

    asyncio.run(scenario())
    assert handles[0].returncode == -signal.SIGKILL


def test_a_run_starts_prefects_own_way_when_the_fork_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_process(*_: object, **__: object) -> str:
        return "new interpreter"

    def broken() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(run_forkserver, "run_process", run_process)
    monkeypatch.setattr(run_forkserver.forkserver, "ensure_running", broken)
    assert asyncio.run(run(ForkServer(), env=environment())) == "new interpreter"


def test_runs_with_other_settings_or_commands_start_prefects_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []

    async def run_process(command: list[str], **_: object) -> str:
        started.append(command)
        return "new interpreter"

    monkeypatch.setattr(run_forkserver, "run_process", run_process)
    server = ForkServer()
    server._settings = {"PREFECT_API_URL": "one"}
    other = {"PREFECT_API_URL": "other", "PREFECT__FLOW_RUN_ID": "x"}
    assert asyncio.run(run(server, env=other)) == "new interpreter"
    assert asyncio.run(server.run(["sh"], stream_output=True, env=server._settings)) == "new interpreter"
    assert asyncio.run(server.run(run_forkserver._ENGINE_COMMAND, env=server._settings)) == "new interpreter"
    assert started == [run_forkserver._ENGINE_COMMAND, ["sh"], run_forkserver._ENGINE_COMMAND]


def test_the_preloaded_modules_start_no_thread() -> None:
    imports = "; ".join(f"import {name}" for name in run_forkserver._PRELOADED)
    code = f"{imports}; import threading; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_fork_server_gets_the_settings_of_its_runs_and_ours_are_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_CD_TEST", "ours")
    monkeypatch.delenv("PREFECT_CD_OTHER", raising=False)
    with run_forkserver._exported({"PREFECT_CD_TEST": "theirs", "PREFECT_CD_OTHER": "x"}):
        assert (os.environ["PREFECT_CD_TEST"], os.environ["PREFECT_CD_OTHER"]) == ("theirs", "x")
    assert os.environ["PREFECT_CD_TEST"] == "ours"
    assert "PREFECT_CD_OTHER" not in os.environ
