"""Serve the API alone, for developing against it: python -m prefect_cd.local.apiserver PORT KUBECONFIG."""

import asyncio
import signal
import sys
from pathlib import Path

from prefect_cd.local.apiserver.server import ApiServer


async def main(port: int, kubeconfig: Path) -> None:
    """Serve until a signal."""
    server = ApiServer(port=port)
    await server.start()
    kubeconfig.touch(mode=0o600)  # noqa: ASYNC240  nobody is served yet
    kubeconfig.write_text(server.kubeconfig())  # noqa: ASYNC240
    ended = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    await ended.wait()
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
