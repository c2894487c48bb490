"""Browser gates: run the commit's pytest + Playwright suite in a process of its own and collect its evidence.

This module decides how much evidence is kept. The suite is code of the commit: it gets none of our environment
variables, and whatever it leaves behind (report, browser log, pictures) is read as untrusted input.
"""

import base64
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from prefect_cd.errors import GateErrored
from prefect_cd.gates.browser.executable import EXECUTABLE_VARIABLE, find_browser
from prefect_cd.gates.checkout import checkout_path, in_checkout
from prefect_cd.gates.evidence import Evidence, Outcome, Picture, TestCase, evaluate
from prefect_cd.gates.junit import read_junit
from prefect_cd.masking import BY_SHAPE, Mask
from prefect_cd.pipeline.models import Gate
from prefect_cd.process import BEST_ISOLATION, Isolation, clean_environment, ignore, run

EVIDENCE_VARIABLE = "PREFECT_CD_EVIDENCE"
BROWSER_LOG = "browser-log.jsonl"
# Not `-m pytest`: that puts the current folder first on the import path, so that a file of the checkout named
# pytest.py would be run instead of pytest.
_PYTEST = "import sys; sys.path[:] = filter(None, sys.path); import pytest; sys.exit(pytest.main())"
_NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}  # leaves the checkout as it was checked out
_CLEANUP_SECONDS = 5.0
_LARGEST_BROWSER_LOG = 5_000_000  # bytes
_LARGEST_PICTURE = 150_000  # bytes
_MOST_PICTURES = 30
_MOST_CONSOLE_LINES = 100
_LONGEST_CONSOLE_LINE, _LONGEST_TITLE = 2000, 300  # characters

_LogEntry = Mapping[str, str]
"""A line of the browser log, see `plugin`: `kind` (console, picture, trace), `test`, and `text` or `file`."""


def run_suite(
    gate: Gate,
    checkout: Path,
    url: str,
    evidence_folder: Path,
    *,
    on_line: Callable[[str], None] = ignore,
    variables: Mapping[str, str] = {},
    isolation: Isolation = BEST_ISOLATION,
    mask: Mask = BY_SHAPE,
) -> Evidence:
    """Run a gate's pytest + Playwright suite against `url`: the part of `gates.runner.run_gate` for browser gates.

    Arguments and errors are those of `run_gate`; the gate's `browser` is the path of the suite in the commit.
    """
    suite = checkout_path(checkout, gate.browser or ".", gate.name)
    directory = checkout_path(checkout, gate.directory, gate.name)
    browser = find_browser()
    folder = _cleared(evidence_folder)
    report = folder / "junit.xml"
    with _temporary_folder() as temporary:
        ours = {
            "BASE_URL": url,
            "TMPDIR": temporary,
            EXECUTABLE_VARIABLE: str(browser),
            EVIDENCE_VARIABLE: str(folder),
        }
        finished = run(
            [sys.executable, "-c", _PYTEST, str(suite), *_pytest_options(folder, report, url)],
            cwd=directory,
            env=clean_environment({**_NO_BYTECODE, **variables, **gate.environment, **ours}),
            timeout=gate.timeout,
            on_line=on_line,
            isolation=in_checkout(isolation, checkout, folder, Path(temporary)),
            mask=mask,
        )
    try:
        cases, unreadable = read_junit(report), ""
    except GateErrored as error:
        cases, unreadable = (), error.reason
    evidence = evaluate(gate.name, finished, cases, unreadable=unreadable, mask=mask)
    log = list(_log_entries(folder))
    return evidence.model_copy(
        update={
            "console": tuple(_console(log, mask)),
            "pictures": tuple(_pictures(log, folder, cases, mask)),
            "trace": _trace(log, folder, cases),
        }
    )


