"""When enough answers have come."""

import asyncio
import time

from prefect_cd.local.node.probes import Answer, verdicts


def said(answers: str, count: int, **probe: float) -> tuple[list[bool], list[str]]:
    """The first verdicts on answers that are good (+) or not (-), and the failures that were told."""
    coming = iter(answers)
    failures: list[str] = []

    async def ask(_: float) -> Answer:
        return Answer(next(coming) == "+", "no")

    async def story() -> list[bool]:
        asked = verdicts({"periodSeconds": 0.001, **probe}, ask, failures.append, time.monotonic())
        return [await asked.__anext__() for _ in range(count)]

    return asyncio.run(story()), failures


def test_failures_count_only_in_a_row() -> None:
    assert said("--+--+---", 3, failureThreshold=3) == ([True, True, False], ["no"] * 7)


def test_successes_may_have_to_come_in_a_row_too() -> None:
    assert said("+-++", 2, successThreshold=2, failureThreshold=1)[0] == [False, True]


def test_the_first_question_waits_for_its_delay() -> None:
    began = time.monotonic()
    said("+", 1, initialDelaySeconds=0.05)
    assert time.monotonic() - began >= 0.05
