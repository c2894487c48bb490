"""A test of a running environment: what it requires, what the gate gets, and what follows from its outcome."""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.errors import GateErrored, GateFailed, Invalid
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.pipeline.models import Gate, HttpCheck, Pipeline
from prefect_cd.release.model import Commit
from prefect_cd.rollout.assess import Phase
from prefect_cd.tasks.gate import run_gate
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import GitRepository, applied, deployment, pipeline, record, release, report
from tests.unit.fake_api import FakeApi

VERSION = Gate(name="smoke", http=HttpCheck(path="/version", contains="v1.36.3"))


@pytest.fixture
def reachable(target: Target, api: FakeApi) -> Target:
    """The environment under a URL; the fake API server answers there."""
    return at(target, f"http://127.0.0.1:{api.port}")


def at(target: Target, url: str) -> Target:
    return target.model_copy(update={"environment": target.environment.model_copy(update={"url": url})})


def play(target: Target, gate: Gate, sources: Pipeline | None = None, of: Commit | None = None) -> Evidence:
    return run_gate.fn(sources or pipeline(), applied(target, release(of=of)), report(), gate)


def test_a_gate_that_passes_is_evidence(reachable: Target) -> None:
    proof = play(reachable, VERSION)
    assert (proof.gate, proof.outcome) == ("smoke", Outcome.PASSED)


def test_an_http_gate_needs_no_repository_so_that_a_rollback_does_not_either(reachable: Target, home: Path) -> None:
    assert play(reachable, VERSION, pipeline(repository="/nowhere")).outcome is Outcome.PASSED
    assert not list(home.glob("*/.git"))


def test_a_gate_that_fails_is_not_tried_again_and_its_page_has_a_key_of_its_own(
    reachable: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    wrong = Gate(name="smoke", http=HttpCheck(path="/version", contains="v2"))
    done = applied(reachable)
    played = run(lambda: run_gate(pipeline(), done, report(), wrong))
    with pytest.raises(GateFailed, match="smoke failed"):
        _ = played.result
    assert list(played.descriptions) == ["shop-staging-smoke-failed"]
    assert [(task.name, task.run_count) for task in played.tasks(1)] == [("smoke on staging", 1)]
    assert api.connections == 1  # one request


def test_a_command_gets_the_url_the_release_and_the_version_that_it_has_to_find(
    reachable: Target, repository: GitRepository
) -> None:
    candidate = repository.commit({"smoke.sh": "echo $BASE_URL $ENVIRONMENT $EXPECTED_VERSION $RELEASE\n"})
    gate = Gate(name="smoke", run=["sh", "smoke.sh"])
    proof = play(reachable, gate, pipeline(repository=repository.path), candidate)
    expected = [reachable.environment.url, "staging", candidate.short, release(of=candidate).id]
    assert proof.output.split() == expected


def test_i7_no_secret_of_the_environment_is_in_the_output_of_a_gate_and_none_of_ours(
    reachable: Target, api: FakeApi, repository: GitRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = deployment()
    workload["spec"]["template"]["spec"]["volumes"] = [{"name": "db", "secret": {"secretName": "shop-db"}}]
    api.put("secrets", "shop-db", data={"password": b64encode(b"correcthorse").decode()})
    own = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "own", "namespace": "shop"},
        "stringData": {"a": "batterystaple"},
    }
    workload["metadata"]["namespace"] = "shop"
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:hunter2")
    candidate = repository.commit({"smoke.sh": "echo correcthorse batterystaple hunter2 postgres://a:b@c\n"})
    gate = Gate(name="smoke", run=["sh", "smoke.sh"])
    proof = run_gate.fn(
        pipeline(repository=repository.path), applied(reachable, release(of=candidate), workload, own), report(), gate
    )
    assert proof.output == "*** *** *** postgres://a:***@c"


def test_i7_no_secret_of_an_answer_is_evidence(reachable: Target, api: FakeApi) -> None:
    api.put("configmaps", "shop", data={"url": "postgres://shop:hunter2@db"})
    gate = Gate(name="smoke", http=HttpCheck(path="/api/v1/namespaces/shop/configmaps/shop"))
    proof = play(reachable, gate)
    assert "postgres://shop:***@db" in proof.output
    assert "hunter2" not in proof.model_dump_json()


def test_a_command_without_a_report_that_it_promised_has_no_answer(
    reachable: Target, repository: GitRepository
) -> None:
    candidate = repository.commit({"app": "1"})
    gate = Gate(name="smoke", run=["true"], report="junit.xml")
    with pytest.raises(GateErrored, match="smoke errored"):
        play(reachable, gate, pipeline(repository=repository.path), candidate)


def test_a_url_of_a_service_that_does_not_exist_is_refused(target: Target) -> None:
    with pytest.raises(Invalid, match="no Service 'shop' in namespace 'shop'"):
        play(at(target, "service/shop:80"), VERSION)


def test_i1_a_rollout_that_is_not_complete_is_not_tested(reachable: Target, api: FakeApi) -> None:
    with pytest.raises(ValueError, match="a gate needs a complete rollout of a commit"):
        run_gate.fn(pipeline(), applied(reachable), report(Phase.PROGRESSING), VERSION)
    assert api.requests == []


def test_a_takeover_has_no_commit_and_therefore_no_gates(reachable: Target) -> None:
    taken_over = applied(reachable, record(1, commit=None))
    with pytest.raises(ValueError, match="a gate needs a complete rollout of a commit"):
        run_gate.fn(pipeline(), taken_over, report(), VERSION)
