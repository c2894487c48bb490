"""The id of a release, and what its hash covers."""

import json
import pickle
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cd.release.model import BuiltImage, Commit, Release, digest_of

SHA = "0123456789abcdef" * 2 + "01234567"


def commit(**fields: Any) -> Commit:  # noqa: ANN401
    defaults = {"repository": "r", "sha": SHA, "revision": "main", "subject": "Sell", "author": "An author"}
    return Commit(**{**defaults, "committed_at": datetime(2026, 1, 1, tzinfo=timezone.utc), **fields})


def release(**fields: Any) -> Release:  # noqa: ANN401
    defaults = {
        "application": "shop",
        "commit": commit(),
        "image": BuiltImage(name="r/shop", digest="sha256:" + "a" * 64, built=True),
        "manifests": {"staging": ({"kind": "A", "x": 1},), "production": ({"kind": "A", "x": 2},)},
    }
    return Release(**{**defaults, **fields})


def test_the_id_is_the_short_commit_and_the_beginning_of_the_hash() -> None:
    assert release().id == f"0123456-{release().hash[:8]}"
    assert len(release().hash) == 64


def test_an_image_is_pulled_by_its_digest() -> None:
    assert release().image.reference == "r/shop@sha256:" + "a" * 64


@pytest.mark.parametrize(
    "other",
    [
        release(application="other"),
        release(commit=commit(sha="f" * 40)),
        release(image=BuiltImage(name="r/shop", digest="sha256:" + "b" * 64, built=True)),
        release(manifests={"staging": ({"kind": "A", "x": 1},)}),
        release(manifests={"staging": ({"kind": "A", "x": 1},), "production": ({"kind": "A", "x": 3},)}),
        release(manifests={"staging": ({"kind": "A", "x": 2},), "production": ({"kind": "A", "x": 1},)}),
        release(manifests={"staging": ({"kind": "A", "x": 1},), "production": ({"kind": "A", "x": "2"},)}),
        release(manifests={"staging": ({"kind": "A", "x": 1},), "production": ()}),
    ],
)
def test_i5_the_hash_changes_with_every_part(other: Release) -> None:
    assert other.hash != release().hash


@pytest.mark.parametrize(
    "same",
    [
        release(commit=commit(revision="v1", author="Bob", subject="x")),
        release(image=BuiltImage(name="r/shop", digest="sha256:" + "a" * 64, built=False)),
    ],
)
def test_i8_the_hash_covers_the_applied_content_and_not_the_request(same: Release) -> None:
    assert same.hash == release().hash


def test_a_release_survives_a_process_boundary() -> None:
    assert release().hash == pickle.loads(pickle.dumps(release())).hash  # noqa: S301  our own
    assert Release.model_validate_json(release().model_dump_json()).hash == release().hash


@pytest.mark.parametrize("sha", ["", "abc", "G" * 40, "a" * 41, "A" * 40])
def test_a_commit_is_named_by_its_full_sha(sha: str) -> None:
    with pytest.raises(ValidationError):
        commit(sha=sha)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def with_reversed_keys(value: object) -> object:
    """The same value with all keys in reversed order."""
    if isinstance(value, dict):
        return {key: with_reversed_keys(item) for key, item in reversed(value.items())}
    return [with_reversed_keys(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_the_digest_does_not_depend_on_the_order_of_keys(value: object) -> None:
    assert digest_of(with_reversed_keys(value)) == digest_of(value)


@settings(deadline=None, max_examples=50)
@given(JSON, JSON)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest_of(one) == digest_of(other)) == same
