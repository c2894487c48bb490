"""How Secrets hold a record, and that whatever was changed in them is recognised and named."""

import base64
import gzip
import json
import random
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment import record_format
from prefect_cd.environment.journal import Damage, Entry
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, State, baseline
from prefect_cd.environment.record_format import (
    HEAD,
    Head,
    decode,
    encode,
    epoch_of,
    part_names,
    read_entry,
    read_head,
    sealed,
    state_of,
)
from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
SHOP = Ownership("shop", "staging", "n")


def record(**fields: Any) -> Record:  # noqa: ANN401
    defaults = {"number": 1, "application": "shop", "environment": "staging", "state": State.APPLYING}
    more = {"release_id": "a-1", "release_hash": "h", "commit": None, "image": None, "objects": (), "started_at": NOW}
    return Record(**{**defaults, **more, **fields})


def large_record() -> Record:
    """A record that takes about three Secrets."""
    noise = random.Random(0)  # noqa: S311  no secret
    objects = tuple(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{index}"}, "data": {"a": digits}}
        for index, digits in enumerate(noise.randbytes(500_000).hex() for _ in range(4))
    )
    return record(objects=objects, reason="why")


def metadata_of(secret: Object) -> Object:
    """The Secret as a list request returns it."""
    return {key: secret[key] for key in ("apiVersion", "kind", "metadata")}


def described(secret: Object, *parts: Object) -> str:
    """The damage that a Secret has, as people read it."""
    damage = decode(SHOP, secret, parts)
    assert isinstance(damage, Damage)
    assert damage.where == f"secret/{secret['metadata']['name']}"
    return damage.problem


# --- what was written is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_a_record_is_read_as_it_was_written(state: State) -> None:
    written = record(
        state=state, objects=({"kind": "A", "x": [1, None, "ü"]},), reason="why", restores=4, settled_at=NOW
    )
    secret, parts = encode(SHOP, written, 7)
    assert parts == ()
    assert decode(SHOP, secret) == written
    entry = Entry(number=1, state=state, release_id="a-1", restores=4)
    for seen in (secret, metadata_of(secret)):
        assert read_entry(SHOP, seen, ()) == (entry, None)
        assert (epoch_of(seen), state_of(seen)) == (7, state)


def test_the_content_can_be_read_without_this_package() -> None:
    secret, _ = encode(SHOP, record(), 7)
    content = json.loads(gzip.decompress(base64.b64decode(secret["data"]["record"])))
    assert (content["number"], content["state"], content["release_id"]) == (1, "applying", "a-1")


def test_equal_records_have_equal_secrets() -> None:
    assert encode(SHOP, large_record(), 7) == encode(SHOP, large_record(), 7)


def test_the_baseline_has_a_label_of_its_own() -> None:
    secret, _ = encode(SHOP, baseline(SHOP, [], NOW), 1)
    assert secret["metadata"]["labels"]["prefect-cd.dev/record"] == "baseline"
    assert decode(SHOP, secret) == baseline(SHOP, [], NOW)


def test_a_large_record_is_read_from_its_parts_and_moves_without_them() -> None:
    written = large_record()
    secret, parts = encode(SHOP, written, 7)
    assert len(parts) == 3
    assert [part["metadata"]["name"] for part in parts] == part_names(secret)
    assert all(part["immutable"] for part in parts)
    assert all(len(base64.b64decode(part["data"]["part"])) <= 950_000 for part in parts)
    assert decode(SHOP, secret, parts) == written
    later = written.model_copy(update={"state": State.VERIFYING})
    moved, again = encode(SHOP, later, 7, secret)
    assert again == ()
    assert decode(SHOP, moved, parts) == later


def test_a_record_that_needs_too_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_format, "_MAX_PARTS", 2)
    with pytest.raises(InvalidManifest, match=r"bytes compressed; the limit is 1,900,000") as caught:
        encode(SHOP, large_record(), 7)
    assert caught.value.where == "secret/prefect-cd.shop.1"
    assert "move large data out of ConfigMaps" in caught.value.hint


def test_a_secret_keeps_its_type_which_cannot_be_changed() -> None:
    secret, _ = encode(SHOP, record(), 7, {"type": "prefect-cd.dev/record.v1", "metadata": {"name": "x"}})
    assert secret["type"] == "prefect-cd.dev/record.v1"
    assert decode(SHOP, secret) == record()


# --- what was changed ------------------------------------------------------------------------------------------------


def written(**fields: Any) -> Object:  # noqa: ANN401
    return encode(SHOP, record(**fields), 7)[0]


def with_head(secret: Object, text: str | None) -> Object:
    annotations = {key: value for key, value in secret["metadata"]["annotations"].items() if key != HEAD}
    annotations |= {} if text is None else {HEAD: text}
    return {**secret, "metadata": {**secret["metadata"], "annotations": annotations}}


