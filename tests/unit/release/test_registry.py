"""Look-ups in registries: small servers on loopback that implement the distribution specification."""

import base64
import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from prefect_cd.errors import Forbidden, Invalid, MissingTool, RegistryUnreachable
from prefect_cd.release import registry
from prefect_cd.release.registry import ImageConfig, credentials, find_config, find_digest, speaks_http, split
from tests import oci

MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
TAG = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Answer:
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    authorization: str | None
    accept: str
    form: dict[str, list[str]]
    host: str


Rule = Callable[[Request], Answer]


@contextmanager
def serving(rule: Rule) -> Iterator[tuple[str, list[Request]]]:
    """A server that answers by `rule`: its host:port, and the requests that it gets."""
    requests: list[Request] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            requests.append(
                Request(
                    method=self.command,
                    path=parts.path,
                    query=parse_qs(parts.query),
                    authorization=self.headers["Authorization"],
                    accept=self.headers["Accept"],
                    form=parse_qs(body),
                    host=self.headers["Host"],
                )
            )
            answer = rule(requests[-1])
            self.send_response(answer.code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_POST = do_GET  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def log_in(home: Path, content: object, file: str = ".docker/config.json") -> None:
    (home / file).parent.mkdir(parents=True, exist_ok=True)
    (home / file).write_text(json.dumps(content))


def entry(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def basic(username: str, password: str) -> str:
    return f"Basic {entry(username, password)['auth']}"


def has_manifest(_request: Request) -> Answer:
    return Answer(headers={"Docker-Content-Digest": DIGEST}, body=MANIFEST)


def test_the_digest_of_a_tag_comes_from_one_head_request() -> None:
    with serving(has_manifest) as (host, requests):
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST
    assert [(request.method, request.path) for request in requests] == [("HEAD", f"/v2/acme/shop/manifests/{TAG}")]
    assert requests[0].authorization is None


def test_images_and_indexes_of_oci_and_docker_are_accepted() -> None:
    with serving(has_manifest) as (host, requests):
        find_digest(f"{host}/acme/shop", TAG)
    for kind in ("oci.image.index.v1", "oci.image.manifest.v1", "manifest.list.v2", "distribution.manifest.v2"):
        assert f"{kind}+json" in requests[0].accept


def test_the_digest_is_computed_when_the_registry_does_not_send_it() -> None:
    with serving(lambda _request: Answer(body=MANIFEST)) as (host, requests):
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST
    assert [request.method for request in requests] == ["HEAD", "GET"]


def test_a_registry_without_head_requests_gets_a_get_request() -> None:
    with serving(lambda request: Answer(405) if request.method == "HEAD" else has_manifest(request)) as (host, _):
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST


def test_a_missing_tag_has_no_digest() -> None:
    with serving(lambda _request: Answer(404)) as (host, _):
        assert find_digest(f"{host}/acme/shop", TAG) is None


@pytest.mark.parametrize("code", [500, 502, 503, 429])
def test_a_registry_that_is_busy_or_broken_is_unreachable(code: int) -> None:
    with serving(lambda _request: Answer(code)) as (host, _), pytest.raises(RegistryUnreachable, match=str(code)):
        find_digest(f"{host}/acme/shop", TAG)


def test_a_registry_that_is_down_is_unreachable() -> None:
    with pytest.raises(RegistryUnreachable, match="does not answer") as caught:
        find_digest("127.0.0.1:1/acme/shop", TAG)
    assert caught.value.hint.endswith("curl -i http://127.0.0.1:1/v2/")


def test_a_registry_that_is_slow_is_unreachable() -> None:
    hold = threading.Event()

    def slow(request: Request) -> Answer:
        hold.wait(4)
        return has_manifest(request)

    with serving(slow) as (host, _):
        try:
            with pytest.raises(RegistryUnreachable, match="does not answer"):
                find_digest(f"{host}/acme/shop", TAG, timeout=timedelta(milliseconds=100))
        finally:
            hold.set()


def test_a_registry_without_tls_is_invalid_and_not_retried() -> None:
    with serving(has_manifest) as (host, _), pytest.raises(Invalid, match="does not speak TLS") as caught:
        find_digest(f"{host}/acme/shop", TAG, insecure=False)
    assert "image.insecure: true" in caught.value.hint


def token_service(username: str | None, password: str = "") -> Rule:
    """A registry whose tokens are valid for one repository; without a username everyone gets one."""

    def rule(request: Request) -> Answer:
        if request.path == "/token":
            if username and request.authorization != basic(username, password):
                return Answer(401)
            scope = request.query["scope"][0]
            return Answer(body=json.dumps({"token": f"good-for-{scope}-at-{request.query['service'][0]}"}).encode())
        if request.authorization == "Bearer good-for-repository:acme/shop:pull-at-tests":
            return has_manifest(request)
        challenge = f'Bearer realm="http://{request.host}/token",service="tests",scope="repository:acme/shop:pull"'
        return Answer(401, {"WWW-Authenticate": challenge})

    return rule


def test_an_anonymous_token_is_fetched_when_the_registry_demands_one() -> None:
    with serving(token_service(None)) as (host, requests):
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST
    assert [request.path.rpartition("/")[2] for request in requests] == [TAG, "token", TAG]


def test_a_token_is_fetched_with_the_credentials_and_only_the_token_goes_to_the_registry(home: Path) -> None:
    with serving(token_service("ada", "pass:word")) as (host, requests):
        log_in(home, {"auths": {host: entry("ada", "pass:word")}})
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST
    assert [request.authorization for request in requests if request.path != "/token"] == [
        None,
        "Bearer good-for-repository:acme/shop:pull-at-tests",
    ]


def test_wrong_credentials_are_forbidden_and_the_error_names_their_file(home: Path) -> None:
    with serving(token_service("ada", "right")) as (host, _):
        log_in(home, {"auths": {host: entry("ada", "wr0ng")}})
        with pytest.raises(Forbidden) as caught:
            find_digest(f"{host}/acme/shop", TAG)
    assert f"with the credentials of {home}/.docker/config.json" in caught.value.reason
    assert f"docker login {host}" in caught.value.hint
    assert "wr0ng" not in f"{caught.value}{vars(caught.value)}"


def test_missing_credentials_are_forbidden() -> None:
    with (
        serving(token_service("ada", "right")) as (host, _),
        pytest.raises(Forbidden, match="without credentials, and there are none"),
    ):
        find_digest(f"{host}/acme/shop", TAG)


def test_an_identity_token_is_exchanged(home: Path) -> None:
    def rule(request: Request) -> Answer:
        if request.method == "POST" and request.form.get("refresh_token") == ["identity"]:
            assert request.form["grant_type"] == ["refresh_token"]
            return Answer(body=b'{"access_token": "short"}')
        if request.authorization == "Bearer short":
            return has_manifest(request)
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="http://{request.host}/token",service="s"'})

    with serving(rule) as (host, _):
        log_in(home, {"auths": {host: {"identitytoken": "identity"}}})
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST


def test_basic_authentication_uses_the_credentials(home: Path) -> None:
    def rule(request: Request) -> Answer:
        if request.authorization == basic("ada", "right"):
            return has_manifest(request)
        return Answer(401, {"WWW-Authenticate": 'Basic realm="registry"'})

    with serving(rule) as (host, _):
        log_in(home, {"auths": {host: entry("ada", "right")}})
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST
        log_in(home, {"auths": {host: entry("ada", "wrong")}})
        with pytest.raises(Forbidden, match="with the credentials of"):
            find_digest(f"{host}/acme/shop", TAG)


def test_a_registry_that_denies_access_is_forbidden() -> None:
    with (
        serving(lambda _request: Answer(403)) as (host, _),
        pytest.raises(Forbidden, match="denies access to acme/shop"),
    ):
        find_digest(f"{host}/acme/shop", TAG)


def test_a_redirect_to_another_host_is_not_followed(home: Path) -> None:
    with serving(has_manifest) as (target, requests):

        def rule(request: Request) -> Answer:
            if not request.authorization:
                return Answer(401, {"WWW-Authenticate": 'Basic realm="registry"'})
            return Answer(307, {"Location": f"http://{target.replace('127.0.0.1', 'localhost')}/elsewhere"})

        with serving(rule) as (host, _):
            log_in(home, {"auths": {host: entry("ada", "right"), target: entry("ada", "right")}})
            with pytest.raises(RegistryUnreachable, match="redirects to"):
                find_digest(f"{host}/acme/shop", TAG)
    assert requests == []


def test_a_redirect_within_the_registry_is_followed(home: Path) -> None:
    def rule(request: Request) -> Answer:
        if request.authorization != basic("ada", "right"):
            return Answer(401, {"WWW-Authenticate": 'Basic realm="registry"'})
        return has_manifest(request) if request.path == "/moved" else Answer(307, {"Location": "/moved"})

    with serving(rule) as (host, _):
        log_in(home, {"auths": {host: entry("ada", "right")}})
        assert find_digest(f"{host}/acme/shop", TAG) == DIGEST


@pytest.mark.parametrize("kind", [entry("ada", "right"), {"identitytoken": "right"}], ids=["password", "identity"])
def test_a_redirect_of_a_token_service_is_not_followed(home: Path, kind: dict[str, str]) -> None:
    with serving(has_manifest) as (target, requests):

        def rule(request: Request) -> Answer:
            if request.path == "/token":
                return Answer(307, {"Location": f"http://{target}/token"})
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="http://{request.host}/token",service="s"'})

        with serving(rule) as (host, _):
            log_in(home, {"auths": {host: kind}})
            with pytest.raises(RegistryUnreachable, match="307"):
                find_digest(f"{host}/acme/shop", TAG)
    assert requests == []


def test_a_registry_with_tls_must_have_a_token_service_with_tls() -> None:
    with serving(has_manifest) as (target, requests):
        call = registry._Call("registry.example.org", "acme/shop", "https", time.monotonic() + 5)
        with pytest.raises(RegistryUnreachable, match="which is not https"):
            registry._token(call, {"realm": f"http://{target}/token"}, None)
    assert requests == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]"])
def test_an_invalid_answer_of_a_token_service_is_unreachable(body: bytes) -> None:
    def rule(request: Request) -> Answer:
        if request.path == "/token":
            return Answer(body=body)
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="http://{request.host}/token"'})

    with serving(rule) as (host, _), pytest.raises(RegistryUnreachable, match="without a token"):
        find_digest(f"{host}/acme/shop", TAG)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("localhost:5000/shop", ("localhost:5000", "shop")),
        ("localhost/shop", ("localhost", "shop")),
        ("registry.example.org/acme/shop", ("registry.example.org", "acme/shop")),
        ("acme/shop", ("docker.io", "acme/shop")),
        ("docker.io/busybox", ("docker.io", "library/busybox")),
        ("index.docker.io/acme/shop", ("docker.io", "acme/shop")),
    ],
)
def test_names_are_split_as_docker_splits_them(name: str, parts: tuple[str, str]) -> None:
    assert split(name) == parts


