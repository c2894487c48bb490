"""Look an image up in its registry: the few calls of the OCI distribution specification that we need.

Decides which digest a tag has, which commit an image says it was built from, whether a registry is reached without
TLS, which credentials it gets, and which other hosts it may send us to: a registry is not trusted to name any address
of our network. Knows nothing of builders. Sources: the distribution specification (opencontainers/distribution-spec,
"Pulling manifests"), the token protocol (distribution.github.io/distribution/spec/auth/token/), and
containers-auth.json(5) for the places of credentials.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from prefect_cd.errors import Forbidden, Invalid, MissingTool, RegistryUnreachable
from prefect_cd.http_client import Response, is_loopback, send
from prefect_cd.masking import BY_SHAPE
from prefect_cd.process import run

_ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB = "docker.io"
_HUB_NAMES = (_HUB, "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"  # its key in the file that `docker login` writes
_HELPER_TIMEOUT = timedelta(seconds=30)
_TOO_MANY_REQUESTS = 429
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_LARGEST = 4 * 2**20  # bytes; what registries have to accept of a manifest
_PLATFORM = re.compile(r"(?!None)[\w.-]{1,32}/(?!None)[\w.-]{1,32}")
_LONGEST_USER = 80
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
REVISION = "org.opencontainers.image.revision"
"""The label and annotation for the commit of an image (opencontainers/image-spec, annotations.md)."""


@dataclass(frozen=True)
class Credentials:
    """What we authenticate with at a registry.

    Attributes:
        username: empty for an identity token.
        secret: a password or an identity token; never shown.
        origin: the file or program it comes from.
    """

    username: str
    secret: str = field(repr=False)
    origin: str


@dataclass(frozen=True)
class ImageConfig:
    """What an image says about how it runs.

    Attributes:
        user: as its Dockerfile has it: a name or a number, perhaps with a group; empty for root.
        platforms: that it is made for: `linux/amd64`; empty where it does not say.
    """

    user: str
    platforms: frozenset[str]


def find_digest(
    name: str,
    tag: str,
    *,
    insecure: bool | None = None,
    token_service: str | None = None,
    timeout: timedelta = timedelta(seconds=30),
) -> str | None:
    """The digest that a tag has in its registry, or None when there is no such tag.

    Args:
        name: repository without tag, as manifests write it.
        tag: for example a full commit SHA.
        insecure: True: plain HTTP; False: TLS; None: plain HTTP for localhost and loopback addresses only.
        token_service: a host outside of the registry's domain that may be asked for a token.
        timeout: for all requests together.

    Raises:
        RegistryUnreachable: no answer, or a temporary failure, or an answer that no registry gives.
        Forbidden: the registry denies access.
        Invalid: the registry uses TLS and we do not, or the other way round, or its certificate is not trusted.
    """
    with _calling(name, insecure=insecure, token_service=token_service, timeout=timeout) as call:
        return _digest(call, tag)


def find_revision(
    name: str,
    digest: str,
    *,
    insecure: bool | None = None,
    token_service: str | None = None,
    timeout: timedelta = timedelta(seconds=30),
) -> str | None:
    """The commit that an image says it was built from, or None when it says nothing; of several platforms, the first.

    Whoever may push to the repository can write it.

    Args:
        name: repository without tag.
        digest: of its manifest.
        insecure: as for `find_digest`.
        token_service: likewise.
        timeout: for all requests together.

    Raises:
        RegistryUnreachable, Forbidden, Invalid: as `find_digest`; also when a content does not have its digest.
    """
    with _calling(name, insecure=insecure, token_service=token_service, timeout=timeout) as call:
        try:
            return _revision(call, digest)
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise _odd(call, f"has no image of a known form at {digest}") from error


def find_config(
    name: str,
    digest: str,
    *,
    insecure: bool | None = None,
    token_service: str | None = None,
    timeout: timedelta = timedelta(seconds=30),
) -> ImageConfig:
    """What an image says about how it runs; of several platforms, the user is that of the first.

    Args:
        name: repository without tag.
        digest: of its manifest.
        insecure: as for `find_digest`.
        token_service: likewise.
        timeout: for all requests together.

    Raises:
        RegistryUnreachable, Forbidden, Invalid: as `find_revision`.
    """
    with _calling(name, insecure=insecure, token_service=token_service, timeout=timeout) as call:
        try:
            platforms, configuration = _configuration(call, digest)
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise _odd(call, f"has no image of a known form at {digest}") from error
    user = str((configuration.get("config") or {}).get("User") or "")
    return ImageConfig(user[:_LONGEST_USER], platforms)


@contextmanager
def _calling(name: str, *, insecure: bool | None, token_service: str | None, timeout: timedelta) -> "Iterator[_Call]":
    """A look-up whose failures are errors of ours."""
    host, repository = split(name)
    scheme = "http" if speaks_http(host, insecure=insecure) else "https"
    call = _Call(host, repository, scheme, time.monotonic() + timeout.total_seconds(), token_service)
    try:
        yield call
    except httpx.TransportError as error:
        raise _no_answer(call, error) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise _odd(call, f"gives an answer that cannot be read: {error}") from error


def split(name: str) -> tuple[str, str]:
    """The registry's host (and port) and the repository in it: the rule of docker and containers.

    acme/shop is on Docker Hub; a first part with a dot or a port, or localhost, is a host.
    """
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = _HUB, name
    if first in _HUB_NAMES:
        return _HUB, rest if "/" in rest else f"library/{rest}"
    return first, rest


def speaks_http(host: str, *, insecure: bool | None) -> bool:
    """Whether a registry is reached by plain HTTP."""
    return is_loopback(_hostname(host)) if insecure is None else insecure


def login_hint(host: str) -> str:
    """What to do when a registry denies access."""
    return f"log in as a user with access: docker login {host} (or podman login, buildah login)"


def credentials(host: str, repository: str) -> Credentials | None:
    """The credentials for a registry: the first that the auth files of docker, podman and buildah have.

    Raises:
        MissingTool: a file names a credential helper that is not installed.
        Forbidden: the helper fails.
        RegistryUnreachable: the helper does not answer in time.
    """
    for file in _auth_files():
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and (login := _credentials_in(content, file, host, repository)):
            return login
    return None


@dataclass
class _Call:
    """One look-up: the registry, the repository, and when it has to be over.

    Attributes:
        authorization: the header that the registry asked for, once it has.
    """

    host: str
    repository: str
    scheme: str
    deadline: float
    token_service: str | None = None
    authorization: str = ""

    @property
    def name(self) -> str:
        """Host and repository, for error messages."""
        return f"{self.host}/{self.repository}"

    @property
    def api(self) -> httpx.URL:
        """The URL of the registry."""
        return httpx.URL(f"{self.scheme}://{'registry-1.docker.io' if self.host == _HUB else self.host}")

    def request(self, method: str, kind: str, reference: str) -> Response:
        """Request a manifest or a blob of the repository, with the authorization that the registry asks for."""
        url = self.api.join(f"/v2/{self.repository}/{kind}/{reference}")
        response = self._follow(method, url, kind)
        if response.status == httpx.codes.UNAUTHORIZED and not self.authorization:
            self.authorization = _authorization(self, response)
            response = self._follow(method, url, kind)
        return response

    def send(
        self, method: str, url: httpx.URL, *, headers: dict[str, str], form: dict[str, str] | None = None
    ) -> Response:
        """Send one request in the time that is left."""
        left = timedelta(seconds=max(self.deadline - time.monotonic(), 0.001))
        return send(method, url, timeout=left, largest_body=_LARGEST, headers=headers, form=form)

    def _follow(self, method: str, url: httpx.URL, kind: str) -> Response:
        """Send a request, and again to where the registry redirects it, as far as that is allowed."""
        may_go = _is_elsewhere_in_public if kind == "blobs" else _is_same_host
        for _ in range(_MOST_REDIRECTS):
            headers = {"Accept": _ACCEPT} if kind == "manifests" else {}
            if self.authorization and _is_same_host(self.api, url):
                headers["Authorization"] = self.authorization
            response = self.send(method, url, headers=headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            target = url.join(location)
            if not may_go(self.api, target):
                raise _odd(self, f"redirects to {str(target)[:200]!r}, where no request is sent")
            url = target
        raise _odd(self, "redirects too often")


def _is_same_host(api: httpx.URL, target: httpx.URL) -> bool:
    """Whether a URL is one of the registry itself, with TLS if the registry has it."""
    same = (target.scheme, target.host, target.port) == (api.scheme, api.host, api.port)
    return same or (target.scheme == "https" and target.host == api.host and not _is_address(target.host))


def _is_elsewhere_in_public(api: httpx.URL, target: httpx.URL) -> bool:
    """Whether a blob may be there: registries keep them in storage with names and certificates of their own.

    An address of our network has no certificate for a name that the registry chooses.
    """
    return _is_same_host(api, target) or (target.scheme == "https" and not _is_address(target.host))


def _is_token_service(call: _Call, realm: httpx.URL) -> bool:
    """Whether a token may be fetched there: by the registry itself, by TLS in its domain, or where the operator says.

    `registry.example.com` has the domain example.com, and `quay.io` its own name.
    """
    if call.token_service in (realm.host, realm.netloc.decode("ascii", "replace")):
        return True
    labels = _hostname(call.host).rstrip(".").split(".")
    domain = ".".join(labels[1:] if len(labels) > 2 else labels)  # noqa: PLR2004  a domain has two
    in_domain = realm.host == domain or realm.host.endswith(f".{domain}")
    return _is_same_host(call.api, realm) or (in_domain and realm.scheme == "https" and not _is_address(realm.host))


def _is_address(host: str) -> bool:
    """Whether a host is an IP address, in any notation that resolvers know, or this machine."""
    return is_loopback(host) or host.endswith(".localhost") or ":" in host or not host.rpartition(".")[2][:1].isalpha()


def _hostname(host: str) -> str:
    """A host without its port."""
    return re.sub(r":\d+$", "", host)


def _digest(call: _Call, tag: str) -> str | None:
    response = call.request("HEAD", "manifests", tag)
    digest = response.headers.get("Docker-Content-Digest", "")
    # The specification only recommends HEAD and the digest's header; without them the digest is that of the content.
    if response.status == httpx.codes.METHOD_NOT_ALLOWED or (
        httpx.codes.is_success(response.status) and not _DIGEST.fullmatch(digest)
    ):
        response = call.request("GET", "manifests", tag)
        digest = f"sha256:{hashlib.sha256(response.body).hexdigest()}"
    if response.status == httpx.codes.NOT_FOUND:
        return None
    _raise_for_status(call, response)
    _refuse_too_large(call, response)
    return str(digest)


def _revision(call: _Call, digest: str) -> str | None:
    """The label of an image's configuration."""
    _, configuration = _configuration(call, digest)
    revision = ((configuration.get("config") or {}).get("Labels") or {}).get(REVISION)
    return revision if isinstance(revision, str) and revision else None


