"""A run is killed at any of its writes; after a recovery the environment is exactly the old version, or the new one.

A seeded sample of all kills is played; `make bench-crash` plays all of them.
"""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crash.proxy import Boundary, Moment
from tests.crash.trial import SCENARIOS, Scenario, Scene, View, view_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SEED = int(os.environ.get("CRASH_SEED", "1"))
SAMPLE = 4  # kills of each scenario
AT_ONCE = 4


def undisturbed(scene: Scene, scenario: Scenario) -> tuple[list[Boundary], list[View]]:
    """The writes of the scenario, and the views before and after it."""
    with scene.namespace() as namespace:
        scene.prepare(namespace, scenario)
        before = view_of(namespace)
        trace = scene.trace(namespace, scenario)
        return trace, [before, view_of(namespace)]


def half_state(scene: Scene, scenario: Scenario, whole: list[View], kill: tuple[Boundary, Moment]) -> str:
    """What is wrong after the kill and a recovery; empty when the environment is whole."""
    boundary, moment = kill
    with scene.namespace() as namespace:
        scene.prepare(namespace, scenario)
        killed = scene.kill(namespace, scenario, boundary, moment)
        scene.recover(namespace)
        after = view_of(namespace)
    where = f"{scenario.name}, killed at {boundary} {moment.value}"
    if not killed:
        return f"{where}: the run has no such write"
    if after.objects not in [view.objects for view in whole]:
        differing = {
            name: (after.objects.get(name), whole[0].objects.get(name), whole[1].objects.get(name))
            for name in {*after.objects, *whole[0].objects, *whole[1].objects}
            if len({repr(view.objects.get(name)) for view in (after, *whole)}) > 1
        }
        return f"{where}: neither the old version nor the new one: {differing}"
    return "" if after.is_settled else f"{where}: an open record is left: {after.states}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_i4_a_run_killed_at_any_write_leaves_a_whole_version_after_recovery(scene: Scene, scenario: Scenario) -> None:
    trace, whole = undisturbed(scene, scenario)
    assert len(trace) > 5
    kills = [(boundary, moment) for boundary in trace for moment in Moment]
    sample = random.Random(SEED).sample(kills, SAMPLE)  # noqa: S311
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = list(pool.map(lambda kill: half_state(scene, scenario, whole, kill), sample))
    assert [line for line in wrong if line] == []
