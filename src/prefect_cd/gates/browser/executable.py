"""Find the Chrome or Chromium of this machine. `python -m prefect_cd.gates.browser.executable` prints its path."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from prefect_cd.errors import MissingTool

EXECUTABLE_VARIABLE = "PREFECT_CD_BROWSER"
_PROGRAMS = ("chromium", "google-chrome", "google-chrome-stable", "chrome", "chromium-browser")
_INSTALLED = (
    "/usr/bin/chromium",
    "/usr/bin/google-chrome",
    "/opt/google/chrome/chrome",
    "/snap/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# Below the folder of `playwright install`; the names of the subfolders differ between versions of Playwright.
_PLAYWRIGHT_PATTERNS = (
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/*.app/Contents/MacOS/*",
    "chromium_headless_shell-*/*/headless_shell",
    "chromium_headless_shell-*/*/chrome-headless-shell",
)
_INSTALL = "install Chromium (Debian, Ubuntu: apt-get install chromium) or run: playwright install --with-deps chromium"


def find_browser(environment: Mapping[str, str] = os.environ) -> Path:
    """The Chrome or Chromium to use: $PREFECT_CD_BROWSER, an installed one, or Playwright's own.

    Raises:
        MissingTool: there is none; the hint says what to install.
    """
    chosen = environment.get(EXECUTABLE_VARIABLE)
    if chosen:
        if not _is_executable(Path(chosen)):
            raise MissingTool(
                f"{EXECUTABLE_VARIABLE} names {chosen}, which is not a program", hint="correct or unset it"
            )
        return Path(chosen)
    for browser in _candidates(environment):
        if _is_executable(browser):
            return browser
    hint = f"{_INSTALL}; or set {EXECUTABLE_VARIABLE}"
    raise MissingTool("there is no Chrome or Chromium on this machine", hint=hint)


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    for program in _PROGRAMS:
        path = shutil.which(program, path=environment.get("PATH", os.defpath))
        if path:
            yield Path(path)
    yield from map(Path, _INSTALLED)
    folder = _playwright_folder(environment)
    for pattern in _PLAYWRIGHT_PATTERNS:
        yield from sorted(folder.glob(pattern), key=_revision, reverse=True)


def _playwright_folder(environment: Mapping[str, str]) -> Path:
    """Where `playwright install` puts browsers, https://playwright.dev/python/docs/browsers#managing-browser-binaries."""
    chosen = environment.get("PLAYWRIGHT_BROWSERS_PATH")
    if chosen == "0":  # means: inside the Playwright package
        spec = find_spec("playwright")
        package = Path(spec.origin).parent if spec and spec.origin else Path("playwright")
        return package / "driver" / "package" / ".local-browsers"
    if chosen:
        return Path(chosen)
    cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path(environment.get("HOME") or Path.home()) / cache / "ms-playwright"


def _revision(browser: Path) -> int:
    """Playwright's build number, from a path such as `chromium-1200/chrome-linux/chrome`."""
    numbers = re.findall(r"chromium\w*-(\d+)", str(browser))
    return int(numbers[-1]) if numbers else 0


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


__all__ = ["EXECUTABLE_VARIABLE", "find_browser"]


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{find_browser()}\n")
    except MissingTool as missing:
        sys.exit(str(missing))
