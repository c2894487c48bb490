"""A release into an environment and back out of it: the order of the stages, and what each failure leads to.

The stages are replaced by ones that note their calls; the last tests play real stages on a fake API server.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

import httpx
import pytest
from prefect.exceptions import TerminationSignal

from prefect_cd.environment.change_set import Action, ChangeSet, change_to
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
    RepositoryUnreachable,
    RollbackFailed,
    RolledBack,
    RolloutFailed,
    Superseded,
    Vetoed,
)
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.manifests.irreversible import Kept
from prefect_cd.pipeline.models import Environment, Gate, HttpCheck, Pipeline
from prefect_cd.tasks import deployment
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.deployment import (
    Deployed,
    deploy,
    deployed_by_this_run,
    recover,
    repair,
    restore_known_good,
    rollback,
)
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.record import Started
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
    outcome = Stage(lambda _target, _record, state, _lock, **_: states.append(state))
    monkeypatch.setattr(deployment, "record_outcome", outcome)
    return states


@pytest.fixture
def failed_rollback(monkeypatch: pytest.MonkeyPatch) -> Callable[[DeliveryError], DeliveryError]:
    """The error of the run when the rollback ends with an error."""

    def end(with_: DeliveryError) -> DeliveryError:
        def fail(*_: object) -> NoReturn:
            raise with_

        monkeypatch.setattr(deployment, "plan", Stage(fail))
        tried, good = record(2, State.APPLYING), record(1, State.KNOWN_GOOD)
        return restore_known_good(NOTHING, TARGET, tried, good, NOTHING, GateFailed("the shop sells nothing"))

    return end


@pytest.mark.parametrize("error", [ClusterUnreachable("the API server does not answer"), Errored("no space left")])
def test_i4_an_environment_that_cannot_be_reached_is_left_to_recovery_and_not_frozen(
    recorded: list[State], failed_rollback: Callable[[DeliveryError], DeliveryError], error: Errored
) -> None:
    ended = failed_rollback(error)
    assert ended is error
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
NOTHING_BEFORE = examples.record(0, release_id="nothing", commit=None, image=None, objects=())
WRITING = {"record start", "apply", "prune", "record known-good", "record failed", "record rolled-back"}


class Stage:
    """Stands for a Prefect task: `error` is what Prefect's client raises around its function."""

    def __init__(self, function: Callable[..., Any], error: Callable[[], Exception | None] = lambda: None) -> None:
        self.fn = function
        self.name = "stage"
        self._error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if error := self._error():
            raise error
        return self.fn(*args, **kwargs)


