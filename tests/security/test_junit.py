"""The commit's own code writes the report of a check: it fills no memory, reads no file, and hides no failure."""

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree  # noqa: ICN001

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.errors import GateErrored
from prefect_cd.gates.browser.suite import BROWSER_LOG, _console, _log_entries, _pictures
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.junit import read_junit
from prefect_cd.gates.runner import run_check
from prefect_cd.masking import BY_SHAPE
from prefect_cd.pipeline.models import Check
from tests.security.memory import at_most

pytestmark = pytest.mark.timeout(60)
MEGABYTE = 2**20
SECRET = "of the machine"  # noqa: S105
ENTITIES = "".join(f'<!ENTITY {chr(98 + step)} "{f"&{chr(97 + step)};" * 10}">' for step in range(9))
BILLION_LAUGHS = f'<!DOCTYPE x [<!ENTITY a "lol">{ENTITIES}]><testsuite><testcase name="&j;"/></testsuite>'


def check(program: str) -> Evidence:
    """What a check proves that writes its report with a program of its own."""
    command: Sequence[str] = (sys.executable, "-c", program)
    return run_check(Check(name="unit", run=command, report="r.xml", timeout=timedelta(seconds=30)), Path.cwd())


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.chdir(tmp_path / "checkout")


DOCUMENT_TYPES = {
    "billion laughs": BILLION_LAUGHS,
    "quadratic": f'<!DOCTYPE x [<!ENTITY a "{"a" * 100_000}">]><testsuite name="{"&a;" * 10_000}"/>',
    "a file": '<!DOCTYPE x [<!ENTITY a SYSTEM "../secret">]><testsuite><testcase name="&a;"/></testsuite>',
    "a URL": '<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd"><testsuite/>',
    "parameters": '<!DOCTYPE x [<!ENTITY % a SYSTEM "../secret"> %a;]><testsuite/>',
    "UTF-16": BILLION_LAUGHS,
}


@pytest.mark.parametrize("name", DOCUMENT_TYPES)
def test_a_document_type_is_refused(name: str) -> None:
    text = DOCUMENT_TYPES[name]
    Path("x.xml").write_bytes(text.encode("utf-16" if name == "UTF-16" else "utf-8"))
    with at_most(60 * MEGABYTE), pytest.raises(GateErrored) as caught:
        read_junit(Path("x.xml"))
    assert SECRET not in str(caught.value)


