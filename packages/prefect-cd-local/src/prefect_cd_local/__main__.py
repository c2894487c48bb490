"""Run a Kubernetes cluster on this machine, until Ctrl-C or for as long as a command runs.

    python -m prefect_cd_local [--folder FOLDER] [--kubeconfig FILE] [-- COMMAND …]

Decides what the command prints and when the cluster ends: at a signal, when the terminal closes, when a component
fails, or together with COMMAND, which finds the cluster in its environment.
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

from prefect_cd_local.cluster import Cluster, NotStarted, running
from prefect_cd_local.node import kernel

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def serve(folder: Path, arguments: argparse.Namespace) -> int:
    """Run a cluster until a signal or until the command ends; returns the exit code."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    for signal_number in _ENDS:
        asyncio.get_running_loop().add_signal_handler(signal_number, signals.put_nowait, signal_number)
    starting = running(
        folder, kubeconfig=arguments.kubeconfig, port=arguments.port, registry_port=arguments.registry_port
    )
    async with starting as cluster:
        _say(_banner(cluster), sys.stderr if arguments.command else sys.stdout)
        ending = asyncio.ensure_future(
            _command(arguments.command, cluster, signals) if arguments.command else signals.get()
        )
        ends: list[asyncio.Future[Any]] = [ending, cluster.broken]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            ending.cancel()
            await asyncio.wait([ending])
            await cluster.broken
        return ending.result() if arguments.command else 0


async def _command(words: list[str], cluster: Cluster, signals: "asyncio.Queue[int]") -> int:
    """Run a command. It receives the signals that are sent to us, and the cluster stays up until it has ended."""
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
        f"the embedded test cluster of prefect-cd: one node, API server {cluster.server}",
        *(f"  - {sentence}" for sentence in cluster.banner),
        "  - objects live in memory and are lost when the cluster stops",
        "  - it runs images of the builder `embedded` (`image: {builder: embedded}` in a pipeline file),",
        "    and $BASE_IMAGE, whose programs are those of this machine",
        f"export {values}",
    ]
    return "\n".join(lines)


def _say(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed
        stream.write(f"{text}\n")
        stream.flush()


def main() -> int:
    """Return the command's exit code, 0 after a signal, or 1 (with the reason on standard error) without a cluster."""
    parser = argparse.ArgumentParser(prog="python -m prefect_cd_local", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps images between runs; default: a temporary folder")
    parser.add_argument("--kubeconfig", type=Path, help="the file to write; default: in the folder")
    parser.add_argument("--port", type=int, default=0, help="port of the API server; default: any free one")
    parser.add_argument("--registry-port", type=int, default=0, help="port of the registry; default: any free one")
    parser.add_argument(
        "command", nargs="*", help="a command to run with the cluster in its environment; the cluster ends with it"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    try:
        with contextlib.ExitStack() as stack:
            folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-cd-cluster-"))
            return asyncio.run(serve(Path(folder), arguments))
    except (NotStarted, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