class Stages:
    """Stands for all stages of a deployment; notes the calls in order, and fails where a test wants it to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, BaseException] = {}
        """Call -> the error that it ends with; `apply release-1` is the apply of a rollback."""
        self.own: Record | None = None
        """What this run released before it was resumed."""
        self.lost_response: Exception | None = None
        """What the write of an outcome ends with, after the server has done it."""
        self.prefect_dies_in = ""
        """The call after which every task run fails, since Prefect's server is away."""
        self.prefect: Exception | None = None
        self.state = EnvironmentState(newest=GOOD, known_good=GOOD)
        self.reasons: dict[State, str] = {}
        self.waits: list[timedelta | None] = []
        self.same_content = False
        """Whether the live objects are those of the release already."""
        for name in (
            *("plan", "record_start", "apply", "watch_rollout", "prune", "run_gate", "watch_soak"),
            *("record_outcome", "find_record", "read_state"),
        ):
            monkeypatch.setattr(deployment, name, Stage(getattr(self, name), lambda: self.prefect))
        for name in ("hold_lock", "refuse_blocked", "refuse_vetoed", "own_record", "probe"):
            monkeypatch.setattr(deployment, name, getattr(self, name))
        monkeypatch.setattr(deployment, "_read_state_once", self.read_state)
        monkeypatch.setattr(deployment, "_run_gate_once", self.run_gate)

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if call in WRITING or call.startswith("record ")]

    def _note(self, call: str, version: str = "") -> None:
        self.calls.append(call)
        if call == self.prefect_dies_in:
            self.prefect = httpx.ConnectError("connection refused")
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

    def refuse_vetoed(self, _: Target, __: object, *, again: bool) -> None:
        if "veto" in self.errors and not again:
            self._note("veto")

    def own_record(self, _: Target, __: object) -> Record | None:
        return self.own

    def record_start(self, planned: Plan, lock: object, decision: Decision | None = None) -> Started:
        assert lock is LOCK
        self._note("record start" + (f", approved by {decision.name}" if decision else ""))
        record = examples.record(2, State.APPLYING, release_id=id_of(planned.version))
        return Started(record=record, base=self.state.known_good or NOTHING_BEFORE)

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
        self, _: Target, record: Record, state: State, lock: object, *, reason: str = "", evidence: object = ()
    ) -> None:
        assert lock is LOCK
        assert (evidence != ()) == (state is State.KNOWN_GOOD)
        self._note(f"record {state.value}")
        self.reasons[state] = reason
        newest = record.model_copy(update={"state": state})
        known_good = newest if state is State.KNOWN_GOOD else self.state.known_good
        self.state = EnvironmentState(newest=newest, known_good=known_good)
        if self.lost_response:
            raise self.lost_response

    def find_record(self, _: Target, wanted: str) -> Record:
        self._note(f"find {wanted or 'the previous one'}")
        return GOOD

    def read_state(self, _: Target) -> EnvironmentState:
        self._note("read state")
        if self.calls.count("read state") == 2 and "second read state" in self.errors:
            raise self.errors["second read state"]
        return self.state


def change() -> dict[str, str]:
    return {"api_version": "v1", "kind": "ConfigMap", "namespace": "shop", "name": "shop", "action": "configured"}


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def decision() -> Decision:
    return Decision(approved=True, name="approver one", comment="", decided_at=examples.NOW, content="c")


WHOLE = ["probe", "apply", "rollout", "prune", "probe ended"]
ROLLED_OUT = [*WHOLE, "gate", "soak"]
RESTORED = ["plan release-1", *WHOLE, "record rolled-back", "gate"]
"""The environment is whole and has its outcome before a gate is run."""


def test_i2_i3_a_release_locks_plans_records_writes_proves_and_records_in_this_order(stages: Stages) -> None:
    candidate = release()
    deployed = deploy.fn(PIPELINE, STAGING, candidate, decision())
    assert stages.calls == [
        *("lock", "read state", "plan", "refuse blocked", "record start, approved by approver one"),
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
    assert stages.calls == ["lock", "read state", "plan", "unlock"]
    assert (deployed.record, deployed.release_id) == (7, candidate.id)
    assert [(proof.gate, proof.outcome) for proof in deployed.evidence] == [("smoke", Outcome.PASSED)]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("lock", EnvironmentBusy("staging is being changed by another run")),
        ("plan", Invalid("a manifest is wrong")),
        ("veto", Vetoed("it was rolled back")),
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


def test_a_user_may_want_a_release_again(stages: Stages) -> None:
    stages.errors["veto"] = Vetoed("it was rolled back")
    assert deploy.fn(PIPELINE, STAGING, release(), again=True).environment == "staging"


AFTER_THE_RECORD = ["apply", "rollout", "prune", "probe ended", "gate", "soak"]
UNEXPECTED = [
    GateFailed("the shop sells nothing"),
    httpx.ConnectError("Prefect's server is away: the shop sells nothing"),
    OSError(errno.ENOSPC, "the shop sells nothing"),
    ZeroDivisionError("the shop sells nothing"),
]


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", AFTER_THE_RECORD)
def test_i4_whatever_fails_after_the_record_restores_the_known_good(
    stages: Stages, call: str, error: Exception
) -> None:
    candidate = release()
    stages.errors[f"{call} {candidate.id}"] = error
    with pytest.raises(RolledBack, match=f"{candidate.id} failed in staging, which runs release-1 again") as caught:
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-len(RESTORED) :] == RESTORED
    assert "the shop sells nothing" in caught.value.detail
    assert "the shop sells nothing" in stages.reasons[State.ROLLED_BACK]
    assert caught.value.__cause__ is error


