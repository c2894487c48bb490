"""The pure parts of benchmarks/verdict: scenarios as they are read, proofs, and what an answer means."""

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
    """The benchmark's modules, importable only here: their names are too plain for everybody."""
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
def test_every_scenario_says_what_is_expected_in_our_own_words(bench: Any, name: str) -> None:
    scenario = bench.scenario.load(name, "vb-1-copy")
    assert set(scenario.categories) <= {each.value for each in Category}
    kind, workload = scenario.workload
    assert [
        each for each in scenario.manifests if each["kind"].lower() == kind and each["metadata"]["name"] == workload
    ]
    assert "$" not in str([each["metadata"] for each in scenario.manifests])
    assert scenario.provable <= (not scenario.patience)
    if scenario.twin:
        assert bench.scenario.load(scenario.twin).good is not scenario.good


def test_there_are_enough_of_both_kinds_and_every_trouble_is_among_them(bench: Any) -> None:
    scenarios = [bench.scenario.load(name) for name in NAMES]
    assert sum(each.good for each in scenarios) >= 30
    assert sum(not each.good for each in scenarios) >= 30
    covered = {category for each in scenarios for category in each.categories}
    # no node's network can be broken for the asking; volumes are measured once a minute, which is too slow to wait for
    assert {each.value for each in Category} - covered == {"node", "storage-limit", "unknown"}


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


def test_a_proof_is_the_first_arrival_of_the_new_version_that_fits(bench: Any) -> None:
    seen = [
        bench.witness.Seen(9.0, pod("old", 5, **restarted(7))),
        bench.witness.Seen(11.0, pod("old", 5, **restarted(8))),
        bench.witness.Seen(12.0, pod("new", 10, **restarted(2))),
        bench.witness.Seen(13.0, pod("new", 10, **restarted(3))),
        bench.witness.Seen(14.0, pod("new", 10, **restarted(4))),
    ]
    assert bench.proof.proved({"ended": 3}, seen, 10.5) == 13.0
    assert bench.proof.proved({"ended": 9}, seen, 10.5) is None
    assert bench.proof.proved({"apply": True}, seen, 10.5) == 10.5


def test_an_event_about_an_old_pod_proves_nothing(bench: Any) -> None:
    def event(about: str) -> dict[str, Any]:
        return {
            "kind": "Event",
            "metadata": {"uid": f"event-{about}"},
            "involvedObject": {"uid": about},
            "reason": "Failed",
            "message": "x: not found",
        }

    seen = [bench.witness.Seen(9.0, pod("old", 5)), bench.witness.Seen(11.0, event("old"))]
    rule = {"event": "Failed", "says": "NOT found"}
    assert bench.proof.proved(rule, seen, 10.0) is None
    assert bench.proof.proved(rule, [*seen, bench.witness.Seen(12.0, event("new"))], 10.0) == 12.0


def test_readiness_that_is_lost_is_counted_for_each_pod(bench: Any) -> None:
    states = [(1, "a", "True"), (2, "b", "False"), (3, "a", "False"), (4, "a", "True"), (5, "a", "False")]
    seen = [bench.witness.Seen(float(at), pod(uid, 0, **ready(status))) for at, uid, status in states]
    assert bench.proof.proved({"lost": 1}, seen, 0.0) == 3.0
    assert bench.proof.proved({"lost": 2}, seen, 0.0) == 5.0


def test_objects_are_known_as_they_were_at_a_moment(bench: Any) -> None:
    first, second = pod("a", 1, phase="Pending"), pod("a", 1, phase="Running")
    seen = [bench.witness.Seen(1.0, first), bench.witness.Seen(2.0, second), bench.witness.Seen(3.0, second, gone=True)]
    assert bench.witness.at(seen, 1.5) == [first]
    assert bench.witness.at(seen, 2.5) == [second]
    assert bench.witness.at(seen, 3.5) == []


@pytest.mark.parametrize(
    ("tool", "code", "words", "verdict"),
    [
        ("prefect-cd", 0, "", "complete"),
        ("prefect-cd", 1, "{}", "doomed"),
        ("prefect-cd", 2, "{}", "none"),
        ("kubectl", 1, "error: timed out waiting for the condition", "none"),
        ("kubectl", 1, 'error: deployment "app" exceeded its progress deadline', "doomed"),
        ("helm 4", 1, "Error: resource not ready, name: app\ncontext deadline exceeded", "none"),
        ("kubedog", 2, "progressing", "none"),
        ("kubedog", None, "", "none"),
    ],
)
def test_that_the_time_is_up_is_no_verdict(bench: Any, tool: str, code: int | None, words: str, verdict: str) -> None:
    assert bench.tools.verdict_of(tool, code, words) == verdict


def run(bench: Any, name: str, ours: str, seconds: float, proof: float | None, *, named: bool = True) -> Any:
    scenario = bench.scenario.load(name)
    told = {
        tool: bench.tools.Answer(tool, ours if tool == bench.tools.OURS else "none", 100 + seconds, "", named=named)
        for tool in bench.tools.NAMES
    }
    return bench.measure.Run(scenario, 100.0, proof and 100 + proof, told, dict.fromkeys(told, seconds))


def test_the_last_line_measures_what_is_wanted(bench: Any) -> None:
    runs = [
        run(bench, "image-tag-missing", "doomed", 3.0, 1.5),
        run(bench, "configmap-missing", "doomed", 62.5, 2.0),
        run(bench, "fresh", "complete", 33.0, None),
    ]
    said, reached = bench.outcome.verdict(runs)
    assert reached
    assert "2 of 2 failing condemned" in said
    assert "median 1.5 s" in said
    assert "after the patience at most 0.5 s" in said
    assert "0 of 1 good condemned" in said


@pytest.mark.parametrize(
    ("name", "ours", "seconds", "named"),
    [
        ("fresh", "doomed", 3.0, True),
        ("image-tag-missing", "complete", 3.0, True),
        ("image-tag-missing", "none", 90.0, True),
        ("image-tag-missing", "doomed", 9.0, True),
        ("image-tag-missing", "doomed", 3.0, False),
        ("configmap-missing", "doomed", 70.0, True),
    ],
)
def test_one_that_is_wrong_late_or_unexplained_is_a_shortfall(
    bench: Any,
    name: str,
    ours: str,
    seconds: float,
    named: bool,  # noqa: FBT001  a case of the table
) -> None:
    _, reached = bench.outcome.verdict([run(bench, name, ours, seconds, 2.0, named=named)])
    assert not reached


def test_the_plot_has_a_dot_for_each_condemned_rollout(bench: Any) -> None:
    runs = [run(bench, "image-tag-missing", "doomed", 3.0, 1.5), run(bench, "configmap-missing", "doomed", 62.5, 2.0)]
    drawn = bench.plot.drawn(runs)
    assert drawn.count("<circle") == 2
    assert "2 of 2" in drawn
