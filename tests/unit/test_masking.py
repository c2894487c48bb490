"""Secrets in texts of others are masked, and what is no secret stays readable."""

import base64
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefect_cd.masking import MARK, masked

PASSWORD = "hunter2-Tr0ub4dor"  # noqa: S105  a test's own
SHAPES = {
    "URL": "cannot connect to postgres://shop:{}@db:5432/shop",
    "URL without a user": "redis://:{}@cache:6379",
    "header": "Authorization: Bearer {}",
    "basic": "authorization: basic {}",
    "variable": "DB_PASSWORD={}",
    "quoted variable": 'export API_KEY="{}"',
    "JSON": '{{"client_secret": "{}", "user": "shop"}}',
    "YAML": "token: {}",
    "query": "GET /login?access_token={}&user=1",
}
KEYS = [
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 9,
    "glpat-" + "a1B2" * 5,
    "xoxb-" + "123456789012-abcdef",
    "sk_live_" + "a1B2" * 6,
    "AIza" + "a1B2_-c" * 5,
    "npm_" + "a1B2" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA",
]
SECRETS = st.text(string.ascii_letters + string.digits + "_-", min_size=8, max_size=40).filter(
    lambda text: any(c.isdigit() for c in text) and not text.startswith("-")
)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_i7_a_secret_that_a_text_shows_by_its_form_is_masked(shape: str) -> None:
    text = masked(f"before\n{shape.format(PASSWORD)} after")
    assert PASSWORD not in text
    assert MARK in text
    assert text.startswith("before\n")
    assert text.endswith(" after")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:12])
def test_i7_keys_of_well_known_services_are_masked(key: str) -> None:
    assert masked(f"before {key} after").replace(" after", "") == f"before {MARK}"


@pytest.mark.parametrize("encode", [str, lambda value: base64.b64encode(value.encode()).decode()])
def test_i7_a_known_value_is_masked_as_it_is_and_in_base64(encode: "type[str]") -> None:
    assert masked(f"the value is {encode('correct horse')}!", ["correct horse"]) == f"the value is {MARK}!"


def test_i7_each_line_of_a_known_value_is_masked() -> None:
    assert masked("read second-line", ["first-line\nsecond-line\n"]) == f"read {MARK}"


def test_short_values_stay_so_that_texts_can_be_read() -> None:
    assert masked("listening on 5432: true", ["5432", "true"]) == "listening on 5432: true"


@pytest.mark.parametrize(
    "text",
    [
        "listening on http://0.0.0.0:8080/ui@2",
        'secret "db" not found',
        "invalid token: expired",
        "the password: it must not be empty",
        "ERROR: 3 of 5 tests failed in 2.31 s",
        "readiness probe failed: HTTP 500",
        "image registry.example.org/shop@sha256:0123456789abcdef is gone",
        "a basic error",
        "key=value",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@given(
    before=st.text(max_size=60), secret=SECRETS, after=st.text(max_size=60), shape=st.sampled_from([*SHAPES.values()])
)
@example(before="x", secret="a1b2c3d4", after="@y", shape=SHAPES["URL"])  # noqa: S106  a test's own
def test_i7_no_text_around_it_keeps_a_secret_from_being_masked(
    before: str, secret: str, after: str, shape: str
) -> None:
    text = f"{before}\n{shape.format(secret)}\n{after}"
    assume(secret not in shape.format("") and secret not in before + after)
    once = masked(text)
    assert secret not in once
    assert masked(once) == once


@given(text=st.text(max_size=80), secret=SECRETS, more=st.text(max_size=80))
def test_i7_no_text_around_it_keeps_a_known_value_from_being_masked(text: str, secret: str, more: str) -> None:
    assert secret not in masked(f"{text}{secret}{more}", [secret])


def test_a_long_text_is_masked_in_time() -> None:
    for unit in ("password=", "a://b:", "eyJ", "-----BEGIN PRIVATE KEY-----", "token: ", "bearer "):
        masked(unit * 20_000)
