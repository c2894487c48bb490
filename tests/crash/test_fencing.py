"""A holder of the lock that was stopped changes nothing after another took over; `make bench-fencing` plays 500."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crash import fencing
from tests.crash.conftest import SEED
from tests.crash.fencing import Stop
from tests.crash.proxy import Boundary
from tests.crash.trial import Scene

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ALWAYS = (Stop(Boundary("PATCH configmaps/settings", 1)), Stop(Boundary("DELETE configmaps/removed", 1)))
RANDOM = 2


def test_i3_a_holder_that_was_stopped_anywhere_changes_nothing_after_another_has_finished(scene: Scene) -> None:
    course, chance = fencing.course(scene), random.Random(SEED)  # noqa: S311  no secret
    stops = [*ALWAYS, *(fencing.stop_at_random(chance, course) for _ in range(RANDOM))]
    with ThreadPoolExecutor(len(stops)) as pool:
        passed = list(pool.map(lambda stop: fencing.trial(scene, course, stop), stops))
    assert all(passed[number].stopped and passed[number].late for number in range(len(ALWAYS)))
    assert [f"{trial.stop}: {trial.stale} {trial.problem}" for trial in passed if trial.stale or trial.problem] == []
