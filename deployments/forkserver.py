"""Runs start as forks of a process that has imported everything, in the place of a new interpreter for each.

Importing takes seconds, once for a run and once more after each approval, while a person looks on. So the first run
starts Python's own fork server (`multiprocessing.forkserver`), and that one and all later ones are its children. Pid,
signals, output and exit code are those of any other child, and `ps` shows which run a process works for. Where a fork
does not fit (another command, other settings, a server that does not start), a run starts as Prefect starts it. The
fork server ends by itself when its parent and all runs have ended.
"""

import asyncio
import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import _children  # type: ignore[attr-defined]
from multiprocessing.util import is_abstract_socket_namespace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from prefect.runner import _starter_engine
from prefect.utilities.processutils import run_process

_OF_ONE_RUN = "PREFECT__"
_ENGINE = [sys.executable, "-m", "prefect.engine"]
_IMPORTED = ["prefect.flow_engine", "prefect.task_engine", "prefect_cd.flows.recover", "prefect_cd.flows.release",
             "prefect_cd.flows.rollback"]  # fmt: skip
_GRACE_SECONDS = 10
_NAME_LENGTH = 15
"""As much of a process's name as Linux keeps."""

_log = logging.getLogger(__name__)


def install() -> None:
    """Let the starter of flow runs fork them, at the place that its own docstring offers for it."""
    if hasattr(_starter_engine, "run_process") and _fits_here():
        _starter_engine.run_process = ForkServer().run


def _fits_here() -> bool:
    """Whether no other user of the machine can talk to a fork server, and a process can be waited for by its id.

    With Python 3.10.8 and before, every user could (CVE-2022-42919); pidfds are Linux's, since 5.3.
    """
    if is_abstract_socket_namespace(connection.arbitrary_address("AF_UNIX")):  # type: ignore[attr-defined]
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class Forked:
    """A run's process, as much of `anyio.abc.Process` as Prefect's `ProcessHandle` asks for."""

    returncode: int | None = None
    """Its exit code, or the negative number of the signal that ended it; 255 when the fork server died before it."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self.pid = process.pid or 0
        try:
            self._alive: int | None = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._alive = None

    async def wait(self) -> None:
        """Until it has ended, also when the fork server, which would tell its exit code, ends first."""
        if self._alive is not None:
            await _readable(self._alive)
            os.close(self._alive)
            self._alive = None
        if self.returncode is None:
            await _readable(self._process.sentinel)
            self.returncode = self._process.exitcode

    async def end(self) -> None:
        """Ask it to end, and insist after a while; nothing when it has ended."""
        with anyio.CancelScope(shield=True):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._alive is not None:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(self._alive, number)
                with anyio.move_on_after(_GRACE_SECONDS):
                    await self.wait()
                    return


async def _readable(descriptor: int) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class ForkServer:
    """Stands in for `prefect.utilities.processutils.run_process`."""

    def __init__(self) -> None:
        self._settings: dict[str, str] | None = None
        """What the server is started with: Prefect reads its settings at import."""
        self._one_at_a_time = asyncio.Lock()

    async def run(
        self,
        command: list[str],
        *,
        stream_output: bool = False,
        task_status: anyio.abc.TaskStatus[Any] = anyio.TASK_STATUS_IGNORED,
        task_status_handler: Callable[[Any], Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        **options: Any,  # noqa: ANN401  handed on as they are
    ) -> Forked | anyio.abc.Process:
        """Run a flow in a fork when that fits, else in a new interpreter; returns when it has ended."""
        given = dict(env or {})
        fits = command == _ENGINE and stream_output and not options
        process = await self._fork(given, cwd) if fits else None
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
        try:
            task_status.started(task_status_handler(process) if task_status_handler else process.pid)
            await process.wait()
        finally:
            await process.end()
        return process

    async def _fork(self, env: dict[str, str], cwd: Path | str | None) -> Forked | None:
        settings = {name: value for name, value in env.items() if not name.startswith(_OF_ONE_RUN)}
        if settings != (self._settings or settings):
            return None
        self._settings = settings
        process = multiprocessing.get_context("forkserver").Process(target=become, args=(env, str(cwd) if cwd else ""))
        try:
            with anyio.CancelScope(shield=True):  # what has been started must be known
                async with self._one_at_a_time:
                    with _exported(settings):
                        forkserver.set_forkserver_preload(_IMPORTED)
                        forkserver.ensure_running()
                    await asyncio.to_thread(_start, process)
        except Exception as error:  # noqa: BLE001  whatever it is: a run starts, if slowly
            _log.warning("a run is not forked, but started anew: %s", error)
            return None
        return Forked(process)


def _start(process: ForkServerProcess) -> None:
    """Start it, which waits until the server has imported everything, and keep it from being looked at by others.

    Whatever `multiprocessing` starts next asks all its children how they ended, and an exit code can be read only once.
    """
    process.start()
    _children.discard(process)


@contextmanager
def _exported(settings: Mapping[str, str]) -> Iterator[None]:
    """These variables for a process that is started in the block, and that inherits ours."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def become(env: Mapping[str, str], cwd: str) -> None:
    """In the fork: be the run that `env` names, in the folder `cwd`."""
    os.environ.clear()
    os.environ.update(env)
    if cwd:
        os.chdir(cwd)
    with suppress(OSError):  # where /proc is not to be written, it keeps its name
        Path("/proc/self/comm").write_text(env.get("PREFECT__FLOW_RUN_ID", "")[:_NAME_LENGTH])
    del sys.argv[1:]  # those of our command, where the engine looks for a run's id
    sys.modules.pop("prefect.engine", None)
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001  forks end without them, and Prefect's flush what it has to say
