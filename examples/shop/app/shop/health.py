"""Probes for Kubernetes.

Both look at this process only: a probe that fails for a shared reason would take all replicas out at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request


async def alive(_: Request) -> Response:
    """Answer while the event loop runs; without an answer Kubernetes restarts the container."""
    return PlainTextResponse("alive")


async def ready(_: Request) -> Response:
    """Answer once the server listens, which it does after settings and templates were loaded."""
    return PlainTextResponse("ready")


ROUTES = [Route("/healthz", alive), Route("/readyz", ready)]