@pytest.mark.parametrize(
    ("host", "insecure", "plain"),
    [
        ("localhost:5000", None, True),
        ("127.0.0.1:5000", None, True),
        ("127.8.8.8", None, True),
        ("[::1]:5000", None, True),
        ("registry.example.org", None, False),
        ("10.0.0.1:5000", None, False),
        ("localhost.example.org", None, False),
        ("localhost:5000", False, False),
        ("10.0.0.1:5000", True, True),
    ],
)
def test_plain_http_is_for_this_machine_unless_configured(host: str, insecure: bool | None, plain: bool) -> None:  # noqa: FBT001
    assert speaks_http(host, insecure=insecure) is plain


@pytest.mark.parametrize(
    ("variable", "value", "file"),
    [
        ("REGISTRY_AUTH_FILE", "mine.json", "mine.json"),
        ("DOCKER_CONFIG", "folder", "folder/config.json"),
        ("XDG_RUNTIME_DIR", "run", "run/containers/auth.json"),
        ("XDG_CONFIG_HOME", "etc", "etc/containers/auth.json"),
        ("HOME", "", ".config/containers/auth.json"),
        ("HOME", "", ".docker/config.json"),
    ],
)
def test_credentials_are_found_where_the_builders_keep_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, file: str
) -> None:
    monkeypatch.setenv(variable, str(home / value))
    log_in(home, {"auths": {"registry.example.org": entry("ada", "right")}}, file)
    login = credentials("registry.example.org", "acme/shop")
    assert login is not None
    assert (login.username, login.secret, login.origin) == ("ada", "right", str(home / file))
    assert "right" not in repr(login)


