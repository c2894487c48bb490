"""The scenarios of benchmarks/verdict as they were recorded on a real cluster, assessed again without one.

The expected result is in the scenarios: they fail for one of the named causes, or are good.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.rollout.assess import Memory, Observation, Phase, Verdict, assess
from prefect_cd.rollout.diagnosis import as_time

TOP = Path(__file__).parents[3]
RECORDED = TOP / "tests/unit/observations/scenarios"
SCENARIOS = TOP / "benchmarks/verdict/scenarios"
MOMENTS = ("-first", "-midway", "")
NAMES = sorted({path.stem.removesuffix("-first").removesuffix("-midway") for path in RECORDED.glob("*.yaml")})
PARTS = ("revisions", "pods", "events", "services", "endpoints")


def loaded(path: Path) -> Any:  # noqa: ANN401  YAML is anything
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open() as file:
        return next(yaml.load_all(file, Loader=loader))


def verdicts(name: str) -> list[Verdict]:
    """The verdicts at the recorded moments, with the memory passed from one to the next."""
    results, memory = [], Memory()
    for path in (RECORDED / f"{name}{moment_}.yaml" for moment_ in MOMENTS):
        if path.is_file():
            seen = loaded(path)
            since, now = as_time(seen["since"]), as_time(seen["now"])
            assert since is not None
            assert now is not None
            observation = Observation(seen["workload"], **{part: tuple(seen.get(part) or ()) for part in PARTS})
            results.append(assess(observation, since=since, now=now + timedelta(seconds=1), memory=memory))
            memory = results[-1].memory
    return results


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_scenario_gets_its_expected_verdict(name: str) -> None:
    wanted, seen = loaded(SCENARIOS / f"{name}.yaml"), verdicts(name)
    if wanted["kind"] == "good":
        assert [verdict.summary for verdict in seen if verdict.phase is Phase.FAILED] == []
        assert seen[-1].phase is Phase.COMPLETE, seen[-1].summary
    else:
        assert seen[-1].phase is Phase.FAILED, seen[-1].summary
        assert seen[-1].causes[0].category.value in wanted["categories"]


def test_most_scenarios_are_recorded() -> None:
    scenarios = {path.stem for path in SCENARIOS.glob("*.yaml")}
    assert set(NAMES) <= scenarios
    assert len(NAMES) >= 100  # those that need logs or connections cannot be recorded