def _configuration(call: _Call, digest: str) -> tuple[frozenset[str], dict[str, Any]]:
    """The platforms of an image and its configuration; an index leads to the image of its first platform."""
    manifest, described = _content(call, "manifests", digest), []
    if "manifests" in manifest:
        images = [entry for entry in manifest["manifests"] if _platform(entry) != "unknown"]  # an attestation
        described = [entry.get("platform") or {} for entry in images]
        manifest = _content(call, "manifests", images[0]["digest"])
    configuration = _content(call, "blobs", manifest["config"]["digest"])
    described = described or [configuration]
    platforms = frozenset(f"{entry.get('os')}/{entry.get('architecture')}" for entry in described)
    return platforms if all(map(_PLATFORM.fullmatch, platforms)) else frozenset(), configuration


def _platform(entry: dict[str, Any]) -> str:
    return str((entry.get("platform") or {}).get("os"))


def _content(call: _Call, kind: str, digest: object) -> dict[str, Any]:
    """The JSON object with a digest."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _odd(call, f"names {str(digest)[:80]!r} as a digest")
    response = call.request("GET", kind, digest)
    _raise_for_status(call, response)
    _refuse_too_large(call, response)
    if f"sha256:{hashlib.sha256(response.body).hexdigest()}" != digest:
        raise _odd(call, f"gives another content for {digest}")
    content = json.loads(response.body)
    if not isinstance(content, dict):
        raise TypeError("not an object")
    return content


def _refuse_too_large(call: _Call, response: Response) -> None:
    if not response.complete:
        raise _odd(call, f"gives an answer of more than {_LARGEST // 2**20} MiB")


def _raise_for_status(call: _Call, response: Response) -> None:
    code = response.status
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise _denied(call)
    if not httpx.codes.is_success(code):
        problem = "is busy" if code == _TOO_MANY_REQUESTS else "has a problem"
        raise RegistryUnreachable(
            f"the registry {call.host} {problem}: HTTP {code} for {call.repository}",
            where=call.name,
            detail=response.text[:500],
            hint="try again; see the registry's own log for details",
        )


def _authorization(call: _Call, unauthorized: Response) -> str:
    """The Authorization header that the registry asks for."""
    challenges = dict(_challenges(unauthorized))
    login = credentials(call.host, call.repository)
    if "bearer" in challenges:
        return f"Bearer {_token(call, challenges['bearer'], login)}"
    if "basic" in challenges and login:
        return _basic(login)
    raise _denied(call, login)


def _challenges(response: Response) -> Iterator[tuple[str, dict[str, str]]]:
    """Scheme and parameters of each WWW-Authenticate header."""
    for header in response.headers.get_list("WWW-Authenticate"):
        scheme, _, rest = header.partition(" ")
        pairs = [pair for pair in parse_http_list(rest) if re.search("=.", pair)]
        yield scheme.lower(), {key.lower(): value for key, value in parse_keqv_list(pairs).items()}


def _token(call: _Call, challenge: dict[str, str], login: Credentials | None) -> str:
    """A token from the service that the challenge names, for pulling from the repository."""
    realm = httpx.URL(challenge.get("realm", ""))
    if realm.scheme != "https" and call.scheme == "https":
        raise RegistryUnreachable(
            f"the registry {call.host} names {str(realm)!r} as its token service, which is not https",
            where=call.name,
            hint="no credentials were sent there; correct the registry's token realm",
        )
    if not _is_token_service(call, realm):
        raise RegistryUnreachable(
            f"the registry {call.host} names {str(realm)[:200]!r} as its token service, which is not in its domain",
            where=call.name,
            hint=f"nothing was sent there; if it is right, set image.token_service: {realm.host}",
        )
    # The scope is ours: a token of another one would be for whoever runs this registry.
    query = {"service": challenge.get("service", ""), "scope": f"repository:{call.repository}:pull"}
    # No redirects here: the next host would get credentials that are for the registry's token service.
    if login and not login.username:
        form = {"grant_type": "refresh_token", "refresh_token": login.secret, "client_id": "prefect-cd", **query}
        response = call.send("POST", realm, headers={}, form=form)
    else:
        headers = {"Authorization": _basic(login)} if login else {}
        response = call.send("GET", realm.copy_merge_params(query), headers=headers)
    if response.status in (httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise _denied(call, login)
    _raise_for_status(call, response)
    try:
        answer = json.loads(response.body)
        token = str(answer.get("token") or answer["access_token"])
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise _odd(call, "has a token service that answers without a token") from error
    if not _TOKEN.fullmatch(token):
        raise _odd(call, "has a token service that answers without a valid token")
    return token


def _basic(login: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.secret}".encode()).decode()


def _odd(call: _Call, problem: str) -> RegistryUnreachable:
    """The error for an answer that no registry gives."""
    return RegistryUnreachable(
        f"the registry {call.host} {problem}",
        where=call.name,
        hint=f"is it the registry that image.name means? curl -i {call.scheme}://{call.host}/v2/",
    )


def _denied(call: _Call, login: Credentials | None = None) -> Forbidden:
    login = login or credentials(call.host, call.repository)
    reason = f"with the credentials of {login.origin}" if login else "without credentials, and there are none for it"
    return Forbidden(
        f"the registry {call.host} denies access to {call.repository} {reason}",
        where=call.name,
        hint=login_hint(call.host),
    )


def _no_answer(call: _Call, error: httpx.TransportError) -> RegistryUnreachable | Invalid:
    message = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return Invalid(
            f"the certificate of the registry {call.host} is not trusted: {message}",
            where=call.name,
            hint="set SSL_CERT_FILE to the authority that signed it",
        )
    if "WRONG_VERSION_NUMBER" in message:
        return Invalid(
            f"the registry {call.host} does not speak TLS: {message}",
            where=call.name,
            hint="set image.insecure: true for a registry with plain HTTP, and in the builder's own settings",
        )
    return RegistryUnreachable(
        f"the registry {call.host} does not answer: {message}",
        where=call.name,
        hint=f"try again; from this machine: curl -i {call.scheme}://{call.host}/v2/",
    )


def _auth_files() -> Iterator[Path]:
    """Where docker, podman and buildah keep credentials; files that environment variables name come first."""
    environment = os.environ
    home = Path(environment.get("HOME", "/"))
    if "REGISTRY_AUTH_FILE" in environment:
        yield Path(environment["REGISTRY_AUTH_FILE"])
    if "DOCKER_CONFIG" in environment:
        yield Path(environment["DOCKER_CONFIG"]) / "config.json"
    if "XDG_RUNTIME_DIR" in environment:
        yield Path(environment["XDG_RUNTIME_DIR"]) / "containers" / "auth.json"
    else:
        yield Path(f"/run/containers/{os.getuid()}/auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME", home / ".config")) / "containers" / "auth.json"
    yield home / ".docker" / "config.json"


def _credentials_in(content: dict[str, Any], file: Path, host: str, repository: str) -> Credentials | None:
    server = _HUB_KEY if host == _HUB else host
    helpers = content.get("credHelpers") or {}
    if helper := helpers.get(server) or helpers.get(host) or content.get("credsStore"):
        login = _ask_helper(str(helper), server)
        if login:
            return login
    entries = {_bare(key): entry for key, entry in (content.get("auths") or {}).items() if isinstance(entry, dict)}
    for key in _keys(host, repository):
        if key in entries and (login := _credentials_of(entries[key], str(file))):
            return login
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """Keys of entries for a repository, the most specific first: host/acme/shop, host/acme, host."""
    parts = repository.split("/")
    for length in range(len(parts), -1, -1):
        yield "/".join([host, *parts[:length]])
    if host == _HUB:
        yield from _HUB_NAMES


def _bare(key: str) -> str:
    """An entry's key without scheme and API version: docker login wrote https://index.docker.io/v1/."""
    return re.sub(r"/(v[12]/?)?$", "", re.sub(r"^https?://", "", key))


