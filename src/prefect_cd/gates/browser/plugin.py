"""A pytest plugin: what a browser suite shows beyond its report, written down while it runs.

It stands on pytest-playwright and decides which of the browser's complaints are worth keeping, and what a picture
looks like. It runs in the suite's own process, beside code of the commit that is being released: so it imports
nothing but pytest and Playwright, never from the checkout, and `browser` trusts nothing that it wrote.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Page, Request, Response

JOURNAL = "journal.jsonl"
LARGEST_PICTURE = 150_000  # bytes: the Prefect UI shows pictures as data URIs
_QUALITIES = (60, 40, 20)
_PATIENCE = 3000  # milliseconds
_LONGEST = 1000
_FAILURE = 400


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures last, after pytest-playwright's: so they win over those, and lose to a conftest's."""
    config.pluginmanager.import_plugin("prefect_cd.gates.browser.fixtures")
    # pytest-playwright's own base_url fixture; a suite that makes errors of warnings is not to blame for it.
    config.addinivalue_line("filterwarnings", "ignore:Session-scoped fixtures defined as instance methods")


class Witness:
    """Writes down what the pages of one test do.

    Args:
        folder: where the journal, the pictures and the traces go.
        test: the test's name.
    """

    def __init__(self, folder: Path, test: str) -> None:
        self._folder = folder
        self._test = test
        self._kept = 0
        self._traced: list[BrowserContext] = []

    def listen(self, context: BrowserContext) -> None:
        """Keep console errors, uncaught exceptions, requests that failed, and a trace."""
        # DOM snapshots of every step, without the screencast: that takes a core while the tests run.
        with suppress(Error):  # a suite that traces by itself keeps its own
            context.tracing.start(title=self._test, snapshots=True, sources=True)
            self._traced.append(context)
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self._complain("page error", str(error.error)))
        context.on("requestfailed", self._on_request_failed)
        context.on("response", self._on_response)

    def finish(self, context: BrowserContext) -> None:
        """Picture every open page and write the trace; what cannot be had is no reason to fail a test."""
        for page in context.pages:
            if jpeg := _jpeg(page):
                self._file("picture", "jpg").write_bytes(jpeg)
        if context in self._traced:
            with suppress(Error):
                context.tracing.stop(path=self._file("trace", "zip"))

    def _file(self, kind: str, ending: str) -> Path:
        self._kept += 1
        name = f"{_file_name(self._test)}-{self._kept}.{ending}"
        self._write(kind, file=name)
        return self._folder / name

    def _on_console(self, message: ConsoleMessage) -> None:
        # Chromium repeats every failed response on the console, without saying of which request.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self._complain("console error", message.text)

    def _on_request_failed(self, request: Request) -> None:
        # ERR_ABORTED is a page being left while it loads: nothing failed.
        if "ERR_ABORTED" not in (request.failure or ""):
            self._complain("request failed", f"{request.method} {_address(request.url)}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.status >= _FAILURE and not response.url.endswith("/favicon.ico"):
            said = f"{response.request.method} {_address(response.url)}: {response.status}"
            self._complain("request failed", said)

    def _complain(self, kind: str, text: str) -> None:
        self._write("console", text=f"{kind}: {text}"[:_LONGEST])

    def _write(self, kind: str, **more: str) -> None:
        with (self._folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"kind": kind, "test": self._test, **more}) + "\n")


def _jpeg(page: Page) -> bytes | None:
    """The picture, or None when there is none to be had within some seconds."""
    try:
        return _small_jpeg(page)
    except Error:
        try:
            # Playwright waits for ever for a navigation that nobody answers; without it the page can be pictured.
            page.context.new_cdp_session(page).send("Page.stopLoading")
            return _small_jpeg(page)
        except Error:
            return None


def _small_jpeg(page: Page) -> bytes | None:
    for quality in _QUALITIES:
        jpeg = page.screenshot(type="jpeg", quality=quality, scale="css", timeout=_PATIENCE)
        if len(jpeg) <= LARGEST_PICTURE:
            return jpeg
    return None


def _file_name(test: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", test).strip("-")[:100] or "test"


def _address(url: str) -> str:
    """Without query and fragment, where tokens travel."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