def with_field(secret: Object, key: str, value: object) -> Object:
    """The head with another field, as somebody edits it."""
    return with_head(secret, json.dumps({**json.loads(secret["metadata"]["annotations"][HEAD]), key: value}))


def resealed(secret: Object, **fields: object) -> Object:
    """The head with other fields and the right checksum."""
    head = read_head(secret)
    assert isinstance(head, Head)
    return with_head(secret, sealed(head.model_copy(update=fields)))


def named(secret: Object, name: str) -> Object:
    return {**secret, "metadata": {**secret["metadata"], "name": name}}


EDITED: dict[str, tuple[Callable[[Object], Object], str]] = {
    "state": (lambda item: with_field(item, "state", "known-good"), "was edited: the checksum"),
    "number": (lambda item: with_field(item, "number", 2), "was edited: the checksum"),
    "epoch": (lambda item: with_field(item, "epoch", 1), "was edited: the checksum"),
    "release": (lambda item: with_field(item, "release_id", "b-1"), "was edited: the checksum"),
    "content": (lambda item: with_field(item, "content", "0" * 64), "was edited: the checksum"),
    "checksum": (lambda item: with_field(item, "checksum", "0" * 64), "was edited: the checksum"),
    "no such state": (lambda item: with_field(item, "state", "good"), "is not what prefect-cd wrote"),
    "more": (lambda item: with_field(item, "more", 1), "is not what prefect-cd wrote"),
    "no JSON": (lambda item: with_head(item, "{"), "is not what prefect-cd wrote"),
    "no object": (lambda item: with_head(item, "[]"), "is not what prefect-cd wrote"),
    "removed": (lambda item: with_head(item, None), "head was removed"),
    "of another application": (lambda item: resealed(item, application="blog"), "it is a copy: its head is that of"),
    "of another environment": (lambda item: resealed(item, environment="x"), "record 1 of shop in x"),
    "of another number": (lambda item: named(item, "prefect-cd.shop.2"), "its head is that of record 1 of shop"),
    "not what its content says": (lambda item: resealed(item, state=State.KNOWN_GOOD), "that of another head"),
}


@pytest.mark.parametrize("name", EDITED)
def test_i4_a_head_that_was_edited_is_recognised(name: str) -> None:
    edit, problem = EDITED[name]
    assert problem in described(edit(written()))


@pytest.mark.parametrize("name", [name for name in EDITED if name not in {"removed", "not what its content says"}])
def test_i4_a_list_shows_a_head_that_was_edited(name: str) -> None:
    """A head that was removed, or sealed anew with another state, shows when the content is read."""
    entry, damage = read_entry(SHOP, metadata_of(EDITED[name][0](written())), ())
    assert entry is None
    assert damage
    assert damage.hides
    assert not damage.newer


def test_what_to_do_about_a_damaged_record_is_a_command() -> None:
    damage = decode(SHOP, with_head(written(), "{"))
    assert isinstance(damage, Damage)
    assert "restore the Secret from a backup" in damage.hint
    assert "`kubectl -n n delete secret prefect-cd.shop.1`" in damage.hint


@pytest.mark.parametrize("label", ["state", "number", "release-id", "restores"])
@pytest.mark.parametrize("value", ["7", None])
def test_i4_an_edited_label_is_named_and_the_hint_corrects_it_while_the_head_is_believed(
    label: str, value: str | None
) -> None:
    secret = written(restores=5)
    key = f"prefect-cd.dev/{label}"
    right = f"{key}={secret['metadata']['labels'][key]}"
    del secret["metadata"]["labels"][key]
    secret["metadata"]["labels"] |= {} if value is None else {key: value}
    entry, damage = read_entry(SHOP, metadata_of(secret), ())
    assert entry == Entry(number=1, state=State.APPLYING, release_id="a-1", restores=5)
    assert damage
    assert (damage.hides, damage.where) == (False, "secret/prefect-cd.shop.1")
    assert right in damage.problem
    assert damage.hint.startswith("`kubectl -n n label secret prefect-cd.shop.1 ")
    assert right in damage.hint
    assert decode(SHOP, secret) == record(restores=5)


@pytest.mark.parametrize("name", ["prefect-cd.shop.1-old", "backup", "prefect-cd.shop.01", "prefect-cd.blog.1"])
def test_a_copy_under_another_name_is_no_record(name: str) -> None:
    entry, damage = read_entry(SHOP, named(written(), name), ())
    assert entry is None
    assert damage
    assert (damage.hides, damage.number) == (False, None)
    assert "it is a copy" in damage.problem
    assert damage.hint == f"`kubectl -n n label secret {name} prefect-cd.dev/record-`"


