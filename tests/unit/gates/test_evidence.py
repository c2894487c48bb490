"""What counts as proof: reports of real test runners, and malicious ones."""

from pathlib import Path

import pytest

from prefect_cd.errors import GateErrored, GateFailed
from prefect_cd.gates.evidence import Evidence, Outcome, Picture, TestCase, evaluate, require_passed
from prefect_cd.gates.junit import read_junit
from prefect_cd.masking import BY_SHAPE
from prefect_cd.process import Finished

PYTEST = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4" time="0.2">
<testcase classname="tests.test_cart" name="test_adds" time="0.011" />
<testcase classname="tests.test_cart" name="test_sums" time="0.02"><failure message="assert 1 == 2">def test_sums():
&gt;   assert 1 == 2
E   assert 1 == 2</failure></testcase>
<testcase classname="tests.test_cart" name="test_db" time="0.0">
<error message="failed on setup">no fixture</error></testcase>
<testcase classname="tests.test_cart" name="test_old" time="0.0">
<skipped message="later" type="pytest.skip">x</skipped></testcase>
</testsuite></testsuites>"""


def write_report(folder: Path, text: str | bytes) -> Path:
    path = folder / "unit.xml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def finished_with(code: int = 0, output: str = "", *, timed_out: bool = False) -> Finished:
    return Finished(code=code, output=output, seconds=3.21, timed_out=timed_out)


def make_case(outcome: Outcome, name: str = "test_a", message: str = "") -> TestCase:
    return TestCase(name=name, suite="tests", outcome=outcome, seconds=0.1, message=message)


PASSED, FAILED, ERRORED, SKIPPED = (make_case(outcome) for outcome in Outcome)


def test_a_report_of_pytest_is_read(tmp_path: Path) -> None:
    cases = read_junit(write_report(tmp_path, PYTEST))
    assert [(case.title, case.outcome.value, case.seconds) for case in cases] == [
        ("tests.test_cart: test_adds", "passed", 0.011),
        ("tests.test_cart: test_sums", "failed", 0.02),
        ("tests.test_cart: test_db", "errored", 0.0),
        ("tests.test_cart: test_old", "skipped", 0.0),
    ]
    assert cases[1].message.startswith("assert 1 == 2\ndef test_sums():\n>   assert 1 == 2")


def test_a_report_that_begins_with_a_suite_and_nests_them_is_read(tmp_path: Path) -> None:
    text = (
        '<testsuite name="all"><testsuite name="inner"><testcase name="a"/></testsuite><testcase name="b"/></testsuite>'
    )
    assert [case.title for case in read_junit(write_report(tmp_path, text))] == ["inner: a", "all: b"]


@pytest.mark.parametrize(
    ("time", "seconds"), [("1,234.5", 1234.5), ("x", 0), ("inf", 0), ("nan", 0), ("-1", 0), ("", 0)]
)
def test_an_invalid_time_in_a_report_counts_as_zero(time: str, seconds: float, tmp_path: Path) -> None:
    text = f'<testsuite><testcase name="a" time="{time}"/></testsuite>'
    assert read_junit(write_report(tmp_path, text))[0].seconds == seconds


def test_a_message_is_cut_after_4000_characters(tmp_path: Path) -> None:
    text = f'<testsuite><testcase name="a"><failure>{"x" * 9000}</failure></testcase></testsuite>'
    cases = read_junit(write_report(tmp_path, text))
    assert [len(case.message) for case in evaluate("unit", finished_with(1), cases).cases] == [4000]


def test_i7_no_secret_of_a_report_is_evidence(tmp_path: Path) -> None:
    url = "postgres://shop:hunter2@db/x"
    cut = f"{'.' * (4000 - len(f'{url}  postgres://shop:hunt'))} {url}"  # after 4000 characters
    text = f"""<testsuite name="{url}"><testcase name="test_a[{url}]"><failure message="{url}">{url} {cut}</failure>
    </testcase><testcase name="b" classname="s3cret-s3cret"/></testsuite>"""
    cases = read_junit(write_report(tmp_path, text))
    evidence = evaluate("unit", finished_with(1), cases, mask=BY_SHAPE.with_values(["s3cret-s3cret"]))
    with pytest.raises(GateFailed) as caught:
        require_passed(evidence)
    for shown in (evidence.model_dump_json(), str(caught.value)):
        assert "postgres://shop:***@db/x" in shown
        assert "hunt" not in shown
        assert "s3cret" not in shown


BOMB = '<!DOCTYPE x [<!ENTITY a "{}">{}]>'.format(
    "lol" * 10, "".join(f'<!ENTITY a{n} "{f"&a{n - 1 or chr(0)};".replace(chr(0), "") * 10}">' for n in range(1, 10))
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read: no element found"),
        ("not xml", "cannot be read: syntax error"),
        ("<testsuite><testcase>", "cannot be read: no element found"),
        (b"\xff\xfe\x00<", "cannot be read"),
        ("<html><body/></html>", "begins with <html>, so it is not a JUnit report"),
        (f"{BOMB}<testsuite>&a9;</testsuite>", "has a document type"),
        (f"<!-- /> -->{BOMB}<testsuite>&a9;</testsuite>", "has a document type"),
        (f"{BOMB}<testsuite>&a9;</testsuite>".encode("utf-16"), "has a document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><testsuite/>', "has a document type"),
        ("<testsuite>" * 100 + "</testsuite>" * 100, "is nested too deeply"),
        ("<testsuite>" + " " * 20_000_000 + "</testsuite>", "is larger than 20 MB"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "bytes",
)
def test_an_unreadable_report_is_an_error_and_not_a_failure(text: str | bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(GateErrored) as caught:
        read_junit(write_report(tmp_path, text))
    assert reason in caught.value.reason
    assert "JUnit" in caught.value.hint


def test_a_missing_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GateErrored, match=r"no report unit.xml"):
        read_junit(tmp_path / "unit.xml")


def test_a_report_that_is_not_a_regular_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(write_report(tmp_path, PYTEST))
    for name in ("folder", "link"):
        with pytest.raises(GateErrored, match="is not a regular file"):
            read_junit(tmp_path / name)


def test_an_empty_suite_is_a_report_without_cases(tmp_path: Path) -> None:
    assert read_junit(write_report(tmp_path, "<testsuites/>")) == ()


@pytest.mark.parametrize(
    ("finished", "cases", "unreadable", "outcome", "summary"),
    [
        (finished_with(0), [PASSED, PASSED], "", Outcome.PASSED, "2 passed in 3.2 s"),
        (finished_with(0), [PASSED, SKIPPED], "", Outcome.PASSED, "1 passed, 1 skipped in 3.2 s"),
        (finished_with(1), [PASSED, FAILED], "", Outcome.FAILED, "1 passed, 1 failed in 3.2 s"),
        (finished_with(0), [PASSED, FAILED], "", Outcome.FAILED, "1 passed, 1 failed in 3.2 s"),
        (finished_with(1), [FAILED, ERRORED], "", Outcome.FAILED, "1 failed, 1 errored in 3.2 s"),
        (finished_with(-9), [FAILED], "", Outcome.FAILED, "1 failed in 3.2 s"),
        (finished_with(1), [PASSED, ERRORED], "", Outcome.ERRORED, "1 passed, 1 errored in 3.2 s"),
        (finished_with(0), [ERRORED], "", Outcome.ERRORED, "1 errored in 3.2 s"),
        (finished_with(1), [PASSED], "", Outcome.ERRORED, "1 passed, but exit code 1 in 3.2 s"),
        (finished_with(0), [], "", Outcome.ERRORED, "no tests ran in 3.2 s"),
        (finished_with(5), [], "", Outcome.ERRORED, "no tests ran in 3.2 s"),
        (finished_with(0), [SKIPPED, SKIPPED], "", Outcome.ERRORED, "no tests ran (2 skipped) in 3.2 s"),
        (finished_with(0), [], "no report unit.xml", Outcome.ERRORED, "no report unit.xml, exit code 0, in 3.2 s"),
        (finished_with(2), [], "no report unit.xml", Outcome.ERRORED, "no report unit.xml, exit code 2, in 3.2 s"),
        (finished_with(-15, timed_out=True), [], "no report", Outcome.ERRORED, "not finished in 3.2 s"),
        (finished_with(-15, timed_out=True), None, "", Outcome.ERRORED, "not finished in 3.2 s"),
        (finished_with(0, timed_out=True), [PASSED], "", Outcome.ERRORED, "not finished in 3.2 s"),
        (finished_with(-9), None, "", Outcome.ERRORED, "killed (exit code -9) in 3.2 s"),
        (finished_with(137), None, "", Outcome.ERRORED, "killed (exit code 137) in 3.2 s"),
        (finished_with(0), None, "", Outcome.PASSED, "passed in 3.2 s"),
        (finished_with(1, "boom"), None, "", Outcome.FAILED, "exit code 1 in 3.2 s"),
        (finished_with(-11), None, "", Outcome.FAILED, "exit code -11 in 3.2 s"),
        (finished_with(5, "=== no tests ran in 0.01s ==="), None, "", Outcome.ERRORED, "no tests ran in 3.2 s"),
        (finished_with(5, "boom"), None, "", Outcome.FAILED, "exit code 5 in 3.2 s"),
    ],
)
def test_a_run_is_evaluated(
    finished: Finished, cases: list[TestCase] | None, unreadable: str, outcome: Outcome, summary: str
) -> None:
    evidence = evaluate("unit", finished, cases, unreadable=unreadable)
    assert (evidence.outcome, evidence.summary) == (outcome, summary)
    assert bool(evidence.hint) == (outcome is not Outcome.PASSED)
    assert evidence.output == finished.output


def test_a_passed_gate_raises_nothing() -> None:
    require_passed(evaluate("unit", finished_with(0), [PASSED]))


def test_a_failed_gate_names_its_failing_tests_and_their_messages() -> None:
    cases = [PASSED, make_case(Outcome.FAILED, "test_sum", "assert 1 == 2")]
    with pytest.raises(GateFailed) as caught:
        require_passed(evaluate("unit", finished_with(1), cases))
    assert str(caught.value) == (
        "[gate-failed] unit failed: 1 passed, 1 failed in 3.2 s\n\ntests: test_sum failed\nassert 1 == 2\n\n"
        "hint: correct what the failing tests show, and push"
    )


def test_many_failing_tests_are_named_and_the_first_are_quoted() -> None:
    cases = [make_case(Outcome.FAILED, f"test_{n}", f"text {n}") for n in range(7)]
    with pytest.raises(GateFailed) as caught:
        require_passed(evaluate("unit", finished_with(1), cases))
    assert "text 4" in caught.value.detail
    assert caught.value.detail.endswith("and 2 more: tests: test_5, tests: test_6")


def test_an_errored_gate_is_not_a_failed_one_and_shows_the_last_lines() -> None:
    with pytest.raises(GateErrored) as caught:
        require_passed(evaluate("unit", finished_with(2, "a\nImportError: x"), (), unreadable="no report unit.xml"))
    assert caught.value.reason == "unit errored: no report unit.xml, exit code 2, in 3.2 s"
    assert caught.value.detail.endswith("ImportError: x")


def test_an_error_contains_the_browser_console_and_the_trace_command() -> None:
    evidence = evaluate("e2e", finished_with(1), [FAILED]).model_copy(
        update={"console": ("test_a: page error: x is not defined",), "trace": "/keep/trace.zip"}
    )
    with pytest.raises(GateFailed) as caught:
        require_passed(evidence)
    assert caught.value.detail.endswith("browser console:\ntest_a: page error: x is not defined")
    assert caught.value.hint.endswith("playwright show-trace /keep/trace.zip")


def test_a_skipped_gate_has_not_passed() -> None:
    with pytest.raises(GateErrored):
        require_passed(Evidence(gate="g", outcome=Outcome.SKIPPED, summary="not run", seconds=0))


def test_evidence_survives_json() -> None:
    evidence = evaluate("unit", finished_with(1, "out"), [FAILED]).model_copy(
        update={"pictures": (Picture(title="t", jpeg="/9j/"),), "trace": "t.zip"}
    )
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
    assert evidence.pictures[0].uri == "data:image/jpeg;base64,/9j/"
