"""The records of a rollout, what each may become, and which of them a rollback restores."""

from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.journal import (
    Damage,
    Entry,
    Journal,
    before_running,
    matching,
    objects_to_restore,
    rollback_target,
    with_withdrawn,
)
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import (
    MOVES,
    OPEN,
    Decision,
    GateResult,
    Record,
    State,
    baseline,
    moved,
    new_record,
    refuse_move,
)
from prefect_cd.errors import Errored, Invalid
from prefect_cd.kube.objects import Object
from prefect_cd.release.model import BuiltImage, Commit, Release

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
GOOD, FAILED, ROLLED_BACK, WITHDRAWN = State.KNOWN_GOOD, State.FAILED, State.ROLLED_BACK, State.WITHDRAWN


def entries(*newest_first: tuple[str, State], first: int = 1) -> tuple[Entry, ...]:
    last = first + len(newest_first) - 1
    return tuple(Entry(number=last - i, state=state, release_id=id_) for i, (id_, state) in enumerate(newest_first))


def record(**fields: Any) -> Record:  # noqa: ANN401
    defaults = {"number": 1, "application": "shop", "environment": "staging", "state": GOOD, "release_id": "a-1"}
    more = {"release_hash": "h", "commit": None, "image": None, "objects": (), "started_at": NOW}
    return Record(**{**defaults, **more, **fields})


# --- the records of a rollout ----------------------------------------------------------------------------------------

SHOP = Ownership("shop", "staging", "shop-staging")
CONFIG: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop"}}
LATER = datetime(2026, 1, 2, tzinfo=timezone.utc)


def release() -> Release:
    commit = Commit(repository="r", sha="a" * 40, revision="main", subject="s", author="An author", committed_at=NOW)
    image = BuiltImage(name="r/shop", digest="sha256:" + "a" * 64, built=True)
    return Release(application="shop", commit=commit, image=image, manifests={"staging": ()})


def test_i2_a_new_record_says_what_is_about_to_be_applied_and_who_approved_it() -> None:
    candidate = release()
    decision = Decision(approved=True, name="approver one", comment="", decided_at=NOW, content="c")
    started = new_record(SHOP, candidate, [CONFIG], NOW, decision=decision, run="https://ui/runs/1")
    assert started == Record(
        number=0,
        application="shop",
        environment="staging",
        state=State.PREPARED,
        release_id=candidate.id,
        release_hash=candidate.hash,
        commit=candidate.commit,
        image=candidate.image,
        objects=(CONFIG,),
        decision=decision,
        started_at=NOW,
        run="https://ui/runs/1",
    )


def test_i2_the_record_of_a_rollback_names_the_record_that_it_restores() -> None:
    old = record(number=7, release_id="a-1", release_hash="h", objects=(CONFIG,))
    started = new_record(SHOP, old, old.objects, LATER)
    assert (started.number, started.restores, started.state) == (0, 7, State.PREPARED)
    assert (started.release_id, started.release_hash, started.objects) == ("a-1", "h", (CONFIG,))
    assert (started.started_at, started.decision, started.run) == (LATER, None, "")


def test_a_record_that_moved_keeps_everything_but_its_state_and_has_a_time_with_its_outcome() -> None:
    started = record(state=State.APPLYING, objects=(CONFIG,))
    gate = GateResult(name="e2e", outcome="passed", summary="3 passed")
    assert moved(started, State.VERIFYING, LATER) == record(state=State.VERIFYING, objects=(CONFIG,))
    ended = moved(started, GOOD, LATER, reason="all gates passed", gates=[gate])
    assert ended == record(state=GOOD, objects=(CONFIG,), reason="all gates passed", settled_at=LATER, gates=(gate,))
    assert moved(ended, FAILED, LATER, reason="its process ended").gates == (gate,)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("to", State)
def test_a_record_gets_the_states_of_the_table_and_no_other(state: State, to: State) -> None:
    if to == state or to in MOVES[state]:
        refuse_move(1, state, to)
    else:
        with pytest.raises(Errored, match=f"record 1 is {state.value}, and cannot become {to.value}"):
            refuse_move(1, state, to)


def test_an_open_record_can_always_be_taken_back_and_no_outcome_becomes_known_good() -> None:
    assert set(MOVES) == set(State)
    for state in State:
        assert ({ROLLED_BACK, FAILED, State.ROLLBACK_FAILED} <= MOVES[state]) == (state in OPEN)
        assert (GOOD in MOVES[state]) == (state == State.VERIFYING)


def test_i2_what_ran_before_prefect_cd_is_a_known_good_without_a_commit() -> None:
    before = baseline(SHOP, [CONFIG], NOW)
    assert (before.number, before.state, before.commit, before.image) == (0, GOOD, None, None)
    assert (before.release_id, before.started_at, before.settled_at) == ("before-prefect-cd", NOW, NOW)
    assert before.objects == (SHOP.label(CONFIG),)


