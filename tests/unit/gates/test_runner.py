"""Checks and gates against real processes and a real HTTP server."""

import socket
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prefect_cd.errors import GateErrored, MissingSuite, MissingTool
from prefect_cd.gates.evidence import Outcome
from prefect_cd.gates.runner import run_check, run_gate
from prefect_cd.pipeline.models import Check, Gate, HttpCheck

REPORT = '<testsuite><testcase name="a"/></testsuite>'


def python(program: str, **settings: object) -> Check:
    return Check.model_validate({"name": "unit", "run": (sys.executable, "-c", program), **settings})


def writes(text: str, path: str = "unit.xml") -> str:
    return f"open({path!r}, 'w').write({text!r})"


def test_a_check_without_a_report_is_evaluated_by_its_exit_code(tmp_path: Path) -> None:
    assert run_check(python("pass"), tmp_path).outcome is Outcome.PASSED
    failed = run_check(python("print('boom'); raise SystemExit(3)"), tmp_path)
    assert (failed.outcome, failed.output) == (Outcome.FAILED, "boom")
    assert failed.summary.startswith("exit code 3 in ")


def test_a_check_passes_its_output_on_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    run_check(python("print('a'); print('b')"), tmp_path, on_line=lines.append)
    assert lines[0].startswith("isolation: ")
    assert lines[1:] == ["a", "b"]


def test_a_check_with_a_report_is_evaluated_by_the_report(tmp_path: Path) -> None:
    evidence = run_check(python(writes(REPORT), report="unit.xml"), tmp_path)
    assert (evidence.outcome, [case.name for case in evidence.cases]) == (Outcome.PASSED, ["a"])


def test_a_check_that_writes_no_report_is_errored(tmp_path: Path) -> None:
    evidence = run_check(python("pass", report="unit.xml"), tmp_path)
    assert (evidence.outcome, evidence.cases) == (Outcome.ERRORED, ())
    assert "no report unit.xml" in evidence.summary


def test_a_report_that_the_commit_contains_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "unit.xml").write_text(REPORT)
    assert run_check(python("pass", report="unit.xml"), tmp_path).outcome is Outcome.ERRORED


