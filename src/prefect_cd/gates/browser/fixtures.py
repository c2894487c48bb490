"""The fixtures that browser suites get in addition to pytest-playwright's, and how Chromium is started.

`plugin` registers them in the suite's own process. A suite's `conftest.py` may override each of them, and receives
ours as the argument of the same name, as with pytest-playwright itself.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext

from prefect_cd.gates.browser.plugin import PageRecorder

EXECUTABLE_VARIABLE = "PREFECT_CD_BROWSER"
EVIDENCE_VARIABLE = "PREFECT_CD_EVIDENCE"
_VIEWPORT = {"width": 1280, "height": 720}
# Nothing in the background that could disturb a test or reach the network: first-run pages, updates, syncing.
_COMMON_FLAGS = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Test machines have no GPU, and proxies and port forwards do not carry QUIC (it runs over UDP).
_LINUX_FLAGS = ("--disable-gpu", "--disable-quic")


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any], browser_name: str) -> dict[str, Any]:
    """Start the Chromium that the gate chose on this machine."""
    if browser_name != "chromium":
        return browser_type_launch_args
    ours: dict[str, Any] = {"args": [*launch_flags(), *browser_type_launch_args.get("args", ())]}
    if os.environ.get(EXECUTABLE_VARIABLE):
        ours["executable_path"] = os.environ[EXECUTABLE_VARIABLE]
    return {**browser_type_launch_args, **ours}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    """A desktop window, so that all pictures have one size; a device that the suite chooses takes precedence."""
    return {"viewport": _VIEWPORT, **browser_context_args}


@pytest.fixture
def new_context(
    new_context: Callable[..., BrowserContext], request: pytest.FixtureRequest
) -> Iterator[Callable[..., BrowserContext]]:
    """Record and trace the pages of a test, and take a picture of each one that is open at its end."""
    folder = os.environ.get(EVIDENCE_VARIABLE)
    if not folder:
        yield new_context
        return
    recorder, contexts = PageRecorder(Path(folder), request.node.name), list[BrowserContext]()

    def create(**options: Any) -> BrowserContext:  # noqa: ANN401 - Playwright's own options
        context = new_context(**options)
        recorder.start(context)
        contexts.append(context)
        return context

    yield create
    for context in contexts:
        recorder.finish(context)


def launch_flags() -> list[str]:
    """Flags for Chromium on this machine."""
    flags = list(_COMMON_FLAGS)
    if sys.platform == "linux":
        flags += _LINUX_FLAGS
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium does not start as root with its sandbox
    return flags
