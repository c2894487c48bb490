"""What a gate proved: test cases, pictures and console output, judged into one outcome.

It decides what counts as proof: a JUnit report tells a test that failed (the answer is no) from one that errored
(we could not find out), and a run in which nothing was tested has proved nothing. It knows nothing of how the tests
were run. Reports are written by the commit's own code and are therefore not trusted: their size, depth and document
type are bounded.
"""

import math
import re
import stat
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree  # noqa: ICN001 - a name says more than two letters
from xml.parsers import expat

import junitparser
from pydantic import Field

from prefect_cd.command import Finished
from prefect_cd.errors import GateErrored, GateFailed
from prefect_cd.release import Result

LARGEST_REPORT = 20_000_000
_DEEPEST_REPORT = 50
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


def read_junit(path: Path) -> tuple[TestCase, ...]:
    """The test cases of a JUnit XML report, in any of its dialects.

    Raises:
        GateErrored: the report is missing, too large, malformed, or something other than a JUnit report.
    """
    root = _tree(path)
    if root.tag not in ("testsuites", "testsuite"):
        _unreadable(path, f"begins with <{root.tag}>, so it is not a JUnit report")
    return tuple(_case(element, suite) for element, suite in _cases(root, root.get("name", "")))


def judge(gate: str, finished: Finished, cases: Sequence[TestCase] | None, *, unreadable: str = "") -> Evidence:
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


def _tree(path: Path) -> ElementTree.Element:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            _unreadable(path, "is not a plain file")
        with path.open("rb") as file:
            data = file.read(LARGEST_REPORT + 1)
        if len(data) > LARGEST_REPORT:
            _unreadable(path, f"is larger than {LARGEST_REPORT // 1_000_000} MB")
        _inspect(path, data)
        return ElementTree.fromstring(data)  # noqa: S314 - inspected: no document type, no entities
    except FileNotFoundError as error:
        raise GateErrored(f"no report {path.name}", where=str(path), hint=_REPORT_HINT) from error
    except (OSError, ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise GateErrored(
            f"the report {path.name} cannot be read: {error}", where=str(path), hint=_REPORT_HINT
        ) from error


def _inspect(path: Path, data: bytes) -> None:
    """Refuse a document type (entities that expand, files that are included) and absurd depth.

    Up to the first element the parser is fed in pieces that end at `>`: so it stops before any entity is used.
    """
    parser, depth, deepest = expat.ParserCreate(), 0, 0

    def start(*_: object) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        if depth > _DEEPEST_REPORT:
            _unreadable(path, "is nested too deeply")

    def end(*_: object) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        _unreadable(path, "has a document type, which no JUnit report needs")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    position = 0
    while not deepest and (close := data.find(b">", position)) >= 0:
        parser.Parse(data[position : close + 1], False)
        position = close + 1
    parser.Parse(data[position:], True)


def _unreadable(path: Path, why: str) -> NoReturn:
    raise GateErrored(f"the report {path.name} {why}", where=str(path), hint=_REPORT_HINT)


def _cases(parent: ElementTree.Element, suite: str) -> Iterator[tuple[ElementTree.Element, str]]:
    for child in parent:
        if child.tag == "testcase":
            yield child, suite
        elif child.tag == "testsuite":
            yield from _cases(child, child.get("name") or suite)


def _case(element: ElementTree.Element, suite: str) -> TestCase:
    case = junitparser.TestCase.fromelem(element)  # type: ignore[no-untyped-call]
    outcome = Outcome.PASSED
    if case.is_failure:
        outcome = Outcome.FAILED
    elif case.is_error:
        outcome = Outcome.ERRORED
    elif case.is_skipped:
        outcome = Outcome.SKIPPED
    return TestCase(
        name=case.name or "",
        suite=case.classname or suite,
        outcome=outcome,
        seconds=_seconds(case),
        message="\n".join(_message(result.message, result.text) for result in case.result)[:_LONGEST_MESSAGE],
    )


def _message(message: str | None, text: str | None) -> str:
    """Pytest writes the point as the attribute and the traceback, which repeats it late, as text."""
    short, long = (message or "").strip(), (text or "").strip()
    return long if long.startswith(short) else f"{short}\n{long}".strip()


def _seconds(case: junitparser.TestCase) -> float:
    try:
        seconds = float(case.time or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds >= 0 else 0.0


__all__ = ["Evidence", "Outcome", "Picture", "TestCase", "judge", "read_junit", "require_passed"]