def test_a_report_behind_a_link_out_of_the_checkout_is_not_touched(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    tree.mkdir()
    (outside / "unit.xml").write_text("precious")
    (tree / "reports").symlink_to(outside)
    with pytest.raises(GateErrored, match="outside the checkout"):
        run_check(python("pass", report="reports/unit.xml"), tree)
    assert (outside / "unit.xml").read_text() == "precious"


def test_a_stale_report_that_is_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside, tree = tmp_path / "precious.xml", tmp_path / "tree"
    outside.write_text(REPORT)
    tree.mkdir()
    (tree / "unit.xml").symlink_to(outside)
    assert run_check(python("pass", report="unit.xml"), tree).outcome is Outcome.ERRORED
    assert outside.read_text() == REPORT


def test_a_check_starts_in_its_directory_and_its_report_is_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert run_check(python(writes(REPORT), report="unit.xml", directory="app"), tmp_path).outcome is Outcome.PASSED
    assert (tmp_path / "app" / "unit.xml").exists()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/usr")
    for directory in ("app", "out"):
        with pytest.raises(MissingSuite, match=f"unit: the commit has no {directory}"):
            run_check(python("pass", directory=directory), tmp_path)


def test_a_program_that_is_not_installed_is_a_missing_tool(tmp_path: Path) -> None:
    with pytest.raises(MissingTool):
        run_check(Check(name="unit", run=("no-such-program-anywhere",)), tmp_path)


def test_a_check_gets_its_own_variables_and_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    program = "import os; print(os.environ.get('PREFECT_API_KEY'), os.environ['COLOUR'])"
    assert run_check(python(program, environment={"COLOUR": "blue"}), tmp_path).output == "None blue"


def test_a_check_that_exceeds_its_timeout_is_errored(tmp_path: Path) -> None:
    evidence = run_check(python("import time; time.sleep(60)", timeout="200ms"), tmp_path)
    assert (evidence.outcome, evidence.summary[:16]) == (Outcome.ERRORED, "not finished in ")


def test_a_gate_with_a_command_gets_the_url_of_the_environment(tmp_path: Path) -> None:
    program = "import os; print(os.environ['BASE_URL'], os.environ['A'], os.environ['B'])"
    gate = Gate(name="load", run=(sys.executable, "-c", program), environment={"B": "gate", "BASE_URL": "no"})
    evidence = run_gate(gate, tmp_path, "http://x", tmp_path / "evidence", variables={"A": "stage", "B": "stage"})
    assert (evidence.outcome, evidence.output) == (Outcome.PASSED, "http://x stage gate")


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        if self.path == "/dropped" and len(self.server.paths) < 3:  # type: ignore[attr-defined]
            self.close_connection = True
            return
        status = {"/moved": 302, "/broken": 503, "/base/health": 204}.get(self.path, 200)
        body = b"" if status == 204 else f"<h1>page {self.path}</h1>".encode() + b"x" * 2000
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.paths = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def http(check: HttpCheck, url: str, tmp_path: Path, timeout: timedelta = timedelta(seconds=3)):  # noqa: ANN201
    return run_gate(Gate(name="smoke", http=check, timeout=timeout), tmp_path, url, tmp_path)


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("check", "outcome", "summary"),
    [
        (HttpCheck(), Outcome.PASSED, "GET /: 200"),
        (HttpCheck(path="/a?b=c", contains="page /a?b=c"), Outcome.PASSED, "GET /a?b=c: 200"),
        (HttpCheck(contains="salad"), Outcome.FAILED, "GET /: 200, but the body does not contain 'salad'"),
        (HttpCheck(path="/broken"), Outcome.FAILED, "GET /broken: 503 instead of 200"),
        (HttpCheck(path="/broken", status=503), Outcome.PASSED, "GET /broken: 503"),
        (HttpCheck(path="/moved"), Outcome.FAILED, "GET /moved: 302 (to /login) instead of 200"),
        (HttpCheck(path="/moved", status=302), Outcome.PASSED, "GET /moved: 302"),
    ],
)
def test_an_http_gate_sends_one_request_and_evaluates_the_response(
    check: HttpCheck, outcome: Outcome, summary: str, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    evidence = http(check, address(server), tmp_path)
    assert (evidence.outcome, evidence.summary.rpartition(" in ")[0]) == (outcome, summary)
    assert server.paths == [check.path]  # type: ignore[attr-defined]
    assert len(evidence.output) == 500
    assert bool(evidence.hint) == (outcome is not Outcome.PASSED)


def test_an_http_gate_appends_its_path_to_the_path_of_the_url(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert http(HttpCheck(path="/health", status=204), f"{address(server)}/base/", tmp_path).outcome is Outcome.PASSED


def test_a_dropped_connection_is_tried_again(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert http(HttpCheck(path="/dropped"), address(server), tmp_path).outcome is Outcome.PASSED
    assert len(server.paths) == 3  # type: ignore[attr-defined]


def test_a_refused_connection_is_errored(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        evidence = http(HttpCheck(), url, tmp_path, timedelta(milliseconds=300))
    assert evidence.outcome is Outcome.ERRORED
    assert "no response: " in evidence.summary


def test_a_server_that_does_not_respond_is_errored(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        evidence = http(HttpCheck(), url, tmp_path, timedelta(milliseconds=300))
    assert evidence.outcome is Outcome.ERRORED
    assert evidence.seconds < 30


def test_no_proxy_is_used_for_the_loopback(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert http(HttpCheck(), address(server), tmp_path).outcome is Outcome.PASSED


def test_an_invalid_address_is_errored(tmp_path: Path) -> None:
    for url in ("http://[", "ftp://x", "nonsense", "http://x:99999"):
        assert http(HttpCheck(), url, tmp_path).outcome is Outcome.ERRORED
