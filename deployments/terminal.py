"""Where the commands print: texts of others cannot steer the terminal.

A pod's termination message, the subject of a commit or an API server's answer may contain escape sequences, which move
the cursor over lines that were printed before, set the window's title or answer as if the user typed. They are made
visible.
"""

import logging
import sys
from collections.abc import Iterable

from prefect_cd.untrusted_text import visible

_LINES = "\n\t"


def write(text: str) -> None:
    """Print to stdout."""
    sys.stdout.write(visible(text, _LINES))
    sys.stdout.flush()


def write_error(text: str) -> None:
    """Print to stderr."""
    sys.stderr.write(visible(text, _LINES))


def joined(lines: Iterable[str]) -> str:
    """Lines as a text. None of them can begin another one, which would look like ours."""
    return "".join(f"{visible(line)}\n" for line in lines)


class LastResort(logging.Handler):
    """Prints log records where nothing else takes them, as `logging.lastResort` does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message."""
        write_error(f"{self.format(record)}\n")


__all__ = ["LastResort", "joined", "write", "write_error"]
