"""Checks and gates: run what the pipeline file asks for, and hand back what it proved.

It decides what a command of the commit may see (a clean environment, a fresh report) and what an HTTP answer must
be. How an ended program is judged is `evidence`'s matter, and browsers are `browser`'s.
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import httpx
import stamina

from prefect_cd.errors import GateErrored
from prefect_cd.gates.browser.suite import inside, run_suite
from prefect_cd.gates.evidence import Evidence, Outcome, TestCase, evaluate
from prefect_cd.gates.junit import read_junit
from prefect_cd.pipeline.models import Check, Gate, HttpCheck
from prefect_cd.process import clean_environment, ignore, run

_RETRIED = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
_RETRY_FOR = timedelta(seconds=10)
_LARGEST_BODY = 2_000_000
_SHOWN_BODY = 500


def run_check(check: Check, tree: Path, *, on_line: Callable[[str], None] = ignore) -> Evidence:
    """Run a check's command in the checkout.

    Args:
        check: from the pipeline file.
        tree: the checkout.
        on_line: called with each line of output.

    Raises:
        MissingSuite: the commit has no such directory.
        MissingTool: the program is not installed.
    """
    return _run(check, check.run, tree, check.environment, on_line)


def run_gate(
    gate: Gate,
    tree: Path,
    url: str,
    keep: Path,
    *,
    on_line: Callable[[str], None] = ignore,
    variables: Mapping[str, str] = {},
) -> Evidence:
    """Test a running environment.

    Args:
        gate: exactly one of browser, http or run.
        tree: the checkout that suites and commands come from.
        url: where the environment answers; commands and suites find it in BASE_URL.
        keep: a folder for pictures, traces and reports of browser suites.
        on_line: called with each line of output.
        variables: for commands and suites, besides the gate's own, which win.

    Raises:
        MissingSuite: the commit has no such suite or directory.
        MissingTool: a program or browser is not installed.
    """
    if gate.browser is not None:
        return run_suite(gate, tree, url, keep, on_line=on_line, variables=variables)
    if gate.http is not None:
        return _request(gate, gate.http, url, on_line)
    if gate.run is not None:
        return _run(gate, gate.run, tree, {**variables, **gate.environment, "BASE_URL": url}, on_line)
    raise AssertionError("a gate is exactly one of browser, http or run")


def _run(
    asked: Check | Gate,
    command: Sequence[str],
    tree: Path,
    variables: Mapping[str, str],
    on_line: Callable[[str], None],
) -> Evidence:
    start = inside(tree, asked.directory, asked.name)
    report = start / asked.report if asked.report else None
    if report:
        _remove_stale(report, tree)
    finished = run(command, cwd=start, env=clean_environment(variables), timeout=asked.timeout, on_line=on_line)
    if report is None:
        return evaluate(asked.name, finished, None)
    try:
        return evaluate(asked.name, finished, read_junit(report))
    except GateErrored as error:
        return evaluate(asked.name, finished, (), unreadable=error.reason)


def _remove_stale(report: Path, tree: Path) -> None:
    """A report that the commit contains proves nothing; one that a link leads out of the checkout is not ours."""
    if not report.parent.resolve().is_relative_to(tree.resolve()):
        raise GateErrored(
            f"the report {report.name} would be written outside the checkout",
            where=str(report),
            hint="a symbolic link of the commit leads there; remove it",
        )
    if report.is_symlink() or report.is_file():
        report.unlink()


def _request(gate: Gate, check: HttpCheck, url: str, on_line: Callable[[str], None]) -> Evidence:
    """One GET. Only a connection that fails is tried again, for ten seconds: a wrong answer is an answer."""
    address, started = url.rstrip("/") + check.path, monotonic()
    deadline = started + gate.timeout.total_seconds()
    try:
        for attempt in stamina.retry_context(
            on=_RETRIED, attempts=None, timeout=min(_RETRY_FOR, gate.timeout), wait_max=1
        ):
            with attempt:
                status, location, body = _get(address, deadline)
        outcome, said, hint = _compare(check, status, location, body)
        shown = body[:_SHOWN_BODY]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        outcome, shown, said = Outcome.ERRORED, "", f"no answer: {error or type(error).__name__}"
        hint = "look whether the Service has ready endpoints and the URL is right"
    seconds, summary = monotonic() - started, f"GET {check.path}: {said}"
    on_line(summary)
    case = TestCase(
        name=f"GET {check.path}",
        suite="http",
        outcome=outcome,
        seconds=seconds,
        message=f"{said}\n{shown}".strip() if outcome is not Outcome.PASSED else "",
    )
    return Evidence(
        gate=gate.name,
        outcome=outcome,
        summary=f"{summary} in {seconds:.1f} s",
        hint=hint,
        seconds=seconds,
        cases=(case,),
        output=shown,
    )


def _get(address: str, deadline: float) -> tuple[int, str, str]:
    """Status, where a redirect leads, and the body as text, at most 2 MB of it."""
    body = b""
    left = max(deadline - monotonic(), 0.001)
    # A proxy of the deployer's network does not know the loopback that a port forward listens on.
    with (
        httpx.Client(timeout=left, trust_env=not _is_loopback(address)) as client,
        client.stream("GET", address) as answer,
    ):
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > _LARGEST_BODY:
                break
            if monotonic() > deadline:
                raise httpx.ReadTimeout("the body did not end within the gate's timeout")
        return (
            answer.status_code,
            answer.headers.get("location", ""),
            body.decode(answer.encoding or "utf-8", "replace"),
        )


def _compare(check: HttpCheck, status: int, location: str, body: str) -> tuple[Outcome, str, str]:
    if status != check.status:
        redirect = f" (to {location})" if location else ""
        return Outcome.FAILED, f"{status}{redirect} instead of {check.status}", "correct the application, and push"
    if check.contains and check.contains not in body:
        return Outcome.FAILED, f"{status}, but the body lacks {check.contains!r}", "correct the application, and push"
    return Outcome.PASSED, str(status), ""


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["run_check", "run_gate"]
