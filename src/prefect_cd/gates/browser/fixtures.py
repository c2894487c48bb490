"""The fixtures that browser suites get on top of pytest-playwright's, and how Chromium is started.

Registered by `browser_plugin`, in the suite's own process. A suite's `conftest.py` may override each of them, and
gets ours as its argument of the same name, as with pytest-playwright itself.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext

from prefect_cd.gates.browser.plugin import Witness

EXECUTABLE = "PREFECT_CD_BROWSER"
FOLDER = "PREFECT_CD_EVIDENCE"
_VIEWPORT = {"width": 1280, "height": 720}
# Nothing that Chromium does by itself: updates, syncing, first-run pages, QUIC that proxies and port forwards drop.
_QUIET = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_ON_LINUX = ("--disable-gpu", "--disable-quic")


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any], browser_name: str) -> dict[str, Any]:
    """Chromium as it was found on this machine."""
    if browser_name != "chromium":
        return browser_type_launch_args
    ours: dict[str, Any] = {"args": [*launch_flags(), *browser_type_launch_args.get("args", ())]}
    if os.environ.get(EXECUTABLE):
        ours["executable_path"] = os.environ[EXECUTABLE]
    return {**browser_type_launch_args, **ours}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    """A desktop window, so that pictures are alike; a device chosen by the suite wins."""
    return {"viewport": _VIEWPORT, **browser_context_args}


@pytest.fixture
def new_context(
    new_context: Callable[..., BrowserContext], request: pytest.FixtureRequest
) -> Iterator[Callable[..., BrowserContext]]:
    """Listen to every page of a test and trace it, and take a picture of each that is open at its end."""
    folder = os.environ.get(FOLDER)
    if not folder:
        yield new_context
        return
    witness, contexts = Witness(Path(folder), request.node.name), list[BrowserContext]()

    def create(**options: Any) -> BrowserContext:  # noqa: ANN401 - Playwright's own options
        context = new_context(**options)
        witness.listen(context)
        contexts.append(context)
        return context

    yield create
    for context in contexts:
        witness.finish(context)


def launch_flags() -> list[str]:
    """Flags for Chromium on this machine."""
    flags = list(_QUIET)
    if sys.platform == "linux":
        flags += _ON_LINUX
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses to sandbox itself as root; anyone else keeps the sandbox
    return flags
