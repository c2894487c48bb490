"""What a gate proved: test cases, screenshots and console output, reduced to one outcome.

This module decides what counts as proof: a JUnit report tells a test that failed (the answer is no) from one that
errored (we could not find out), and a run without any executed test proves nothing. It does not know how the tests
were run.
"""

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from pydantic import Field

from prefect_cd.errors import GateErrored, GateFailed
from prefect_cd.masking import BY_SHAPE, Mask
from prefect_cd.process import Finished
from prefect_cd.release.model import Result

LONGEST_MESSAGE = 4000
LONGEST_NAME = 300
REPORT_HINT = "make the command write a JUnit XML report there"
_LONGEST_OUTPUT = 8000
_TESTS_QUOTED = 5
_MOST_CASES, _LONGEST_MESSAGES = 1000, 500_000  # of one gate, kept for its page; all are counted
_LINES_QUOTED = 30
_NO_TESTS_RAN = 5  # pytest's exit code, https://docs.pytest.org/en/stable/reference/exit-codes.html
# Killed by SIGKILL or SIGTERM, which says nothing about the tests. A shell reports signal n as exit code 128 + n.
_KILLED = (-9, -15, 137, 143)


class Outcome(str, Enum):
    """The answer of a gate or of one test case."""

    PASSED = "passed"
    FAILED = "failed"
    ERRORED = "errored"
    SKIPPED = "skipped"


_BAD = frozenset({Outcome.FAILED, Outcome.ERRORED})


class TestCase(Result):
    """One test of a JUnit report."""

    __test__ = False  # keeps pytest from collecting this class

    name: str
    suite: str = Field(description="the test's class, module or suite")
    outcome: Outcome
    seconds: float = Field(ge=0)
    message: str = Field(default="", description="why it did not pass, at most 4000 characters")

    @property
    def title(self) -> str:
        """Suite and name, as a test runner prints them."""
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
    cases: tuple[TestCase, ...] = Field(default=(), description="at most 1000 of them, those that did not pass first")
    pictures: tuple[Picture, ...] = ()
    console: tuple[str, ...] = Field(default=(), description="console errors, page errors, failed requests")
    trace: str | None = Field(default=None, description="path of a zip for `playwright show-trace`")
    output: str = Field(default="", description="the last lines of the program's output")


class _Answer(NamedTuple):
    """An outcome, its reason in a few words, and what to do about it."""

    outcome: Outcome
    reason: str
    hint: str = ""


def evaluate(
    gate: str, finished: Finished, cases: Sequence[TestCase] | None, *, unreadable: str = "", mask: Mask = BY_SHAPE
) -> Evidence:
    """Decide what a finished test program proved.

    Args:
        gate: its name.
        finished: how the program ended.
        cases: the test cases of its report; None when no report was requested.
        unreadable: why the requested report could not be read.
        mask: for the texts of the report; those in the program's output are masked already.
    """
    answer = _answer(finished, tuple(cases) if cases is not None else None, unreadable)
    return Evidence(
        gate=gate,
        outcome=answer.outcome,
        summary=f"{answer.reason} in {finished.seconds:.1f} s",
        hint=answer.hint,
        seconds=finished.seconds,
        cases=tuple(_kept(cases or (), mask)),
        output=finished.output[-_LONGEST_OUTPUT:],
    )


def _kept(cases: Sequence[TestCase], mask: Mask) -> Iterator[TestCase]:
    """As many cases, and as much of their messages, as a page can show; in their order, without secrets."""
    by_interest = sorted(range(len(cases)), key=lambda number: cases[number].outcome not in _BAD)
    left = _LONGEST_MESSAGES
    for number in sorted(by_interest[:_MOST_CASES]):
        case = cases[number]
        message = mask.head(case.message, min(LONGEST_MESSAGE, left))
        left -= len(message)
        names = {"name": mask.head(case.name, LONGEST_NAME), "suite": mask.head(case.suite, LONGEST_NAME)}
        yield case.model_copy(update={**names, "message": message})


