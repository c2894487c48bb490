"""Browser gates: a real Chromium against a page on the loopback, with suites as a commit would contain them."""

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
from prefect_cd.gates.browser import executable as executable_module
from prefect_cd.gates.browser import fixtures, plugin
from prefect_cd.gates.browser import suite as suite_module
from prefect_cd.gates.browser.executable import find_browser
from prefect_cd.gates.browser.suite import run_suite
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
            self.server.never_requested.set()  # type: ignore[attr-defined]
            self.server.released.wait(120)  # type: ignore[attr-defined]
            return
        body = {"/": PAGE, "/noisy": PAGE + NOISY + LOADS}.get(path, "")
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def never_requested() -> threading.Event:
    """Set when a request for /never has arrived."""
    return threading.Event()


@pytest.fixture
def url(never_requested: threading.Event) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        server.never_requested = never_requested  # type: ignore[attr-defined]
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
def evidence_folder(tmp_path: Path) -> Path:
    return tmp_path / "evidence"


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


def summary_and_output(evidence: Evidence) -> str:
    return f"{evidence.summary}\n{evidence.output}"


def test_a_suite_leaves_pictures_and_a_trace(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, TWO)
    lines: list[str] = []
    evidence = run_gate(gate(), tree, url, evidence_folder, on_line=lines.append)
    assert evidence.outcome is Outcome.FAILED, summary_and_output(evidence)
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


def test_the_checkout_stays_as_it_was(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, "def test_nothing():\n    pass\n")
    assert run_suite(gate(), tree, url, evidence_folder).outcome is Outcome.PASSED
    assert sorted(path.name for path in tree.rglob("*")) == ["e2e", "test_shop.py"]


def test_console_messages_are_kept_without_the_query_of_urls(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, 'def test_noise(page):\n    page.goto("/noisy")\n    page.wait_for_load_state("load")\n')
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.PASSED, summary_and_output(evidence)
    assert set(evidence.console) == {
        "test_noise[chromium]: console error: salad burnt",
        "test_noise[chromium]: page error: no dressing",
        f"test_noise[chromium]: request failed: GET {url}/missing.png: 404",
    }


def test_a_page_that_never_responds_fails_its_test(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, 'def test_waits(page):\n    page.goto("/never", timeout=500)\n')
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.FAILED, summary_and_output(evidence)
    assert "Timeout 500ms exceeded" in evidence.cases[0].message
    assert len(evidence.pictures) == 1


def test_a_page_that_stays_busy_fails_its_test_without_delay(tree: Path, evidence_folder: Path, url: str) -> None:
    busy = "() => { setTimeout(() => { for (;;); }, 0) }"
    suite(tree, f'def test_busy(page):\n    page.goto("/")\n    page.evaluate("{busy}")\n    assert False\n')
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.FAILED, summary_and_output(evidence)
    assert evidence.pictures == ()


def browsers_of(evidence_folder: Path) -> list[str]:
    """Ids of all processes with this evidence folder in their environment."""
    ids = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(evidence_folder).encode() in (process / "environ").read_bytes():
                ids.append(process.name)
        except OSError:
            continue
    return ids