def _pytest_options(folder: Path, report: Path, url: str) -> list[str]:
    return [
        *("-p", "prefect_cd.gates.browser.plugin"),
        *("-p", "no:cacheprovider"),  # writes .pytest_cache into the checkout
        *("--browser", "chromium"),
        *("--base-url", url),
        *("--junitxml", str(report)),
        *("--output", str(folder / "playwright")),
    ]


def _cleared(folder: Path) -> Path:
    """The evidence folder as an absolute path, without the evidence of an earlier run."""
    folder = folder.resolve()
    shutil.rmtree(folder / "playwright", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / "junit.xml", folder / BROWSER_LOG, *folder.glob("*.jpg"), *folder.glob("*.zip")):
        stale.unlink(missing_ok=True)
    return folder


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for browser profiles and sockets, which a killed browser leaves behind.

    Its path is short, because the path of a Unix socket is limited to about 100 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="prefect-cd-"))
    try:
        yield str(folder)
    finally:
        # A browser whose driver was killed exits by itself. Until then it writes to its profile, or creates it again.
        deadline = monotonic() + _CLEANUP_SECONDS
        while folder.exists() or _is_in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)
            if monotonic() > deadline:
                break
            sleep(0.05)


def _is_in_use(folder: Path) -> bool:
    """Whether a running process has this folder in its environment; False where there is no /proc (macOS)."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if os.fsencode(folder) in environment.read_bytes():
                return True
        except OSError:  # the process has ended, or belongs to another user
            continue
    return False


def _log_entries(folder: Path) -> Iterator[_LogEntry]:
    """The entries of the browser log; malformed lines are left out, since the suite can write to the file, too."""
    for line in _read_regular_file(folder / BROWSER_LOG, _LARGEST_BROWSER_LOG).splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values()):
            yield entry


def _read_regular_file(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes; empty for links, pipes and larger files."""
    try:
        status = path.lstat()
        return path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= largest else b""
    except (OSError, ValueError):
        return b""


def _console(log: Sequence[_LogEntry], mask: Mask) -> list[str]:
    lines = [f"{entry.get('test', '')}: {entry.get('text', '')}" for entry in log if entry.get("kind") == "console"]
    unique = list(dict.fromkeys(lines))
    more = len(unique) - _MOST_CONSOLE_LINES
    first = [mask.head(line, _LONGEST_CONSOLE_LINE) for line in unique[:_MOST_CONSOLE_LINES]]
    return first + ([f"and {more} more"] if more > 0 else [])


def _pictures(log: Sequence[_LogEntry], folder: Path, cases: Sequence[TestCase], mask: Mask) -> Iterator[Picture]:
    for entry in _failing_tests_first(log, "picture", cases)[:_MOST_PICTURES]:
        jpeg = _read_regular_file(folder / Path(entry.get("file", "")).name, _LARGEST_PICTURE)
        if jpeg.startswith(b"\xff\xd8\xff"):  # every JPEG begins with these bytes
            title = mask.head(re.sub(r"\[chromium\]$", "", entry.get("test", "")), _LONGEST_TITLE)
            yield Picture(title=title, jpeg=base64.b64encode(jpeg).decode())


def _trace(log: Sequence[_LogEntry], folder: Path, cases: Sequence[TestCase]) -> str | None:
    """The trace of the first failing test, or else of the first test."""
    for entry in _failing_tests_first(log, "trace", cases):
        path = folder / Path(entry.get("file", "")).name
        if path.suffix == ".zip" and path.is_file() and not path.is_symlink():
            return str(path)
    return None


def _failing_tests_first(log: Sequence[_LogEntry], kind: str, cases: Sequence[TestCase]) -> list[_LogEntry]:
    """The log's entries of one kind, those of failing tests first, because only the first ones are shown."""
    failing = {case.name for case in cases if case.outcome in (Outcome.FAILED, Outcome.ERRORED)}
    entries = [entry for entry in log if entry.get("kind") == kind]
    return sorted(entries, key=lambda entry: entry.get("test") not in failing)


__all__ = ["run_suite"]
