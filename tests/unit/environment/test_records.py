"""Records as Secrets hold them, and which of them is gone back to."""

import base64
import gzip
import json
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment import records
from prefect_cd.environment.records import Entry, Record, State
from prefect_cd.errors import Invalid
from prefect_cd.kube.objects import Object

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
GOOD, FAILED, ROLLED_BACK, WITHDRAWN = State.KNOWN_GOOD, State.FAILED, State.ROLLED_BACK, State.WITHDRAWN


def entries(*newest_first: tuple[str, State]) -> tuple[Entry, ...]:
    many = len(newest_first)
    return tuple(Entry(number=many - i, state=state, release_id=id_) for i, (id_, state) in enumerate(newest_first))


def record(**given: Any) -> Record:  # noqa: ANN401
    said = {"number": 1, "application": "shop", "environment": "staging", "state": GOOD, "release_id": "a-1"}
    more = {"release_hash": "h", "commit": None, "image": None, "objects": (), "started_at": NOW}
    return Record(**{**said, **more, **given})


def secret(content: bytes, **labels: str) -> Object:
    metadata = {"name": "prefect-cd.shop.1", "namespace": "n", "labels": labels}
    data = {"record": base64.b64encode(content).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


@pytest.mark.parametrize(
    ("there", "number"),
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
def test_without_a_name_the_good_release_before_what_runs_is_gone_back_to(
    there: list[tuple[str, State]], number: int | None
) -> None:
    found = records._before(entries(*there))
    assert (found[0].number if found else None) == number


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("abc", [4]), ("a", [4, 1]), ("3", [3]), ("33", [2]), ("9", []), ("abc1234-11111111", [4]), ("", [4, 3, 2, 1])],
)
def test_a_name_is_a_number_before_it_is_the_beginning_of_an_id(name: str, numbers: list[int]) -> None:
    ids = ("abc1234-11111111", "3dd1234-11111111", "3331234-22222222", "add1234-11111111")
    good = list(entries(*((each, GOOD) for each in ids)))
    assert [entry.number for entry in records._named(good, name)] == numbers


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
def test_a_broken_record_is_named_and_the_way_out_with_it(name: str) -> None:
    with pytest.raises(Invalid, match="the record cannot be read") as caught:
        records._decode(BROKEN[name])
    assert caught.value.where == "secret/prefect-cd.shop.1"
    assert "delete the Secret" in caught.value.hint


def test_i7_a_broken_record_is_told_without_its_content() -> None:
    content = {**record().model_dump(mode="json"), "objects": ["hunter2"], "number": "hunter2", "x": "hunter2"}
    with pytest.raises(Invalid) as caught:
        records._decode(secret(gzip.compress(json.dumps(content).encode())))
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"
    assert caught.value.__suppress_context__
    assert "number" in caught.value.reason


def test_a_record_that_would_fill_the_memory_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LARGEST", 1000)
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
def test_labels_that_were_changed_by_hand_are_a_broken_record(labels: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="the record cannot be read: its labels"):
        records._entry(secret(b"", **labels))
