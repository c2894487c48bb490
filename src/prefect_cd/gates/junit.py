"""JUnit XML reports as test cases.

The commit's own code writes these reports, so they are untrusted input: size, elements and nesting are bounded, and
document types (entities, external files) are refused.
"""

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree  # noqa: ICN001 - the full name reads better than ET
from xml.parsers import expat

import junitparser

from prefect_cd.errors import GateErrored
from prefect_cd.gates.evidence import LONGEST_MESSAGE, LONGEST_NAME, REPORT_HINT, Outcome, TestCase

LARGEST_REPORT = 20_000_000  # bytes
_DEEPEST_NESTING = 50
_MOST_ELEMENTS = 400_000  # each takes a hundred bytes and more, however short it is in the report
_LARGEST_TAG = 1_000_000  # bytes; a tag with its attributes is read in one piece
_CHUNK = 65536  # bytes
_MARGIN = 2  # how much more is read of a text than is shown, so that secrets are masked before they are cut


def read_junit(path: Path) -> tuple[TestCase, ...]:
    """The test cases of a JUnit XML report, in any of its dialects, with their secrets: `evidence` masks them.

    Raises:
        GateErrored: the report is missing, too large, malformed, or something other than a JUnit report.
    """
    root = _root(path)
    if root.tag not in ("testsuites", "testsuite"):
        _refuse(path, f"begins with <{root.tag}>, so it is not a JUnit report")
    return tuple(_case(element, suite) for element, suite in _cases(root, root.get("name", "")))


def _root(path: Path) -> ElementTree.Element:
    try:
        # A symbolic link of the commit is not followed out of the checkout. Should a process of the commit put another
        # file there in between, a link is still not followed, and a pipe not waited for.
        if not stat.S_ISREG(path.lstat().st_mode):
            _refuse(path, "is not a regular file")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            data = file.read(LARGEST_REPORT + 1)
        if len(data) > LARGEST_REPORT:
            _refuse(path, f"is larger than {LARGEST_REPORT // 1_000_000} MB")
        _refuse_unsafe(path, data)
        return ElementTree.fromstring(data)  # noqa: S314 - checked above: no document type, no entities
    except FileNotFoundError as error:
        raise GateErrored(f"no report {path.name}", where=str(path), hint=REPORT_HINT) from error
    except (OSError, ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise GateErrored(
            f"the report {path.name} cannot be read: {error}", where=str(path), hint=REPORT_HINT
        ) from error


def _refuse_unsafe(path: Path, data: bytes) -> None:
    """Refuse a document type (entity expansion, included files), excessive nesting, and too many elements.

    A document type can only precede the first element. Up to there the parser gets pieces that end at `>`, so that it
    stops at the declaration, before it expands an entity.
    """
    parser, depth, elements, parsed = expat.ParserCreate(), 0, 0, 0

    def start(*_: object) -> None:
        nonlocal depth, elements
        depth += 1
        elements += 1
        note()
        if depth > _DEEPEST_NESTING:
            _refuse(path, "is nested too deeply")
        if elements > _MOST_ELEMENTS:
            _refuse(path, f"has more than {_MOST_ELEMENTS} elements")

    def end(*_: object) -> None:
        nonlocal depth
        depth -= 1
        note()

    def note(*_: object) -> None:
        nonlocal parsed
        parsed = parser.CurrentByteIndex

    def doctype(*_: object) -> None:
        _refuse(path, "has a document type, which no JUnit report needs")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    parser.CharacterDataHandler = parser.CommentHandler = parser.ProcessingInstructionHandler = note
    position = 0
    while position < len(data):
        piece = data[position : position + _CHUNK]
        if not elements:
            piece = piece[: piece.find(b">") + 1] or piece
        parser.Parse(piece, False)
        position += len(piece)
        if position - parsed > _LARGEST_TAG:
            _refuse(path, f"has a tag of more than {_LARGEST_TAG // 1_000_000} MB")
    parser.Parse(b"", True)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GateErrored(f"the report {path.name} {reason}", where=str(path), hint=REPORT_HINT)


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
        name=(case.name or "")[: _MARGIN * LONGEST_NAME],
        suite=(case.classname or suite)[: _MARGIN * LONGEST_NAME],
        outcome=outcome,
        seconds=_seconds(case),
        message="\n".join(_message(result.message, result.text) for result in case.result)[: _MARGIN * LONGEST_MESSAGE],
    )


def _message(message: str | None, text: str | None) -> str:
    """The `message` attribute and the text, which in reports of pytest are the assertion and its traceback."""
    summary, details = (message or "").strip(), (text or "").strip()
    return details if details.startswith(summary) else f"{summary}\n{details}".strip()


def _seconds(case: junitparser.TestCase) -> float:
    try:
        seconds = float(case.time or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds >= 0 else 0.0


__all__ = ["read_junit"]
