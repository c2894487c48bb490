"""Containers as the node sees them: it starts, signals and awaits them through their supervisors.

This is the node's side of the protocol with the supervisors. `filesystem` builds a container's root, `supervisor`
watches its process.
"""

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio

from prefect_cd_local.node.features import Features
from prefect_cd_local.node.filesystem import Bind
from prefect_cd_local.node.logs import Log

_SECONDS_TO_DRAIN = 10.0


@dataclass(frozen=True)
class Spec:
    """What a supervisor needs to start a container."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    place: str
    pod_ip: str
    loopback_ip: str
    layers: list[str] = field(default_factory=list)
    binds: list[Bind] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    read_only: bool = False
    hostname: str = ""


class StartError(Exception):
    """The container's program could not be started."""


class Container:
    """A process that runs in a container."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log) -> None:
        self.log = log
        self.pid = 0
        self._reader, self._writer = reader, writer
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[tuple[int, str]]] = {}
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, spec: dict[str, Any], pipe: int) -> None:
        """Send the specification, and wait until the program runs.

        Raises:
            StartError: it could not be started.
        """
        self._tasks.append(asyncio.create_task(self.log.follow(pipe)))
        self._send(spec)
        answer = json.loads(await self._reader.readline() or b'{"failed": "the supervisor ended"}')
        if "failed" in answer:
            raise StartError(answer["failed"])
        self.pid = answer["started"]
        self._tasks.append(asyncio.create_task(self._listen()))

    async def wait(self) -> int:
        """Return the exit code; 128 + N where signal N ended the process."""
        return await asyncio.shield(self._exit)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return not self._exit.done()

    def signal(self, number: int) -> None:
        """Send a signal to the container's first process."""
        if self.running:
            self._send({"signal": number})

    def close(self) -> None:
        """Kill the process and its descendants, without a report."""
        for task in self._tasks:
            task.cancel()
        self._writer.close()

    async def execute(self, argv: list[str], seconds: float | None = None) -> tuple[int, str]:
        """Run a command in the container; returns exit code and output.

        Raises:
            TimeoutError: it took too long, and was killed.
        """
        if not self.running:
            return 1, "the container does not run"
        number = next(self._numbers)
        answer: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._send({"exec": number, "argv": argv})
        try:
            with anyio.fail_after(seconds):
                return await answer
        except TimeoutError:
            self._send({"kill": number})
            raise
        finally:
            self._answers.pop(number, None)

    async def _listen(self) -> None:
        code = 137  # the process of a killed supervisor is killed, too
        while line := await self._reader.readline():
            message = json.loads(line)
            if "exited" in message:
                code = message["exited"]
                break
            answer = self._answers.get(message["exec"])
            if answer and not answer.done():
                answer.set_result((message["code"], message["output"]))
        self._writer.close()
        # All writers have been killed, so the output ends soon: wait, so that it is complete when the exit is reported.
        # Only an escaped descendant, on a machine without process namespaces, can keep the pipe open.
        with anyio.move_on_after(_SECONDS_TO_DRAIN):
            await self.log.ended.wait()
        for future in self._answers.values():
            if not future.done():
                future.set_result((137, ""))
        if not self._exit.done():
            self._exit.set_result(code)

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")


class Processes:
    """The node's side of the program that forks supervisors."""

    def __init__(self) -> None:
        self.features = Features()
        self._program: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Start the program, and learn which features this machine has."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "prefect_cd_local.node.supervisor", str(theirs.fileno())]
            self._program = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                command, pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL
            )
        self._socket = ours
        line = await asyncio.to_thread(ours.makefile("rb").readline)
        if not line:
            raise StartError("the node's supervisor did not start")
        self.features = Features(**json.loads(line))

    def stop(self) -> None:
        """End the program; supervisors end when their containers' sockets close."""
        if self._socket and self._program:
            self._socket.close()
            self._program.wait()

    async def run(self, spec: Spec, log: Log) -> Container:
        """Start a container.

        Raises:
            StartError: its program cannot be started, or this machine lacks a feature that it needs.
        """
        if self._socket is None:
            raise StartError("the node does not run")
        self._check(spec)
        os.makedirs(spec.place, exist_ok=True)  # noqa: PTH103 - one folder, at once
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        try:
            socket.send_fds(self._socket, [b"+"], [theirs.fileno(), write])
        finally:
            theirs.close()
            os.close(write)
        container = Container(*await asyncio.open_connection(sock=ours), log)
        try:
            await container.start({**asdict(spec), "features": asdict(self.features)}, read)
        except BaseException:
            container.close()
            raise
        return container

    def _check(self, spec: Spec) -> None:
        if not self.features.mounts and spec.binds:
            targets = ", ".join(bind.target for bind in spec.binds)
            raise StartError(f"this machine does not allow mounts, so there can be no volumes at {targets}")
