"""Which answers count."""

import pytest
from pydantic import ValidationError

from prefect_cd.pipeline.models import Approval
from prefect_cd.tasks.approval import ApprovalForm, _incomplete

ANYBODY, TWO = Approval(), Approval(approvers=("approver one", "approver two"))


@pytest.mark.parametrize("name", ["", "   ", "\n"])
def test_an_answer_without_a_name_does_not_count(name: str) -> None:
    assert "needs the name" in _incomplete(ApprovalForm(decision="approve", name=name), ANYBODY)


def test_anybody_may_answer_when_nobody_is_named() -> None:
    assert _incomplete(ApprovalForm(decision="approve", name="approver one"), ANYBODY) == ""


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_only_those_who_are_named_may_answer(decision: str) -> None:
    asked = {"decision": decision, "name": "a stranger"}
    refusal = _incomplete(ApprovalForm.model_validate(asked), TWO)
    assert refusal == "a stranger may not decide here; these may: approver one, approver two"
    assert _incomplete(ApprovalForm.model_validate({**asked, "name": " approver two "}), TWO) == ""


@pytest.mark.parametrize("answer", [{}, {"name": "approver one"}, {"decision": "maybe", "name": "approver one"}])
def test_a_decision_is_yes_or_no(answer: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ApprovalForm.model_validate(answer)