def test_a_gate_that_exceeds_its_timeout_is_errored_and_leaves_nothing_behind(
    tree: Path, evidence_folder: Path, url: str, never_requested: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = gate()

    def monotonic() -> float:  # the timeout is exceeded as soon as the suite waits for /never
        return time.monotonic() + (timed.timeout.total_seconds() if never_requested.is_set() else 0)

    monkeypatch.setattr(process_module, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    monkeypatch.setattr(suite_module, "_CLEANUP_SECONDS", 60.0)
    temporary = Path(tempfile.mkdtemp(prefix="t-"))  # tmp_path is too long for Chromium's sockets
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    waits = 'def test_waits(page):\n    page.goto("/noisy")\n    page.goto("/never", timeout=60000)\n'
    suite(tree, waits)
    evidence = run_suite(timed, tree, url, evidence_folder)
    assert evidence.outcome is Outcome.ERRORED, summary_and_output(evidence)
    assert evidence.summary.startswith("not finished in ")
    assert "test_waits[chromium]: console error: salad burnt" in evidence.console
    deadline = time.monotonic() + 30  # a browser exits by itself when its driver is gone
    while browsers_of(evidence_folder) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert browsers_of(evidence_folder) == []
    temporary.rmdir()  # succeeds only if it is empty


@pytest.mark.parametrize(
    "text", ["", "import pytest\n\n@pytest.mark.skip\ndef test_later(page):\n    pass\n"], ids=["none", "skipped"]
)
def test_a_suite_without_executed_tests_is_errored(text: str, tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, text)
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.ERRORED
    assert evidence.summary.startswith("no tests ran")


def test_a_suite_that_cannot_be_imported_is_errored(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, "import nowhere_to_be_found\n")
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.ERRORED
    assert "nowhere_to_be_found" in evidence.cases[0].message


def test_a_missing_suite_is_named(tree: Path, evidence_folder: Path) -> None:
    tree.mkdir()
    (tree / "out").symlink_to("/usr")
    for path in ("e2e", "out"):
        with pytest.raises(MissingSuite, match=f"clicks: the commit has no {path}"):
            run_suite(gate(path=path), tree, "http://127.0.0.1:1", evidence_folder)


def test_modules_of_the_commit_do_not_replace_pytest_or_this_package(
    tree: Path, evidence_folder: Path, url: str
) -> None:
    suite(tree, "def test_nothing():\n    pass\n")
    for name in ("pytest", "prefect_cd", "junitparser", "playwright"):
        (tree / f"{name}.py").write_text("raise SystemExit('replaced')\n")
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.PASSED, summary_and_output(evidence)


def test_a_suite_may_change_the_window_size(tree: Path, evidence_folder: Path, url: str) -> None:
    conftest = (
        "import pytest\n\n@pytest.fixture(scope='session')\n"
        "def browser_context_args(browser_context_args):\n"
        "    return {**browser_context_args, 'viewport': {'width': 390, 'height': 844}}\n"
    )
    narrow = "    assert page.evaluate('innerWidth') == 390\n"
    suite(tree, f'def test_narrow(page):\n    page.goto("/")\n{narrow}', conftest)
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.PASSED, summary_and_output(evidence)
    assert len(evidence.pictures) == 1


def test_a_suite_that_turns_warnings_into_errors_runs(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, 'def test_title(page):\n    page.goto("/")\n    assert page.title() == "Shop"\n')
    (tree / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-config --strict-markers\n")
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.PASSED, summary_and_output(evidence)


def test_a_suite_gets_none_of_our_variables(
    tree: Path, evidence_folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    suite(tree, "import os\n\ndef test_nothing():\n    assert 'PREFECT_API_KEY' not in os.environ\n")
    assert run_suite(gate(), tree, url, evidence_folder).outcome is Outcome.PASSED


def test_forged_evidence_is_left_out(tree: Path, evidence_folder: Path, url: str) -> None:
    forged = """
import os, pathlib

def test_forges():
    folder = pathlib.Path(os.environ["PREFECT_CD_EVIDENCE"])
    (folder / "big.jpg").write_bytes(bytes([255, 216, 255]) + bytes(200_000))
    (folder / "text.jpg").write_text("<script>")
    (folder / "link.jpg").symlink_to("/etc/passwd")
    entry = '{"kind": "picture", "test": "x", "file": "%s"}'
    names = ("big.jpg", "text.jpg", "link.jpg", "../../etc/passwd", "nowhere.jpg", "", "a" * 999)
    lines = [entry % name for name in names]
    lines += ["[" * 100_000, "not json", "[1]", '{"kind": ["console"]}', '{"kind": "console"}', "\\\\udc80"]
    (folder / "browser-log.jsonl").write_text("\\n".join(lines))
"""
    suite(tree, forged)
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.PASSED, summary_and_output(evidence)
    assert (evidence.pictures, evidence.console) == ((), (": ",))


def test_evidence_of_an_earlier_run_is_removed(tree: Path, evidence_folder: Path, url: str) -> None:
    suite(tree, TWO)
    run_suite(gate(), tree, url, evidence_folder)
    (tree / "e2e" / "test_shop.py").write_text("import os\n\nos._exit(0)\n")
    evidence = run_suite(gate(), tree, url, evidence_folder)
    assert evidence.outcome is Outcome.ERRORED, summary_and_output(evidence)
    assert (evidence.cases, evidence.pictures, evidence.trace) == ((), (), None)


def test_the_plugin_and_its_reader_agree_on_names() -> None:
    assert executable_module.EXECUTABLE_VARIABLE == fixtures.EXECUTABLE_VARIABLE
    assert suite_module.EVIDENCE_VARIABLE == fixtures.EVIDENCE_VARIABLE
    assert suite_module.BROWSER_LOG == plugin.BROWSER_LOG
    assert suite_module._LARGEST_PICTURE == plugin.LARGEST_PICTURE


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_chosen_browser_takes_precedence(tmp_path: Path) -> None:
    chosen, other = program(tmp_path / "mine"), program(tmp_path / "bin" / "chromium")
    assert find_browser({"PREFECT_CD_BROWSER": str(chosen), "PATH": str(other.parent)}) == chosen


def test_a_chosen_browser_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="PREFECT_CD_BROWSER names /nowhere/chrome, which is not a program"):
        find_browser({"PREFECT_CD_BROWSER": "/nowhere/chrome", "PATH": str(tmp_path)})


def test_an_installed_browser_is_found_on_the_path(tmp_path: Path) -> None:
    installed = program(tmp_path / "google-chrome")
    assert find_browser({"PATH": str(tmp_path)}) == installed


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable_module, "_INSTALLED", ())


@pytest.mark.usefixtures("nothing_installed")
def test_the_newest_browser_of_playwright_is_found(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "ms-playwright"
    program(cache / "chromium-999" / "chrome-linux" / "chrome")
    newest = program(cache / "chromium-1200" / "chrome-linux64" / "chrome")
    program(cache / "chromium_headless_shell-1300" / "chrome-headless-shell-linux64" / "chrome-headless-shell")
    assert find_browser({"PATH": "", "HOME": str(tmp_path)}) == newest
    assert find_browser({"PATH": "", "PLAYWRIGHT_BROWSERS_PATH": str(cache)}) == newest


@pytest.mark.usefixtures("nothing_installed")
def test_without_a_browser_the_error_says_what_to_install(tmp_path: Path) -> None:
    for environment in ({"HOME": str(tmp_path)}, {"PLAYWRIGHT_BROWSERS_PATH": "0"}):
        with pytest.raises(MissingTool, match="there is no Chrome or Chromium") as caught:
            find_browser({"PATH": "", **environment})
        assert "playwright install --with-deps chromium" in caught.value.hint


def test_only_root_runs_chromium_without_its_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--no-sandbox" not in fixtures.launch_flags()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--no-sandbox" in fixtures.launch_flags()
