"""Requests during a rollout, and when what became of them stops a release."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest
from typing_extensions import Self

from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.errors import GateFailed, RolloutFailed
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.kube.resources import Route
from prefect_cd.pipeline.models import Probe
from prefect_cd.tasks import traffic
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.target import Target, Version
from prefect_cd.tasks.traffic import probe
from tests.tasks.conftest import Run
from tests.tasks.examples import environment, plan_of, record, release
from tests.unit.fake_api import FakeApi

URL = "https://shop.example.org"
PROBE = Probe(after="0s")
GOOD = Traffic(route=Route.URL, address=URL, seconds=4, sent_before=10, sent=40)
LOSSES = GOOD.model_copy(update={"failures": {"refused": 3}})
DOWN_BEFORE = LOSSES.model_copy(update={"failures_before": {"503": 10}})


class Load:
    """Stands for the load generator: notes when requests are sent, and has seen this traffic."""

    def __init__(self, seen: Traffic) -> None:
        self.seen = seen
        self.events: list[str] = []

    def __call__(self, _: Probe, __: object, *, skip_baseline: bool) -> Self:
        self.events.append("no baseline" if skip_baseline else "baseline")
        return self

    def __enter__(self) -> Self:
        self.events.append("started")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events.append("stopped")

    def traffic(self) -> Traffic:
        assert self.events[-1] == "stopped"
        return self.seen


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[[Traffic], Load]:
    def replace(seen: Traffic) -> Load:
        load = Load(seen)
        monkeypatch.setattr(traffic, "LoadGenerator", load)
        return load

    return replace


def planned(version: Version | None = None, *, settings: Probe | None = PROBE, first: bool = False) -> Plan:
    target = Target(application="shop", environment=environment(url=URL, probe=settings))
    state = EnvironmentState() if first else EnvironmentState(newest=record(1), known_good=record(1))
    return plan_of(target, version or release(), state=state)


def roll_out(plan: Plan, load: Load, error: Exception | None = None) -> list[Evidence]:
    with probe(plan) as proved:
        load.events.append("rollout")
        if error:
            raise error
    return proved


def test_requests_are_sent_around_the_rollout_and_compared_with_the_limits_after_it(
    send: Callable[[Traffic], Load], run: Callable[[Callable[[], Any]], Run]
) -> None:
    load = send(GOOD)
    (proof,) = run(lambda: roll_out(planned(), load)).result
    assert load.events == ["baseline", "started", "rollout", "stopped"]
    assert (proof.gate, proof.outcome) == ("zero downtime", Outcome.PASSED)


@pytest.mark.parametrize("plan", [planned(settings=None), planned(first=True)], ids=["no probe", "no users yet"])
def test_without_a_probe_or_without_users_nothing_is_sent(plan: Plan, send: Callable[[Traffic], Load]) -> None:
    load = send(GOOD)
    assert roll_out(plan, load) == []
    assert load.events == ["rollout"]


def test_a_rollout_that_lost_requests_has_failed(
    send: Callable[[Traffic], Load], run: Callable[[Callable[[], Any]], Run]
) -> None:
    load = send(LOSSES)
    played = run(lambda: roll_out(planned(), load))
    with pytest.raises(GateFailed, match=r"zero downtime failed: 3 of 40 requests failed \(3 refused\)"):
        _ = played.result
    assert list(played.descriptions) == ["shop-staging-zero-downtime-failed"]
    assert [(task.name, task.run_count) for task in played.tasks(1)] == [("users of staging during the rollout", 1)]


def test_where_users_were_without_answers_before_a_rollback_would_restore_the_outage(
    send: Callable[[Traffic], Load], run: Callable[[Callable[[], Any]], Run], caplog: pytest.LogCaptureFixture
) -> None:
    load = send(DOWN_BEFORE)
    (proof,) = run(lambda: roll_out(planned(), load)).result
    assert proof.outcome is Outcome.ERRORED
    assert "zero downtime could not be measured: before the rollout, 10 of 10 requests failed" in caplog.text


def test_a_rollback_is_measured_without_a_baseline_and_limits_do_not_fail_it(
    send: Callable[[Traffic], Load], run: Callable[[Callable[[], Any]], Run]
) -> None:
    load = send(LOSSES)
    played = run(lambda: roll_out(planned(record(1)), load))
    assert played.result == []
    assert load.events[0] == "no baseline"
    assert list(played.descriptions) == ["shop-staging-zero-downtime-during-the-rollback-failed"]


def test_a_rollout_that_failed_by_itself_keeps_its_reason_and_shows_the_requests(
    send: Callable[[Traffic], Load], run: Callable[[Callable[[], Any]], Run]
) -> None:
    load = send(LOSSES)
    played = run(lambda: roll_out(planned(), load, RolloutFailed("the pods crash")))
    with pytest.raises(RolloutFailed, match="the pods crash"):
        _ = played.result
    assert load.events[-1] == "stopped"
    assert list(played.descriptions) == ["shop-staging-zero-downtime-failed"]


def test_i4_a_rollback_goes_on_when_its_requests_cannot_be_shown(
    send: Callable[[Traffic], Load], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Evidence:
        raise ZeroDivisionError("no requests")

    load = send(LOSSES)
    monkeypatch.setattr(traffic.limits, "evaluate", broken)
    assert roll_out(planned(record(1)), load) == []
    with pytest.raises(RolloutFailed, match="the pods crash"):
        roll_out(planned(), load, RolloutFailed("the pods crash"))
    assert "zero downtime could not be measured: no requests" in caplog.text


def test_before_the_first_release_there_are_no_users(send: Callable[[Traffic], Load]) -> None:
    load = send(GOOD)
    nothing = record(0, release_id="nothing", objects=())
    ready = planned().model_copy(update={"state": EnvironmentState(newest=nothing, known_good=nothing)})
    assert roll_out(ready, load) == []
    assert load.events == ["rollout"]


def test_the_requests_go_to_the_environments_url_by_a_connection_of_their_own(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    settings = Probe(path="/version", rate=100, after="0s")
    shown = target.environment.model_copy(update={"url": f"http://127.0.0.1:{api.port}", "probe": settings})
    state = EnvironmentState(newest=record(1), known_good=record(1))
    plan = plan_of(Target(application="shop", environment=shown), release(), state=state)
    before: list[int] = []

    def work() -> list[Evidence]:
        with probe(plan) as proved:
            before.append(api.connections)
        return proved

    (proof,) = run(work).result
    assert proof.gate == "zero downtime"
    assert before[0] >= 3  # the baseline: a new connection for each request, as new users open
