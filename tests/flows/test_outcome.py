"""How a run ends: the state's name, its message, and what is left on the disk."""

from pathlib import Path

import pytest
from prefect.states import Completed

from prefect_cd import errors
from prefect_cd.errors import DeliveryError, Errored, GateFailed, InvalidPipeline
from prefect_cd.flows.outcome import has_final_outcome, outcome_of, returning_state, short_text

NAMES = {
    "RolledBack": "Rolled back",
    "RollbackFailed": "Rollback failed",
    "Superseded": "Superseded",
    "Vetoed": "Vetoed",
    "Rejected": "Rejected",
    "Expired": "Expired",
}
TREE = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, DeliveryError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_has_an_outcome_that_people_filter_by(kind: type[DeliveryError]) -> None:
    usual = "Errored" if issubclass(kind, Errored) else "Failed"
    assert outcome_of(kind("it happened")) == NAMES.get(kind.__name__, usual)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_ends_in_a_state_that_prefects_pages_list(kind: type[DeliveryError]) -> None:
    with returning_state() as ending:
        raise kind("it happened")
    assert ending.state.name == "Failed"
    assert (ending.state.message or "").startswith(f"{outcome_of(kind('it happened'))}: ")


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_an_outcome_is_final_unless_nobody_knows_what_became_of_the_environment(kind: type[DeliveryError]) -> None:
    with returning_state() as ending:
        raise kind("it happened")
    assert has_final_outcome(ending.state) == (not issubclass(kind, Errored))


def test_the_message_says_what_where_and_what_to_do_and_leaves_the_evidence_out() -> None:
    error = GateFailed("E2E failed", where="staging", detail="a long log", hint="look at the pictures")
    assert short_text(error) == "[gate-failed] staging: E2E failed\nhint: look at the pictures"


def test_the_message_lists_the_mistakes_of_a_pipeline_file() -> None:
    error = InvalidPipeline("1 mistake in shop.yaml", detail="shop.yaml:3: unknown key", hint="correct it")
    assert "shop.yaml:3: unknown key" in short_text(error)


def test_an_error_becomes_the_runs_state(home: Path) -> None:
    assert not home.exists()
    with returning_state() as ending:
        raise GateFailed("E2E failed")
    assert (ending.state.name, ending.state.message) == ("Failed", "Failed: [gate-failed] E2E failed")
    assert ending.state.is_failed()


def test_an_unexpected_exception_is_not_turned_into_a_state(home: Path) -> None:
    assert not home.exists()
    with pytest.raises(ZeroDivisionError), returning_state():
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [None, GateFailed("no"), KeyboardInterrupt()])
def test_the_checkouts_are_removed_and_the_evidence_stays(home: Path, error: BaseException | None) -> None:
    (home / "0123456789ab" / ".git").mkdir(parents=True)
    (home / "evidence" / "staging-E2E").mkdir(parents=True)
    try:
        with returning_state() as ending:
            ending.state = Completed()
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert [path.name for path in home.iterdir()] == ["evidence"]
