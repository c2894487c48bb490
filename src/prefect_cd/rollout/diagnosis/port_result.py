"""The result of a connection to one port of a Service."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class PortResult:
    """What became of a connection to one port of a Service.

    Args:
        service: its name.
        port: the port as the Service writes it.
        open: whether anybody accepted it.
        said: the answer's own words when nobody did.
        at: when, and where several in a row found nobody, when the first of them did; aware.
    """

    service: str
    port: int
    open: bool
    said: str = ""
    at: datetime | None = None
