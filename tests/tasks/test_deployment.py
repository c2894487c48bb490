"""A release into an environment and back out of it: the order of the stages, and what each failure leads to.

The stages are replaced by ones that note their calls; the last tests play real stages on a fake API server.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

import pytest

from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.lease import TAKEOVER_WAIT
from prefect_cd.environment.records import Decision, GateResult, Record, State
from prefect_cd.errors import (
    ClusterUnreachable,
    ContentChanged,
    DeliveryError,
    EnvironmentBusy,
    EnvironmentFrozen,
    Errored,
    GateFailed,
    Invalid,
    LockLost,
    RollbackFailed,
    RolledBack,
    RolloutFailed,
    Superseded,
)
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.pipeline.models import Environment, Gate, HttpCheck, Pipeline
from prefect_cd.tasks import deployment
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.deployment import Deployed, deploy, recover, restore_known_good, rollback
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.target import Target, Version, id_of
from tests.tasks import examples
from tests.tasks.conftest import Run
from tests.tasks.examples import applied, config_map, environment, evidence, pipeline, plan_of, release, report
from tests.unit.fake_api import FakeApi

TARGET = Target(application="shop", environment=Environment(name="production", namespace="shop", manifests="k8s"))
NOTHING: Any = None


def record(number: int, state: State) -> Record:
    return Record(
        number=number,
        application="shop",
        environment="production",
        state=state,
        release_id=f"release-{number}",
        release_hash="0" * 64,
        commit=None,
        image=None,
        objects=(),
        started_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The states that records were given."""
    states: list[State] = []
    monkeypatch.setattr(deployment, "record_outcome", lambda _target, _record, state, _lock, **_: states.append(state))
    return states


@pytest.fixture
def failed_rollback(monkeypatch: pytest.MonkeyPatch) -> Callable[[DeliveryError], DeliveryError]:
    """The error of the run when the rollback ends with an error."""

    def end(with_: DeliveryError) -> DeliveryError:
        def fail(*_: object) -> NoReturn:
            raise with_

        monkeypatch.setattr(deployment, "plan", fail)
        tried, good = record(2, State.STARTED), record(1, State.KNOWN_GOOD)
        return restore_known_good(NOTHING, TARGET, tried, good, NOTHING, GateFailed("the shop sells nothing"))

    return end


def test_i4_an_environment_that_cannot_be_reached_is_left_to_recovery_and_not_frozen(
    recorded: list[State], failed_rollback: Callable[[DeliveryError], DeliveryError]
) -> None:
    ended = failed_rollback(ClusterUnreachable("the API server does not answer"))
    assert isinstance(ended, ClusterUnreachable)
    assert recorded == []  # the record says that it was started: that is what recovery looks for
    assert "the shop sells nothing" in ended.detail
    assert "`recover/shop`" in ended.hint


def test_i4_an_environment_that_could_not_be_brought_back_is_frozen(
    recorded: list[State], failed_rollback: Callable[[DeliveryError], DeliveryError]
) -> None:
    ended = failed_rollback(RolloutFailed("its image is gone"))
    assert isinstance(ended, RollbackFailed)
    assert recorded == [State.ROLLBACK_FAILED]


# --- the order of the stages -----------------------------------------------------------------------------------------

LOCK: Any = object()
SMOKE = Gate(name="smoke", http=HttpCheck())
STAGING = Target(application="shop", environment=environment(url="https://shop.example.org", gates=(SMOKE,)))
PIPELINE = pipeline(STAGING.environment)
GOOD = examples.record(1)
WRITING = {"record start", "apply", "prune", "withdraw", "record known-good", "record failed", "record rolled-back"}