def test_i4_a_good_outcome_that_cannot_be_recorded_restores_the_known_good(stages: Stages) -> None:
    stages.errors["record known-good"] = ZeroDivisionError()
    with pytest.raises(RolledBack):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-len(RESTORED) - 2 :] == ["record known-good", "read state", *RESTORED]


def test_i4_a_good_outcome_whose_response_was_lost_is_good(stages: Stages) -> None:
    """Going back would begin at a record that says known-good: killed on the way, nobody would look for the half."""
    stages.lost_response = ClusterUnreachable("gone")
    deployed = deploy.fn(PIPELINE, STAGING, release())
    assert deployed.record == 2
    assert stages.calls[-3:] == ["record known-good", "read state", "unlock"]


def test_i4_where_nobody_knows_the_outcome_nothing_more_is_written(stages: Stages) -> None:
    stages.errors["record known-good"] = ClusterUnreachable("gone")
    stages.errors["second read state"] = ClusterUnreachable("gone, too")
    with pytest.raises(ClusterUnreachable, match=r"gone$"):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-2:] == ["record known-good", "read state"]


@pytest.mark.parametrize("call", [*AFTER_THE_RECORD, "record known-good"])
def test_i4_a_cancelled_release_leaves_its_record_open_for_recovery(stages: Stages, call: str) -> None:
    stages.errors[call] = TerminationSignal(15)
    with pytest.raises(TerminationSignal):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-1] == call
    assert stages.reasons == {}


@pytest.mark.parametrize("last", ["record start", "apply", "rollout", "prune"])
def test_i4_the_way_back_goes_on_without_prefect(stages: Stages, last: str) -> None:
    """Its server dies during a stage, and every task run fails from then on."""
    stages.prefect_dies_in = last
    with pytest.raises(RolledBack, match="unexpected ConnectError: connection refused"):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-len(RESTORED) :] == RESTORED


@pytest.mark.parametrize("call", ["plan release-1", "apply release-1", "rollout release-1", "prune release-1"])
def test_i4_a_way_back_that_ends_in_an_unexpected_way_leaves_its_record_open_for_recovery(
    stages: Stages, call: str
) -> None:
    candidate = release()
    stages.errors[f"gate {candidate.id}"] = GateFailed("the shop sells nothing")
    stages.errors[call] = ZeroDivisionError("a bug of ours")
    with pytest.raises(Errored, match="unexpected ZeroDivisionError: a bug of ours") as caught:
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.reasons == {}
    assert "the shop sells nothing" in caught.value.detail
    assert "`recover/shop`" in caught.value.hint


AWAY = [RepositoryUnreachable("git is away"), GateFailed("it sells nothing here either"), OSError(errno.ENOSPC, "full")]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_i4_a_gate_after_the_rollback_is_evidence_and_freezes_nothing(stages: Stages, error: Exception) -> None:
    candidate = release()
    stages.errors[f"rollout {candidate.id}"] = RolloutFailed("the pods crash")
    stages.errors["gate release-1"] = error
    with pytest.raises(RolledBack, match="which runs release-1 again: the pods crash") as caught:
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-len(RESTORED) :] == RESTORED
    assert list(stages.reasons) == [State.ROLLED_BACK]
    assert str(error.args[-1]) in caught.value.detail
    assert "look at staging, too" in caught.value.hint


@pytest.mark.parametrize("call", ["apply", "rollout", "prune", "gate", "soak"])
def test_i3_a_writer_that_lost_its_lock_stops_without_another_write(stages: Stages, call: str) -> None:
    candidate = release()
    stages.errors[f"{call} {candidate.id}"] = LockLost("the lock is now held by another run")
    with pytest.raises(LockLost):
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-1] == call
    assert stages.reasons == {}


