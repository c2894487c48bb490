"""The result of a connection to one port of a Service."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class PortResult:
    """The result of a connection to one port of a Service.

    Args:
        service: the Service's name.
        port: the port as the Service writes it.
        open: whether a pod accepted the connection.
        error: the text of the refusal; empty when the port is open.
        at: when it was tried, aware; of several refusals in a row, the time of the first.
    """

    service: str
    port: int
    open: bool
    error: str = ""
    at: datetime | None = None
