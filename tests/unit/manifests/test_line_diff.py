"""The diff of two texts: whatever they are, it leads from one to the other, and soon."""

import re
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_cd.manifests.diff import diff
from prefect_cd.manifests.line_diff import unified

LINES = st.lists(st.sampled_from("abcdefgh"), max_size=40)
MANY = 16_000


def patched(before: Sequence[str], hunks: Sequence[str]) -> list[str]:
    """What a unified diff makes of a text; every line that it removes or repeats has to be there."""
    after: list[str] = []
    at = 0
    for line in hunks:
        if header := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", line):
            begin = int(header[1]) - (header[2] != "0")
            after += before[at:begin]
            at = begin
        elif line.startswith("+"):
            after.append(line[1:])
        else:
            assert before[at] == line[1:]
            after += [line[1:]] * line.startswith(" ")
            at += 1
    return after + list(before[at:])


@settings(deadline=None, max_examples=100)
@given(LINES, LINES)
@example([], [])
@example(["a"], [])
@example([], ["a", "b"])
def test_a_diff_leads_from_the_one_text_to_the_other(before: list[str], after: list[str]) -> None:
    assert patched(before, unified(before, after)) == after
    assert (unified(before, after) == []) == (before == after)


def test_a_change_is_shown_with_two_lines_around_it_and_its_place() -> None:
    before = [str(number) for number in range(20)]
    after = [*before[:9], "nine", *before[10:]]
    assert unified(before, after) == ["@@ -8,5 +8,5 @@", " 7", " 8", "-9", "+nine", " 10", " 11"]


def test_repeated_lines_are_matched_between_unique_ones() -> None:
    before = ["first", "- name: a", "  value: x", "- name: a", "last"]
    after = ["first", "- name: a", "  value: x", "  more: y", "- name: a", "last"]
    assert [line for line in unified(before, after) if line[0] in "+-"] == ["+  more: y"]


@pytest.mark.parametrize(
    "change",
    [
        lambda number: number,
        lambda number: -number,
        lambda number: number if number % 2 else -number,
        lambda number: number % 2,
        lambda number: number * 7919 % MANY,
    ],
    ids=["nothing", "every line", "every second line", "two lines over and over", "another order"],
)
def test_a_commit_cannot_keep_us_busy_with_a_long_diff(change: Callable[[int], int]) -> None:
    before = [str(number) for number in range(MANY)]
    after = [str(change(number)) for number in range(MANY)]
    started = time.process_time()
    hunks = unified(before, after)
    assert time.process_time() - started < 1
    assert patched(before, hunks) == after


def test_a_commit_cannot_keep_us_busy_with_an_object_of_many_keys() -> None:
    now, then = (
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "large"},
            "data": {f"key-{number}": str(number if number % 2 else number * factor) for number in range(2, MANY)},
        }
        for factor in (1, 3)
    )
    started = time.process_time()
    assert diff(now, then).count("\n+") == MANY / 2 - 1
    assert time.process_time() - started < 2
