"""Run the checks and gates of the pipeline file and return what they proved.

This module decides what a command of the commit may see (a clean environment, no report from an earlier run) and
which HTTP response is correct. `evidence` evaluates a program that has ended; `browser` runs browser suites.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep

import httpx

from prefect_cd.errors import GateErrored
from prefect_cd.gates.browser.suite import run_suite
from prefect_cd.gates.checkout import checkout_path, in_checkout
from prefect_cd.gates.evidence import Evidence, Outcome, TestCase, evaluate
from prefect_cd.gates.junit import read_junit
from prefect_cd.http_client import Response, send
from prefect_cd.masking import BY_SHAPE, Mask
from prefect_cd.pipeline.models import Check, Gate, HttpCheck
from prefect_cd.process import BEST_ISOLATION, Isolation, clean_environment, ignore, run

# A connection that could not be made, or that broke before a response. A wrong response is an answer: no retry.
_RETRIED = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
_RETRY_SECONDS, _RETRY_PAUSE = 10, 0.25
_LARGEST_BODY = 2_000_000  # bytes
_BODY_SHOWN = 500  # characters
_LOCATION_SHOWN = 200  # characters


def run_check(
    check: Check, checkout: Path, *, on_line: Callable[[str], None] = ignore, isolation: Isolation = BEST_ISOLATION
) -> Evidence:
    """Run a check's command in the checkout.

    Args:
        check: from the pipeline file.
        checkout: the folder of the checkout.
        on_line: called with each line of output.
        isolation: of the command, which may write the checkout, too.

    Raises:
        MissingSuite: the commit does not have the check's directory.
        MissingTool: the program is not installed.
    """
    return _run_command(check, check.run, checkout, check.environment, on_line, isolation, BY_SHAPE)


def run_gate(
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
    """Test a running environment.

    Args:
        gate: exactly one of browser, http or run.
        checkout: the folder of the checkout that suites and commands come from.
        url: the environment's URL; commands and suites get it as BASE_URL; `page.goto("/")` opens it.
        evidence_folder: for the pictures, traces and reports of browser suites; those of an earlier run are removed.
        on_line: called with each line of output.
        variables: for commands and suites; the gate's own variables take precedence.
        isolation: of a command or suite, which may write the checkout, and a suite its evidence, too.
        mask: knows what is secret in output, reports and responses; the evidence has none of it.

    Raises:
        MissingSuite: the commit does not have the gate's suite or directory.
        MissingTool: a program or browser is not installed.
    """
    if gate.browser is not None:
        return run_suite(
            gate, checkout, url, evidence_folder, on_line=on_line, variables=variables, isolation=isolation, mask=mask
        )
    if gate.http is not None:
        return _run_http_check(gate, gate.http, url, on_line, mask)
    if gate.run is not None:
        variables = {**variables, **gate.environment, "BASE_URL": url}
        return _run_command(gate, gate.run, checkout, variables, on_line, isolation, mask)
    raise AssertionError("a gate is exactly one of browser, http or run")


def _run_command(
    test: Check | Gate,
    command: Sequence[str],
    checkout: Path,
    variables: Mapping[str, str],
    on_line: Callable[[str], None],
    isolation: Isolation,
    mask: Mask,
) -> Evidence:
    directory = checkout_path(checkout, test.directory, test.name)
    report = directory / test.report if test.report else None
    if report:
        _remove_stale(report, checkout)
    finished = run(
        command,
        cwd=directory,
        env=clean_environment(variables),
        timeout=test.timeout,
        on_line=on_line,
        isolation=in_checkout(isolation, checkout),
        mask=mask,
    )
    if report is None:
        return evaluate(test.name, finished, None)
    try:
        return evaluate(test.name, finished, read_junit(report), mask=mask)
    except GateErrored as error:
        return evaluate(test.name, finished, (), unreadable=error.reason)


def _remove_stale(report: Path, checkout: Path) -> None:
    """Remove a report that was there before the command ran, for example one that the commit contains."""
    # Never delete outside of the checkout, where a symbolic link of the commit may lead.
    if not report.parent.resolve().is_relative_to(checkout.resolve()):
        raise GateErrored(
            f"the report {report.name} would be written outside the checkout",
            where=str(report),
            hint="remove the symbolic link of the commit that leads there",
        )
    if report.is_symlink() or report.is_file():
        report.unlink()


def _run_http_check(gate: Gate, check: HttpCheck, url: str, on_line: Callable[[str], None], mask: Mask) -> Evidence:
    """Send one GET request; only a failed connection is tried again, for ten seconds."""
    address, started = url.rstrip("/") + check.path, monotonic()
    deadline = started + gate.timeout.total_seconds()
    body, hint = "", ""
    try:
        response = _get(address, deadline)
        passed, result = _compare(check, response, mask)
        outcome = Outcome.PASSED if passed else Outcome.FAILED
        body = mask.head(response.text, _BODY_SHOWN)
        hint = "" if passed else "correct the application, and push"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        outcome, result = Outcome.ERRORED, f"no response: {mask(str(error)) or type(error).__name__}"
        hint = "check that the Service has ready endpoints and that the environment's url is right"
    seconds, summary = monotonic() - started, f"GET {check.path}: {result}"
    on_line(summary)
    case = TestCase(
        name=f"GET {check.path}",
        suite="http",
        outcome=outcome,
        seconds=seconds,
        message=f"{result}\n{body}".strip() if outcome is not Outcome.PASSED else "",
    )
    return Evidence(
        gate=gate.name,
        outcome=outcome,
        summary=f"{summary} in {seconds:.1f} s",
        hint=hint,
        seconds=seconds,
        cases=(case,),
        output=body,
    )


def _get(address: str, deadline: float) -> Response:
    """Send a GET request, again where the connection fails, and read at most 2 MB of the body."""
    last_start = min(deadline, monotonic() + _RETRY_SECONDS) - _RETRY_PAUSE
    while True:
        try:
            remaining = timedelta(seconds=max(deadline - monotonic(), 0.001))
            return send("GET", address, timeout=remaining, largest_body=_LARGEST_BODY)
        except _RETRIED:
            if monotonic() > last_start:
                raise
        sleep(_RETRY_PAUSE)


def _compare(check: HttpCheck, response: Response, mask: Mask) -> tuple[bool, str]:
    """Whether the response is the expected one, and the result in a few words, without secrets."""
    if response.status != check.status:
        location = mask.head(response.headers.get("location", ""), _LOCATION_SHOWN)
        redirect = f" (to {location})" if location else ""
        return False, f"{response.status}{redirect} instead of {check.status}"
    if check.contains and check.contains not in response.text:
        return False, f"{response.status}, but the body does not contain {check.contains!r}"
    return True, str(response.status)


__all__ = ["run_check", "run_gate"]
