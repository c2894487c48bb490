"""A Kubernetes on this machine, for development: until Ctrl-C, or for as long as a command runs.

    python -m prefect_cd.local [--folder FOLDER] [--kubeconfig FILE] [-- COMMAND …]

Decides what a person is told, and when it ends: by a signal, when the terminal is closed, when a layer breaks, or with
the command, which finds the cluster in its environment.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from prefect_cd.local.cluster import Cluster, NotStarted, running
from prefect_cd.local.node import kernel

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def serve(folder: Path, given: argparse.Namespace) -> int:
    """Run a cluster until a signal, or until the command ends; its exit code."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    for each in _ENDS:
        asyncio.get_running_loop().add_signal_handler(each, signals.put_nowait, each)
    starting = running(folder, kubeconfig=given.kubeconfig, port=given.port, registry_port=given.registry_port)
    async with starting as cluster:
        _say(_banner(cluster), sys.stderr if given.command else sys.stdout)
        ending = asyncio.ensure_future(_command(given.command, cluster, signals) if given.command else signals.get())
        ends: list[asyncio.Future[Any]] = [ending, cluster.broken]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            ending.cancel()
            await asyncio.wait([ending])
            await cluster.broken
        return ending.result() if given.command else 0


async def _command(words: list[str], cluster: Cluster, signals: "asyncio.Queue[int]") -> int:
    """Run a command; a signal to us goes to it, and the cluster stays until it has ended."""
    environment = {**os.environ, **cluster.environment}
    process = await asyncio.create_subprocess_exec(*words, env=environment, preexec_fn=kernel.die_with_parent)

    async def forward() -> None:
        while True:
            number = await signals.get()
            if number != signal.SIGINT or not sys.stdin.isatty():  # the terminal sends Ctrl-C to both
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    forwarding = asyncio.ensure_future(forward())
    try:
        code = await process.wait()
    finally:
        forwarding.cancel()
        if process.returncode is None:
            process.terminate()
    return 128 - code if code < 0 else code


def _banner(cluster: Cluster) -> str:
    values = " ".join(f"{name}={shlex.quote(value)}" for name, value in cluster.environment.items())
    lines = [
        f"the embedded development cluster of prefect-cd: one node, API server {cluster.server}",
        *(f"  - {sentence}" for sentence in cluster.banner),
        "  - objects live in memory, and are gone when this ends",
        "  - it runs images that `image: {builder: embedded}` of a pipeline file makes, and $BASE_IMAGE, this machine",
        f"export {values}",
    ]
    return "\n".join(lines)


def _say(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed
        stream.write(f"{text}\n")
        stream.flush()


def main() -> int:
    """The command's exit code, 0 after a signal, 1 when the cluster cannot start, and why on standard error."""
    parser = argparse.ArgumentParser(prog="python -m prefect_cd.local", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps images from run to run; default: a temporary one")
    parser.add_argument("--kubeconfig", type=Path, help="the file to write; default: in the folder")
    parser.add_argument("--port", type=int, default=0, help="of the API server; default: any free one")
    parser.add_argument("--registry-port", type=int, default=0, help="of the registry; default: any free one")
    parser.add_argument("command", nargs="*", help="runs with the cluster in its environment; the cluster ends with it")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    try:
        with contextlib.ExitStack() as stack:
            folder = given.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-cd-cluster-"))
            return asyncio.run(serve(Path(folder), given))
    except (NotStarted, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
