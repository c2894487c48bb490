"""Starts the processes of flow runs as forks of a process that has imported everything.

A new interpreter imports for seconds, once for each run and again after each approval, while a person waits. The first
run starts Python's own fork server (`multiprocessing.forkserver`); it and all later runs are forks of that server. A
fork has its own pid, receives signals, writes output and returns an exit code like any other child process, and `ps`
shows the id of its run. Where a fork is not possible (another command, other settings, the server does not start), the
run starts in a new interpreter. The fork server ends by itself when its parent and all runs have ended.
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
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import _children  # type: ignore[attr-defined]
from multiprocessing.util import is_abstract_socket_namespace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from prefect.utilities.processutils import run_process

from prefect_cd.deployments.protected import set_process_name

_RUN_VARIABLES = "PREFECT__"
"""Prefix of the environment variables that differ from run to run."""
_ENGINE_COMMAND = [sys.executable, "-m", "prefect.engine"]
_PRELOADED = [
    "prefect_cd.deployments.protected",  # first: no other process can read the fork server's environment
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect_cd.flows.recover",
    "prefect_cd.flows.release",
    "prefect_cd.flows.rollback",
]
_TERMINATION_SECONDS = 10
"""Time between SIGTERM and SIGKILL."""
_NAME_LENGTH = 15
"""Linux truncates the name of a process to this length (proc(5), /proc/pid/comm)."""

_log = logging.getLogger(__name__)


def is_usable() -> bool:
    """Whether this system has pidfds, and other users of the machine cannot connect to the fork server.

    Before Python 3.10.9 they can (CVE-2022-42919). Linux has pidfds since 5.3.
    """
    if is_abstract_socket_namespace(connection.arbitrary_address("AF_UNIX")):  # type: ignore[attr-defined]
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class Forked:
    """The process of a run, with the part of `anyio.abc.Process` that Prefect's `ProcessHandle` uses."""

    returncode: int | None = None
    """Exit code, or the negative number of the signal that ended the process; 255 if the fork server died first."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self.pid = process.pid or 0
        try:
            self._pidfd: int | None = os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has ended already
            self._pidfd = None

    async def wait(self) -> None:
        """Wait until the process has ended, also if the fork server, which reports its exit code, ends first."""
        if self._pidfd is not None:
            await _wait_until_readable(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self.returncode is None:
            await _wait_until_readable(self._process.sentinel)
            self.returncode = self._process.exitcode

    async def terminate(self) -> None:
        """Send SIGTERM, and SIGKILL after some time; does nothing if the process has ended."""
        with anyio.CancelScope(shield=True):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._pidfd is not None:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(self._pidfd, number)
                with anyio.move_on_after(_TERMINATION_SECONDS):
                    await self.wait()
                    return


async def _wait_until_readable(descriptor: int) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class ForkServer:
    """Has the same interface as `prefect.utilities.processutils.run_process`."""

    def __init__(self) -> None:
        with _without_variables():  # of a process that lives as long as we do, and needs none
            resource_tracker.ensure_running()
        self._settings: dict[str, str] | None = None
        """Environment variables of the fork server. Prefect reads its settings when it is imported there."""
        self._lock = asyncio.Lock()

    async def run(
        self,
        command: list[str],
        *,
        stream_output: bool = False,
        task_status: anyio.abc.TaskStatus[Any] = anyio.TASK_STATUS_IGNORED,
        task_status_handler: Callable[[Any], Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        **options: Any,  # noqa: ANN401  passed on unchanged
    ) -> Forked | anyio.abc.Process:
        """Run a flow in a fork where that is possible, else in a new interpreter; returns when it has ended."""
        forkable = command == _ENGINE_COMMAND and stream_output and not options
        process = await self._fork(dict(env or {}), cwd) if forkable else None
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
            await process.terminate()
        return process

    async def _fork(self, env: dict[str, str], cwd: Path | str | None) -> Forked | None:
        settings = {name: value for name, value in env.items() if not name.startswith(_RUN_VARIABLES)}
        if settings != (self._settings or settings):  # the fork server has imported Prefect with other settings
            return None
        self._settings = settings
        process = multiprocessing.get_context("forkserver").Process(
            target=run_engine, args=(env, str(cwd) if cwd else "")
        )
        try:
            with anyio.CancelScope(shield=True):  # a process that has started must not be forgotten
                async with self._lock:
                    with _exported(settings):
                        forkserver.set_forkserver_preload(_PRELOADED)
                        forkserver.ensure_running()
                    await asyncio.to_thread(_start, process)
        except Exception as error:  # noqa: BLE001  a run starts in any case
            _log.warning("cannot start the run as a fork, starting a new interpreter: %s", error)
            return None
        return Forked(process)


def _start(process: ForkServerProcess) -> None:
    """Start the process; returns when the fork server has imported everything and forked it.

    `multiprocessing` polls all its children whenever it starts one, and an exit code can be read only once: it must not
    poll this one.
    """
    process.start()
    _children.discard(process)


@contextmanager
def _without_variables() -> Iterator[None]:
    """Have no environment variables while the block starts a process: others of the same user can read those of it."""
    before = dict(os.environ)
    os.environ.clear()
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _exported(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a process that is started in the block and inherits them."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def run_engine(env: Mapping[str, str], cwd: str) -> None:
    """In the fork: execute Prefect's engine for the run that `env` names, in the folder `cwd`."""
    os.environ.clear()
    os.environ.update(env)
    if cwd:
        os.chdir(cwd)
    set_process_name(env.get("PREFECT__FLOW_RUN_ID", "")[:_NAME_LENGTH])
    del sys.argv[1:]  # the arguments of `prefect-cd`; the engine would take the first one for the id of the run
    sys.modules.pop("prefect.engine", None)
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001  forks skip exit handlers, and those of Prefect send its last logs