@pytest.mark.parametrize("call", ["plan release-1", "apply release-1", "rollout release-1", "prune release-1"])
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


NEVER = STAGING.model_copy(update={"environment": STAGING.environment.model_copy(update={"rollback": "never"})})


@pytest.mark.parametrize("known_good", [GOOD, None], ids=["a later release", "the first release"])
def test_where_no_rollback_is_wanted_the_environment_stays_and_the_record_says_that_it_failed(
    stages: Stages, known_good: Record | None
) -> None:
    stages.state = EnvironmentState(newest=known_good, known_good=known_good)
    stages.errors["gate"] = GateFailed("the shop sells nothing", hint="correct it")
    with pytest.raises(GateFailed, match="the shop sells nothing") as caught:
        deploy.fn(PIPELINE, NEVER, release())
    assert caught.value.hint == "correct it; staging stays as it is: the pipeline file says never to roll back"
    assert stages.calls[-1] == "record failed"
    assert not any(call.startswith("plan release") for call in stages.calls)


def test_i4_a_first_release_that_fails_is_taken_back_to_what_was_there_before(stages: Stages) -> None:
    stages.state = EnvironmentState()
    candidate = release()
    stages.errors["gate"] = GateFailed("the shop sells nothing")
    with pytest.raises(RolledBack, match=f"{candidate.id} failed in staging, which is empty again"):
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-7:] == ["plan nothing", *WHOLE, "record rolled-back"]


def test_i4_what_holds_data_is_named_when_it_stays_after_a_rollback() -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "orders", "namespace": "shop"}}
    failed = examples.record(1, objects=(config_map(), claim))
    assert deployment._data_left(failed, NOTHING_BEFORE) == ["persistentvolumeclaim/orders"]
    assert deployment._data_left(failed, failed) == []
    kept = Kept(path=("spec", "storage"), value="2Gi", reason="a claim can grow, and not shrink")
    change = change_to(claim, Action.CONFIGURED, "", kept=(kept,))
    back = applied(STAGING, failed).model_copy(update={"changes": ChangeSet(changes=(change,))})
    error = deployment._restored(STAGING, failed, back, NOTHING_BEFORE, GateFailed("no"), ())
    assert "; persistentvolumeclaim/orders stayed, because removing it removes data; " in error.hint
    assert error.hint.endswith("persistentvolumeclaim/orders: spec.storage stays 2Gi: a claim can grow, and not shrink")


# --- what an earlier process left ------------------------------------------------------------------------------------


def test_i4_a_release_repairs_an_interrupted_environment_before_it_looks_at_anything_else(stages: Stages) -> None:
    interrupted(stages)
    stages.errors["refuse blocked"] = Superseded("staging runs something newer")
    with pytest.raises(Superseded):
        deploy.fn(PIPELINE, STAGING, release())
    first = ["lock", "read state", *RESTORED, "read state", "plan", "refuse blocked"]
    assert stages.calls == first


def test_i4_a_release_goes_on_after_the_repair(stages: Stages) -> None:
    interrupted(stages)
    deployed = deploy.fn(PIPELINE, STAGING, release())
    assert deployed.record == 2
    assert "its process ended" in stages.reasons[State.ROLLED_BACK]
    assert stages.calls[-2:] == ["record known-good", "unlock"]


@pytest.mark.parametrize("error", [RolloutFailed("its image is gone"), ClusterUnreachable("gone"), LockLost("gone")])
def test_i6_a_release_ends_where_the_repair_fails(stages: Stages, error: DeliveryError) -> None:
    interrupted(stages)
    stages.errors["rollout release-1"] = error
    with pytest.raises(RollbackFailed if isinstance(error, RolloutFailed) else type(error)):
        deploy.fn(PIPELINE, STAGING, release())
    assert "record start" not in stages.calls


