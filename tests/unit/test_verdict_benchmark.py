"""The pure parts of benchmarks/verdict: reading scenarios, proofs, and the meaning of a tool's output."""

# ruff: noqa: ANN401  modules that are no package have no type

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.rollout.diagnosis import Category

FOLDER = Path(__file__).parents[2] / "benchmarks" / "verdict"
NAMES = sorted(path.stem for path in (FOLDER / "scenarios").glob("*.yaml"))
MODULES = ("scenario", "proof", "witness", "tools", "measure", "outcome", "plot")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's modules, importable only here: their names are too general for a package."""
    sys.path.insert(0, str(FOLDER))
    before = set(sys.modules)
    try:
        yield type("Bench", (), {name: import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_has_an_expectation_with_our_categories(bench: Any, name: str) -> None:
    scenario = bench.scenario.load(name, "vb-1-copy")
    assert set(scenario.categories) <= {category.value for category in Category}
    kind, workload = scenario.workload
    assert [
        item for item in scenario.manifests if item["kind"].lower() == kind and item["metadata"]["name"] == workload
    ]
    assert "$" not in str([item["metadata"] for item in scenario.manifests])
    assert scenario.provable <= (not scenario.patience)
    if scenario.twin:
        assert bench.scenario.load(scenario.twin).good is not scenario.good


def test_there_are_enough_scenarios_of_both_kinds_and_of_every_category(bench: Any) -> None:
    scenarios = [bench.scenario.load(name) for name in NAMES]
    assert sum(scenario.good for scenario in scenarios) >= 30
    assert sum(not scenario.good for scenario in scenarios) >= 30
    covered = {category for scenario in scenarios for category in scenario.categories}
    # The benchmark cannot break a node's network, and the kubelet measures volumes only once a minute.
    assert {category.value for category in Category} - covered == {"node", "storage-limit", "unknown"}


def test_a_header_with_an_unknown_key_is_refused(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.yaml").write_text("about: x\nkind: good\ncolour: red\n---\n")
    monkeypatch.setattr(bench.scenario, "FOLDER", tmp_path)
    with pytest.raises(bench.scenario.Wrong, match="colour"):
        bench.scenario.load("odd")


def test_the_earlier_version_is_the_manifests_with_a_merge_patch(bench: Any) -> None:
    scenario = bench.scenario.load("image-missing-in-update", "vb-1-copy")
    (before,) = scenario.before()
    (now,) = scenario.manifests
    assert before["spec"]["template"]["spec"]["containers"][0]["image"].endswith("busybox:1")
    assert now["spec"]["template"]["spec"]["containers"][0]["image"].endswith("none:2")
    assert before["spec"]["replicas"] == now["spec"]["replicas"] == 3


def pod(uid: str, created: int, **status: Any) -> dict[str, Any]:
    stamp = f"1970-01-01T00:00:{created:02}Z"
    return {"kind": "Pod", "metadata": {"uid": uid, "creationTimestamp": stamp}, "status": status}


def restarted(times: int) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "app", "restartCount": times, "state": {"running": {}}}]}