def test_i4_an_environment_in_which_nothing_ran_has_a_known_good_too() -> None:
    nothing = baseline(SHOP, [], NOW)
    assert (nothing.number, nothing.state, nothing.release_id, nothing.objects) == (0, GOOD, "nothing", ())


# --- which record is rolled back to ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newest_first", "number"),
    [
        ([("b", GOOD), ("a", GOOD)], 1),
        ([("b", GOOD), ("b", GOOD), ("a", GOOD)], 1),
        ([("a", GOOD), ("b", WITHDRAWN), ("a", GOOD)], None),
        ([("a", GOOD), ("b", WITHDRAWN), ("a", GOOD), ("z", GOOD)], 1),
        ([("c", ROLLED_BACK), ("b", GOOD), ("a", GOOD)], 1),
        ([("d", ROLLED_BACK), ("c", FAILED), ("b", GOOD), ("a", GOOD)], 2),
        ([("c", ROLLED_BACK), ("b", GOOD)], None),
        ([("c", FAILED), ("b", GOOD), ("a", GOOD)], 2),
        ([("b", GOOD), ("c", FAILED), ("a", GOOD)], 1),
        ([("a", GOOD)], None),
        ([("b", GOOD), ("a", FAILED)], None),
        ([("c", State.ROLLBACK_FAILED), ("a", GOOD)], 1),
        ([("c", State.PREPARED), ("b", GOOD), ("a", GOOD)], 2),
        ([("c", State.SUPERSEDED), ("b", GOOD), ("a", GOOD)], 1),
        ([("d", State.SUPERSEDED), ("c", FAILED), ("b", GOOD), ("a", GOOD)], 2),
        ([("d", ROLLED_BACK), ("c", State.APPLYING), ("b", GOOD), ("a", GOOD)], 1),
        ([("a", GOOD), ("nothing", GOOD)], None),
        ([("a", FAILED), ("nothing", GOOD)], 1),
        ([("a", GOOD), ("before-prefect-cd", GOOD)], 1),
        ([], None),
    ],
)
def test_without_a_name_a_rollback_goes_to_the_known_good_before_what_runs(
    newest_first: list[tuple[str, State]], number: int | None
) -> None:
    candidates = before_running(entries(*newest_first))
    assert (candidates[0].number if candidates else None) == number


def restoring(number: int, restores: int, state: State = GOOD) -> Entry:
    return Entry(number=number, state=state, release_id="a", restores=restores)


@pytest.mark.parametrize(
    ("newest_first", "states"),
    [
        # killed right after the outcome of a rollback was written: nothing more has to be written
        ([restoring(3, 1), *entries(("b", GOOD), ("a", GOOD))], [GOOD, WITHDRAWN, GOOD]),
        ([restoring(3, 2), *entries(("b", GOOD), ("a", GOOD))], [GOOD, GOOD, GOOD]),
        ([restoring(4, 1), *entries(("c", FAILED), ("b", GOOD), ("a", GOOD))], [GOOD, FAILED, WITHDRAWN, GOOD]),
        ([restoring(2, 0), *entries(("a", GOOD), ("nothing", GOOD), first=0)], [GOOD, WITHDRAWN, GOOD]),
        # a rollback that did not succeed withdraws nothing
        ([restoring(3, 1, State.APPLYING), *entries(("b", GOOD), ("a", GOOD))], [State.APPLYING, GOOD, GOOD]),
        ([restoring(3, 1, ROLLED_BACK), *entries(("b", GOOD), ("a", GOOD))], [ROLLED_BACK, GOOD, GOOD]),
        # forth again, by name: the first rollback is withdrawn, and what it withdrew stays so
        (
            [restoring(4, 2), restoring(3, 1), *entries(("b", GOOD), ("a", GOOD))],
            [GOOD, WITHDRAWN, WITHDRAWN, GOOD],
        ),
        # as older versions of prefect-cd wrote it
        ([*entries(("a", GOOD), ("b", WITHDRAWN), ("a", GOOD))], [GOOD, WITHDRAWN, GOOD]),
    ],
)
def test_what_a_good_rollback_went_back_behind_is_withdrawn_by_that_alone(
    newest_first: list[Entry], states: list[State]
) -> None:
    assert [entry.state for entry in with_withdrawn(newest_first)] == states


@pytest.mark.parametrize("name", ["0", "n", "not", "bef", ""])
def test_the_baseline_is_not_chosen_by_digits_or_the_start_of_its_name(name: str) -> None:
    for release_id in ("nothing", "before-prefect-cd"):
        assert matching(list(entries((release_id, GOOD), first=0)), name) == []
        assert len(matching(list(entries((release_id, GOOD), first=0)), release_id)) == 1


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("abc", [4]), ("a", [4, 1]), ("3", [3]), ("33", [2]), ("9", []), ("abc1234-11111111", [4]), ("", [4, 3, 2, 1])],
)
def test_digits_are_the_number_of_a_record_first_and_then_the_start_of_an_id(name: str, numbers: list[int]) -> None:
    ids = ("abc1234-11111111", "3dd1234-11111111", "3331234-22222222", "add1234-11111111")
    good = list(entries(*((release_id, GOOD) for release_id in ids)))
    assert [entry.number for entry in matching(good, name)] == numbers


