"""Puts the shop's source on the path, and offers a visitor to the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "app"))

from starlette.testclient import TestClient

from shop.application import create_app
from shop.settings import Settings

ENVIRON = {
    "SHOP_TITLE": "Test shop",
    "SHOP_CURRENCY": "USD",
    "SHOP_ANNOUNCEMENT": "Tea & cake today",
    "SHOP_VERSION": "1.2.3",
}


@pytest.fixture
def environ() -> dict[str, str]:
    """Return the environment of a well-configured shop."""
    return dict(ENVIRON)


@pytest.fixture
def visitor(environ: dict[str, str]) -> TestClient:
    """Return a browser-like client with an empty cart."""
    return TestClient(create_app(Settings.from_environ(environ)))
