"""Browser gates: a real Chromium against a page on the loopback, with suites as a commit would bring them."""

import base64
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefect_cd import process as process_module
from prefect_cd.errors import MissingSuite, MissingTool
from prefect_cd.gates.browser import fixtures, plugin
from prefect_cd.gates.browser import suite as suite_module
from prefect_cd.gates.browser.suite import find_browser, run_suite
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.runner import run_gate
from prefect_cd.pipeline.models import Gate

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PAGE = "<title>Shop</title><h1>Welcome</h1><button onclick=\"this.textContent='Sold'\">Buy</button>"
NOISY = "<script>console.error('salad burnt'); setTimeout(() => { throw new Error('no dressing') })</script>"
LOADS = "<img src='/missing.png?token=secret'>"


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/never":
            self.server.never_asked.set()  # type: ignore[attr-defined]
            self.server.released.wait(120)  # type: ignore[attr-defined]
            return
        body = {"/": PAGE, "/noisy": PAGE + NOISY + LOADS}.get(path, "")
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def never_asked() -> threading.Event:
    """Set when somebody has asked for /never."""
    return threading.Event()


@pytest.fixture
def url(never_asked: threading.Event) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        server.never_asked = never_asked  # type: ignore[attr-defined]
        server.released = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.released.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def suite(tree: Path, text: str, conftest: str = "") -> None:
    (tree / "e2e").mkdir(parents=True)
    (tree / "e2e" / "test_shop.py").write_text(text)
    if conftest:
        (tree / "e2e" / "conftest.py").write_text(conftest)


def gate(timeout: timedelta = timedelta(seconds=120), path: str = "e2e") -> Gate:
    return Gate(name="clicks", browser=path, timeout=timeout)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tmp_path / "tree"


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    return tmp_path / "keep"


TWO = """
import os

def test_buys(page):
    page.goto("/")
    page.get_by_role("button", name="Buy").click()
    assert page.get_by_role("button").inner_text() == "Sold"

def test_finds_the_salad(page):
    page.goto(os.environ["BASE_URL"])
    page.get_by_text("Salad").click(timeout=200)
"""


def shown(evidence: Evidence) -> str:
    return f"{evidence.summary}\n{evidence.output}"


def test_a_suite_is_clicked_through_and_leaves_pictures_and_a_trace(tree: Path, keep: Path, url: str) -> None:
    suite(tree, TWO)
    lines: list[str] = []
    evidence = run_gate(gate(), tree, url, keep, on_line=lines.append)
    assert evidence.outcome is Outcome.FAILED, shown(evidence)
    assert evidence.summary.startswith("1 passed, 1 failed in ")
    assert [(case.name, case.outcome.value) for case in evidence.cases] == [
        ("test_buys[chromium]", "passed"),
        ("test_finds_the_salad[chromium]", "failed"),
    ]
    assert "Salad" in evidence.cases[1].message
    assert [picture.title for picture in evidence.pictures] == ["test_finds_the_salad", "test_buys"]
    for picture in evidence.pictures:
        jpeg = base64.b64decode(picture.jpeg)
        assert jpeg.startswith(b"\xff\xd8\xff")
        assert 1000 < len(jpeg) <= 150_000
    assert evidence.trace is not None
    assert "salad" in evidence.trace
    assert Path(evidence.trace).stat().st_size > 1000
    assert evidence.console == ()
    assert any("1 failed, 1 passed" in line for line in lines)


def test_the_checkout_stays_as_it_was(tree: Path, keep: Path, url: str) -> None:
    suite(tree, "def test_nothing():\n    pass\n")
    assert run_suite(gate(), tree, url, keep).outcome is Outcome.PASSED
    assert sorted(path.name for path in tree.rglob("*")) == ["e2e", "test_shop.py"]


def test_what_the_console_says_is_kept_without_the_query(tree: Path, keep: Path, url: str) -> None:
    suite(tree, 'def test_noise(page):\n    page.goto("/noisy")\n    page.wait_for_load_state("load")\n')
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.PASSED, shown(evidence)
    assert set(evidence.console) == {
        "test_noise[chromium]: console error: salad burnt",
        "test_noise[chromium]: page error: no dressing",
        f"test_noise[chromium]: request failed: GET {url}/missing.png: 404",
    }