class Stages:
    """Stands for all stages of a deployment; notes the calls in order, and fails where a test wants it to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, DeliveryError] = {}
        """Call -> the error that it ends with; `apply release-1` is the apply of a rollback."""
        self.state = EnvironmentState(newest=GOOD, known_good=GOOD)
        self.reasons: dict[State, str] = {}
        self.waits: list[timedelta | None] = []
        self.same_content = False
        """Whether the live objects are those of the release already."""
        for name in (
            *("hold_lock", "plan", "refuse_blocked", "record_start", "probe", "apply", "watch_rollout", "prune"),
            *("run_gate", "watch_soak", "record_outcome", "find_record", "withdraw", "read_state"),
        ):
            monkeypatch.setattr(deployment, name, getattr(self, name))
        monkeypatch.setattr(deployment, "_read_state_once", self.read_state)

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if call in WRITING or call.startswith("record ")]

    def _note(self, call: str, version: str = "") -> None:
        self.calls.append(call)
        for key in (call, f"{call} {version}"):
            if key in self.errors:
                raise self.errors[key]

    @contextmanager
    def hold_lock(self, target: Target, *, wait: timedelta | None = None) -> Iterator[Any]:
        assert target.name == "staging"
        self.waits.append(wait)
        self._note("lock")
        yield LOCK
        self.calls.append("unlock")

    def plan(self, target: Target, version: Version) -> Plan:
        self._note(f"plan {id_of(version)}" if isinstance(version, Record) else "plan", id_of(version))
        changes = [] if self.same_content else [change()]
        return plan_of(target, version, state=self.state, changes={"changes": changes})

    def refuse_blocked(self, _: Pipeline, __: object, planned: Plan) -> None:
        assert planned.state == self.state
        self._note("refuse blocked")

    def record_start(self, planned: Plan, lock: object, decision: Decision | None = None) -> Record:
        assert lock is LOCK
        self._note("record start" + (f", approved by {decision.name}" if decision else ""))
        return examples.record(2, State.STARTED, release_id=id_of(planned.version))

    @contextmanager
    def probe(self, planned: Plan) -> Iterator[list[Evidence]]:
        self._note("probe")
        proved: list[Evidence] = []
        yield proved
        self._note("probe ended", id_of(planned.version))
        proved.append(evidence("zero downtime"))

    def apply(self, planned: Plan, lock: object) -> Applied:
        assert lock is LOCK
        self._note("apply", id_of(planned.version))
        return applied(planned.target, planned.version)

    def watch_rollout(self, done: Applied) -> Any:  # noqa: ANN401
        self._note("rollout", done.release_id)
        return report()

    def prune(self, done: Applied, lock: object) -> None:
        assert lock is LOCK
        self._note("prune", done.release_id)

    def run_gate(self, _: Pipeline, done: Applied, seen: object, gate: Gate) -> Evidence:
        assert seen == report()
        self._note("gate", done.release_id)
        return evidence(gate.name)

    def watch_soak(self, done: Applied) -> None:
        self._note("soak", done.release_id)

    def record_outcome(
        self, _: Target, __: Record, state: State, lock: object, *, reason: str = "", evidence: object = ()
    ) -> None:
        assert lock is LOCK
        assert (evidence != ()) == (state is State.KNOWN_GOOD)
        self.reasons[state] = reason
        self._note(f"record {state.value}")

    def find_record(self, _: Target, wanted: str) -> Record:
        self._note(f"find {wanted or 'the previous one'}")
        return GOOD

    def withdraw(self, _: Target, chosen: Record, record: Record, lock: object) -> None:
        assert (chosen.number, record.number, lock) == (1, 2, LOCK)
        self._note("withdraw")

    def read_state(self, _: Target) -> EnvironmentState:
        self._note("read state")
        return self.state


def change() -> dict[str, str]:
    return {"api_version": "v1", "kind": "ConfigMap", "namespace": "shop", "name": "shop", "action": "configured"}


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def decision() -> Decision:
    return Decision(approved=True, name="approver one", comment="", decided_at=examples.NOW, content="c")


ROLLED_OUT = ["probe", "apply", "rollout", "prune", "probe ended", "gate", "soak"]
RESTORED = ["plan release-1", *ROLLED_OUT]


def test_i2_i3_a_release_locks_plans_records_writes_proves_and_records_in_this_order(stages: Stages) -> None:
    candidate = release()
    deployed = deploy.fn(PIPELINE, STAGING, candidate, decision())
    assert stages.calls == [
        *("lock", "plan", "refuse blocked", "record start, approved by approver one"),
        *ROLLED_OUT,
        *("record known-good", "unlock"),
    ]
    assert (deployed.environment, deployed.release_id, deployed.record) == ("staging", candidate.id, 2)
    assert [proof.gate for proof in deployed.evidence] == ["zero downtime", "smoke"]


def test_i8_what_runs_already_is_not_written_and_its_recorded_evidence_is_returned(stages: Stages) -> None:
    candidate = release()
    gates = (GateResult(name="smoke", outcome="passed", summary="3 passed"),)
    runs = examples.record(7, release_id=candidate.id, release_hash=candidate.hash, gates=gates)
    stages.state, stages.same_content = EnvironmentState(newest=runs, known_good=runs), True
    deployed = deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls == ["lock", "plan", "unlock"]
    assert (deployed.record, deployed.release_id) == (7, candidate.id)
    assert [(proof.gate, proof.outcome) for proof in deployed.evidence] == [("smoke", Outcome.PASSED)]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("lock", EnvironmentBusy("staging is being changed by another run")),
        ("plan", Invalid("a manifest is wrong")),
        ("refuse blocked", EnvironmentFrozen("staging is frozen")),
        ("refuse blocked", Superseded("staging runs something newer")),
        ("record start", ContentChanged("no longer what was approved")),
        ("record start", ClusterUnreachable("gone")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_i2_what_fails_before_the_record_ends_the_release_and_nothing_is_written_or_rolled_back(
    stages: Stages, call: str, error: DeliveryError
) -> None:
    stages.errors[call] = error
    with pytest.raises(type(error), match=error.reason):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-1] == call
    assert stages.writes in ([], ["record start"])


@pytest.mark.parametrize("call", ["apply", "rollout", "prune", "probe ended", "gate", "soak"])
def test_i4_whatever_fails_after_the_record_restores_the_known_good(stages: Stages, call: str) -> None:
    candidate = release()
    stages.errors[f"{call} {candidate.id}"] = GateFailed("the shop sells nothing")
    with pytest.raises(RolledBack, match=f"{candidate.id} failed in staging, which runs release-1 again") as caught:
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-len(RESTORED) - 1 :] == [*RESTORED, "record rolled-back"]
    assert "the shop sells nothing" in caught.value.detail
    assert "the shop sells nothing" in stages.reasons[State.ROLLED_BACK]
    assert isinstance(caught.value.__cause__, GateFailed)


@pytest.mark.parametrize("call", ["apply", "rollout", "prune", "gate", "soak"])
def test_i3_a_writer_that_lost_its_lock_stops_without_another_write(stages: Stages, call: str) -> None:
    candidate = release()
    stages.errors[f"{call} {candidate.id}"] = LockLost("the lock is now held by another run")
    with pytest.raises(LockLost):
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-1] == call
    assert stages.reasons == {}


@pytest.mark.parametrize("call", ["plan release-1", "apply release-1", "rollout release-1", "gate release-1"])
def test_i3_a_writer_that_loses_its_lock_during_the_rollback_leaves_the_record_to_the_next_one(
    stages: Stages, call: str
) -> None:
    candidate = release()
    stages.errors[f"gate {candidate.id}"] = GateFailed("the shop sells nothing")
    stages.errors[call] = LockLost("the lock is now held by another run")
    with pytest.raises(LockLost):
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.reasons == {}


def test_i6_a_rollback_that_fails_freezes_the_environment_and_prints_the_next_command(stages: Stages) -> None:
    candidate = release()
    stages.errors[f"gate {candidate.id}"] = GateFailed("the shop sells nothing")
    stages.errors["rollout release-1"] = RolloutFailed("its image is gone")
    with pytest.raises(
        RollbackFailed, match=f"neither on {candidate.id} nor back on release-1, and is frozen"
    ) as caught:
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-1] == "record rollback-failed"
    reason = stages.reasons[State.ROLLBACK_FAILED]
    assert "the shop sells nothing" in reason
    assert "its image is gone" in reason
    assert "`prefect deployment run 'rollback/shop' -p environment=staging -p to=release-1`" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "known_good", "why"),
    [
        ({}, None, "there is nothing to roll back to"),
        ({"rollback": "never"}, GOOD, "the pipeline file says never to roll back"),
    ],
    ids=["first release", "never"],
)
def test_without_a_rollback_the_environment_stays_and_the_record_says_that_it_failed(
    stages: Stages, settings: dict[str, Any], known_good: Record | None, why: str
) -> None:
    stages.state = EnvironmentState(newest=known_good, known_good=known_good)
    stages.errors["gate"] = GateFailed("the shop sells nothing", hint="correct it")
    target = STAGING.model_copy(update={"environment": STAGING.environment.model_copy(update=settings)})
    with pytest.raises(GateFailed, match="the shop sells nothing") as caught:
        deploy.fn(PIPELINE, target, release())
    assert caught.value.hint == f"correct it; staging stays as it is: {why}"
    assert stages.calls[-1] == "record failed"
    assert not any(call.startswith("plan release") for call in stages.calls)


def test_an_unexpected_exception_causes_no_rollback(stages: Stages) -> None:
    stages.errors["gate"] = ZeroDivisionError()  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-1] == "gate"


# --- rollback --------------------------------------------------------------------------------------------------------


def test_i2_a_rollback_by_a_person_is_recorded_like_a_release_and_withdraws_what_it_skips(stages: Stages) -> None:
    deployed = rollback.fn(PIPELINE, STAGING, "release-1")
    assert stages.calls == [
        *("lock", "find release-1", "plan release-1", "record start"),
        *ROLLED_OUT,
        *("record known-good", "withdraw", "unlock"),
    ]
    assert (deployed.release_id, deployed.record) == ("release-1", 2)


def test_a_rollback_to_nothing_is_refused_before_anything_is_written(stages: Stages) -> None:
    stages.errors["find the previous one"] = Invalid("staging has no known-good record of an earlier release")
    with pytest.raises(Invalid, match="no known-good record"):
        rollback.fn(PIPELINE, STAGING)
    assert stages.calls == ["lock", "find the previous one"]


def test_a_rollback_that_fails_by_a_person_restores_what_ran_before(stages: Stages) -> None:
    ran = examples.record(3, release_id="release-3")
    stages.state = EnvironmentState(newest=ran, known_good=ran)
    stages.errors["gate release-1"] = GateFailed("the shop sells nothing")
    with pytest.raises(RolledBack, match="release-1 failed in staging, which runs release-3 again"):
        rollback.fn(PIPELINE, STAGING, "release-1")
    assert stages.calls[-1] == "record rolled-back"
    assert "withdraw" not in stages.calls


# --- recovery --------------------------------------------------------------------------------------------------------


def interrupted(stages: Stages, known_good: Record | None = GOOD) -> None:
    started = examples.record(2, State.STARTED)
    stages.state = EnvironmentState(newest=started, known_good=known_good)


def test_i4_an_environment_without_an_interrupted_rollout_is_not_even_locked(stages: Stages) -> None:
    assert recover(PIPELINE, STAGING) is None
    assert stages.calls == ["read state"]


def test_i4_an_interrupted_rollout_is_rolled_back_under_the_lock(stages: Stages) -> None:
    interrupted(stages)
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, RolledBack)
    assert stages.calls == ["read state", "lock", "read state", *RESTORED, "record rolled-back", "unlock"]
    assert "its process ended" in stages.reasons[State.ROLLED_BACK]
    assert stages.waits == [TAKEOVER_WAIT]


def test_i4_a_first_release_that_was_interrupted_is_recorded_as_failed(stages: Stages) -> None:
    interrupted(stages, known_good=None)
    ended = recover(PIPELINE, STAGING)
    assert type(ended) is Errored
    assert "there is nothing to roll back to" in ended.hint
    assert stages.writes == ["record failed"]


def test_i3_where_another_process_is_at_work_nothing_is_recovered(stages: Stages) -> None:
    interrupted(stages)
    stages.errors["lock"] = EnvironmentBusy("staging is being changed by another run")
    assert recover(PIPELINE, STAGING) is None
    assert stages.writes == []


def test_i4_what_another_process_recovered_meanwhile_is_left_alone(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(stages)
    monkeypatch.setattr(deployment, "read_state", lambda _: EnvironmentState(newest=GOOD, known_good=GOOD))
    assert recover(PIPELINE, STAGING) is None
    assert stages.writes == []


def test_i4_a_cluster_that_does_not_answer_is_the_result_so_that_other_environments_are_recovered(
    stages: Stages,
) -> None:
    stages.errors["read state"] = ClusterUnreachable("gone")
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, ClusterUnreachable)


# --- real stages on a fake API server --------------------------------------------------------------------------------


def deploy_in_a_run(
    run: Callable[[Callable[[], Any]], Run], target: Target, greeting: str, gates: tuple[Gate, ...] = ()
) -> Run:
    wanted = target.model_copy(update={"environment": target.environment.model_copy(update={"gates": gates})})
    return run(lambda: deploy(pipeline(wanted.environment), wanted, release(config_map(greeting=greeting))))


def settings_and_records(api: FakeApi) -> tuple[str, list[str]]:
    labels = [item["metadata"]["labels"] for item in api.objects["secrets"].values()]
    return api.objects["configmaps"]["shop"]["data"]["greeting"], [names["prefect-cd.dev/state"] for names in labels]


def test_i2_the_record_is_in_the_cluster_before_the_first_object_is_written(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    played = deploy_in_a_run(run, target, "hello")
    assert isinstance(played.result, Deployed)
    without_lease = [write for write in api.writes if "leases/" not in write]
    assert without_lease == [
        "POST secrets/prefect-cd.shop.1",
        "PATCH configmaps/shop",
        "PATCH secrets/prefect-cd.shop.1",
    ]
    assert api.writes[0] == "POST leases/prefect-cd.shop"
    assert api.writes[-1] == "PUT leases/prefect-cd.shop"
    assert settings_and_records(api) == ("hello", ["known-good"])
    assert {task.name for task in played.tasks(8)} == {
        *("deploy to staging", "plan staging", "record start in staging", "apply to staging", "rollout of staging"),
        *("prune staging", "staging stays up", "record known-good in staging"),
    }


def test_i8_the_same_release_twice_is_one_release(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    first = deploy_in_a_run(run, target, "hello")
    api.requests.clear()
    second = deploy_in_a_run(run, target, "hello")
    assert second.result == first.result
    assert [write for write in api.writes if "leases/" not in write] == []


def on_the_fake_server(target: Target, api: FakeApi, expected: str) -> tuple[Target, tuple[Gate, ...]]:
    """The target with a URL that shows its settings, and a gate that expects some text in them."""
    url = f"http://127.0.0.1:{api.port}"
    shown = target.model_copy(update={"environment": target.environment.model_copy(update={"url": url})})
    check = HttpCheck(path="/api/v1/namespaces/shop/configmaps/shop", contains=expected)
    return shown, (Gate(name="smoke", http=check),)


def test_i4_a_release_that_fails_its_gate_is_rolled_back_by_the_same_run(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    target, gates = on_the_fake_server(target, api, '"greeting": "hello"')
    assert isinstance(deploy_in_a_run(run, target, "hello", gates).result, Deployed)
    played = deploy_in_a_run(run, target, "good day", gates)
    with pytest.raises(RolledBack, match="smoke failed"):
        _ = played.result
    assert settings_and_records(api) == ("hello", ["known-good", "rolled-back"])
    assert {"shop-staging-smoke", "shop-staging-smoke-failed"} <= set(played.descriptions)


def test_i6_a_rollback_that_fails_too_freezes_the_environment_for_the_next_release(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    target, gates = on_the_fake_server(target, api, "what no version says")
    deploy_in_a_run(run, target, "hello")
    with pytest.raises(RollbackFailed):
        _ = deploy_in_a_run(run, target, "good day", gates).result
    assert settings_and_records(api) == ("hello", ["known-good", "rollback-failed"])
    with pytest.raises(EnvironmentFrozen):
        _ = deploy_in_a_run(run, target, "good evening").result
    assert settings_and_records(api) == ("hello", ["known-good", "rollback-failed"])