def _credentials_of(entry: dict[str, Any], origin: str) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials("", str(token), origin)
    if entry.get("username") and entry.get("password"):
        return Credentials(str(entry["username"]), str(entry["password"]), origin)
    try:
        username, colon, password = base64.b64decode(entry.get("auth") or "").decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Credentials(username, password.rstrip("\0"), origin) if colon else None


def _ask_helper(helper: str, server: str) -> Credentials | None:
    """Credentials from `docker-credential-HELPER get`, None when it has none.

    The operator chose this program, so it gets the whole environment.
    """
    program = f"docker-credential-{helper}"
    try:
        finished = run(
            [program, "get"],
            cwd=Path(),
            env=dict(os.environ),
            timeout=_HELPER_TIMEOUT,
            stdin=server,
            separate_stdout=True,
        )
    except MissingTool as error:
        raise MissingTool(
            f"the credentials for {server} are kept by {program}, which is not installed",
            hint=f"install {program}, or log in without it",
        ) from error
    if finished.timed_out:
        raise RegistryUnreachable(
            f"{program} gave no credentials for {server} in {_HELPER_TIMEOUT.total_seconds():.0f} s"
        )
    if finished.code:
        message = (finished.stdout + finished.output).strip()
        if "not found" in message:
            return None
        raise Forbidden(
            f"{program} gives no credentials for {server}",
            detail=BY_SHAPE.head(message, 500),
            hint=f"try: {program} get",
        )
    try:
        answer = json.loads(finished.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        # The cause is not chained: it quotes the output, which may be a secret.
        raise Forbidden(f"{program} gives no valid credentials for {server}") from None
    return Credentials("" if username == "<token>" else username, secret, program)


__all__ = [
    "REVISION",
    "Credentials",
    "ImageConfig",
    "credentials",
    "find_config",
    "find_digest",
    "find_revision",
    "login_hint",
    "speaks_http",
    "split",
]
