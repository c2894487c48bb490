"""The programs that the demo runs beside itself: each has a log file and ends with the demo."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from backstage.guard import end_with_parent


class DemoError(Exception):
    """The demo failed; the message says why, and what to do."""


@contextmanager
def running(command: list[str], env: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program with a log file; at the end of the block, end its whole process group."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, which is safe beside other threads
        )
    try:
        yield process
    finally:
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, None)):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue


def wait(ready: Callable[[], bool], name: str, log: Path, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait for a condition, at most two minutes, and no longer than the program runs."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and (process is None or process.poll() is None):
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise DemoError(f"{name} did not come up; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")


def free_port(preferred: int) -> int:
    """The preferred port, or another one when a program uses it or another demo is about to."""
    for port in (preferred, 0):
        if port and not _reserve(port):
            continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise DemoError("no free port on 127.0.0.1")


_reservations: list[socket.socket] = []


def _reserve(port: int) -> bool:
    """Keep other demos from this port until this process ends; False when another demo has it.

    The server binds the port only seconds later; a second demo would then talk to the first one's server.
    """
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0prefect-cd-demo-{port}")  # an abstract name, which the kernel frees with the process
    except OSError:
        name.close()
        return False
    _reservations.append(name)
    return True
