"""Browser gates: find a browser, run the commit's suite in a process of its own, collect what it proved.

It decides which browser is used and how much of the evidence is kept. The suite belongs to the commit: it gets no
variable of ours, and whatever it leaves behind (report, journal, pictures) is read as untrusted input.
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
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep

from prefect_cd.errors import GateErrored, MissingSuite, MissingTool
from prefect_cd.gates.evidence import Evidence, Outcome, Picture, TestCase, evaluate
from prefect_cd.gates.junit import read_junit
from prefect_cd.pipeline.models import Gate
from prefect_cd.process import clean_environment, ignore, run

EXECUTABLE = "PREFECT_CD_BROWSER"
FOLDER = "PREFECT_CD_EVIDENCE"
JOURNAL = "journal.jsonl"
_ON_PATH = ("chromium", "google-chrome", "google-chrome-stable", "chrome", "chromium-browser")
_USUAL_PLACES = (
    "/usr/bin/chromium",
    "/usr/bin/google-chrome",
    "/opt/google/chrome/chrome",
    "/snap/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_PLAYWRIGHTS = (
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/*.app/Contents/MacOS/*",
    "chromium_headless_shell-*/*/headless_shell",
    "chromium_headless_shell-*/*/chrome-headless-shell",
)
_INSTALL = "install Chromium (Debian, Ubuntu: apt-get install chromium) or run: playwright install --with-deps chromium"
# Not `-m pytest`: that looks for pytest and its plugins in the checkout first.
_PYTEST = "import sys; sys.path[:] = filter(None, sys.path); import pytest; sys.exit(pytest.main())"
_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}  # the checkout stays as it was checked out
_LEAVING = 5.0  # seconds
_LARGEST_JOURNAL = 5_000_000
_LARGEST_PICTURE = 150_000
_PICTURES = 30
_CONSOLE = 100


def find_browser(environment: Mapping[str, str] = os.environ) -> Path:
    """The Chrome or Chromium to use: $PREFECT_CD_BROWSER, an installed one, or Playwright's own.

    Raises:
        MissingTool: there is none; the hint says what to install.
    """
    chosen = environment.get(EXECUTABLE)
    if chosen:
        if not _executable(Path(chosen)):
            raise MissingTool(f"{EXECUTABLE} names {chosen}, which is not a program", hint="correct or unset it")
        return Path(chosen)
    for browser in _candidates(environment):
        if _executable(browser):
            return browser
    raise MissingTool("there is no Chrome or Chromium on this machine", hint=f"{_INSTALL}; or set {EXECUTABLE}")


def run_suite(
    gate: Gate,
    tree: Path,
    url: str,
    keep: Path,
    *,
    on_line: Callable[[str], None] = ignore,
    variables: Mapping[str, str] = {},
) -> Evidence:
    """Run a gate's pytest + Playwright suite against `url`.

    Args:
        gate: with `browser`, the suite's path in the commit.
        tree: the checkout.
        url: BASE_URL for the suite, and what `page.goto("/")` means.
        keep: folder for report, traces and pictures; those of an earlier run there are removed.
        on_line: called with each line that pytest prints.
        variables: for the suite, besides the gate's own.

    Raises:
        MissingSuite: the commit has no such suite.
        MissingTool: there is no browser.
    """
    suite, start = inside(tree, gate.browser or ".", gate.name), inside(tree, gate.directory, gate.name)
    browser = find_browser()
    keep = _emptied(keep)
    report = keep / "junit.xml"
    with _scratch() as scratch:
        ours = {"BASE_URL": url, "TMPDIR": scratch, EXECUTABLE: str(browser), FOLDER: str(keep)}
        finished = run(
            [sys.executable, "-c", _PYTEST, str(suite), *_options(keep, report, url)],
            cwd=start,
            env=clean_environment({**_BYTECODE, **variables, **gate.environment, **ours}),
            timeout=gate.timeout,
            on_line=on_line,
        )
    try:
        cases, unreadable = read_junit(report), ""
    except GateErrored as error:
        cases, unreadable = (), error.reason
    evidence = evaluate(gate.name, finished, cases, unreadable=unreadable)
    journal = list(_journal(keep))
    return evidence.model_copy(
        update={
            "console": tuple(_console(journal)),
            "pictures": tuple(_pictures(journal, keep, evidence.cases)),
            "trace": _trace(journal, keep, evidence.cases),
        }
    )


def inside(tree: Path, path: str, gate: str) -> Path:
    """The absolute path in the checkout, which a symbolic link of the commit does not leave.

    Raises:
        MissingSuite: it is not there.
    """
    found, top = (tree / path).resolve(), tree.resolve()
    if not found.is_relative_to(top) or not found.exists():
        raise MissingSuite(
            f"{gate}: the commit has no {path}",
            where=path,
            hint="correct the path in the pipeline file, or commit what is missing",
        )
    return found


def _options(keep: Path, report: Path, url: str) -> list[str]:
    return [
        *("-p", "prefect_cd.gates.browser.plugin"),
        *("-p", "no:cacheprovider"),
        *("--browser", "chromium"),
        *("--base-url", url),
        *("--junitxml", str(report)),
        *("--output", str(keep / "playwright")),
    ]


def _emptied(keep: Path) -> Path:
    keep = keep.resolve()
    shutil.rmtree(keep / "playwright", ignore_errors=True)
    keep.mkdir(parents=True, exist_ok=True)
    for stale in (keep / "junit.xml", keep / JOURNAL, *keep.glob("*.jpg"), *keep.glob("*.zip")):
        stale.unlink(missing_ok=True)
    return keep


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for profiles and sockets, which browsers leave behind when they are ended. Short, for the sockets."""
    folder = Path(tempfile.mkdtemp(prefix="prefect-cd-"))
    try:
        yield str(folder)
    finally:
        # A browser whose driver was ended goes by itself, but writes its profile until then, or makes it anew.
        deadline = monotonic() + _LEAVING
        while folder.exists() or _in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)
            if monotonic() > deadline:
                break
            sleep(0.05)