def test_a_page_that_never_answers_fails_its_test(tree: Path, keep: Path, url: str) -> None:
    suite(tree, 'def test_waits(page):\n    page.goto("/never", timeout=500)\n')
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.FAILED, shown(evidence)
    assert "Timeout 500ms exceeded" in evidence.cases[0].message
    assert len(evidence.pictures) == 1


def test_a_page_that_is_busy_for_ever_fails_its_test_and_holds_nobody_up(tree: Path, keep: Path, url: str) -> None:
    busy = "() => { setTimeout(() => { for (;;); }, 0) }"
    suite(tree, f'def test_busy(page):\n    page.goto("/")\n    page.evaluate("{busy}")\n    assert False\n')
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.FAILED, shown(evidence)
    assert evidence.pictures == ()


def browsers_of(keep: Path) -> list[str]:
    """Process ids of everything that was started with this evidence folder in its environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(keep).encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_gate_whose_time_is_over_has_not_answered_and_leaves_nothing_behind(
    tree: Path, keep: Path, url: str, never_asked: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = gate()

    def monotonic() -> float:  # the gate's time is over once the suite waits for what never comes
        return time.monotonic() + (clicks.timeout.total_seconds() if never_asked.is_set() else 0)

    monkeypatch.setattr(process_module, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    monkeypatch.setattr(suite_module, "_LEAVING", 60.0)
    temporary = Path(tempfile.mkdtemp(prefix="t-"))  # tmp_path is too long for Chromium's sockets
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    waits = 'def test_waits(page):\n    page.goto("/noisy")\n    page.goto("/never", timeout=60000)\n'
    suite(tree, waits)
    evidence = run_suite(clicks, tree, url, keep)
    assert evidence.outcome is Outcome.ERRORED, shown(evidence)
    assert evidence.summary.startswith("no answer in ")
    assert "test_waits[chromium]: console error: salad burnt" in evidence.console
    deadline = time.monotonic() + 30  # a browser sees that its driver is gone, and leaves by itself
    while browsers_of(keep) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert browsers_of(keep) == []
    temporary.rmdir()  # works because it is empty


@pytest.mark.parametrize(
    "text", ["", "import pytest\n\n@pytest.mark.skip\ndef test_later(page):\n    pass\n"], ids=["none", "skipped"]
)
def test_no_tests_are_no_proof(text: str, tree: Path, keep: Path, url: str) -> None:
    suite(tree, text)
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.ERRORED
    assert evidence.summary.startswith("no tests ran")


def test_a_suite_that_cannot_be_imported_has_not_answered(tree: Path, keep: Path, url: str) -> None:
    suite(tree, "import nowhere_to_be_found\n")
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.ERRORED
    assert "nowhere_to_be_found" in evidence.cases[0].message


def test_a_suite_that_the_commit_lacks_is_named(tree: Path, keep: Path) -> None:
    tree.mkdir()
    (tree / "out").symlink_to("/usr")
    for path in ("e2e", "out"):
        with pytest.raises(MissingSuite, match=f"clicks: the commit has no {path}"):
            run_suite(gate(path=path), tree, "http://127.0.0.1:1", keep)


def test_a_commit_does_not_replace_pytest_or_this_package(tree: Path, keep: Path, url: str) -> None:
    suite(tree, "def test_nothing():\n    pass\n")
    for name in ("pytest", "prefect_cd", "junitparser", "playwright"):
        (tree / f"{name}.py").write_text("raise SystemExit('replaced')\n")
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.PASSED, shown(evidence)


def test_a_suite_may_change_the_window_and_keeps_the_rest(tree: Path, keep: Path, url: str) -> None:
    conftest = (
        "import pytest\n\n@pytest.fixture(scope='session')\n"
        "def browser_context_args(browser_context_args):\n"
        "    return {**browser_context_args, 'viewport': {'width': 390, 'height': 844}}\n"
    )
    narrow = "    assert page.evaluate('innerWidth') == 390\n"
    suite(tree, f'def test_narrow(page):\n    page.goto("/")\n{narrow}', conftest)
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.PASSED, shown(evidence)
    assert len(evidence.pictures) == 1


def test_a_suite_that_makes_errors_of_warnings_runs(tree: Path, keep: Path, url: str) -> None:
    suite(tree, 'def test_title(page):\n    page.goto("/")\n    assert page.title() == "Shop"\n')
    (tree / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-config --strict-markers\n")
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.PASSED, shown(evidence)


def test_a_suite_sees_none_of_our_variables(tree: Path, keep: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    suite(tree, "import os\n\ndef test_nothing():\n    assert 'PREFECT_API_KEY' not in os.environ\n")
    assert run_suite(gate(), tree, url, keep).outcome is Outcome.PASSED


def test_what_a_suite_forges_is_left_out(tree: Path, keep: Path, url: str) -> None:
    forged = """
