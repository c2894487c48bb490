"""Run the shop: ``python -m shop``.

On SIGTERM the server stops listening, finishes the requests it has, and the process ends with exit code 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

import uvicorn

from shop.application import create_app
from shop.settings import Settings, SettingsError

if TYPE_CHECKING:
    from types import FrameType

FINISH_REQUESTS_SECONDS = 8  # with the sleep before it, well within terminationGracePeriodSeconds


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_environ(os.environ)
    except SettingsError as error:
        sys.exit(f"shop: {error}")
    # uvicorn raises the signal again when it has finished: this is what ends the process then.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        timeout_graceful_shutdown=FINISH_REQUESTS_SECONDS,
    )


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Keep the probes of Kubernetes, one each second, out of the log."""
    return not any(path in record.getMessage() for path in ("/healthz", "/readyz"))


if __name__ == "__main__":
    main()