def test_a_release_over_a_failed_one_needs_no_rollback_where_none_is_wanted(stages: Stages) -> None:
    interrupted(stages)
    deploy.fn(PIPELINE, NEVER, release())
    assert stages.calls[:4] == ["lock", "read state", "record failed", "read state"]
    assert stages.calls[-2:] == ["record known-good", "unlock"]


def test_i4_a_user_is_asked_about_a_whole_environment_only(stages: Stages) -> None:
    interrupted(stages)
    repair(PIPELINE, STAGING)
    assert stages.calls[:2] == ["read state", "lock"]
    assert list(stages.reasons) == [State.ROLLED_BACK]
    stages.calls.clear()
    repair(PIPELINE, STAGING)
    assert stages.calls == ["read state"]


def test_i6_a_user_is_not_asked_about_a_frozen_environment(stages: Stages) -> None:
    stages.state = EnvironmentState(newest=examples.record(2, State.ROLLBACK_FAILED), known_good=GOOD)
    with pytest.raises(EnvironmentFrozen):
        repair(PIPELINE, STAGING)


def test_i8_a_resumed_run_takes_what_it_released_before_from_the_records(stages: Stages) -> None:
    assert deployed_by_this_run(STAGING, release()) is None
    gates = (GateResult(name="smoke", outcome="passed", summary="3 passed"),)
    stages.own = examples.record(3, release_id=release().id, gates=gates)
    deployed = deployed_by_this_run(STAGING, release())
    assert deployed is not None
    assert (deployed.record, [proof.gate for proof in deployed.evidence]) == (3, ["smoke"])


def test_i8_a_resumed_run_does_not_release_again_what_a_user_rolled_back_meanwhile(stages: Stages) -> None:
    stages.own = examples.record(3, State.WITHDRAWN, release_id=release().id)
    with pytest.raises(Superseded, match="a rollback has withdrawn it since"):
        deployed_by_this_run(STAGING, release())
    with pytest.raises(Superseded, match="a rollback has withdrawn it since"):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.writes == []


# --- rollback --------------------------------------------------------------------------------------------------------


def test_i2_a_rollback_by_a_person_is_recorded_like_a_release(stages: Stages) -> None:
    deployed = rollback.fn(PIPELINE, STAGING, "release-1")
    assert stages.calls == [
        *("lock", "find release-1", "plan release-1", "record start"),
        *ROLLED_OUT,
        *("record known-good", "unlock"),
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
    assert stages.calls[-2:] == ["record rolled-back", "gate"]


# --- recovery --------------------------------------------------------------------------------------------------------


def interrupted(stages: Stages, known_good: Record | None = GOOD) -> None:
    started = examples.record(2, State.APPLYING)
    stages.state = EnvironmentState(newest=started, known_good=known_good)


def test_i4_an_environment_without_an_interrupted_rollout_is_not_even_locked(stages: Stages) -> None:
    assert recover(PIPELINE, STAGING) is None
    assert stages.calls == ["read state"]


def test_i4_an_interrupted_rollout_is_rolled_back_under_the_lock(stages: Stages) -> None:
    interrupted(stages)
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, RolledBack)
    assert stages.calls == ["read state", "lock", "read state", *RESTORED, "unlock"]
    assert "its process ended" in stages.reasons[State.ROLLED_BACK]
    assert stages.waits == [TAKEOVER_WAIT]


@pytest.mark.parametrize("known_good", [NOTHING_BEFORE, None], ids=["its baseline", "of an older version"])
def test_i4_a_first_release_that_was_interrupted_is_taken_back_to_nothing(
    stages: Stages, known_good: Record | None
) -> None:
    interrupted(stages, known_good=known_good)
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, RolledBack)
    assert "staging, which is empty again" in ended.reason
    assert stages.calls[-8:] == ["plan nothing", *WHOLE, "record rolled-back", "unlock"]


