"""What keeps an environment from being whole."""

from datetime import datetime, timezone

import pytest

from prefect_cd.environment.change_set import Action, Change
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.journal import Damage
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import OPEN, Record, State, baseline
from prefect_cd.environment.wholeness import Defect, DefectKind, defects


def change(action: Action) -> Change:
    return Change(api_version="v1", kind="ConfigMap", namespace="shop", name="settings", action=action)


def record(number: int, state: State) -> Record:
    empty = baseline(Ownership("shop", "staging", "shop"), (), datetime(2026, 1, 1, tzinfo=timezone.utc))
    return empty.model_copy(update={"number": number, "state": state, "reason": ""})


KNOWN_GOOD = record(1, State.KNOWN_GOOD)
GOOD = EnvironmentState(newest=KNOWN_GOOD, known_good=KNOWN_GOOD)


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (Action.CHANGED, DefectKind.DIFFERS),
        (Action.CREATED, DefectKind.MISSING),
        (Action.PRUNED, DefectKind.SURPLUS),
        (Action.RECREATED, DefectKind.TERMINATING),
        (Action.REPLACED, DefectKind.DIFFERS),
        (Action.KEPT, DefectKind.DIFFERS),
        (Action.UNCHANGED, None),
    ],
)
def test_what_applying_the_version_would_change_is_not_whole(action: Action, kind: DefectKind | None) -> None:
    expected = (Defect(kind=kind, where="configmap/settings"),) if kind else ()
    assert defects([change(action)], GOOD) == expected


def test_every_action_but_unchanged_is_a_defect() -> None:
    """A new action must not pass as whole."""
    for action in Action:
        assert bool(defects([change(action)], GOOD)) == (action is not Action.UNCHANGED)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("settling", [None, 1, 2])
def test_an_open_record_is_not_whole_except_the_one_that_gets_its_outcome(state: State, settling: int | None) -> None:
    records = EnvironmentState(newest=record(2, state), known_good=KNOWN_GOOD)
    is_open = state in OPEN and settling != 2
    expected = (Defect(kind=DefectKind.OPEN_RECORD, where="record 2", detail=state.value),) if is_open else ()
    assert defects([], records, settling=settling) == expected


def test_a_record_that_cannot_be_read_is_not_whole() -> None:
    damage = Damage(number=2, where="secret/prefect-cd.shop.2", problem="its checksum is wrong", hint="")
    (defect,) = defects([], GOOD.model_copy(update={"damaged": (damage,)}))
    assert str(defect) == "secret/prefect-cd.shop.2: damaged record (its checksum is wrong)"