def require_passed(evidence: Evidence) -> None:
    """Raise an error unless the gate passed.

    Raises:
        GateFailed: the answer is no; the failing tests are in the detail.
        GateErrored: there is no answer.
    """
    if evidence.outcome is Outcome.PASSED:
        return
    failed = evidence.outcome is Outcome.FAILED
    error, word = (GateFailed, "failed") if failed else (GateErrored, "errored")
    hint = evidence.hint
    if evidence.trace:
        hint += f"; to replay the browser session: playwright show-trace {evidence.trace}"
    raise error(f"{evidence.gate} {word}: {evidence.summary}", detail="\n\n".join(_details(evidence)), hint=hint)


def _answer(finished: Finished, cases: tuple[TestCase, ...] | None, unreadable: str) -> _Answer:
    """The outcome, with its reason. A failed test in the report outweighs how the program ended."""
    counts, outcomes = _counts(cases or ()), {case.outcome for case in cases or ()}
    if Outcome.FAILED in outcomes:
        return _Answer(Outcome.FAILED, counts, "correct what the failing tests show, and push")
    if finished.timed_out:
        hint = "raise the gate's timeout in the pipeline file, or make the tests faster"
        return _Answer(Outcome.ERRORED, "not finished", hint)
    if finished.code in _KILLED:
        hint = "a common reason is lack of memory: give the worker more, or make the tests use less"
        return _Answer(Outcome.ERRORED, f"killed (exit code {finished.code})", hint)
    if unreadable:
        return _Answer(Outcome.ERRORED, f"{unreadable}, exit code {finished.code},", REPORT_HINT)
    if cases is None:
        return _answer_of_exit_code(finished)
    return _answer_of_report(finished.code, counts, outcomes)


def _answer_of_exit_code(finished: Finished) -> _Answer:
    if finished.code == 0:
        return _Answer(Outcome.PASSED, "passed")
    # Any program may exit with 5: only together with pytest's own words does it mean that nothing was tested.
    if finished.code == _NO_TESTS_RAN and re.search(r"no tests ran|collected 0 items", finished.output):
        return _Answer(Outcome.ERRORED, "no tests ran", "name a suite that has tests in the command")
    return _Answer(Outcome.FAILED, f"exit code {finished.code}", "correct what the last lines show, and push")


def _answer_of_report(code: int, counts: str, outcomes: set[Outcome]) -> _Answer:
    if Outcome.ERRORED in outcomes:
        return _Answer(Outcome.ERRORED, counts, "some tests could not be completed; see their messages")
    if Outcome.PASSED not in outcomes:
        skipped = f" ({counts})" if counts else ""
        return _Answer(Outcome.ERRORED, f"no tests ran{skipped}", "a gate needs at least one test that is not skipped")
    if code != 0:
        hint = "see the last lines of output: the program failed for a reason other than its tests"
        return _Answer(Outcome.ERRORED, f"{counts}, but exit code {code}", hint)
    return _Answer(Outcome.PASSED, counts)


def _counts(cases: Sequence[TestCase]) -> str:
    """Test cases by outcome: `5 passed, 1 failed`."""
    numbers = ((sum(case.outcome is outcome for case in cases), outcome) for outcome in Outcome)
    return ", ".join(f"{number} {outcome.value}" for number, outcome in numbers if number)


def _details(evidence: Evidence) -> Iterator[str]:
    """The failing tests with their messages, or else the last lines of output; then the browser's console."""
    bad = [case for case in evidence.cases if case.outcome in (Outcome.FAILED, Outcome.ERRORED)]
    for case in bad[:_TESTS_QUOTED]:
        yield f"{case.title} {case.outcome.value}\n{case.message}".rstrip()
    if len(bad) > _TESTS_QUOTED:
        titles = ", ".join(case.title for case in bad[_TESTS_QUOTED:])
        yield f"and {len(bad) - _TESTS_QUOTED} more: {titles}"[:LONGEST_MESSAGE]
    if not bad and evidence.output:
        yield "\n".join(evidence.output.splitlines()[-_LINES_QUOTED:])
    if evidence.console:
        yield "\n".join(["browser console:", *evidence.console[:_LINES_QUOTED]])


__all__ = ["Evidence", "Outcome", "Picture", "TestCase", "evaluate", "require_passed"]