import os, pathlib

def test_forges():
    keep = pathlib.Path(os.environ["PREFECT_CD_EVIDENCE"])
    (keep / "big.jpg").write_bytes(bytes([255, 216, 255]) + bytes(200_000))
    (keep / "text.jpg").write_text("<script>")
    (keep / "link.jpg").symlink_to("/etc/passwd")
    entry = '{"kind": "picture", "test": "x", "file": "%s"}'
    names = ("big.jpg", "text.jpg", "link.jpg", "../../etc/passwd", "nowhere.jpg", "", "a" * 999)
    lines = [entry % name for name in names]
    lines += ["[" * 100_000, "not json", "[1]", '{"kind": ["console"]}', '{"kind": "console"}', "\\\\udc80"]
    (keep / "journal.jsonl").write_text("\\n".join(lines))
"""
    suite(tree, forged)
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.PASSED, shown(evidence)
    assert (evidence.pictures, evidence.console) == ((), (": ",))


def test_evidence_of_an_earlier_run_is_removed(tree: Path, keep: Path, url: str) -> None:
    suite(tree, TWO)
    run_suite(gate(), tree, url, keep)
    (tree / "e2e" / "test_shop.py").write_text("import os\n\nos._exit(0)\n")
    evidence = run_suite(gate(), tree, url, keep)
    assert evidence.outcome is Outcome.ERRORED, shown(evidence)
    assert (evidence.cases, evidence.pictures, evidence.trace) == ((), (), None)


def test_the_plugin_and_its_reader_agree_on_names() -> None:
    assert (suite_module.EXECUTABLE, suite_module.FOLDER) == (fixtures.EXECUTABLE, fixtures.FOLDER)
    assert suite_module.JOURNAL == plugin.JOURNAL
    assert suite_module._LARGEST_PICTURE == plugin.LARGEST_PICTURE


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_chosen_browser_wins(tmp_path: Path) -> None:
    chosen, other = program(tmp_path / "mine"), program(tmp_path / "bin" / "chromium")
    assert find_browser({"PREFECT_CD_BROWSER": str(chosen), "PATH": str(other.parent)}) == chosen


def test_a_chosen_browser_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="PREFECT_CD_BROWSER names /nowhere/chrome, which is not a program"):
        find_browser({"PREFECT_CD_BROWSER": "/nowhere/chrome", "PATH": str(tmp_path)})


def test_an_installed_browser_is_found_on_the_path(tmp_path: Path) -> None:
    installed = program(tmp_path / "google-chrome")
    assert find_browser({"PATH": str(tmp_path)}) == installed


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "_USUAL_PLACES", ())


@pytest.mark.usefixtures("nothing_installed")
def test_playwrights_own_browser_is_found_and_the_newest_wins(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "ms-playwright"
    program(cache / "chromium-999" / "chrome-linux" / "chrome")
    newest = program(cache / "chromium-1200" / "chrome-linux64" / "chrome")
    program(cache / "chromium_headless_shell-1300" / "chrome-headless-shell-linux64" / "chrome-headless-shell")
    assert find_browser({"PATH": "", "HOME": str(tmp_path)}) == newest
    assert find_browser({"PATH": "", "PLAYWRIGHT_BROWSERS_PATH": str(cache)}) == newest


@pytest.mark.usefixtures("nothing_installed")
def test_no_browser_at_all_says_what_to_install(tmp_path: Path) -> None:
    for environment in ({"HOME": str(tmp_path)}, {"PLAYWRIGHT_BROWSERS_PATH": "0"}):
        with pytest.raises(MissingTool, match="there is no Chrome or Chromium") as caught:
            find_browser({"PATH": "", **environment})
        assert "playwright install --with-deps chromium" in caught.value.hint


def test_only_root_gives_up_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--no-sandbox" not in fixtures.launch_flags()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--no-sandbox" in fixtures.launch_flags()
