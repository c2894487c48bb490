"""A run is killed at any of its writes; after a recovery the environment is exactly the old version, or the new one.

A seeded sample of all kills is played; `make bench-crash` plays all of them.
"""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crash.proxy import Moment
from tests.crash.trial import SCENARIOS, Kill, Scenario, Scene

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
SEED = int(os.environ.get("CRASH_SEED", "1"))
KILLS = 2  # of each scenario, side by side


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_i4_a_run_killed_at_any_write_leaves_a_whole_version_after_recovery(scene: Scene, scenario: Scenario) -> None:
    trace, whole = scene.undisturbed(scenario)
    assert len(trace) > KILLS
    sample = random.Random(SEED).sample([Kill(boundary, moment) for boundary in trace for moment in Moment], KILLS)  # noqa: S311
    with ThreadPoolExecutor(KILLS) as pool:
        outcomes = list(pool.map(lambda kill: scene.trial(scenario, whole, kill), sample))
    assert [f"{outcome.kill}: {outcome.problem}" for outcome in outcomes if outcome.problem] == []