# --- what cannot be read ---------------------------------------------------------------------------------------------


def damage(number: int, *, hides: bool = True) -> Damage:
    return Damage(number=number, where=f"secret/{number}", problem=f"record {number} is damaged", hint="", hides=hides)


@pytest.mark.parametrize(
    ("number", "release", "refused"), [(3, "", True), (1, "", False), (3, "a", False), (3, "3", True)]
)
def test_a_damaged_record_that_may_be_the_one_to_roll_back_to_is_named(
    number: int,
    release: str,
    refused: bool,  # noqa: FBT001  a column of the table
) -> None:
    kept = [entry for entry in entries(("d", GOOD), ("c", GOOD), ("b", GOOD), ("a", GOOD)) if entry.number != number]
    journal = Journal(entries=tuple(kept), damaged=(damage(number),))
    if refused:
        with pytest.raises(Invalid, match=f"record {number} is damaged"):
            rollback_target("staging", journal, release)
    else:
        assert rollback_target("staging", journal, release).number == (1 if release else 3)


def test_an_edited_label_hides_nothing() -> None:
    journal = Journal(entries=entries(("b", GOOD), ("a", GOOD)), damaged=(damage(2, hides=False),))
    assert rollback_target("staging", journal).number == 1
    journal.refuse_hidden(None)


def test_a_superseded_record_hides_neither_a_failed_rollback_nor_what_runs() -> None:
    frozen = Journal(entries=entries(("c", State.SUPERSEDED), ("b", State.ROLLBACK_FAILED), ("a", GOOD)))
    assert frozen.newest
    assert (frozen.newest.number, frozen.last_number) == (2, 3)


@pytest.mark.parametrize(
    ("marked", "lost", "settled"),
    [(None, None, True), (4, 4, False), (3, None, False), (2, None, True), (1, None, True)],
)
def test_the_mark_on_the_lease_tells_whether_the_open_record_is_lost(
    marked: int | None,
    lost: int | None,
    settled: bool,  # noqa: FBT001  a column of the table
) -> None:
    journal = Journal(entries=entries(("c", State.APPLYING), ("b", GOOD), ("a", GOOD)))
    assert (journal.lost(marked), journal.is_settled(marked)) == (lost, settled)


def test_a_mark_from_before_later_records_is_outdated() -> None:
    journal = Journal(entries=entries(("c", GOOD), ("b", GOOD), first=3))
    assert (journal.lost(2), journal.is_settled(2)) == (None, True)


def test_a_record_that_is_damaged_is_not_lost() -> None:
    journal = Journal(entries=entries(("a", GOOD)), damaged=(damage(2),))
    assert (journal.lost(2), journal.is_settled(2)) == (None, False)


# --- what is applied to go back --------------------------------------------------------------------------------------


def item(name: str, value: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}


def left(number: int, state: State, *replaced: Object, **fields: Any) -> Record:  # noqa: ANN401
    return record(number=number, state=state, replaced=replaced, **fields)


OURS, THEIRS, OTHER = item("shop", "ours"), item("shop", "theirs"), item("other", "theirs")
BASE = record(number=3, objects=(item("base", "ours"),))


@pytest.mark.parametrize(
    ("base", "left_behind", "originals"),
    [
        (BASE, [], ()),
        (BASE, [left(4, FAILED, THEIRS)], (THEIRS,)),
        (BASE, [left(4, State.APPLYING, THEIRS, OTHER)], (THEIRS, OTHER)),
        # the base has taken it over itself
        (record(number=3, objects=(OURS,)), [left(4, FAILED, THEIRS)], ()),
        # it was given back
        (BASE, [left(4, ROLLED_BACK, THEIRS)], ()),
        (BASE, [left(4, State.SUPERSEDED, THEIRS)], ()),
        (BASE, [left(4, WITHDRAWN, THEIRS), left(5, GOOD, restores=3)], ()),
        # a rollback to a release that has it keeps it ours
        (BASE, [left(4, GOOD, THEIRS), left(5, GOOD, objects=(OURS,), restores=4)], (THEIRS,)),
        # a rollback that did not succeed may have given nothing back
        (BASE, [left(4, GOOD, THEIRS), left(5, State.ROLLBACK_FAILED, restores=3)], (THEIRS,)),
        # the older one of two is what was there before us
        (BASE, [left(5, FAILED, item("shop", "later")), left(4, FAILED, THEIRS)], (THEIRS,)),
        # what came before the base is nothing that going back to it has to do with
        (BASE, [left(2, GOOD, THEIRS), left(3, GOOD, THEIRS)], ()),
    ],
)
def test_going_back_gives_others_what_the_releases_since_took_over(
    base: Record, left_behind: list[Record], originals: tuple[Object, ...]
) -> None:
    assert objects_to_restore(base, left_behind) == base.objects + originals
