"""The address of the shop, and the browser's error messages.

The suite has no browser settings of its own: the runner of the suite decides how a browser is started.
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
    """Give up on a missing button soon, but wait for a page on a busy machine."""
    page.set_default_timeout(10_000)
    page.set_default_navigation_timeout(30_000)


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """Collect the browser's errors while a test uses `page`."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"{page.url}: {error}"))
    page.on(
        "console", lambda line: errors.append(f"{page.url}: {line.text}") if line.type == "error" else None
    )
    return errors
