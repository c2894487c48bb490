"""Where the shop is, and what the browser complained about.

The suite brings no browser settings of its own: how a browser is started is up to whoever runs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="session")
def base_url() -> str:
    """Return the address of the environment to test."""
    url = os.environ.get("BASE_URL", "").rstrip("/")
    if not url:
        pytest.fail("BASE_URL is not set: give the address of the shop, as in BASE_URL=http://127.0.0.1:8080")
    return url


@pytest.fixture(autouse=True)
def _patience(page: Page) -> None:
    """Give up on a missing button long before a person would, but wait for a page on a busy machine."""
    page.set_default_timeout(10_000)
    page.set_default_navigation_timeout(30_000)


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """Collect what goes wrong in the browser while a test uses `page`."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on(
        "console", lambda line: found.append(f"{page.url}: {line.text}") if line.type == "error" else None
    )
    return found
