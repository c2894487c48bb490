"""A command that must pass before anything is deployed."""

from collections.abc import Callable
from typing import Any

import pytest

from prefect_cd.errors import GateErrored, GateFailed, MissingTool
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.pipeline.models import Check
from prefect_cd.tasks.check import run_check
from tests.tasks.conftest import Run
from tests.tasks.examples import GitRepository, image, pipeline


def check(script: str, **settings: Any) -> Check:  # noqa: ANN401
    return Check(**{"name": "unit tests", "run": ["sh", "-c", script], **settings})


def play(repository: GitRepository, wanted: Check) -> Evidence:
    candidate = repository.commit({"app": "1"})
    return run_check.fn(pipeline(repository=repository.path), candidate, image(), wanted)


def test_a_command_that_passes_is_evidence(repository: GitRepository) -> None:
    proof = play(repository, check("cat app"))
    assert (proof.gate, proof.outcome, proof.output.strip()) == ("unit tests", Outcome.PASSED, "1")


def test_the_command_gets_the_commits_image_and_may_set_another(repository: GitRepository) -> None:
    assert play(repository, check("echo $IMAGE")).output.strip() == image().reference
    assert play(repository, check("echo $IMAGE", environment={"IMAGE": "mine"})).output.strip() == "mine"


def test_a_command_that_fails_stops_the_release_and_its_report_says_why(
    repository: GitRepository, run: Callable[[Callable[[], Any]], Run]
) -> None:
    played = run(lambda: play(repository, check("echo 1 is not 2; exit 1")))
    with pytest.raises(GateFailed, match="unit tests failed: exit code 1") as caught:
        _ = played.result
    assert "1 is not 2" in caught.value.detail
    assert list(played.descriptions) == ["shop-unit-tests-failed"]
    assert "1 is not 2" in played.artifacts[0].data


def test_a_command_that_writes_no_report_has_no_answer(repository: GitRepository) -> None:
    with pytest.raises(GateErrored, match="unit tests errored"):
        play(repository, check("true", report="junit.xml"))


def test_a_program_that_is_not_installed_is_named(repository: GitRepository) -> None:
    with pytest.raises(MissingTool, match="no-such-program"):
        play(repository, Check(name="unit tests", run=["no-such-program"]))


def test_the_task_is_named_like_the_check_and_is_not_run_again_in_one_run(
    repository: GitRepository, run: Callable[[Callable[[], Any]], Run]
) -> None:
    settings, candidate = pipeline(repository=repository.path), repository.commit({"app": "1"})

    def twice() -> list[Evidence]:
        wanted = check("echo run >> counter; cat counter")
        return [run_check(settings, candidate, image(), wanted) for _ in range(2)]

    played = run(twice)
    first, second = played.result
    assert first == second
    assert second.output == "run"
    assert {task.name for task in played.tasks(2)} == {"unit tests"}
