"""A pytest plugin for the script's side: the browser that both sides use, for `playwright install` is not for all."""

import os
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """Start the installed Chromium; without its sandbox, which it refuses to build for root."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return {**browser_type_launch_args, "executable_path": os.environ["CHROMIUM"], "args": sandbox}