LARGE = {
    "a file of 500 MB": "open('r.xml', 'wb').truncate(500_000_000)",
    "a device": "import os; os.symlink('/dev/zero', 'r.xml')",
    "a pipe": "import os; os.mkfifo('r.xml')",
    "elements": "open('r.xml', 'w').write('<testsuite>' + '<a/>' * 4_900_000 + '</testsuite>')",
    "attributes": "open('r.xml', 'w').write('<testsuite ' + ' '.join(f'a{n}=\"\"' for n in range(1_800_000)) + '/>')",
    "a long name": "open('r.xml', 'w').write('<' + 'a' * 19_000_000 + '/>')",
    "nesting": "open('r.xml', 'w').write('<testsuite>' * 1_500_000)",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_report_without_an_end_fills_no_memory(name: str) -> None:
    started = monotonic()
    with at_most(160 * MEGABYTE):
        evidence = check(LARGE[name])
    assert (evidence.outcome, evidence.cases) == (Outcome.ERRORED, ())
    assert monotonic() - started < 20


def test_the_machines_own_files_are_no_reports(tmp_path: Path) -> None:
    (tmp_path / "mine.xml").write_text('<testsuite><testcase name="of the machine"/></testsuite>')
    evidence = check("import os; os.symlink('../mine.xml', 'r.xml')")
    assert (evidence.outcome, evidence.cases) == (Outcome.ERRORED, ())


def test_of_100_000_cases_the_failures_are_kept_and_all_are_counted() -> None:
    program = """
good, long = "<testcase/>", "<testcase name='" + "n" * 1000 + "'/>"
bad = "<testcase name='bad'><failure>" + "m" * 5000 + "</failure></testcase>"
open("r.xml", "w").write("<testsuite>" + long * 15_000 + bad * 400 + good * 84_600 + "</testsuite>")
"""
    started = monotonic()
    evidence = check(program)
    assert monotonic() - started < 30
    assert evidence.outcome is Outcome.FAILED
    assert evidence.summary.startswith("99600 passed, 400 failed in")
    assert len(evidence.cases) == 1000
    assert sum(case.outcome is Outcome.FAILED for case in evidence.cases) == 400
    assert len(evidence.model_dump_json()) < 2 * MEGABYTE


def test_the_log_of_a_browser_fills_no_page(tmp_path: Path) -> None:
    entry = '{"kind": "%s", "test": "%s", "text": "x", "file": "../secret"}\n'
    (tmp_path / "checkout" / BROWSER_LOG).write_text(
        "[" * 100_000
        + "\n"
        + "".join(entry % ("console", f"{n}" * 10_000) for n in range(150))
        + entry % ("picture", "x")
    )
    log = list(_log_entries(tmp_path / "checkout"))
    lines = _console(log, BY_SHAPE)
    assert len("".join(lines)) < 250_000
    assert list(_pictures(log, tmp_path / "checkout", (), BY_SHAPE)) == []


def test_i7_no_secret_of_a_browsers_log_is_shown(tmp_path: Path) -> None:
    entry = {"kind": "console", "test": "test_a[ghp_abcdefghijklmnopqrst]", "text": f"{'.' * 1950} no s3cret-s3cret"}
    cut = {**entry, "text": f"{'.' * 1945} postgres://shop:hunter2@db"}
    (tmp_path / "checkout" / BROWSER_LOG).write_text(f"{json.dumps(entry)}\n{json.dumps(cut)}\n")
    lines = _console(list(_log_entries(tmp_path / "checkout")), BY_SHAPE.with_values(["s3cret-s3cret"]))
    assert lines[0].startswith("test_a[***]: ...")
    assert lines[0].endswith(" no ***")
    assert lines[1].endswith(". postgres://shop:***@db")  # masked, and then cut


# --- any XML at all --------------------------------------------------------------------------------------------------

tags = st.sampled_from(
    [
        "testsuites",
        "testsuite",
        "testcase",
        "failure",
        "error",
        "skipped",
        "system-out",
        "rerunFailure",
        "properties",
        "a",
    ]
)
attributes = st.dictionaries(
    st.sampled_from(["name", "classname", "time", "message", "type", "tests"]),
    st.sampled_from(["", "x", "nan", "-1", "1e999", "1,5", "\u202e", "é"]),
    max_size=3,
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 0) -> ElementTree.Element:
    element = ElementTree.Element(
        draw(tags) if depth else draw(st.sampled_from(["testsuites", "testsuite", "a"])), draw(attributes)
    )
    element.text = draw(st.sampled_from([None, "", "text", " "]))
    for _ in range(draw(st.integers(0, 3)) if depth < 4 else 0):
        element.append(draw(elements(depth=depth + 1)))
    return element


@given(elements())
@settings(max_examples=40, deadline=None)
def test_no_report_is_an_exception(root: ElementTree.Element) -> None:
    Path("x.xml").write_bytes(ElementTree.tostring(root))
    try:
        cases = read_junit(Path("x.xml"))
    except GateErrored:
        assert root.tag == "a"
    else:
        assert all(case.seconds >= 0 for case in cases)


@given(st.binary(max_size=60), st.sampled_from([b"", b"<testsuite>", b'<?xml version="1.0" encoding="']))
@settings(max_examples=60, deadline=None)
def test_no_bytes_are_an_exception(noise: bytes, start: bytes) -> None:
    Path("x.xml").write_bytes(start + noise)
    with pytest.raises(GateErrored):
        read_junit(Path("x.xml"))
    Path("x.xml").unlink()
