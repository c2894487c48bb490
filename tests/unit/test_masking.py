"""Which secrets are masked, and which texts stay readable."""

import base64
import json
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_cd.masking import BY_SHAPE, Mask, secrets_in

KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7\ndGhlIGVuZA=="
BLOCK = f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # URLs
        ("postgres://shop:hunter2@db:5432/x", "postgres://shop:***@db:5432/x"),
        ("redis://:hunter2@cache", "redis://:***@cache"),
        ("amqp://u:p@ss/w0rd?#@mq/v and me@example.org", "amqp://u:***@mq/v and me@example.org"),
        ("https://bob:hunter2@example.org/x.git", "https://***@example.org/x.git"),
        ("https://a-token@example.org/x.git", "https://***@example.org/x.git"),
        ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/services/***"),
        # headers
        ("Authorization: Basic Ym9iOmh1bnRlcjI=", "Authorization: Basic ***"),
        ('curl -H "authorization: bearer abc" x', 'curl -H "authorization: bearer ***" x'),
        ('{"Authorization": "Bearer abc.d-e"}', '{"Authorization": "Bearer ***"}'),
        ("the bearer a1b2c3d4 expired", "the bearer *** expired"),
        ("X-Api-Key: a1b2", "X-Api-Key: ***"),
        # assignments
        ("DB_PASSWORD=hunter2 DB_USER=shop", "DB_PASSWORD=*** DB_USER=shop"),
        ("password: correcthorse", "password: ***"),
        ('{"password": "with \\" quote", "user": "bob"}', '{"password": "***", "user": "bob"}'),
        ("{'api_key': 'a b', 'user': 'bob'}", "{'api_key': '***', 'user': 'bob'}"),
        (json.dumps(json.dumps({"token": "abc", "a": 1})), json.dumps(json.dumps({"token": "***", "a": 1}))),
        ("client_secret => 'abc'", "client_secret => '***'"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+x", "AWS_SECRET_ACCESS_KEY=***"),
        ("token: a1b2", "token: ***"),
        ("mysql --password hunter2 -u bob", "mysql --password *** -u bob"),
        ("cli --registry-token abc", "cli --registry-token ***"),
        ("/blob?sv=1&sig=a%2Fb", "/blob?sv=1&sig=***"),
        # keys of services
        ("key AKIAIOSFODNN7EXAMPLE, wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY.", "key ***."),
        (f"ghp_{'a1' * 18} github_pat_{'a1' * 41}", "*** ***"),
        (f"glpat-{'a1' * 10} xoxb-12-34-abcdef sk_live_{'a1' * 12}", "*** *** ***"),
        (f"AIza{'a1' * 18} npm_{'a1' * 18} pypi-{'a1' * 18}", "*** *** ***"),
        (f"hvs.{'a1' * 12} sk-{'a1' * 24} pnu_{'a1' * 18}", "*** *** ***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_x", "***"),
        # private keys
        (f"before\n{BLOCK}\nafter", "before\n***\nafter"),
        (BLOCK[27:] + "\nafter", "***\nafter"),  # its begin was cut off
        (f"before {json.dumps(BLOCK)}", 'before "***"'),
        (BLOCK[:60], "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: A,1\n\nMIIE\n", "***"),
    ],
)
def test_a_secret_is_known_by_its_shape(text: str, masked: str) -> None:
    assert BY_SHAPE(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "GET http://localhost:8080/users/@me 404",
        "npm: GET http://registry:4873/@acme%2fshop",
        "https://example.org/x?mail=joe@example.org ssh://git@example.org/x postgres://shop@db",
        f"registry.example.org:5000/shop@sha256:{'a1' * 32}",
        'MountVolume.SetUp failed for volume "secret" : secret "shop" not found',
        "couldn't find key DB_PASSWORD in Secret shop/shop",
        'failed to fetch token: serviceaccounts "shop" not found',
        "Unexpected token } in JSON; unexpected token: string",
        "missing bearer token; secretName: shop-db; PWD=/home/shop; passed: 3",
        "authorization: denied",
        "password=",
        "expected -----BEGIN CERTIFICATE-----",
        "kubectl -n shop logs shop-6d4f -c main --previous",
    ],
)
def test_other_texts_stay_readable(text: str) -> None:
    assert BY_SHAPE(text) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("s3cr3t!", "{}s3cr3t!{}"),
        ("s3cr3t!\n", "{}s3cr3t!{}"),
        (b"\xff\xfe\x00\x01\x02\x03\x04\x05\x06", "{}//4AAQIDBAUG{}"),
        ("a/b c&d\"e'f", "{}a%2Fb%20c%26d%22e%27f{}"),
        ('a"b\\cde', '{}a\\"b\\\\cde{}'),
        ("postgres://shop:hunter2@db/x", "no access for {}hunter2{}"),
        ("bob:hunter2", "{}hunter2{}"),
        ('{"auths": {"r": {"username": "bob", "password": "hunter2"}}}', "{}hunter2{}"),
        ("one: a-line-of-a-file\ntwo: 2\n", "{}one: a-line-of-a-file{}"),
    ],
)
def test_a_value_is_masked_wherever_it_is(value: str | bytes, text: str) -> None:
    mask = Mask().with_values([value])
    assert mask(text.format("<", ">")).endswith("<***>")


@pytest.mark.parametrize("before", ["", "a", "bo"])
def test_a_value_is_masked_in_the_base64_of_a_login(before: str) -> None:
    encoded = base64.b64encode(f"{before}:hunter2:x".encode()).decode()
    assert "***" in Mask().with_values(["hunter2"])(encoded)


@pytest.mark.parametrize("value", ["", "true", "5432", "admin", "postgres", "Production", "******"])
def test_a_value_that_is_short_or_common_is_not_masked(value: str) -> None:
    text = f"postgres, production, admin, true, 5432, ****** and {value}"
    assert Mask().with_values([value])(text) == text


def test_variables_are_secret_by_their_names_and_by_passwords_in_urls() -> None:
    variables = {
        "PREFECT_API_AUTH_STRING": "admin:hunter2",
        "GITHUB_TOKEN": "abcdef",
        "RECORD_KEY": "ghijkl",
        "DATABASE_URL": "postgres://shop:mnopqr@db",
        "HOME": "/home/shop",
    }
    assert set(secrets_in(variables)) == {"admin:hunter2", "abcdef", "ghijkl", "mnopqr"}


def test_a_private_key_is_masked_line_by_line_also_behind_the_prefix_of_a_builder() -> None:
    masked = BY_SHAPE.line_by_line()
    lines = ["before", *(f"#7 0.123 {line}" for line in BLOCK.splitlines()[:-2]), *BLOCK.splitlines()[-2:], "after"]
    assert [masked(line) for line in lines] == ["before", "#7 0.123 ***", *["***"] * 4, "after"]


def test_what_a_cut_leaves_of_a_secret_is_not_shown() -> None:
    text = f"{'.' * 80} postgres://shop:hunter2@db {'.' * 80}"
    for longest in range(1, len(text)):
        assert "hunt" not in BY_SHAPE.head(text, longest)
        assert "ter2" not in BY_SHAPE.tail(text, longest)


@pytest.mark.parametrize(
    "unit",
    [
        *("://a:", "http://", "://a:b@", "-", "--a-", "eyJ", "password", "password=", "token:", 'secret"', "a: b "),
        *("-----BEGIN PRIVATE KEY-----\n", "-----END PRIVATE KEY-----", f"{'A' * 64}\n", "bearer ", "authorization: "),
        *("\\", "AKIA", "SG.", "sk-", "xox", " ", "1", "x"),
    ],
)
def test_no_text_takes_long(unit: str) -> None:
    def seconds(size: int) -> float:
        text, started = unit * (size // len(unit)), time.process_time()
        BY_SHAPE(text)
        return time.process_time() - started

    assert seconds(64 * 1024) < 3  # 0.3 s; a quadratic pattern takes minutes


# --- any secret in any text ------------------------------------------------------------------------------------------

# what may stand in a password, and begins with no port
letters = st.characters(codec="ascii", categories=["L", "N"], include_characters="!$%&()*+,-.:;=?@^_|~/#")
secrets = st.text(letters, min_size=8, max_size=40).map(lambda text: f"aB1{text}z")
keys = st.text("abcdefghijKLMNOP0123456789", min_size=40, max_size=40)
SHAPES: dict[str, Callable[[str], str]] = {
    "url": lambda secret: f"postgres://shop:{secret}@db:5432/shop",
    "https": lambda secret: f"https://x-token:{secret}@example.org/shop",
    "bearer": lambda secret: f"Authorization: Bearer {secret}",
    "basic": lambda secret: f'"authorization":"Basic {secret}"',
    "variable": lambda secret: f"DB_PASSWORD={secret}",
    "yaml": lambda secret: f"password: {secret}",
    "json": lambda secret: json.dumps({"client_secret": secret, "user": "bob"}),
    "repr": lambda secret: repr({"api_key": secret, "user": "bob"}),
    "query": lambda secret: f"/login?access_token={secret}",
    "option": lambda secret: f"--token {secret}",
}
KEYS: dict[str, Callable[[str], str]] = {
    "aws": lambda key: f"AKIA{'A7' * 8}:{key}",
    "github": lambda key: f"ghp_{key}",
    "gitlab": lambda key: f"glpat-{key}",
    "slack": lambda key: f"xoxb-{key}",
    "stripe": lambda key: f"sk_live_{key}",
    "google": lambda key: f"AIza{key}",
    "npm": lambda key: f"npm_{key}",
    "jwt": lambda key: f"eyJ{key}.eyJ{key}.{key}",
    "private key": lambda key: f"-----BEGIN EC PRIVATE KEY-----\n{key}\n{key}\n-----END EC PRIVATE KEY-----",
}
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quoted": lambda value: quote(value, safe=""),
    "json": json.dumps,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "login": lambda value: base64.b64encode(f"bob:{value}".encode()).decode(),
}
around = st.text(max_size=30) | st.sampled_from(["***", "password=***", "://a:", '"', "token", "AKIA", BLOCK, "@"])


@given(around, st.sampled_from(sorted(SHAPES)), secrets, around)
@example("", "url", "aB1p@ss/word#z", "")
@example("password=***", "variable", "aB1******z", "***")
def test_i7_a_secret_of_a_known_shape_is_in_no_masked_text(before: str, shape: str, secret: str, after: str) -> None:
    masked = BY_SHAPE(f"{before} {SHAPES[shape](secret)} {after}")
    assert secret not in masked
    assert BY_SHAPE(masked) == masked


@given(around, st.sampled_from(sorted(KEYS)), keys, around)
def test_i7_a_key_of_a_service_is_in_no_masked_text(before: str, shape: str, key: str, after: str) -> None:
    masked = BY_SHAPE(f"{before} {KEYS[shape](key)} {after}")
    assert key not in masked
    assert BY_SHAPE(masked) == masked


@given(st.text(max_size=60), st.lists(secrets | st.text(min_size=6), min_size=1, max_size=4), st.data())
def test_i7_a_known_value_is_in_no_masked_text(before: str, values: list[str], data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(values)).strip()
    form = FORMS[data.draw(st.sampled_from(sorted(FORMS)))](value)
    mask = Mask().with_values(values)
    masked = mask(f"{before}{form}{data.draw(around)}")
    if value in mask.literals:
        assert value not in masked
        assert form not in masked
    assert mask(masked) == masked
    assert len(masked) <= 3 * len(f"{before}{form}") + 3 * len(BLOCK)
