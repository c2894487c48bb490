"""Run the embedded API server alone, without controllers and node, to develop against it.

python packages/prefect-cd-local/tools/serve_api.py PORT KUBECONFIG
"""

import asyncio
import signal
import sys
from pathlib import Path

from prefect_cd_local.apiserver.server import ApiServer


async def main(port: int, kubeconfig: Path) -> None:
    """Serve until a signal."""
    server = ApiServer(port=port)
    await server.start()
    kubeconfig.touch(mode=0o600)  # noqa: ASYNC240  the server has no clients yet
    kubeconfig.write_text(server.kubeconfig())  # noqa: ASYNC240
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
