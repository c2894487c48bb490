"""The shop as one ASGI application."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from shop import api, health
from shop.headers import Headers
from shop.pages import Pages
from shop.rendering import Renderer

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from shop.settings import Settings

_ERROR_PAGES = {
    404: ("We could not find this page", "It may have been moved, or it never existed."),
    500: ("Something went wrong", "This is our mistake, not yours. Please try again in a minute."),
}


def create_app(settings: Settings) -> ASGIApp:
    """Build the shop for one set of settings."""
    renderer = Renderer(settings)
    errors = ErrorPages(renderer)
    app = Starlette(
        routes=[*Pages(settings, renderer).routes(), *api.Api(settings).routes(), *health.ROUTES],
        exception_handlers={HTTPException: errors.refused, Exception: errors.broken},
    )
    return Headers(app, _headers(settings, renderer))


class ErrorPages:
    """Error responses: pages for people and JSON for programs."""

    def __init__(self, renderer: Renderer) -> None:
        """Draw the pages with `renderer`."""
        self._page = renderer.page

    async def refused(self, request: Request, exc: Exception) -> Response:
        """Answer a request that the shop refused."""
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        response = self._answer(request, status)
        response.headers.update(getattr(exc, "headers", None) or {})
        return response

    async def broken(self, request: Request, _: Exception) -> Response:
        """Answer when the shop itself failed; the server logs the traceback."""
        return self._answer(request, 500)

    def _answer(self, request: Request, status: int) -> Response:
        phrase = HTTPStatus(status).phrase
        title, text = _ERROR_PAGES.get(status, (phrase, "The shop cannot do this."))
        if request.url.path.startswith("/api/"):
            return api.error(status, phrase.lower().replace(" ", "-"), text)
        return self._page(request, "error.html", status=status, title=title, text=text, code=status)


def _headers(settings: Settings, renderer: Renderer) -> dict[str, str]:
    policy = f"default-src 'none'; img-src 'self'; style-src {renderer.style_source}; form-action 'self'"
    return {
        "X-Shop-Version": settings.version,
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": f"{policy}; base-uri 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
