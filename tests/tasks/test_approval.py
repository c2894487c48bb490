"""The approval form: which answers count, what follows from each, and when the form is shown again."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.runtime import flow_run
from prefect.states import Paused, Running
from pydantic import ValidationError

from prefect_cd.environment.change_set import ChangeSet, created
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.record import Decision, State
from prefect_cd.errors import EnvironmentFrozen, Expired, Invalid, Rejected, Superseded
from prefect_cd.pipeline.models import Approval
from prefect_cd.release.model import Release
from prefect_cd.tasks import approval
from prefect_cd.tasks.approval import GRACE, ApprovalForm, _incomplete, approve
from prefect_cd.tasks.changes import Plan
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import GitRepository, config_map, environment, evidence, pipeline, plan_of, record, release

ANYBODY, TWO = Approval(), Approval(approvers=("approver one", "approver two"))


@pytest.mark.parametrize("name", ["", "   ", "\n"])
def test_an_answer_without_a_name_does_not_count(name: str) -> None:
    assert "needs the approver's name" in _incomplete(ApprovalForm(decision="approve", name=name), ANYBODY)


def test_anybody_may_answer_without_named_approvers() -> None:
    assert _incomplete(ApprovalForm(decision="approve", name="approver one"), ANYBODY) == ""


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_only_named_approvers_may_answer(decision: str) -> None:
    asked = {"decision": decision, "name": "a stranger"}
    refusal = _incomplete(ApprovalForm.model_validate(asked), TWO)
    assert refusal == "a stranger is not an approver here; approvers are: approver one, approver two"
    assert _incomplete(ApprovalForm.model_validate({**asked, "name": " approver two "}), TWO) == ""


@pytest.mark.parametrize("answer", [{}, {"name": "approver one"}, {"decision": "maybe", "name": "approver one"}])
def test_a_decision_is_yes_or_no(answer: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ApprovalForm.model_validate(answer)


# --- the stage -------------------------------------------------------------------------------------------------------


class Approvers:
    """Stands for Prefect's form: gives these answers, one by one, and keeps the questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[dict[str, str]] = []
        self.keys: list[str] = []
        self.forms: list[str] = []
        self.limits: list[tuple[str, int]] = []
        """How the run waits for the answer, and for how many seconds."""
        self.saved: list[str] = []
        """The keys of the descriptions that were saved before the run was suspended."""
        save = classmethod(lambda _, keyset, *__: self.saved.append(keyset["description"]))
        monkeypatch.setattr(ApprovalForm, "save", save)
        monkeypatch.setattr(approval, "pause_flow_run", self._waiting("paused"))
        monkeypatch.setattr(approval, "suspend_flow_run", self._waiting("suspended"))

    def _waiting(self, how: str) -> Callable[..., ApprovalForm]:
        def ask(*, wait_for_input: type[ApprovalForm], timeout: int, key: str, poll_interval: int = 0) -> ApprovalForm:
            assert poll_interval in (0, 1)
            self.keys.append(key)
            self.forms.append(str(wait_for_input._description))
            self.limits.append((how, timeout))
            if not self.answers:
                raise FlowPauseTimeout
            return ApprovalForm.model_validate(self.answers.pop(0))

        return ask


@pytest.fixture
def approvers(monkeypatch: pytest.MonkeyPatch) -> Approvers:
    return Approvers(monkeypatch)


@pytest.fixture
def candidate(repository: GitRepository) -> Release:
    return release(of=repository.commit({"app": "1"}, "Sell more"))


@pytest.fixture
def ask(repository: GitRepository, candidate: Release) -> Callable[..., Decision]:
    """Ask about the candidate, under these settings."""

    def play(note: str = "", plan: Plan | None = None, **settings: Any) -> Decision:  # noqa: ANN401
        planned = plan or planned_for(candidate, **settings)
        sources = pipeline(repository=repository.path)
        return approve(sources, candidate, planned, tested=[evidence("unit tests")], note=note)

    return play


def planned_for(candidate: Release, server: str = "https://cluster.example.org", **settings: Any) -> Plan:  # noqa: ANN401
    target = Target(application="shop", environment=environment(approval=Approval(**settings)))
    return plan_of(target, candidate, server=server)


YES = {"decision": "approve", "name": " approver one ", "comment": "looks good"}


def test_i5_an_approval_is_a_decision_on_exactly_what_was_shown(
    approvers: Approvers, ask: Callable[..., Decision], candidate: Release
) -> None:
    approvers.answers = [YES]
    decision = ask()
    assert (decision.approved, decision.name, decision.comment) == (True, "approver one", "looks good")
    assert decision.content == planned_for(candidate).content
    assert datetime.now(timezone.utc) - decision.decided_at < timedelta(minutes=1)
    (form,) = approvers.forms
    for part in (f"# shop {candidate.commit.short} → staging", "✔ **unit tests**", "Sell more", candidate.id):
        assert part in form


