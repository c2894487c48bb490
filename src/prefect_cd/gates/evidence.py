"""What a gate proved: test cases, pictures and console output, judged into one outcome.

It decides what counts as proof: a JUnit report tells a test that failed (the answer is no) from one that errored
(we could not find out), and a run in which nothing was tested has proved nothing. It knows nothing of how the tests
were run. Reports are written by the commit's own code and are therefore not trusted: their size, depth and document
type are bounded.
"""

import re
from collections.abc import Iterator, Sequence
from enum import Enum

from pydantic import Field

from prefect_cd.errors import GateErrored, GateFailed
from prefect_cd.process import Finished
from prefect_cd.release.model import Result

_LONGEST_MESSAGE = 4000
_OUTPUT = 8000
_TOLD = 5
_LAST_LINES = 30
_REPORT_HINT = "make the command write a JUnit XML report there"
_NO_TESTS_RAN = 5  # pytest's exit code, https://docs.pytest.org/en/stable/reference/exit-codes.html
_KILLED = (-9, -15, 137, 143)  # by SIGKILL or SIGTERM: nothing that a test decides; 128 + n is how a shell says it


class Outcome(str, Enum):
    """The answer of a gate or of one test case."""

    PASSED = "passed"
    FAILED = "failed"
    ERRORED = "errored"
    SKIPPED = "skipped"


class TestCase(Result):
    """One test of a JUnit report."""

    __test__ = False  # pytest: not a test of ours

    name: str
    suite: str = Field(description="its class, module or suite")
    outcome: Outcome
    seconds: float = Field(ge=0)
    message: str = Field(default="", description="the first 4000 characters of why")

    @property
    def title(self) -> str:
        """Suite and name, as people look for it."""
        return f"{self.suite}: {self.name}" if self.suite else self.name


class Picture(Result):
    """A screenshot, small enough for a data URI."""

    title: str
    jpeg: str = Field(description="base64")

    @property
    def uri(self) -> str:
        """For Markdown: `![title](uri)`."""
        return f"data:image/jpeg;base64,{self.jpeg}"


class Evidence(Result):
    """What one gate proved."""

    gate: str
    outcome: Outcome
    summary: str = Field(description="one line, for example: 5 passed, 1 failed in 3.2 s")
    hint: str = Field(default="", description="what to do about it; empty when it passed")
    seconds: float = Field(ge=0)
    cases: tuple[TestCase, ...] = ()
    pictures: tuple[Picture, ...] = ()
    console: tuple[str, ...] = Field(default=(), description="console errors, page errors, failed requests")
    trace: str | None = Field(default=None, description="path of a zip for `playwright show-trace`")
    output: str = Field(default="", description="the last lines of the program's output")


def evaluate(gate: str, finished: Finished, cases: Sequence[TestCase] | None, *, unreadable: str = "") -> Evidence:
    """What a finished test program proved.

    Args:
        gate: its name.
        finished: how the program ended.
        cases: what its report says; None when it is not asked for a report.
        unreadable: why the report that it was asked for could not be read.
    """
    outcome, said, hint = _verdict(finished, tuple(cases) if cases is not None else None, unreadable)
    return Evidence(
        gate=gate,
        outcome=outcome,
        summary=f"{said} in {finished.seconds:.1f} s",
        hint="" if outcome is Outcome.PASSED else hint,
        seconds=finished.seconds,
        cases=tuple(cases or ()),
        output=finished.output[-_OUTPUT:],
    )


def require_passed(evidence: Evidence) -> None:
    """Go on only with proof.

    Raises:
        GateFailed: the answer is no; the failing tests are in the detail.
        GateErrored: there is no answer.
    """
    if evidence.outcome is Outcome.PASSED:
        return
    failed = evidence.outcome is Outcome.FAILED
    kind, word = (GateFailed, "failed") if failed else (GateErrored, "did not answer")
    hint = evidence.hint
    if evidence.trace:
        hint += f"; see what the browser saw: playwright show-trace {evidence.trace}"
    raise kind(f"{evidence.gate} {word}: {evidence.summary}", detail="\n\n".join(_told(evidence)), hint=hint)


def _verdict(finished: Finished, cases: tuple[TestCase, ...] | None, unreadable: str) -> tuple[Outcome, str, str]:
    """Outcome, summary and hint. What a report says of a failed test outweighs how the program ended."""
    counted, outcomes = _counted(cases or ()), {case.outcome for case in cases or ()}
    if Outcome.FAILED in outcomes:
        return Outcome.FAILED, counted, "correct what the failing tests show, and push"
    if finished.timed_out:
        return Outcome.ERRORED, "no answer", "raise the gate's timeout in the pipeline file, or make it faster"
    if finished.code in _KILLED:
        return Outcome.ERRORED, f"killed (exit code {finished.code})", "a program is often killed for want of memory"
    if unreadable:
        return Outcome.ERRORED, f"{unreadable}, exit code {finished.code},", _REPORT_HINT
    if cases is None:
        return _verdict_of_code(finished)
    return _verdict_of_report(finished.code, counted, outcomes)


def _verdict_of_code(finished: Finished) -> tuple[Outcome, str, str]:
    if finished.code == 0:
        return Outcome.PASSED, "passed", ""
    if finished.code == _NO_TESTS_RAN and re.search(r"no tests ran|collected 0 items", finished.output):
        return Outcome.ERRORED, "no tests ran", "give the command a suite that has tests"
    return Outcome.FAILED, f"exit code {finished.code}", "correct what the last lines show, and push"


def _verdict_of_report(code: int, counted: str, outcomes: set[Outcome]) -> tuple[Outcome, str, str]:
    if Outcome.ERRORED in outcomes:
        return Outcome.ERRORED, counted, "these tests could not be run to their end; see their messages"
    if Outcome.PASSED not in outcomes:
        skipped = f" ({counted})" if counted else ""
        return Outcome.ERRORED, f"no tests ran{skipped}", "a gate needs at least one test that is not skipped"
    if code != 0:
        hint = "see the last lines: the program complains about something besides its tests"
        return Outcome.ERRORED, f"{counted}, yet exit code {code}", hint
    return Outcome.PASSED, counted, ""


def _counted(cases: Sequence[TestCase]) -> str:
    numbers = ((sum(case.outcome is outcome for case in cases), outcome) for outcome in Outcome)
    return ", ".join(f"{number} {outcome.value}" for number, outcome in numbers if number)


def _told(evidence: Evidence) -> Iterator[str]:
    """The failing tests with their messages, or else the last lines, and what the browser's console said."""
    bad = [case for case in evidence.cases if case.outcome in (Outcome.FAILED, Outcome.ERRORED)]
    for case in bad[:_TOLD]:
        yield f"{case.title} {case.outcome.value}\n{case.message}".rstrip()
    if len(bad) > _TOLD:
        yield f"and {len(bad) - _TOLD} more: {', '.join(case.title for case in bad[_TOLD:])}"[:_LONGEST_MESSAGE]
    if not bad and evidence.output:
        yield "\n".join(evidence.output.splitlines()[-_LAST_LINES:])
    if evidence.console:
        yield "\n".join(["the browser's console:", *evidence.console[:_LAST_LINES]])


__all__ = ["Evidence", "Outcome", "Picture", "TestCase", "evaluate", "require_passed"]