def test_the_most_specific_entry_wins(home: Path) -> None:
    log_in(
        home,
        {
            "auths": {
                "registry.example.org": entry("all", "1"),
                "registry.example.org/acme": entry("acme", "2"),
                "registry.example.org/acme/shop2": entry("other", "3"),
            }
        },
    )
    logins = {name: credentials("registry.example.org", name) for name in ("acme/shop", "acme/shop2", "x")}
    assert {name: login and login.username for name, login in logins.items()} == {
        "acme/shop": "acme",
        "acme/shop2": "other",
        "x": "all",
    }


def test_docker_hub_is_found_under_the_key_that_docker_login_writes(home: Path) -> None:
    log_in(home, {"auths": {"https://index.docker.io/v1/": entry("ada", "right")}})
    login = credentials(*split("acme/shop"))
    assert login is not None
    assert login.username == "ada"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"auths": {"registry.example.org": {}}}', '{"auths": null}'])
def test_files_without_credentials_have_none(home: Path, content: str) -> None:
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(content)
    assert credentials("registry.example.org", "acme/shop") is None


def helper(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = home / "bin" / "docker-credential-tests"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("config", [{"credHelpers": {"registry.example.org": "tests"}}, {"credsStore": "tests"}])
def test_a_credential_helper_is_asked_for_the_host(
    home: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
) -> None:
    helper(home, monkeypatch, 'echo "{\\"Username\\": \\"$1-$(cat)\\", \\"Secret\\": \\"right\\"}"')
    log_in(home, config)
    login = credentials("registry.example.org", "acme/shop")
    assert login is not None
    assert (login.username, login.secret) == ("get-registry.example.org", "right")


def test_the_file_is_used_when_the_helper_has_no_credentials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, monkeypatch, "cat > /dev/null; echo credentials not found in native keychain; exit 1")
    log_in(home, {"credsStore": "tests", "auths": {"registry.example.org": entry("ada", "right")}})
    login = credentials("registry.example.org", "acme/shop")
    assert login is not None
    assert login.username == "ada"


