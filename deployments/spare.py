"""A spare process for the next run: everything imported, and waiting to be told which run it is.

A start costs seconds of importing, once for a run and once more after each approval, while a person looks on. So the
runner's next child is started in advance and gets the run's variables through its standard input. Parent, pid,
signals, output and exit code are those of any other child. Where no spare fits, a run starts as Prefect starts it.
There is one spare at a time; it ends by itself when its parent is gone.
"""

import asyncio
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from prefect.runner import _starter_engine
from prefect.utilities.processutils import consume_process_output, run_process

_AFTER_SECONDS = 5.0  # not beside the start of the run that took the last one
_OF_ONE_RUN = "PREFECT__"
_ENGINE = [sys.executable, "-m", "prefect.engine"]


def install() -> None:
    """Let the starter of flow runs take a spare process, at the place that its own docstring offers for it."""
    if hasattr(_starter_engine, "run_process"):
        _starter_engine.run_process = Spare().run


class Spare:
    """Stands in for `prefect.utilities.processutils.run_process`."""

    def __init__(self, *, after: float = _AFTER_SECONDS) -> None:
        self._after = after
        self._waiting: tuple[anyio.abc.Process, dict[str, str]] | None = None
        self._next: asyncio.Task[None] | None = None

    async def run(
        self,
        command: list[str],
        *,
        stream_output: bool = False,
        task_status: anyio.abc.TaskStatus[Any] = anyio.TASK_STATUS_IGNORED,
        task_status_handler: Callable[[anyio.abc.Process], Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        **options: Any,  # noqa: ANN401  handed on as they are
    ) -> anyio.abc.Process:
        """Run a flow in the spare process when it fits, else in a new one; returns when it has ended."""
        given = dict(env or {})
        process = self._take(given) if command == _ENGINE and stream_output and not options else None
        self._prepare(given)
        if process is None:
            return await run_process(
                command,
                stream_output=stream_output,
                task_status=task_status,
                task_status_handler=task_status_handler,
                env=env,
                cwd=cwd,
                **options,
            )
        return await _hand_over(process, given, cwd, task_status, task_status_handler)

    def _take(self, env: dict[str, str]) -> anyio.abc.Process | None:
        """The spare, if it is alive and was started with the same settings: those are read at import."""
        if self._waiting is None:
            return None
        process, settings = self._waiting
        if process.returncode is not None or settings != _settings(env):
            return None
        self._waiting = None
        return process

    def _prepare(self, env: dict[str, str]) -> None:
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_task(self._start(_settings(env)))

    async def _start(self, env: dict[str, str]) -> None:
        await asyncio.sleep(self._after)
        if self._waiting and self._waiting[0].returncode is None:
            return
        pipe = subprocess.PIPE
        process = await anyio.open_process(
            [sys.executable, "-m", __name__], stdin=pipe, stdout=pipe, stderr=pipe, env=env
        )
        self._waiting = (process, env)


async def _hand_over(
    process: anyio.abc.Process,
    env: dict[str, str],
    cwd: Path | str | None,
    task_status: anyio.abc.TaskStatus[Any],
    task_status_handler: Callable[[anyio.abc.Process], Any] | None,
) -> anyio.abc.Process:
    try:
        if process.stdin is None:
            raise RuntimeError("a spare process without standard input")
        told = json.dumps({"env": env, "cwd": str(cwd) if cwd else None})
        await process.stdin.send(told.encode() + b"\n")
        await process.stdin.aclose()
        task_status.started(task_status_handler(process) if task_status_handler else process.pid)
        await consume_process_output(process, sys.stdout, sys.stderr)
        await process.wait()
    finally:
        with suppress(OSError):
            process.terminate()
        with anyio.CancelScope(shield=True):
            await process.aclose()
    return process


def _settings(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_OF_ONE_RUN)}


def wait_and_run() -> None:
    """The spare process: import, wait for the run's variables, and become Prefect's engine."""
    # for the side effect: these are the seconds that the run will not have to wait
    import prefect_cd.flows.recover  # noqa: PLC0415
    import prefect_cd.flows.release  # noqa: PLC0415
    import prefect_cd.flows.rollback  # noqa: F401, PLC0415

    line = sys.stdin.buffer.readline()
    if not line:  # the parent is gone
        return
    told = json.loads(line)
    os.environ.clear()
    os.environ.update(told["env"])
    if told["cwd"]:
        os.chdir(told["cwd"])
    sys.modules.pop("prefect.engine", None)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    wait_and_run()
