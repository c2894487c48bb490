"""A pytest plugin that writes the browser log of a suite: console messages, pictures and traces, test by test.

It builds on pytest-playwright and decides which of the browser's messages are worth keeping, and how a picture is
taken. It runs in the suite's own process, next to code of the commit. Therefore it imports nothing but pytest and
Playwright, nothing from the checkout, and `suite` trusts nothing that it wrote.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Page, Request, Response

BROWSER_LOG = "browser-log.jsonl"
LARGEST_PICTURE = 150_000  # bytes: the Prefect UI shows pictures as data URIs
_JPEG_QUALITIES = (60, 40, 20)
_SCREENSHOT_TIMEOUT = 3000  # milliseconds
_LONGEST_TEXT = 4000  # more than is shown: secrets are masked before a text is cut
_FIRST_ERROR_STATUS = 400


def pytest_configure(config: pytest.Config) -> None:
    """Register our fixtures after those of pytest-playwright, to override them; a conftest.py still overrides ours."""
    config.pluginmanager.import_plugin("prefect_cd.gates.browser.fixtures")
    # pytest-playwright's own base_url fixture raises this warning, which would fail a suite with `-W error`.
    config.addinivalue_line("filterwarnings", "ignore:Session-scoped fixtures defined as instance methods")


class PageRecorder:
    """Records what happens on the pages of one test.

    Args:
        folder: for the browser log, the pictures and the traces.
        test: the test's name.
    """

    def __init__(self, folder: Path, test: str) -> None:
        self._folder = folder
        self._test = test
        self._files = 0
        self._traced: list[BrowserContext] = []

    def start(self, context: BrowserContext) -> None:
        """Record console errors, uncaught exceptions, failed requests, and a trace."""
        # DOM snapshots of every step, but no screencast: that would keep one core busy while the tests run.
        with suppress(Error):  # the suite has started a trace of its own
            context.tracing.start(title=self._test, snapshots=True, sources=True)
            self._traced.append(context)
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self._log_message("page error", str(error.error)))
        context.on("requestfailed", self._on_request_failed)
        context.on("response", self._on_response)

    def finish(self, context: BrowserContext) -> None:
        """Take a picture of every open page and write the trace; a failure to do so does not fail the test."""
        for page in context.pages:
            if jpeg := _screenshot(page):
                self._new_file("picture", "jpg").write_bytes(jpeg)
        if context in self._traced:
            with suppress(Error):
                context.tracing.stop(path=self._new_file("trace", "zip"))

    def _new_file(self, kind: str, extension: str) -> Path:
        self._files += 1
        name = f"{_file_name(self._test)}-{self._files}.{extension}"
        self._log(kind, file=name)
        return self._folder / name

    def _on_console(self, message: ConsoleMessage) -> None:
        # Chromium repeats every failed response on the console without naming the request; see `_on_response`.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self._log_message("console error", message.text)

    def _on_request_failed(self, request: Request) -> None:
        # ERR_ABORTED: the browser left the page while it was still loading, which is not a failure.
        if "ERR_ABORTED" not in (request.failure or ""):
            url = _without_query(request.url)
            self._log_message("request failed", f"{request.method} {url}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.status >= _FIRST_ERROR_STATUS and not response.url.endswith("/favicon.ico"):
            url = _without_query(response.url)
            self._log_message("request failed", f"{response.request.method} {url}: {response.status}")

    def _log_message(self, kind: str, text: str) -> None:
        self._log("console", text=f"{kind}: {text}"[:_LONGEST_TEXT])

    def _log(self, kind: str, **fields: str) -> None:
        with (self._folder / BROWSER_LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"kind": kind, "test": self._test, **fields}) + "\n")


def _screenshot(page: Page) -> bytes | None:
    """A JPEG of the page, or None when the page does not render in time."""
    try:
        return _small_jpeg(page)
    except Error:
        try:
            # Playwright waits without limit for a navigation that gets no response; stopping it frees the page.
            page.context.new_cdp_session(page).send("Page.stopLoading")
            return _small_jpeg(page)
        except Error:
            return None


def _small_jpeg(page: Page) -> bytes | None:
    for quality in _JPEG_QUALITIES:
        jpeg = page.screenshot(type="jpeg", quality=quality, scale="css", timeout=_SCREENSHOT_TIMEOUT)
        if len(jpeg) <= LARGEST_PICTURE:
            return jpeg
    return None


def _file_name(test: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", test).strip("-")[:100] or "test"


def _without_query(url: str) -> str:
    """The URL without query and fragment, which may contain tokens."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