@pytest.mark.parametrize("state", [State.ROLLBACK_FAILED, State.KNOWN_GOOD])
def test_i6_i8_nobody_is_asked_about_what_would_be_refused(
    approvers: Approvers, repository: GitRepository, ask: Callable[..., Decision], candidate: Release, state: State
) -> None:
    newer = repository.commit({"app": "2"})
    runs = EnvironmentState(newest=record(2, state, commit=newer), known_good=record(1, commit=newer))
    plan = plan_of(planned_for(candidate).target, candidate, state=runs)
    with pytest.raises(EnvironmentFrozen if state is State.ROLLBACK_FAILED else Superseded):
        ask(plan=plan)
    assert approvers.forms == []


def test_a_rejection_ends_the_release_with_the_approvers_name_and_comment(
    approvers: Approvers, ask: Callable[..., Decision]
) -> None:
    approvers.answers = [{"decision": "reject", "name": "approver one", "comment": "not on a Friday"}]
    with pytest.raises(Rejected, match="was rejected for staging by approver one: not on a Friday") as caught:
        ask()
    assert caught.value.hint == "nothing was changed there"


def test_without_an_answer_in_time_the_release_expires(approvers: Approvers, ask: Callable[..., Decision]) -> None:
    with pytest.raises(Expired, match="no decision about staging within 1h"):
        ask(expires="1h")
    assert approvers.limits == [("paused", 3600)]


def test_an_answer_that_does_not_count_is_asked_again_with_the_reason(
    approvers: Approvers, ask: Callable[..., Decision]
) -> None:
    approvers.answers = [{**YES, "name": " "}, {**YES, "name": "a stranger"}, YES]
    assert ask(approvers=("approver one",)).name == "approver one"
    assert len(set(approvers.keys)) == 3
    assert "a decision needs the approver's name" in approvers.forms[1]
    assert "a stranger is not an approver here" in approvers.forms[2]


def test_answers_that_never_count_end_the_release(approvers: Approvers, ask: Callable[..., Decision]) -> None:
    approvers.answers = [{**YES, "name": ""}] * 99
    with pytest.raises(Expired, match="20 answers, and none of them counts"):
        ask()
    assert len(approvers.keys) == 20


def test_i5_the_same_content_is_the_same_question_and_other_content_another(
    approvers: Approvers, ask: Callable[..., Decision], candidate: Release
) -> None:
    approvers.answers = [YES] * 3
    ask()
    ask()
    ask(plan=planned_for(candidate, server="https://another.example.org"))
    first, again, other = approvers.keys
    assert first == again != other
    assert first == f"approve-staging-{planned_for(candidate).content}-0"  # a part of it could be that of two contents


def test_i5_nobody_is_asked_about_more_than_anybody_can_read(
    approvers: Approvers, ask: Callable[..., Decision], candidate: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approval.markdown_changes, "LONGEST", 100)
    long = plan_of(
        planned_for(candidate).target, candidate, changes=ChangeSet(changes=(created(config_map(a="x" * 99)),))
    )
    with pytest.raises(Invalid, match="what would change in staging is too long to be shown, so nobody can approve it"):
        ask(plan=long)
    assert approvers.forms == []


def test_a_run_of_a_deployment_is_suspended_and_prefects_limit_comes_after_ours(
    approvers: Approvers, ask: Callable[..., Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0" * 32)
    approvers.answers = [YES]
    ask(expires="1h")
    assert approvers.limits == [("suspended", int((timedelta(hours=1) + GRACE).total_seconds()))]
    assert approvers.saved == [f"form-{key}-description" for key in approvers.keys]


@pytest.mark.parametrize(("minutes", "counts"), [(59, True), (61, False)])
def test_an_answer_between_our_limit_and_prefects_does_not_count(
    approvers: Approvers,
    ask: Callable[..., Decision],
    monkeypatch: pytest.MonkeyPatch,
    minutes: int,
    counts: bool,  # noqa: FBT001  a column of the table
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0" * 32)
    open_for = timedelta(minutes=minutes)
    monkeypatch.setattr(approval, "_questions", lambda: [(key, open_for) for key in approvers.keys])
    approvers.answers = [YES]
    with nullcontext() if counts else pytest.raises(Expired, match="no decision about staging within 1h"):
        assert ask(expires="1h").approved


def asked_before(key: str) -> None:
    """Make the server remember that the current run was paused for this question."""
    with get_client(sync_client=True) as client:
        for state in (Paused(pause_key=key, timeout_seconds=60), Running()):
            client.set_flow_run_state(UUID(flow_run.id), state, force=True)


def test_the_questions_of_a_run_are_known_to_the_server(run: Callable[[Callable[[], Any]], Run]) -> None:
    def work() -> list[tuple[str, timedelta]]:
        asked_before("approve-staging-0123-0")
        return approval._questions()

    ((key, open_for),) = run(work).result
    assert key == "approve-staging-0123-0"
    assert timedelta() <= open_for < timedelta(minutes=1)


def test_i5_a_question_about_changed_content_says_that_an_earlier_answer_is_void(
    approvers: Approvers, ask: Callable[..., Decision], run: Callable[[Callable[[], Any]], Run]
) -> None:
    approvers.answers = [YES]

    def changed() -> Decision:
        asked_before("approve-staging-0123456789abcdef-0")
        return ask()

    assert run(changed).result.approved
    assert "what would be applied to staging is no longer what an earlier answer was given for" in approvers.forms[0]
