"""A run is killed or disturbed at any of its writes; then the environment is exactly the old version, or the new one.

A seeded sample is played; `make bench-crash` plays all of them.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.crash.trial import SCENARIOS, Outcome, Scenario
from tests.crash.whole_flow import FLOWS, Flow

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
Played = Callable[[Any], list[Outcome]]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_i4_a_run_killed_or_disturbed_at_any_write_leaves_a_whole_version_after_recovery(
    played: Played, scenario: Scenario
) -> None:
    assert problems(played(scenario)) == []


@pytest.mark.parametrize("scenario", FLOWS, ids=str)
def test_i4_prefects_server_decides_nothing_about_an_environment(played: Played, scenario: Flow) -> None:
    """Flows are killed at what they write to Prefect, or lose its server, and then end by themselves."""
    assert problems(played(scenario)) == []


def problems(outcomes: list[Outcome]) -> list[str]:
    assert any(outcome.reached for outcome in outcomes)
    return [f"{outcome.disturbance}: {outcome.problem}" for outcome in outcomes if outcome.problem]
