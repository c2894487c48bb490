"""The programs beside the demo: started with a log file each, waited for, ended gently."""

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
    """The demo cannot go on; the text says why, and what to do."""


@contextmanager
def running(command: list[str], env: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program with a log file; ended with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # the child's last step before exec asks the kernel for a signal, no more
            command,
            cwd=log.parent,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509
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


def wait(ready: Callable[[], bool], what: str, log: Path, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait for a condition, at most two minutes, and not for a program that has ended."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and (process is None or process.poll() is None):
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise DemoError(f"{what} did not come up; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")


def free_port(wanted: int) -> int:
    """The wanted port, or any other where somebody listens there."""
    for port in (wanted, 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise DemoError("this machine gives no port to listen on")
