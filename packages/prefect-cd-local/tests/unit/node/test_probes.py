"""How many probe results in a row change the verdict."""

import asyncio
import time

from prefect_cd_local.node.probes import ProbeResult, verdicts


def results(answers: str, count: int, **probe: float) -> tuple[list[bool], list[str]]:
    """Return the first verdicts on results that are good (+) or not (-), and the reported failures."""
    remaining = iter(answers)
    failures: list[str] = []

    async def ask(_: float) -> ProbeResult:
        return ProbeResult(next(remaining) == "+", "no")

    async def scenario() -> list[bool]:
        probing = verdicts({"periodSeconds": 0.001, **probe}, ask, failures.append, time.monotonic())
        return [await probing.__anext__() for _ in range(count)]

    return asyncio.run(scenario()), failures


def test_failures_count_only_in_a_row() -> None:
    assert results("--+--+---", 3, failureThreshold=3) == ([True, True, False], ["no"] * 7)


def test_successes_may_have_to_come_in_a_row_too() -> None:
    assert results("+-++", 2, successThreshold=2, failureThreshold=1)[0] == [False, True]


def test_the_first_probe_waits_for_its_initial_delay() -> None:
    began = time.monotonic()
    results("+", 1, initialDelaySeconds=0.05)
    assert time.monotonic() - began >= 0.05
