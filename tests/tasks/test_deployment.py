"""A release into an environment and back out of it: the order of the stages, and what each failure leads to.

The stages are replaced by ones that note their calls; the last tests play real stages on a fake API server.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prefect.exceptions import TerminationSignal

from prefect_cd.environment import recovery
from prefect_cd.environment.change_set import Action, ChangeSet, change_to
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.lease import TAKEOVER_WAIT
from prefect_cd.environment.record import Decision, GateResult, Record, State
from prefect_cd.environment.recovery import WentBack
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
from prefect_cd.pipeline.models import Gate, HttpCheck, Pipeline
from prefect_cd.tasks import deployment
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.deployment import (
    Deployed,
    deploy,
    deployed_by_this_run,
    recover,
    repair,
    rollback,
)
from prefect_cd.tasks.objects import Applied
from prefect_cd.tasks.record import Started
from prefect_cd.tasks.target import Target, Version, id_of
from tests.tasks import examples
from tests.tasks.conftest import Run
from tests.tasks.examples import applied, config_map, environment, evidence, pipeline, plan_of, release, report
from tests.unit.fake_api import FakeApi

# --- the order of the stages -----------------------------------------------------------------------------------------

LOCK: Any = object()
SMOKE = Gate(name="smoke", http=HttpCheck())
STAGING = Target(application="shop", environment=environment(url="https://shop.example.org", gates=(SMOKE,)))
PIPELINE = pipeline(STAGING.environment)
GOOD = examples.record(1)
NOTHING_BEFORE = examples.record(0, release_id="nothing", commit=None, image=None, objects=())
WRITING = {"record start", "apply", "prune", "make whole", "go back", "record known-good", "record failed"}


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
        self.whole = False
        """Whether a frozen environment is whole by now."""
        self.problem: DeliveryError | None = None
        """Why the way back ends with a frozen environment."""
        self.same_content = False
        """Whether the live objects are those of the release already."""
        for name in (
            *("plan", "record_start", "apply", "watch_rollout", "prune", "run_gate", "watch_soak"),
            *("record_outcome", "find_record", "read_state"),
        ):
            monkeypatch.setattr(deployment, name, Stage(getattr(self, name), lambda: self.prefect))
        monkeypatch.setattr(deployment, "_restore", Stage(deployment._restore.fn, lambda: self.prefect))
        for name in (
            "hold_lock",
            "refuse_blocked",
            "refuse_vetoed",
            "own_record",
            "probe",
            "measure",
            "make_whole",
            "go_back",
        ):
            monkeypatch.setattr(deployment, name, getattr(self, name))
        for name in ("record_applying", "record_verifying"):
            monkeypatch.setattr(deployment, name, getattr(self, name))
        monkeypatch.setattr(deployment, "_decide", self.decide)
        monkeypatch.setattr(deployment, "_fence", self.fence)
        monkeypatch.setattr(deployment, "_settle_in_place", self.settle_in_place)
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
        record = examples.record(2, State.PREPARED, release_id=id_of(planned.version))
        return Started(record=record, base=self.state.known_good or NOTHING_BEFORE)

    def fence(self, _: Target, record: Record, base: Record, lock: object) -> None:
        assert lock is LOCK
        assert (record, base.release_id) == (self.state.newest, (self.state.known_good or NOTHING_BEFORE).release_id)
        self._note("fence")

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

    @contextmanager
    def measure(self, _: Target, base: Record) -> Iterator[None]:
        self._note("measure")
        yield
        self._note("measured", base.release_id)

    def make_whole(self, target: Target, started: Started, lock: object) -> None:
        assert (target.name, lock) == ("staging", LOCK)
        self._note("make whole", started.record.release_id)

    def go_back(self, _: Target, record: Record, base: Record, lock: object, error: DeliveryError) -> WentBack:
        assert lock is LOCK
        self._note(f"go back to {base.release_id}")
        state = State.ROLLBACK_FAILED if self.problem else State.ROLLED_BACK
        reason = f"{error}\n\n{self.problem}" if self.problem else str(error)
        self.reasons[state] = reason
        settled = record.model_copy(update={"state": state, "reason": reason})
        self.state = EnvironmentState(newest=settled, known_good=self.state.known_good)
        return WentBack(settled, base, self.problem, report(), ChangeSet(changes=()), examples.NOW)

    def decide(self, target: Target) -> recovery.RecoveryDecision:
        self._note("decide")
        return recovery.decide(target.ownership, self.state, whole=self.whole)

    def settle_in_place(self, _: Target, decision: recovery.RecoveryDecision, lock: object) -> None:
        assert lock is LOCK
        assert decision.record
        self._note(decision.action.value)
        newest = decision.record.model_copy(update={"state": State.ROLLED_BACK})
        self.state = EnvironmentState(newest=newest, known_good=decision.base)

    def record_applying(self, _: Target, record: Record, lock: object) -> None:
        assert (record.state, lock) == (State.PREPARED, LOCK)
        self._note("applying", record.release_id)

    def record_verifying(self, _: Target, record: Record, lock: object) -> None:
        assert lock is LOCK
        self._note("verifying", record.release_id)

    def find_record(self, _: Target, wanted: str) -> Record:
        self._note(f"find {wanted or 'the previous one'}")
        return GOOD

    def read_state(self, _: Target) -> EnvironmentState:
        self._note("read state")
        return self.state


def change() -> dict[str, str]:
    return {"api_version": "v1", "kind": "ConfigMap", "namespace": "shop", "name": "shop", "action": "changed"}


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def decision() -> Decision:
    return Decision(approved=True, name="approver one", comment="", decided_at=examples.NOW, content="c")


ROLLED_OUT = [
    *("applying", "probe", "apply", "rollout", "prune", "probe ended", "verifying"),
    *("gate", "soak", "make whole"),
]
RESTORED = ["measure", "go back to release-1", "measured", "gate"]
"""The environment is whole and has its outcome before a gate is run."""


def test_i2_i3_a_release_locks_plans_records_writes_proves_and_records_in_this_order(stages: Stages) -> None:
    candidate = release()
    deployed = deploy.fn(PIPELINE, STAGING, candidate, decision())
    assert stages.calls == [
        *("lock", "decide", "plan", "refuse blocked", "record start, approved by approver one"),
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
    assert stages.calls == ["lock", "decide", "plan", "unlock"]
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


AFTER_THE_RECORD = ["applying", "apply", "rollout", "prune", "probe ended", "verifying", "gate", "soak", "make whole"]
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
    stages.errors["read state"] = ClusterUnreachable("gone, too")
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


def test_i4_the_way_back_goes_on_where_the_probe_fails(stages: Stages) -> None:
    stages.errors["gate"] = GateFailed("the shop sells nothing")
    stages.errors["measure"] = OSError("no thread")
    with pytest.raises(RolledBack):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-3:] == ["measure", "go back to release-1", "gate"]


def test_i4_a_way_back_that_has_ended_is_not_repeated_for_its_probe(stages: Stages) -> None:
    stages.errors["gate"] = GateFailed("the shop sells nothing")
    stages.errors["measured"] = OSError("no thread")
    with pytest.raises(RolledBack):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls.count("go back to release-1") == 1


@pytest.mark.parametrize("last", ["record start", "apply", "rollout", "prune"])
def test_i4_the_way_back_goes_on_without_prefect(stages: Stages, last: str) -> None:
    """Its server dies during a stage, and every task run fails from then on."""
    stages.prefect_dies_in = last
    with pytest.raises(RolledBack, match="unexpected ConnectError: connection refused"):
        deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[-2:] == ["go back to release-1", "gate"]


@pytest.mark.parametrize("call", ["go back to release-1"])
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


@pytest.mark.parametrize("call", ["apply", "rollout", "prune", "gate", "soak", "make whole"])
def test_i3_a_writer_that_lost_its_lock_stops_without_another_write(stages: Stages, call: str) -> None:
    candidate = release()
    stages.errors[f"{call} {candidate.id}"] = LockLost("the lock is now held by another run")
    with pytest.raises(LockLost):
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-1] == call
    assert stages.reasons == {}


@pytest.mark.parametrize("call", ["go back to release-1"])
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
    stages.problem = RolloutFailed("its image is gone")
    with pytest.raises(
        RollbackFailed, match=f"neither on {candidate.id} nor back on release-1, and is frozen"
    ) as caught:
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-2:] == ["go back to release-1", "measured"]
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
    assert not any(call.startswith("go back") for call in stages.calls)


def test_i4_a_first_release_that_fails_is_taken_back_to_what_was_there_before(stages: Stages) -> None:
    stages.state = EnvironmentState()
    candidate = release()
    stages.errors["gate"] = GateFailed("the shop sells nothing")
    with pytest.raises(RolledBack, match=f"{candidate.id} failed in staging, which is empty again"):
        deploy.fn(PIPELINE, STAGING, candidate)
    assert stages.calls[-3:] == ["measure", "go back to nothing", "measured"]


def test_i4_what_holds_data_is_named_when_it_stays_after_a_rollback() -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "orders", "namespace": "shop"}}
    failed = examples.record(1, objects=(config_map(), claim))
    assert deployment._data_left(failed, NOTHING_BEFORE) == ["persistentvolumeclaim/orders"]
    assert deployment._data_left(failed, failed) == []
    kept = Kept(path=("spec", "storage"), value="2Gi", reason="a claim can grow, and not shrink")
    changes = ChangeSet(changes=(change_to(claim, Action.CHANGED, kept=(kept,)),))
    back = WentBack(failed, NOTHING_BEFORE, None, None, changes, examples.NOW)
    error = deployment._restored(STAGING, back, GateFailed("no"), ())
    assert "; persistentvolumeclaim/orders stayed, because removing it removes data; " in error.hint
    assert error.hint.endswith("persistentvolumeclaim/orders: spec.storage stays 2Gi: a claim can grow, and not shrink")


# --- what an earlier process left ------------------------------------------------------------------------------------


def test_i4_a_release_repairs_an_interrupted_environment_before_it_looks_at_anything_else(stages: Stages) -> None:
    interrupted(stages)
    stages.errors["refuse blocked"] = Superseded("staging runs something newer")
    with pytest.raises(Superseded):
        deploy.fn(PIPELINE, STAGING, release())
    first = ["lock", "decide", "fence", *RESTORED, "read state", "plan", "refuse blocked"]
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
    if isinstance(error, RolloutFailed):
        stages.problem = error
    else:
        stages.errors["go back to release-1"] = error
    with pytest.raises(RollbackFailed if isinstance(error, RolloutFailed) else type(error)):
        deploy.fn(PIPELINE, STAGING, release())
    assert "record start" not in stages.calls


def test_a_release_over_a_failed_one_needs_no_rollback_where_none_is_wanted(stages: Stages) -> None:
    interrupted(stages)
    deploy.fn(PIPELINE, NEVER, release())
    assert stages.calls[:4] == ["lock", "decide", "fence", "record failed"]
    assert stages.calls[-2:] == ["record known-good", "unlock"]


def test_i4_a_user_is_asked_about_a_whole_environment_only(stages: Stages) -> None:
    interrupted(stages)
    repair(PIPELINE, STAGING)
    assert stages.calls[:2] == ["decide", "lock"]
    assert list(stages.reasons) == [State.ROLLED_BACK]
    stages.calls.clear()
    repair(PIPELINE, STAGING)
    assert stages.calls == ["decide"]


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
    assert stages.calls[-4:] == ["measure", "go back to release-3", "measured", "gate"]


# --- recovery --------------------------------------------------------------------------------------------------------


def interrupted(stages: Stages, known_good: Record | None = GOOD) -> None:
    started = examples.record(2, State.APPLYING)
    stages.state = EnvironmentState(newest=started, known_good=known_good)


def test_i4_an_environment_without_an_interrupted_rollout_is_not_even_locked(stages: Stages) -> None:
    assert recover(PIPELINE, STAGING) is None
    assert stages.calls == ["decide"]


def test_i4_an_interrupted_rollout_is_rolled_back_under_the_lock(stages: Stages) -> None:
    interrupted(stages)
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, RolledBack)
    assert stages.calls == ["decide", "lock", "decide", "fence", *RESTORED, "unlock"]
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
    assert stages.calls[-4:] == ["measure", "go back to nothing", "measured", "unlock"]


def test_i6_the_recovery_of_a_frozen_environment_is_an_error(stages: Stages) -> None:
    stages.state = EnvironmentState(newest=examples.record(2, State.ROLLBACK_FAILED), known_good=GOOD)
    ended = recover(PIPELINE, STAGING)
    assert isinstance(ended, EnvironmentFrozen)
    assert "rollback/shop" in ended.hint
    assert stages.calls == ["decide"]


def test_i6_a_frozen_environment_that_is_whole_by_now_is_no_longer_frozen(stages: Stages) -> None:
    stages.state = EnvironmentState(newest=examples.record(2, State.ROLLBACK_FAILED), known_good=GOOD)
    stages.whole = True
    assert recover(PIPELINE, STAGING) is None
    assert stages.calls == ["decide", "lock", "decide", "unfreeze", "unlock"]


def test_i4_a_release_that_wrote_only_its_record_is_given_up_and_the_next_one_goes_in(stages: Stages) -> None:
    stages.state = EnvironmentState(newest=examples.record(2, State.PREPARED), known_good=GOOD)
    deploy.fn(PIPELINE, STAGING, release())
    assert stages.calls[:4] == ["lock", "decide", "abandon", "decide"]


def test_i3_where_another_process_is_at_work_nothing_is_recovered(stages: Stages) -> None:
    interrupted(stages)
    stages.errors["lock"] = EnvironmentBusy("staging is being changed by another run")
    assert recover(PIPELINE, STAGING) is None
    assert stages.writes == []


def test_i4_what_another_process_recovered_meanwhile_is_left_alone(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(stages)

    @contextmanager
    def hold_lock(*_: object, wait: object) -> Iterator[Any]:
        assert wait
        stages.state = EnvironmentState(newest=GOOD, known_good=GOOD)
        yield LOCK

    monkeypatch.setattr(deployment, "hold_lock", hold_lock)
    assert recover(PIPELINE, STAGING) is None
    assert stages.writes == []


ODDITIES = [ClusterUnreachable("gone"), Invalid("the record cannot be read"), ZeroDivisionError("a bug of ours")]


@pytest.mark.parametrize("error", ODDITIES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["decide", "lock", "go back to release-1"])
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
        "PATCH secrets/prefect-cd.shop.1",
        "PATCH configmaps/shop",
        "PATCH secrets/prefect-cd.shop.1",
        "PATCH secrets/prefect-cd.shop.1",
    ]
    assert api.writes[0] == "POST leases/prefect-cd.shop"
    assert api.writes[-1] == "PUT leases/prefect-cd.shop"
    assert settings_and_records(api) == ("hello", ["known-good"])
    assert {task.name for task in played.tasks(8)} == {
        *("deploy to staging", "plan staging", "record start in staging", "apply to staging"),
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

    async def fail(*_: object, **__: object) -> Any:  # noqa: ANN401
        raise RolloutFailed("its image is gone")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "watch", fail)
        with pytest.raises(RollbackFailed):
            _ = deploy_in_a_run(run, target, "good day", gates).result
        assert settings_and_records(api) == ("hello", ["known-good", "rollback-failed"])
        with pytest.raises(EnvironmentFrozen):
            _ = deploy_in_a_run(run, target, "good evening").result
        assert settings_and_records(api) == ("hello", ["known-good", "rollback-failed"])
    deploy_in_a_run(run, target, "good evening")  # the image is there again: nobody is needed
    assert settings_and_records(api) == ("good evening", ["known-good", "rolled-back", "known-good"])


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
