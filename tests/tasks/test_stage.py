"""What is retried, what is kept, and where a stage's log goes."""

import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from prefect import Task, flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from prefect_cd import errors, tasks
from prefect_cd.errors import (
    ClusterUnreachable,
    DeliveryError,
    EnvironmentBusy,
    Errored,
    GateErrored,
    GateFailed,
    LockLost,
    RegistryUnreachable,
)
from prefect_cd.tasks.stage import PERSISTED, RETRIES, live, log, may_heal
from tests.tasks.conftest import Run

AT_ONCE: dict[str, Any] = {**RETRIES, "retry_delay_seconds": 0, "retry_jitter_factor": None}
TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DeliveryError)]
WAITED_LONG_ENOUGH = (GateErrored, EnvironmentBusy, LockLost)


def failed_with(error: BaseException) -> State[Any]:
    return State(type=StateType.FAILED, data=error)


def retried(error: BaseException) -> bool:
    @task
    def stage() -> None:
        """Only its name is used."""

    run = TaskRun(task_key="stage", dynamic_key="0", flow_run_id=uuid4())
    return may_heal(stage, run, failed_with(error))


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_only_errored_attempts_that_have_not_waited_already_are_retried(kind: type[DeliveryError]) -> None:
    expected = issubclass(kind, Errored) and not issubclass(kind, WAITED_LONG_ENOUGH)
    assert retried(kind("it happened")) is expected


def test_a_bug_is_not_retried() -> None:
    assert not retried(ValueError("a bug"))


def attempts(run: Callable[[Callable[[], Any]], Run], *endings: DeliveryError | str) -> tuple[int, Run]:
    """Play a retried stage whose attempts end like this, one by one; how many there were."""
    made = 0

    @task(**AT_ONCE)
    def stage() -> str:
        nonlocal made
        ending = endings[made]
        made += 1
        if isinstance(ending, DeliveryError):
            raise ending
        return ending

    played = run(stage)
    return made, played


def test_an_errored_stage_is_tried_again_until_it_has_an_answer(run: Callable[[Callable[[], Any]], Run]) -> None:
    made, played = attempts(run, ClusterUnreachable("gone"), RegistryUnreachable("gone"), "an answer")
    assert made == 3
    assert played.result == "an answer"


def test_after_three_more_attempts_the_error_is_the_result(run: Callable[[Callable[[], Any]], Run]) -> None:
    made, played = attempts(run, *[ClusterUnreachable("gone")] * 4)
    assert made == 4
    with pytest.raises(ClusterUnreachable, match="gone"):
        _ = played.result


def test_a_failed_stage_is_not_tried_again(run: Callable[[Callable[[], Any]], Run]) -> None:
    made, played = attempts(run, GateFailed("the shop sells nothing"), "an answer")
    assert made == 1
    with pytest.raises(GateFailed, match="the shop sells nothing"):
        _ = played.result


def test_a_stage_that_writes_or_asks_a_server_is_retried_and_a_test_and_a_whole_deployment_are_not() -> None:
    named: dict[str, Task[..., Any]] = {
        name: stage for name in tasks.__all__ if isinstance(stage := getattr(tasks, name), Task)
    }
    retried_stages = {name for name, stage in named.items() if stage.retries}
    assert retried_stages == {
        *("apply", "build", "find_record", "plan", "preflight", "prune", "read_state"),
        *("record_outcome", "record_start", "render", "resolve", "run_gate"),
    }
    assert all(named[name].retry_condition_fn is may_heal for name in retried_stages)


def test_results_that_cost_time_or_decide_are_persisted_and_those_about_an_environment_are_not() -> None:
    named = {name: stage for name in tasks.__all__ if isinstance(stage := getattr(tasks, name), Task)}
    assert {name for name, stage in named.items() if stage.persist_result} == {
        *("build", "compare_pipeline_file", "preflight", "resolve", "run_check"),
    }


@pytest.mark.usefixtures("prefect_server")
def test_a_resumed_run_does_not_compute_a_persisted_result_again() -> None:
    computed: list[str] = []

    @task(**PERSISTED)
    def expensive(name: str) -> str:
        computed.append(name)
        return f"result of {name}"

    @flow(persist_result=True)
    def resumed() -> list[str]:
        return [expensive("build"), expensive("check")]

    with get_client(sync_client=True) as client:
        started = client.create_flow_run(resumed)
        first: State[list[str]] = run_flow(resumed, flow_run=started, return_type="state")
        client.set_flow_run_state(started.id, Scheduled(), force=True)
        again = client.read_flow_run(started.id)
        second: State[list[str]] = run_flow(resumed, flow_run=again, return_type="state")
        assert first.result() == second.result() == ["result of build", "result of check"]
        assert computed == ["build", "check"]
        other = client.create_flow_run(resumed)
        run_flow(resumed, flow_run=other)
    assert computed == ["build", "check"] * 2


def test_outside_of_a_run_the_log_is_the_packages(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prefect_cd"):
        log().info("a line")
        live()("a line of %s a program")
    assert [(entry.name, entry.getMessage()) for entry in caplog.records] == [
        ("prefect_cd", "a line"),
        ("prefect_cd", "a line of %s a program"),
    ]


def test_inside_a_run_the_log_is_the_runs(run: Callable[[Callable[[], Any]], Run]) -> None:
    assert run(lambda: log().name).result == "prefect.flow_runs"