def test_i6_the_recovery_of_a_frozen_environment_is_an_error(stages: Stages) -> None:
    stages.state = EnvironmentState(newest=examples.record(2, State.ROLLBACK_FAILED), known_good=GOOD)
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, EnvironmentFrozen)
    assert "rollback/shop" in ended.hint
    assert stages.calls == ["read state"]


def test_i3_where_another_process_is_at_work_nothing_is_recovered(stages: Stages) -> None:
    interrupted(stages)
    stages.errors["lock"] = EnvironmentBusy("staging is being changed by another run")
    assert recover(PIPELINE, STAGING) is None
    assert stages.writes == []


def test_i4_what_another_process_recovered_meanwhile_is_left_alone(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(stages)
    recovered = EnvironmentState(newest=GOOD, known_good=GOOD)
    monkeypatch.setattr(deployment, "read_state", Stage(lambda _: recovered))
    assert recover(PIPELINE, STAGING) is None
    assert stages.writes == []


ODDITIES = [ClusterUnreachable("gone"), Invalid("the record cannot be read"), ZeroDivisionError("a bug of ours")]


@pytest.mark.parametrize("error", ODDITIES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["read state", "lock", "plan release-1"])
def test_i4_one_environments_oddity_is_the_result_so_that_the_others_are_recovered(
    stages: Stages, call: str, error: Exception
) -> None:
    interrupted(stages)
    stages.errors[call] = error
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, DeliveryError)
    assert str(error.args[0]) in str(ended)


# --- real stages on a fake API server --------------------------------------------------------------------------------


def deploy_in_a_run(
    run: Callable[[Callable[[], Any]], Run], target: Target, greeting: str, gates: tuple[Gate, ...] = ()
) -> Run:
    wanted = target.model_copy(update={"environment": target.environment.model_copy(update={"gates": gates})})
    return run(lambda: deploy(pipeline(wanted.environment), wanted, release(config_map(greeting=greeting))))


def settings_and_records(api: FakeApi) -> tuple[str, list[str]]:
    """The settings, and the states of the records of releases."""
    labels = [item["metadata"]["labels"] for item in api.objects["secrets"].values()]
    states = [names["prefect-cd.dev/state"] for names in labels if names["prefect-cd.dev/record"] == "release"]
    return api.objects["configmaps"].get("shop", {"data": {"greeting": ""}})["data"]["greeting"], states