@pytest.mark.parametrize(
    "secret",
    [
        with_field(with_field(written(), "format", 3), "new", "field"),
        {**written(), "type": "prefect-cd.dev/record.v3"},
        with_head({**written(), "type": "prefect-cd.dev/record.v3"}, None),
    ],
    ids=["head", "type", "type without a head"],
)
def test_a_newer_format_is_named_and_not_guessed(secret: Object) -> None:
    damage = decode(SHOP, secret)
    assert isinstance(damage, Damage)
    assert (damage.newer, damage.hides) == (True, True)
    assert damage.problem == "the record has format 3, and this version of prefect-cd knows formats up to 2"
    assert "use the version of prefect-cd that wrote it" in damage.hint


CONTENT: dict[str, Object] = {
    "no data": {**written(), "data": None},
    "another key": {**written(), "data": {"x": "y"}},
    "not base64": {**written(), "data": {"record": "*"}},
    "of another record": {**written(), "data": written(reason="another")["data"]},
    "empty": {**written(), "data": {"record": ""}},
}


@pytest.mark.parametrize("name", CONTENT)
def test_content_that_was_changed_is_recognised(name: str) -> None:
    problem = described(CONTENT[name])
    assert "its content was changed" in problem or "it cannot be read" in problem


def test_parts_that_are_missing_or_changed_are_recognised() -> None:
    secret, parts = encode(SHOP, large_record(), 7)
    first, second, third = parts
    names = part_names(secret)
    assert f"1 of its 3 parts are missing: {names[1]}" in described(secret, first, third)
    changed = {**second, "data": first["data"]}
    assert "its parts were changed" in described(secret, first, changed, third)
    entry, damage = read_entry(SHOP, metadata_of(secret), names[1:])
    assert entry is None
    assert damage
    assert names[0] in damage.problem


# --- format 1 --------------------------------------------------------------------------------------------------------


def old(content: bytes, **labels: str) -> Object:
    shown = {"state": "started", "number": "1", "release-id": "a-1", **labels}
    metadata = {"name": "prefect-cd.shop.1", "namespace": "n"}
    metadata |= {"labels": {f"prefect-cd.dev/{key}": value for key, value in shown.items() if value}}
    data = {"record": base64.b64encode(content).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "prefect-cd.dev/record.v1",
        "metadata": metadata,
        "data": data,
    }


def old_content(**fields: Any) -> bytes:  # noqa: ANN401
    document = record(**fields).model_dump(mode="json", exclude={"replaced", "pruned"})
    return gzip.compress(json.dumps({**document, "state": "started"}).encode())


def test_the_state_started_of_format_1_is_read_as_applying() -> None:
    assert decode(SHOP, old(old_content())) == record()


def test_a_record_of_format_1_without_the_label_of_what_it_restores_is_read() -> None:
    assert decode(SHOP, old(old_content(restores=5))) == record(restores=5)


@pytest.mark.parametrize(
    ("label", "edited", "right"),
    [("state", "known-good", "applying"), ("release-id", "b-1", "a-1"), ("restores", "4", "5")],
)
def test_i4_a_label_of_format_1_that_was_edited_is_recognised(label: str, edited: str, right: str) -> None:
    secret = old(old_content(restores=5), **{"restores": "5", label: edited})
    assert "a label of record 1 was edited: right is " in described(secret)
    assert f"prefect-cd.dev/{label}={right}" in described(secret)


@pytest.mark.parametrize("labels", [{"state": ""}, {"number": "x"}, {"number": "2"}, {"state": "of another version"}])
def test_a_list_shows_labels_of_format_1_that_cannot_be_right(labels: dict[str, str]) -> None:
    entry, damage = read_entry(SHOP, metadata_of(old(old_content(), **labels)), ())
    assert entry is None
    assert damage
    assert "its labels were edited" in damage.problem


OLD_CONTENT = {
    "empty": b"",
    "not gzip": b"hello",
    "cut off": old_content()[:-20],
    "damaged": gzip.compress(b"x" * 100)[:12] + b"\xff\xff\xff" + gzip.compress(b"x" * 100)[15:],
    "not JSON": gzip.compress(b"{"),
    "not a record": gzip.compress(b"[]"),
    "another version": gzip.compress(json.dumps({**record().model_dump(mode="json"), "new": 1}).encode()),
}


@pytest.mark.parametrize("name", OLD_CONTENT)
def test_content_of_format_1_that_is_broken_is_recognised(name: str) -> None:
    assert "it cannot be read" in described(old(OLD_CONTENT[name]))


# --- what nobody may see ---------------------------------------------------------------------------------------------


def test_i7_damage_does_not_quote_the_content() -> None:
    content = {**record().model_dump(mode="json"), "objects": ["hunter2"], "number": "hunter2", "x": "hunter2"}
    damage = decode(SHOP, old(gzip.compress(json.dumps(content).encode())))
    assert isinstance(damage, Damage)
    assert "hunter2" not in damage.model_dump_json()
    assert "number" in damage.problem


def test_a_record_that_would_exhaust_the_memory_is_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_format, "_MAX_DECOMPRESSED", 1000)
    assert "too large" in described(old(gzip.compress(b" " * 100_000)))
