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
    finished,
    new_record,
    preexisting_record,
)
from prefect_cd.errors import Invalid
from prefect_cd.kube.objects import Object
from prefect_cd.release.model import BuiltImage, Commit, Release

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
GOOD, FAILED, ROLLED_BACK, WITHDRAWN = State.KNOWN_GOOD, State.FAILED, State.ROLLED_BACK, State.WITHDRAWN


def entries(*newest_first: tuple[str, State]) -> tuple[Entry, ...]:
    many = len(newest_first)
    return tuple(Entry(number=many - i, state=state, release_id=id_) for i, (id_, state) in enumerate(newest_first))


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
    before = preexisting_record(SHOP, [CONFIG], NOW)
    assert (before.state, before.commit, before.image) == (GOOD, None, None)
    assert (before.release_id, before.started_at, before.settled_at) == ("before-prefect-cd", NOW, NOW)
    assert before.objects == (SHOP.label(CONFIG),)


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
        ([], None),
    ],
)
def test_without_a_name_a_rollback_goes_to_the_known_good_before_what_runs(
    newest_first: list[tuple[str, State]], number: int | None
) -> None:
    candidates = records._before_running(entries(*newest_first))
    assert (candidates[0].number if candidates else None) == number


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