def test_i2_the_record_is_in_the_cluster_before_the_first_object_is_written(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    played = deploy_in_a_run(run, target, "hello")
    assert isinstance(played.result, Deployed)
    without_lease = [write for write in api.writes if "leases/" not in write]
    assert without_lease == [
        "POST secrets/prefect-cd.shop.0",
        "POST secrets/prefect-cd.shop.1",
        "PATCH configmaps/shop",
        "PATCH secrets/prefect-cd.shop.1",
    ]
    assert api.writes[0] == "POST leases/prefect-cd.shop"
    assert api.writes[-1] == "PUT leases/prefect-cd.shop"
    assert settings_and_records(api) == ("hello", ["known-good"])
    assert {task.name for task in played.tasks(9)} == {
        *("deploy to staging", "read state of staging", "plan staging", "record start in staging", "apply to staging"),
        *("rollout of staging", "prune staging", "staging stays up", "record known-good in staging"),
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


def test_i4_a_gate_that_fails_on_the_known_good_too_freezes_nothing(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    target, gates = on_the_fake_server(target, api, "what no version says")
    deploy_in_a_run(run, target, "hello")
    with pytest.raises(RolledBack) as caught:
        _ = deploy_in_a_run(run, target, "good day", gates).result
    assert caught.value.detail.count("smoke failed") >= 2
    assert settings_and_records(api) == ("hello", ["known-good", "rolled-back"])
    assert isinstance(deploy_in_a_run(run, target, "good evening").result, Deployed)


def test_i6_a_rollback_that_fails_too_freezes_the_environment_for_the_next_release(
    target: Target,
    api: FakeApi,
    run: Callable[[Callable[[], Any]], Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, gates = on_the_fake_server(target, api, '"greeting": "hello"')
    deploy_in_a_run(run, target, "hello")
    unwatched = deployment.watch_rollout

    def fail(done: Applied) -> Any:  # noqa: ANN401
        if done.objects[0]["data"]["greeting"] == "hello":
            raise RolloutFailed("its image is gone")
        return unwatched(done)

    monkeypatch.setattr(deployment, "watch_rollout", Stage(fail))
    with pytest.raises(RollbackFailed):
        _ = deploy_in_a_run(run, target, "good day", gates).result
    assert settings_and_records(api) == ("hello", ["known-good", "rollback-failed"])
    with pytest.raises(EnvironmentFrozen):
        _ = deploy_in_a_run(run, target, "good evening").result
    assert settings_and_records(api) == ("hello", ["known-good", "rollback-failed"])


def test_i4_a_first_release_that_fails_leaves_the_environment_as_it_was(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    target, gates = on_the_fake_server(target, api, "what no version says")
    with pytest.raises(RolledBack, match="staging, which is empty again"):
        _ = deploy_in_a_run(run, target, "hello", gates).result
    assert settings_and_records(api) == ("", ["rolled-back"])
    assert isinstance(deploy_in_a_run(run, target, "good day").result, Deployed)
    assert settings_and_records(api) == ("good day", ["rolled-back", "known-good"])


def test_i4_a_first_release_over_objects_of_others_is_taken_back_to_them(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    api.put("configmaps", "shop", data={"greeting": "before us"})
    target, gates = on_the_fake_server(target, api, "what no version says")
    taken = target.model_copy(update={"environment": target.environment.model_copy(update={"take_over": True})})
    with pytest.raises(RolledBack, match="staging, which runs before-prefect-cd again"):
        _ = deploy_in_a_run(run, taken, "hello", gates).result
    assert settings_and_records(api) == ("before us", ["rolled-back"])


def test_i8_what_was_rolled_back_comes_in_again_only_if_a_user_says_so(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    target, gates = on_the_fake_server(target, api, '"greeting": "hello"')
    deploy_in_a_run(run, target, "hello", gates)
    with pytest.raises(RolledBack):
        _ = deploy_in_a_run(run, target, "good day", gates).result
    api.requests.clear()
    with pytest.raises(Vetoed, match=r"was rolled back in staging \(record 2\)") as caught:
        _ = deploy_in_a_run(run, target, "good day").result
    assert "-p again=true" in caught.value.hint
    assert [write for write in api.writes if "leases/" not in write] == []
    settings, candidate = pipeline(target.environment), release(config_map(greeting="good day"))
    assert isinstance(run(lambda: deploy(settings, target, candidate, again=True)).result, Deployed)
    assert settings_and_records(api) == ("good day", ["known-good", "rolled-back", "known-good"])
    _ = run(lambda: rollback(settings, target)).result
    with pytest.raises(Vetoed, match="was good, but withdrawn by a rollback in staging"):
        _ = deploy_in_a_run(run, target, "good day").result


def test_i8_a_run_that_starts_again_from_the_top_leaves_its_release_to_the_records(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    candidate = release(config_map(greeting="good day"))
    settings = pipeline(target.environment)

    def resumed() -> tuple[Deployed, Deployed | None]:
        deploy(settings, target, release(config_map(greeting="hello")))
        first = deploy(settings, target, candidate)
        seen = deployed_by_this_run(target, candidate)
        rollback(settings, target)
        with pytest.raises(Superseded, match="a rollback has withdrawn it since"):
            deploy.fn(settings, target, candidate)
        return first, seen

    first, seen = run(resumed).result
    assert first == seen
    assert settings_and_records(api) == ("hello", ["known-good", "known-good", "known-good"])