def test_a_helper_that_is_not_installed_is_a_missing_tool(home: Path) -> None:
    log_in(home, {"credsStore": "absent"})
    with pytest.raises(MissingTool, match="docker-credential-absent, which is not installed"):
        credentials("registry.example.org", "acme/shop")


@pytest.mark.parametrize("script", ["cat >/dev/null; echo no AWS role; exit 1", "cat >/dev/null; echo gibberish"])
def test_a_helper_that_fails_is_forbidden(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    helper(home, monkeypatch, script)
    log_in(home, {"credsStore": "tests"})
    with pytest.raises(Forbidden, match="docker-credential-tests"):
        credentials("registry.example.org", "acme/shop")


def test_a_helper_that_does_not_answer_is_an_unreachable_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, monkeypatch, "exec sleep 1000")
    log_in(home, {"credsStore": "tests"})
    monkeypatch.setattr(registry, "_HELPER_TIMEOUT", timedelta(seconds=0.1))
    with pytest.raises(RegistryUnreachable, match="docker-credential-tests gave no credentials"):
        credentials("registry.example.org", "acme/shop")


# --- what an image says about how it runs ----------------------------------------------------------------------------


def stored(*platforms: str, user: str = "") -> tuple[dict[str, bytes], str]:
    """The contents of an image for one platform, or of an index of several, and the digest of the whole."""
    contents: dict[str, bytes] = {}

    def put(value: object) -> str:
        body = json.dumps(value).encode()
        contents[oci.digest_of(body)] = body
        return oci.digest_of(body)

    entries = []
    for platform in platforms:
        described = dict(zip(("os", "architecture"), platform.split("/"), strict=False))
        config = put({**described, "config": {"User": user}})
        entries.append({"digest": put({"schemaVersion": 2, "config": {"digest": config}}), "platform": described})
    if len(entries) == 1:
        return contents, str(entries[0]["digest"])
    return contents, put({"schemaVersion": 2, "manifests": entries})


@pytest.mark.parametrize(
    ("platforms", "known"),
    [
        (["linux/amd64"], {"linux/amd64"}),
        (["linux/amd64", "linux/arm64"], {"linux/amd64", "linux/arm64"}),
        (["linux"], set()),
        (["linux/amd64", "linux"], set()),
    ],
)
def test_the_configuration_of_an_image_has_its_user_and_platforms(platforms: list[str], known: set[str]) -> None:
    contents, digest = stored(*platforms, user="1000:1000")

    def rule(request: Request) -> Answer:
        content = contents.get(request.path.rpartition("/")[2])
        return Answer(404) if content is None else Answer(body=content)

    with serving(rule) as (host, _):
        assert find_config(f"{host}/acme/shop", digest) == ImageConfig("1000:1000", frozenset(known))