def ready(status: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": status}]}


def test_a_proof_is_the_first_matching_change_of_the_new_version(bench: Any) -> None:
    observations = [
        bench.witness.Observation(9.0, pod("old", 5, **restarted(7))),
        bench.witness.Observation(11.0, pod("old", 5, **restarted(8))),
        bench.witness.Observation(12.0, pod("new", 10, **restarted(2))),
        bench.witness.Observation(13.0, pod("new", 10, **restarted(3))),
        bench.witness.Observation(14.0, pod("new", 10, **restarted(4))),
    ]
    assert bench.proof.proved({"ended": 3}, observations, 10.5) == 13.0
    assert bench.proof.proved({"ended": 9}, observations, 10.5) is None
    assert bench.proof.proved({"apply": True}, observations, 10.5) == 10.5


def test_an_event_about_an_old_pod_proves_nothing(bench: Any) -> None:
    def event(uid: str) -> dict[str, Any]:
        return {
            "kind": "Event",
            "metadata": {"uid": f"event-{uid}"},
            "involvedObject": {"uid": uid},
            "reason": "Failed",
            "message": "x: not found",
        }

    observations = [bench.witness.Observation(9.0, pod("old", 5)), bench.witness.Observation(11.0, event("old"))]
    rule = {"event": "Failed", "says": "NOT found"}
    assert bench.proof.proved(rule, observations, 10.0) is None
    assert bench.proof.proved(rule, [*observations, bench.witness.Observation(12.0, event("new"))], 10.0) == 12.0


def test_losses_of_readiness_are_counted_for_each_pod(bench: Any) -> None:
    states = [(1, "a", "True"), (2, "b", "False"), (3, "a", "False"), (4, "a", "True"), (5, "a", "False")]
    observations = [bench.witness.Observation(float(at), pod(uid, 0, **ready(status))) for at, uid, status in states]
    assert bench.proof.proved({"lost": 1}, observations, 0.0) == 3.0
    assert bench.proof.proved({"lost": 2}, observations, 0.0) == 5.0


def test_the_witness_returns_the_objects_at_a_moment(bench: Any) -> None:
    first, second = pod("a", 1, phase="Pending"), pod("a", 1, phase="Running")
    observations = [
        bench.witness.Observation(1.0, first),
        bench.witness.Observation(2.0, second),
        bench.witness.Observation(3.0, second, deleted=True),
    ]
    assert bench.witness.at(observations, 1.5) == [first]
    assert bench.witness.at(observations, 2.5) == [second]
    assert bench.witness.at(observations, 3.5) == []


@pytest.mark.parametrize(
    ("tool", "code", "output", "verdict"),
    [
        ("prefect-cd", 0, "", "complete"),
        ("prefect-cd", 1, "{}", "failed"),
        ("prefect-cd", 2, "{}", "none"),
        ("kubectl", 1, "error: timed out waiting for the condition", "none"),
        ("kubectl", 1, 'error: deployment "app" exceeded its progress deadline', "failed"),
        ("helm 4", 1, "Error: resource not ready, name: app\ncontext deadline exceeded", "none"),
        ("kubedog", 2, "progressing", "none"),
        ("kubedog", None, "", "none"),
    ],
)
def test_a_timeout_is_no_verdict(bench: Any, tool: str, code: int | None, output: str, verdict: str) -> None:
    assert bench.tools.verdict_of(tool, code, output) == verdict


def run(bench: Any, name: str, ours: str, seconds: float, proof: float | None, *, named: bool = True) -> Any:
    scenario = bench.scenario.load(name)
    answers = {
        tool: bench.tools.Answer(tool, ours if tool == bench.tools.OURS else "none", 100 + seconds, "", named=named)
        for tool in bench.tools.NAMES
    }
    return bench.measure.Run(scenario, 100.0, proof and 100 + proof, answers, dict.fromkeys(answers, seconds))


def test_the_last_line_has_the_measured_figures(bench: Any) -> None:
    runs = [
        run(bench, "image-tag-missing", "failed", 3.0, 1.5),
        run(bench, "configmap-missing", "failed", 62.5, 2.0),
        run(bench, "fresh", "complete", 33.0, None),
    ]
    line, reached = bench.outcome.verdict(runs)
    assert reached
    assert "2 of 2 failing called failed" in line
    assert "median 1.5 s" in line
    assert "after the patience at most 0.5 s" in line
    assert "0 of 1 good called failed" in line


@pytest.mark.parametrize(
    ("name", "ours", "seconds", "named"),
    [
        ("fresh", "failed", 3.0, True),
        ("image-tag-missing", "complete", 3.0, True),
        ("image-tag-missing", "none", 90.0, True),
        ("image-tag-missing", "failed", 9.0, True),
        ("image-tag-missing", "failed", 3.0, False),
        ("configmap-missing", "failed", 70.0, True),
    ],
)
def test_a_wrong_late_or_unexplained_verdict_misses_the_target(
    bench: Any,
    name: str,
    ours: str,
    seconds: float,
    named: bool,  # noqa: FBT001  a case of the table
) -> None:
    _, reached = bench.outcome.verdict([run(bench, name, ours, seconds, 2.0, named=named)])
    assert not reached


def test_the_plot_has_a_dot_for_each_rollout_that_was_called_failed(bench: Any) -> None:
    runs = [run(bench, "image-tag-missing", "failed", 3.0, 1.5), run(bench, "configmap-missing", "failed", 62.5, 2.0)]
    drawn = bench.plot.drawn(runs)
    assert drawn.count("<circle") == 2
    assert "2 of 2" in drawn
