"""When `make demo` fails: acts that end otherwise than announced, and visitors that the shop did not answer."""

# ruff: noqa: ANN401  modules that are no package have no type

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40
VERSIONS = {FIRST: "version 1", SECOND: "version 2", THIRD: "version 3"}
KEPT = ["version 1", "version 2"]
GOOD_DAY = {(FIRST, ""): 40, (SECOND, ""): 200, (THIRD, "500 Internal Server Error on /"): 7}


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    """The module with the decisions, importable only here."""
    sys.path.insert(0, str(FOLDER))
    before = set(sys.modules)
    try:
        yield import_module("backstage.outcome")
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "backstage":
                del sys.modules[name]


def problems_of_the_last_act(demo: Any, state: str, production: str, record: str) -> list[str]:
    problems: list[str] = demo.act_problems(demo.ROLLED_BACK, THIRD, SECOND, demo.Outcome(state, production, record))
    return problems


def test_the_story_as_announced_has_no_problems(demo: Any) -> None:
    first = demo.Outcome("Completed", "1111111-aaaaaaaa", "known-good")
    second = demo.Outcome("Completed", "2222222-bbbbbbbb", "known-good")
    assert demo.act_problems(demo.RELEASED, FIRST, "", first) == []
    assert demo.act_problems(demo.RELEASED, SECOND, FIRST, second) == []
    assert problems_of_the_last_act(demo, "Rolled back", "2222222-bbbbbbbb", "rolled-back") == []
    assert demo.visitor_problems(GOOD_DAY, VERSIONS, KEPT) == []


def test_a_run_that_ended_in_another_state_is_a_problem(demo: Any) -> None:
    problems = problems_of_the_last_act(demo, "Rollback failed", "2222222-bbbbbbbb", "rollback-failed")
    assert problems == [
        "the run ended as 'Rollback failed'; announced was 'Rolled back'",
        "3333333 is recorded as 'rollback-failed' in production; expected 'rolled-back'",
    ]


def test_a_bad_version_that_was_released_is_a_problem_in_all_respects(demo: Any) -> None:
    problems = problems_of_the_last_act(demo, "Completed", "3333333-cccccccc", "known-good")
    assert problems == [
        "the run ended as 'Completed'; announced was 'Rolled back'",
        "3333333 is recorded as 'known-good' in production; expected 'rolled-back'",
        "production runs 3333333-cccccccc; expected a release of 2222222",
    ]


def test_a_rollback_that_left_the_bad_version_in_production_is_a_problem(demo: Any) -> None:
    problems = problems_of_the_last_act(demo, "Rolled back", "3333333-cccccccc", "rolled-back")
    assert problems == ["production runs 3333333-cccccccc; expected a release of 2222222"]


def test_a_rollback_on_staging_is_not_the_announced_one_in_production(demo: Any) -> None:
    problems = problems_of_the_last_act(demo, "Rolled back", "2222222-bbbbbbbb", "")
    assert problems == ["3333333 has no record in production; expected 'rolled-back'"]


def test_a_completed_run_that_left_the_old_version_in_production_is_a_problem(demo: Any) -> None:
    outcome = demo.Outcome("Completed", "1111111-aaaaaaaa", "known-good")
    problems = demo.act_problems(demo.RELEASED, SECOND, FIRST, outcome)
    assert problems == ["production runs 1111111-aaaaaaaa; expected a release of 2222222"]


def test_an_empty_production_is_a_problem(demo: Any) -> None:
    problems = demo.act_problems(demo.RELEASED, FIRST, "", demo.Outcome("Completed", "", "known-good"))
    assert problems == ["production runs no release; expected a release of 1111111"]


@pytest.mark.parametrize(
    ("requests", "total"),
    [
        ({}, 0),
        ({("", "ClientConnectorError"): 300}, 300),
        ({("", "an answer without X-Shop-Version on /"): 150, ("", "404 Not Found on /api/products"): 150}, 300),
        ({(FIRST, "500 Internal Server Error on /"): 20}, 20),
    ],
    ids=["no request", "no connection", "another server", "errors only"],
)
def test_visitors_without_an_answer_from_the_shop_are_a_problem(
    demo: Any, requests: dict[tuple[str, str], int], total: int
) -> None:
    problems = demo.visitor_problems(requests, VERSIONS, KEPT)
    assert problems == [f"none of {total} requests got an answer from the shop"]


def test_visitors_in_the_shop_of_another_cluster_are_a_problem(demo: Any) -> None:
    problems = demo.visitor_problems({("f" * 40, ""): 250, ("f" * 40, "TimeoutError"): 50}, VERSIONS, KEPT)
    assert problems == [
        f"300 of 300 requests were answered by another shop: its version is {'f' * 40}",
        "none of 300 requests got an answer from the shop",
    ]


def test_some_answers_from_another_shop_are_a_problem_too(demo: Any) -> None:
    problems = demo.visitor_problems({**GOOD_DAY, ("f" * 40, ""): 3}, VERSIONS, KEPT)
    assert problems == [f"3 of 250 requests were answered by another shop: its version is {'f' * 40}"]


def test_a_version_that_production_kept_must_have_answered(demo: Any) -> None:
    assert demo.visitor_problems({(FIRST, ""): 300}, VERSIONS, KEPT) == ["no request got an answer from version 2"]


def test_single_failures_beside_good_answers_are_figures_and_no_problem(demo: Any) -> None:
    requests = {**GOOD_DAY, ("", "ServerDisconnectedError"): 1, (SECOND, "503 Service Unavailable on /"): 1}
    assert demo.visitor_problems(requests, VERSIONS, KEPT) == []


def test_versions_have_names_by_the_digits_that_the_header_carries(demo: Any) -> None:
    names = [demo.version_name(version, VERSIONS) for version in (FIRST, "2222222", "", "f" * 7)]
    assert names == ["version 1", "version 2", "", ""]


def test_two_demos_at_once_do_not_share_a_server(demo: Any) -> None:
    assert demo  # puts `backstage` on the path
    port = import_module("backstage.programs").free_port(0)
    claim = (
        "import sys; sys.path.insert(0, sys.argv[1]); from backstage.programs import free_port; "
        "print(free_port(int(sys.argv[2])), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", claim, str(FOLDER), str(port)]

    def started() -> "subprocess.Popen[str]":
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with started() as first, started() as second:
        ports = [process.stdout.readline().strip() for process in (first, second) if process.stdout]
        for process in (first, second):
            process.communicate()
    assert len(set(ports)) == 2
    assert str(port) in ports
