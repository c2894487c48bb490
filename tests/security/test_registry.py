"""A registry answers with anything, and sends us anywhere: little memory, no other host, no image of another commit."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.errors import DeliveryError, Invalid, InvalidManifest, RegistryUnreachable
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.release import registry
from prefect_cd.release.image import find_digest_of_other, find_image
from prefect_cd.release.registry import find_digest, find_revision
from tests import oci
from tests.security.memory import at_most
from tests.security.servers import Script, answer, for_ever, hostile, sends
from tests.tasks.examples import commit

pytestmark = pytest.mark.timeout(30)
MEGABYTE = 2**20
OK = b"HTTP/1.1 200 OK\r\n"
SHA = commit().sha
Contents = dict[str, bytes]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials but those of the test."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def paths(requests: list[bytes]) -> list[str]:
    return [request.decode("latin-1").split()[1] for request in requests]


@contextmanager
def serving(contents: Contents, tag: str) -> Iterator[str]:
    """A registry that has these contents; its repository."""

    def script(connection: socket.socket, head: bytes) -> None:
        method, path, *_ = head.decode("latin-1").split()
        reference = path.rpartition("/")[2]
        digest = tag if reference == SHA else reference
        if digest not in contents:
            connection.sendall(answer(b"", status="404 Not Found"))
            return
        whole = answer(contents[digest], f"Docker-Content-Digest: {digest}")
        connection.sendall(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else whole)

    with hostile(script) as server:
        yield f"{server.host}/acme/shop"


# --- size and time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        for_ever(OK + b"\r\n", b"x" * 65536),
        for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        for_ever(OK, b"X: y\r\n" * 8192),
        for_ever(b"HTTP/1.1 500 Broken\r\n\r\n", b"x" * 65536),
        for_ever(OK + b"\r\n", b"x", pause=0.05),
        for_ever(OK, b"X: y\r\n", pause=0.05),
    ],
    ids=["a body", "chunks", "headers", "an error", "a slow body", "slow headers"],
)
def test_an_answer_without_an_end_fills_no_memory_and_ends_in_time(script: Script) -> None:
    started = monotonic()
    with hostile(script) as server, at_most(40 * MEGABYTE):
        for find in (find_digest, find_revision):
            with pytest.raises(RegistryUnreachable):
                find(f"{server.host}/acme/shop", f"sha256:{'0' * 64}", timeout=timedelta(seconds=0.5))
    assert monotonic() - started < 5


def test_one_deadline_is_for_all_requests_together() -> None:
    def script(connection: socket.socket, _: bytes) -> None:
        server.stopped.wait(0.2)
        connection.sendall(answer(b"", "Location: /v2/", status="307 Moved"))

    started = monotonic()
    with hostile(script) as server, pytest.raises(RegistryUnreachable, match="does not answer"):
        find_digest(f"{server.host}/acme/shop", "1", timeout=timedelta(seconds=0.5))
    assert monotonic() - started < 3


def test_redirects_without_an_end_are_given_up() -> None:
    with (
        hostile(sends(answer(b"", "Location: /v2/", status="307 Moved"))) as server,
        pytest.raises(RegistryUnreachable, match="redirects too often"),
    ):
        find_digest(f"{server.host}/acme/shop", "1")
    assert len(server.requests) < 10


# --- other hosts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_a_redirect_does_not_reach_the_hosts_of_our_network(kind: str) -> None:
    digest, contents = oci.image()
    with hostile(sends(answer(b"secret"))) as inside:

        def script(connection: socket.socket, head: bytes) -> None:
            if f"/{kind}/".encode() in head:
                connection.sendall(answer(b"", f"Location: {inside.url}/latest/meta-data", status="307 Moved"))
            else:
                connection.sendall(answer(contents[digest]))

        with hostile(script) as server, pytest.raises(RegistryUnreachable, match="redirects to"):
            find_revision(f"{server.host}/acme/shop", digest)
        assert inside.requests == []


@pytest.mark.parametrize("file", [{}, {"username": "ada", "password": "secret"}, {"identitytoken": "secret"}])
def test_a_token_service_is_none_of_the_hosts_of_our_network(tmp_path: Path, file: dict[str, str]) -> None:
    with hostile(sends(answer(b'{"token": "internal"}'))) as inside:
        challenge = f'WWW-Authenticate: Bearer realm="{inside.url}/token",service="x"'
        with hostile(sends(answer(b"", challenge, status="401 Unauthorized"))) as server:
            (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: file}}))
            with pytest.raises(RegistryUnreachable, match="not in its domain") as caught:
                find_digest(f"{server.host}/acme/shop", "1")
            assert "image.token_service: 127.0.0.1" in caught.value.hint
            assert inside.requests == []
            with pytest.raises(DeliveryError, match="denies access"):  # the operator may name it
                find_digest(f"{server.host}/acme/shop", "1", token_service=inside.host)
    assert len(inside.requests) == 1


REALMS = [
    ("registry.example.com", "https://registry.example.com/token", True),
    ("registry.example.com", "https://auth.example.com/token", True),
    ("registry.example.com:5000", "https://example.com/jwt/auth", True),
    ("docker.io", "https://auth.docker.io/token", True),
    ("ghcr.io", "https://ghcr.io/token", True),
    ("registry.example.com", "https://evil.com/token", False),
    ("registry.example.com", "https://registry.example.com.evil.com/token", False),
    ("registry.example.com", "https://notexample.com/token", False),
    ("registry.example.com", "https://registry.example.com@evil.com/token", False),
    ("registry.example.com", "http://auth.example.com/token", False),
    ("registry.example.com", "https://com/token", False),
    ("ghcr.io", "https://evil.io/token", False),
    ("registry", "https://localhost/token", False),
    ("10.0.0.1:5000", "https://10.0.0.2/token", False),
    ("10.0.0.1:5000", "https://0.0.1/token", False),
    ("registry.example.com", "https://[::1]/token", False),
    ("registry.example.com", "https://169.254.169.254/token", False),
    ("registry.example.com", "https://0x7f000001/token", False),
    ("registry.example.com", "file:///etc/passwd", False),
    ("registry.example.com", "", False),
]


@pytest.mark.parametrize(("host", "realm", "allowed"), REALMS)
def test_a_token_service_is_in_the_domain_of_its_registry(host: str, realm: str, allowed: bool) -> None:  # noqa: FBT001
    call = registry._Call(host, "acme/shop", "https", monotonic())
    assert registry._is_token_service(call, httpx.URL(realm)) is allowed


@pytest.mark.parametrize(
    ("target", "manifest", "blob"),
    [
        ("https://registry.example.com/v2/x", True, True),
        ("https://registry.example.com:8443/v2/x", True, True),
        ("https://bucket.storage.example.net/blob", False, True),
        ("http://bucket.storage.example.net/blob", False, False),
        ("http://registry.example.com/v2/x", False, False),
        ("https://10.0.0.1/blob", False, False),
        ("https://2130706433/blob", False, False),
        ("https://localhost:6443/api", False, False),
        ("https://a.localhost/api", False, False),
        ("file:///etc/passwd", False, False),
    ],
)
def test_only_blobs_may_lie_elsewhere_and_by_tls_only(target: str, manifest: bool, blob: bool) -> None:  # noqa: FBT001
    api, url = httpx.URL("https://registry.example.com"), httpx.URL(target)
    assert (registry._is_same_host(api, url), registry._is_elsewhere_in_public(api, url)) == (manifest, blob)


def test_the_scope_of_a_token_is_ours() -> None:
    def script(connection: socket.socket, head: bytes) -> None:
        if b"/token" in head:
            connection.sendall(answer(b'{"token": "x"}'))
        else:
            realm = f'Bearer realm="{server.url}/token",scope="repository:acme/secret:pull,push"'
            connection.sendall(answer(b"", f"WWW-Authenticate: {realm}", status="401 Unauthorized"))

    with hostile(script) as server, pytest.raises(DeliveryError):
        find_digest(f"{server.host}/acme/shop", "1")
    (asked,) = [path for path in paths(server.requests) if "/token" in path]
    assert "scope=repository%3Aacme%2Fshop%3Apull" in asked
    assert "secret" not in asked


# --- an image with the commit's tag ----------------------------------------------------------------------------------


def test_an_image_of_this_commit_is_found_also_behind_an_index() -> None:
    digest, contents = oci.image(**{oci.REVISION: SHA})
    of_index, content = oci.index(("unknown", f"sha256:{'1' * 64}"), ("linux", digest))
    contents[of_index] = content
    for tag in (digest, of_index):
        with serving(contents, tag) as name:
            image = find_image(ImageSettings(name=name), commit())
            assert image is not None
            assert (image.digest, image.built, image.revision) == (tag, False, SHA)


@pytest.mark.parametrize("labels", [{}, {oci.REVISION: ""}])
def test_an_image_that_does_not_name_its_commit_is_found_and_not_taken_for_one_that_does(
    labels: dict[str, str],
) -> None:
    digest, contents = oci.image(**labels)
    with serving(contents, digest) as name:
        image = find_image(ImageSettings(name=name), commit())
    assert image is not None
    assert (image.digest, image.built, image.revision) == (digest, False, "")


@pytest.mark.parametrize("labels", [{oci.REVISION: "f" * 40}, {oci.REVISION: SHA[:12]}])
def test_an_image_of_another_commit_under_this_ones_tag_is_refused(labels: dict[str, str]) -> None:
    digest, contents = oci.image(**labels)
    with serving(contents, digest) as name, pytest.raises(Invalid, match="was not built from it") as caught:
        find_image(ImageSettings(name=name), commit())
    assert digest in caught.value.where


# --- images of others ------------------------------------------------------------------------------------------------


def test_the_tag_of_a_listed_repository_becomes_a_digest() -> None:
    digest, contents = oci.image()
    with serving(contents, digest) as name:
        host = name.partition("/")[0]
        for listed in (name, host, f"{host}/acme"):
            assert (
                find_digest_of_other(ImageSettings(name="example.org/shop", pin=(listed,)), f"{name}:{SHA}") == digest
            )


def test_a_tag_that_does_not_exist_is_named_before_anything_is_written() -> None:
    with serving({}, "") as name, pytest.raises(InvalidManifest, match=f"{name}:1 does not exist"):
        find_digest_of_other(ImageSettings(name="example.org/shop", pin=(name,)), f"{name}:1")


def test_a_commit_has_no_other_host_asked_than_the_listed_ones() -> None:
    with hostile(sends(answer(b"{}"))) as server:
        settings = ImageSettings(name="example.org/shop", pin=("docker.io", f"{server.host}/acme/shop"))
        for reference in (
            f"{server.host}/acme/shop2:1",
            f"{server.host}/acme:1",
            f"{server.host}/acme/shop@{'1' * 64}",
        ):
            assert find_digest_of_other(settings, reference) is None
        assert not server.requests


@pytest.mark.parametrize(
    ("listed", "reference"),
    [
        ("docker.io/library", "busybox:1"),
        ("docker.io", "acme/tool"),
        ("docker.io/acme", "index.docker.io/acme/tool:2"),
        ("docker.io/acme/tool", "acme/tool:2"),
    ],
)
def test_every_spelling_of_a_listed_repository_is_that_repository(
    listed: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_digest", lambda _name, tag, **_: f"digest of {tag}")
    tag = reference.partition(":")[2] or "latest"
    assert find_digest_of_other(ImageSettings(name="example.org/shop", pin=(listed,)), reference) == f"digest of {tag}"


def test_a_content_that_is_not_that_of_its_digest_is_refused() -> None:
    digest, contents = oci.image(**{oci.REVISION: "f" * 40})
    config = next(key for key in contents if key != digest)
    contents[config] = contents[config].replace(b"f" * 40, SHA.encode())
    with serving(contents, digest) as name, pytest.raises(RegistryUnreachable, match="another content"):
        find_image(ImageSettings(name=name), commit())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(f"sha256:{'0' * 64}"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["config", "manifests", "digest", "Labels", "platform"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
@settings(max_examples=20, deadline=None)
def test_no_manifest_is_an_exception(value: object) -> None:
    content = json.dumps(value).encode()
    with hostile(sends(answer(content))) as server, pytest.raises(DeliveryError):
        find_revision(f"{server.host}/acme/shop", oci.digest_of(content))


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"\xff\xfe", b"NaN", b""]
)
def test_no_json_is_an_exception(content: bytes) -> None:
    with hostile(sends(answer(content))) as server, pytest.raises(RegistryUnreachable):
        find_revision(f"{server.host}/acme/shop", oci.digest_of(content))


CHALLENGES = [
    "Bearer",
    "Bearer realm=",
    'Bearer realm="',
    "Bearer realm=http://[",
    "Bearer =",
    'Basic realm="\x7f',
    "x y=,=,",
    "Bearer realm=//a",
]


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_no_challenge_is_an_exception(challenge: str) -> None:
    with (
        hostile(sends(answer(b"", f"WWW-Authenticate: {challenge}", status="401 Unauthorized"))) as server,
        pytest.raises(DeliveryError),
    ):
        find_digest(f"{server.host}/acme/shop", "1", timeout=timedelta(seconds=5))


@pytest.mark.parametrize("token", ["a\r\nX: y", "a b", "ä", "", 5, ["x"], "x" * 100_000])
def test_no_token_is_a_header_of_its_own(token: object) -> None:
    def script(connection: socket.socket, head: bytes) -> None:
        if b"/token" in head:
            connection.sendall(answer(json.dumps({"token": token}).encode()))
        else:
            challenge = f'WWW-Authenticate: Bearer realm="{server.url}/token"'
            connection.sendall(answer(b"", challenge, status="401 Unauthorized"))

    with hostile(script) as server, pytest.raises(DeliveryError):
        find_digest(f"{server.host}/acme/shop", "1")
    assert not any(b"\nX: y" in request for request in server.requests)
