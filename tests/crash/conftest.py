"""Fixtures for tests of crashes: everything is played side by side, and each test waits for its own part."""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest

from tests.crash.proxy import Boundary, Event, Fault, Moment
from tests.crash.trial import Disturbance, Outcome, Scenario, Scene, is_certain, open_scene
from tests.crash.whole_flow import Flow, open_stage

SEED = int(os.environ.get("CRASH_SEED", "1"))
SIDE_BY_SIDE = 4  # they wait most of the time
KILLS, FAULTS = 1, 1  # of each scenario, beside those that are always played
Played = Callable[[Scenario | Flow], list[Outcome]]
Trial = Callable[[Disturbance], Outcome]


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("crash")) as opened:
        yield opened


@pytest.fixture(scope="session")
def played(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Played]:
    """The outcomes of a scenario or flow; those of all tests of this session are played from the start."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    scenarios = [of_test["scenario"] for of_test in parameters if "scenario" in of_test]
    room = threading.Semaphore(SIDE_BY_SIDE)
    with ThreadPoolExecutor(len(scenarios)) as pool:
        futures: dict[str, Future[list[Outcome]]] = {
            scenario.name: pool.submit(_play, scene, scenario, room) for scenario in scenarios
        }
        yield lambda scenario: futures[scenario.name].result()


def _play(scene: Scene, scenario: Scenario | Flow, room: threading.Semaphore) -> list[Outcome]:
    chance = random.Random(SEED)  # noqa: S311  no secret
    if isinstance(scenario, Flow):
        stage = open_stage(scene)
        with room:
            trace, whole = stage.undisturbed(scenario)
        return _until_one_is_reached(
            room, _sample(chance, trace, scenario.events), partial(stage.trial, scenario, whole)
        )
    with room:
        trace, whole = scene.undisturbed(scenario)
    chosen = _sample(chance, trace, tuple(Moment), KILLS)
    faults = [fault for fault in _sample(chance, trace, tuple(Fault)) if is_certain(fault, whole[0])]
    chosen = list(dict.fromkeys([*scenario.always, *chosen, *faults[:FAULTS]]))
    return _side_by_side(room, chosen, partial(scene.trial, scenario, whole))


def _sample(
    chance: random.Random, trace: Sequence[Boundary], events: Sequence[Event], count: int | None = None
) -> list[Disturbance]:
    every = [Disturbance(boundary, event) for boundary in trace for event in events]
    return chance.sample(every, len(every) if count is None else count)


def _until_one_is_reached(room: threading.Semaphore, chosen: Sequence[Disturbance], trial: Trial) -> list[Outcome]:
    """A run need not repeat a write that a busy Prefect server had refused in the run that nobody disturbed."""
    outcomes: list[Outcome] = []
    for disturbance in chosen:
        with room:
            outcomes.append(trial(disturbance))
        if outcomes[-1].reached:
            break
    return outcomes


def _side_by_side(room: threading.Semaphore, chosen: Sequence[Disturbance], trial: Trial) -> list[Outcome]:
    def in_room(disturbance: Disturbance) -> Outcome:
        with room:
            return trial(disturbance)

    with ThreadPoolExecutor(len(chosen)) as pool:
        return list(pool.map(in_room, chosen))