def _in_use(folder: Path) -> bool:
    """Whether a process was started with this folder in its environment, as far as this system tells."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if os.fsencode(folder) in environment.read_bytes():
                return True
        except OSError:  # it has ended, or is somebody else's
            continue
    return False


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    for name in _ON_PATH:
        found = shutil.which(name, path=environment.get("PATH", os.defpath))
        if found:
            yield Path(found)
    yield from map(Path, _USUAL_PLACES)
    folder = _playwrights_folder(environment)
    for pattern in _PLAYWRIGHTS:
        yield from sorted(folder.glob(pattern), key=_revision, reverse=True)


def _playwrights_folder(environment: Mapping[str, str]) -> Path:
    """Where `playwright install` puts browsers, https://playwright.dev/python/docs/browsers#managing-browser-binaries."""
    chosen = environment.get("PLAYWRIGHT_BROWSERS_PATH")
    if chosen == "0":
        spec = find_spec("playwright")
        home = Path(spec.origin).parent if spec and spec.origin else Path("playwright")
        return home / "driver" / "package" / ".local-browsers"
    if chosen:
        return Path(chosen)
    cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path(environment.get("HOME") or Path.home()) / cache / "ms-playwright"


def _revision(browser: Path) -> int:
    numbers = re.findall(r"chromium\w*-(\d+)", str(browser))
    return int(numbers[-1]) if numbers else 0


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _journal(keep: Path) -> Iterator[Mapping[str, str]]:
    """What the plugin wrote, or the suite in its name: lines that are not as expected are left out."""
    for line in _plain(keep / JOURNAL, _LARGEST_JOURNAL).splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values()):
            yield entry


def _plain(path: Path, largest: int) -> bytes:
    """The content of a plain file that is not too large; nothing of links, pipes and whatever else has that name."""
    try:
        status = path.lstat()
        return path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= largest else b""
    except (OSError, ValueError):
        return b""


def _console(journal: Sequence[Mapping[str, str]]) -> list[str]:
    said = [f"{entry.get('test', '')}: {entry.get('text', '')}" for entry in journal if entry.get("kind") == "console"]
    unique = list(dict.fromkeys(said))
    more = len(unique) - _CONSOLE
    return unique[:_CONSOLE] + ([f"and {more} more"] if more > 0 else [])


def _pictures(journal: Sequence[Mapping[str, str]], keep: Path, cases: Sequence[TestCase]) -> Iterator[Picture]:
    for entry in _kept(journal, "picture", cases)[:_PICTURES]:
        jpeg = _plain(keep / Path(entry.get("file", "")).name, _LARGEST_PICTURE)
        if jpeg.startswith(b"\xff\xd8\xff"):
            title = re.sub(r"\[chromium\]$", "", entry.get("test", ""))
            yield Picture(title=title, jpeg=base64.b64encode(jpeg).decode())


def _trace(journal: Sequence[Mapping[str, str]], keep: Path, cases: Sequence[TestCase]) -> str | None:
    """The trace of the first failing test, or else of the first test."""
    for entry in _kept(journal, "trace", cases):
        path = keep / Path(entry.get("file", "")).name
        if path.suffix == ".zip" and path.is_file() and not path.is_symlink():
            return str(path)
    return None


def _kept(journal: Sequence[Mapping[str, str]], kind: str, cases: Sequence[TestCase]) -> list[Mapping[str, str]]:
    """The journal's entries about pictures or traces: those of failing tests first, because not all are shown."""
    bad = {case.name for case in cases if case.outcome in (Outcome.FAILED, Outcome.ERRORED)}
    return sorted((e for e in journal if e.get("kind") == kind), key=lambda entry: entry.get("test") not in bad)


__all__ = ["find_browser", "inside", "run_suite"]


if __name__ == "__main__":  # for set-up scripts: prints the browser, or says what to install
    try:
        sys.stdout.write(f"{find_browser()}\n")
    except MissingTool as missing:
        sys.exit(str(missing))
