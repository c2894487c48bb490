"""HTML from templates, with the frame that all pages share."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from shop import cart, catalogue

if TYPE_CHECKING:
    from starlette.requests import Request

    from shop.settings import Settings

_HERE = Path(__file__).parent
FAVICON = (_HERE / "static" / "favicon.svg").read_text(encoding="utf-8")


class Renderer:
    """Renders pages.

    The style sheet is part of every page: while two versions run side by side during a rollout, a page of one
    version must never be shown with the style of the other.
    """

    def __init__(self, settings: Settings) -> None:
        """Compile all templates, so that a broken one stops the start and not a customer."""
        style = (_HERE / "static" / "shop.css").read_text(encoding="utf-8")
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            settings=settings,
            categories=catalogue.CATEGORIES,
            most=cart.MOST_PER_PRODUCT,
            style=Markup(style),  # noqa: S704 (our own file, not a visitor's text)
        )
        for name in self._environment.list_templates():
            self._environment.get_template(name)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        self.style_source = f"'sha256-{digest}'"  # for the Content-Security-Policy

    def page(self, request: Request, template: str, *, status: int = 200, **content: object) -> HTMLResponse:
        """Render a page for a visitor, with the number of pieces in their cart."""
        pieces = cart.Cart.from_cookie(request.cookies.get(cart.COOKIE, "")).pieces
        html = self._environment.get_template(template).render(
            pieces=pieces, path=request.url.path, **content
        )
        return HTMLResponse(html, status_code=status)
