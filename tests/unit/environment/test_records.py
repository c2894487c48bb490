"""The records of a rollout, how Secrets hold them, and which of them a rollback restores."""

import base64
import gzip
import json
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment import records
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import (
    Decision,
    Entry,
    GateResult,
    Record,
    State,
    baseline,
    finished,
    new_record,
)
from prefect_cd.errors import Invalid
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


def secret(content: bytes, **labels: str) -> Object:
    metadata = {"name": "prefect-cd.shop.1", "namespace": "n", "labels": labels}
    data = {"record": base64.b64encode(content).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


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
        state=State.STARTED,
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
    assert (started.number, started.restores, started.state) == (0, 7, State.STARTED)
    assert (started.release_id, started.release_hash, started.objects) == ("a-1", "h", (CONFIG,))
    assert (started.started_at, started.decision, started.run) == (LATER, None, "")


def test_a_finished_record_keeps_everything_but_its_outcome() -> None:
    started = record(state=State.STARTED, objects=(CONFIG,))
    gate = GateResult(name="e2e", outcome="passed", summary="3 passed")
    ended = finished(started, GOOD, "all gates passed", LATER, gates=[gate])
    assert ended == record(state=GOOD, objects=(CONFIG,), reason="all gates passed", settled_at=LATER, gates=(gate,))
    assert finished(ended, FAILED, "its process ended", LATER).gates == (gate,)


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
        ([("c", State.STARTED), ("b", GOOD), ("a", GOOD)], 2),
        ([("d", ROLLED_BACK), ("c", State.STARTED), ("b", GOOD), ("a", GOOD)], 1),
        ([("a", GOOD), ("nothing", GOOD)], None),
        ([("a", FAILED), ("nothing", GOOD)], 1),
        ([("a", GOOD), ("before-prefect-cd", GOOD)], 1),
        ([], None),
    ],
)
def test_without_a_name_a_rollback_goes_to_the_known_good_before_what_runs(
    newest_first: list[tuple[str, State]], number: int | None
) -> None:
    candidates = records._before_running(entries(*newest_first))
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
        ([restoring(3, 1, State.STARTED), *entries(("b", GOOD), ("a", GOOD))], [State.STARTED, GOOD, GOOD]),
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
    assert [entry.state for entry in records._with_withdrawn(newest_first)] == states


@pytest.mark.parametrize("name", ["0", "n", "not", "bef", ""])
def test_the_baseline_is_not_chosen_by_digits_or_the_start_of_its_name(name: str) -> None:
    for release_id in ("nothing", "before-prefect-cd"):
        assert records._matching(list(entries((release_id, GOOD), first=0)), name) == []
        assert len(records._matching(list(entries((release_id, GOOD), first=0)), release_id)) == 1


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("abc", [4]), ("a", [4, 1]), ("3", [3]), ("33", [2]), ("9", []), ("abc1234-11111111", [4]), ("", [4, 3, 2, 1])],
)
def test_digits_are_the_number_of_a_record_first_and_then_the_start_of_an_id(name: str, numbers: list[int]) -> None:
    ids = ("abc1234-11111111", "3dd1234-11111111", "3331234-22222222", "add1234-11111111")
    good = list(entries(*((release_id, GOOD) for release_id in ids)))
    assert [entry.number for entry in records._matching(good, name)] == numbers


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written() -> None:
    written = record(objects=({"kind": "A", "x": [1, None, "ü"]},), reason="why")
    assert records._decode(secret(gzip.compress(written.model_dump_json().encode()))) == written


EDITED = [
    ("state", "known-good", "started"),
    ("number", "7", "1"),
    ("release-id", "b-1", "a-1"),
    ("restores", "4", "5"),
]


@pytest.mark.parametrize(("label", "edited", "right"), EDITED, ids=[label for label, _, _ in EDITED])
def test_i4_a_label_that_was_edited_is_recognized_and_the_hint_corrects_it(label: str, edited: str, right: str) -> None:
    written = record(state=State.STARTED, restores=5)
    item = secret(gzip.compress(written.model_dump_json().encode()), **records._labels(written))
    assert records._decode(item) == written
    item["metadata"]["labels"][f"prefect-cd.dev/{label}"] = edited
    with pytest.raises(Invalid, match=f"a label of record 1 was edited: .*{label}={right}") as caught:
        records._decode(item)
    assert caught.value.where == "secret/prefect-cd.shop.1"
    assert caught.value.hint == (
        f"`kubectl -n n label secret prefect-cd.shop.1 prefect-cd.dev/{label}={right} --overwrite`"
    )


def test_a_record_of_an_older_version_without_the_newer_labels_is_read() -> None:
    written = record(restores=5)
    labels = {key: value for key, value in records._labels(written).items() if "restores" not in key}
    assert records._decode(secret(gzip.compress(written.model_dump_json().encode()), **labels)) == written


BROKEN: dict[str, Object] = {
    "no data": {**secret(b""), "data": None},
    "another key": {**secret(b""), "data": {"x": "y"}},
    "not base64": {**secret(b""), "data": {"record": "*"}},
    "empty": secret(b""),
    "not gzip": secret(b"hello"),
    "cut off": secret(gzip.compress(record().model_dump_json().encode())[:-20]),
    "damaged": secret(gzip.compress(b"x" * 100)[:12] + b"\xff\xff\xff" + gzip.compress(b"x" * 100)[15:]),
    "not JSON": secret(gzip.compress(b"{")),
    "not a record": secret(gzip.compress(b"[]")),
    "another version": secret(gzip.compress(json.dumps({**record().model_dump(mode="json"), "new": 1}).encode())),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_error_of_a_broken_record_names_the_secret_and_says_what_to_do(name: str) -> None:
    with pytest.raises(Invalid, match="the record cannot be read") as caught:
        records._decode(BROKEN[name])
    assert caught.value.where == "secret/prefect-cd.shop.1"
    assert "delete the Secret" in caught.value.hint


def test_i7_the_error_of_a_broken_record_does_not_quote_its_content() -> None:
    content = {**record().model_dump(mode="json"), "objects": ["hunter2"], "number": "hunter2", "x": "hunter2"}
    with pytest.raises(Invalid) as caught:
        records._decode(secret(gzip.compress(json.dumps(content).encode())))
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"
    assert caught.value.__suppress_context__
    assert "number" in caught.value.reason


def test_a_record_that_would_exhaust_the_memory_is_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_DECOMPRESSED", 1000)
    with pytest.raises(Invalid, match="too large"):
        records._decode(secret(gzip.compress(b" " * 100_000)))


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"prefect-cd.dev/number": "x", "prefect-cd.dev/state": "failed", "prefect-cd.dev/release-id": "a"},
        {"prefect-cd.dev/number": "1", "prefect-cd.dev/state": "of another version", "prefect-cd.dev/release-id": "a"},
    ],
)
def test_a_record_whose_labels_were_changed_by_hand_is_broken(labels: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="the record cannot be read: its labels"):
        records._entry(secret(b"", **labels))
