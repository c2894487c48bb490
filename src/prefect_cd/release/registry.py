"""Look an image up in its registry: the few calls of the OCI distribution specification that we need.

Decides which digest a tag has, whether a registry is reached without TLS, and which credentials it gets.
Knows nothing of builders or commits. Sources: the distribution specification (opencontainers/distribution-spec,
"Pulling manifests"), the token protocol (distribution.github.io/distribution/spec/auth/token/), and
containers-auth.json(5) for the places of credentials.
"""

import base64
import binascii
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from prefect_cd.errors import Forbidden, Invalid, MissingTool, RegistryUnreachable
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


def find_digest(
    name: str, tag: str, *, insecure: bool | None = None, timeout: timedelta = timedelta(seconds=30)
) -> str | None:
    """The digest that a tag has in its registry, or None when there is no such tag.

    Args:
        name: repository without tag, as manifests write it.
        tag: for example a full commit SHA.
        insecure: True: plain HTTP; False: TLS; None: plain HTTP for localhost and loopback addresses only.
        timeout: for each request.

    Raises:
        RegistryUnreachable: no answer, or a temporary failure.
        Forbidden: the registry denies access.
        Invalid: the registry uses TLS and we do not, or the other way round, or its certificate is not trusted.
    """
    host, repository = split(name)
    plain = speaks_http(host, insecure=insecure)
    # A proxy cannot reach the loopback addresses of this machine.
    with httpx.Client(
        timeout=timeout.total_seconds(), follow_redirects=True, trust_env=not _is_loopback(host)
    ) as client:
        call = _Call(client, host, repository, "http" if plain else "https")
        try:
            return _digest(call, tag)
        except httpx.TransportError as error:
            raise _no_answer(call, error) from error
        except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise RegistryUnreachable(
                f"the registry {host} redirects to an invalid URL or too often: {error}", where=name
            ) from error


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
    return _is_loopback(host) if insecure is None else insecure


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


@dataclass(frozen=True)
class _Call:
    """One look-up: the HTTP client, the registry and the repository."""

    client: httpx.Client
    host: str
    repository: str
    scheme: str

    def manifest_url(self, tag: str) -> str:
        """The URL of the manifest of a tag."""
        api = "registry-1.docker.io" if self.host == _HUB else self.host
        return f"{self.scheme}://{api}/v2/{self.repository}/manifests/{tag}"

    @property
    def name(self) -> str:
        """Host and repository, for error messages."""
        return f"{self.host}/{self.repository}"


def _digest(call: _Call, tag: str) -> str | None:
    headers = {"Accept": _ACCEPT}
    response = call.client.head(call.manifest_url(tag), headers=headers)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        headers["Authorization"] = _authorization(call, response)
        response = call.client.head(call.manifest_url(tag), headers=headers)
    digest = response.headers.get("Docker-Content-Digest", "")
    # The specification only recommends HEAD and the digest's header; without them the digest is that of the content.
    if response.status_code == httpx.codes.METHOD_NOT_ALLOWED or (
        response.is_success and not _DIGEST.fullmatch(digest)
    ):
        response = call.client.get(call.manifest_url(tag), headers=headers)
        digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
    if response.status_code == httpx.codes.NOT_FOUND:
        return None
    _raise_for_status(call, response)
    return str(digest)


def _raise_for_status(call: _Call, response: httpx.Response) -> None:
    code = response.status_code
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise _denied(call)
    if not response.is_success:
        problem = "is busy" if code == _TOO_MANY_REQUESTS else "has a problem"
        raise RegistryUnreachable(
            f"the registry {call.host} {problem}: HTTP {code} for {call.repository}",
            where=call.name,
            detail=response.text[:500],
            hint="try again; see the registry's own log for details",
        )


def _authorization(call: _Call, unauthorized: httpx.Response) -> str:
    """The Authorization header that the registry asks for."""
    challenges = dict(_challenges(unauthorized))
    login = credentials(call.host, call.repository)
    if "bearer" in challenges:
        return f"Bearer {_token(call, challenges['bearer'], login)}"
    if "basic" in challenges and login:
        return "Basic " + base64.b64encode(f"{login.username}:{login.secret}".encode()).decode()
    raise _denied(call, login)


def _challenges(response: httpx.Response) -> Iterator[tuple[str, dict[str, str]]]:
    """Scheme and parameters of each WWW-Authenticate header."""
    for header in response.headers.get_list("WWW-Authenticate"):
        scheme, _, rest = header.partition(" ")
        pairs = [pair for pair in parse_http_list(rest) if "=" in pair]
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
    query = {
        "service": challenge.get("service", ""),
        "scope": challenge.get("scope", f"repository:{call.repository}:pull"),
    }
    # No redirects here: the next host would get credentials that are for the registry's token service.
    if login and not login.username:
        form = {"grant_type": "refresh_token", "refresh_token": login.secret, "client_id": "prefect-cd", **query}
        response = call.client.post(realm, data=form, follow_redirects=False)
    else:
        auth = (login.username, login.secret) if login else None
        response = call.client.get(realm.copy_merge_params(query), auth=auth, follow_redirects=False)
    if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise _denied(call, login)
    _raise_for_status(call, response)
    try:
        answer = response.json()
        return str(answer.get("token") or answer["access_token"])
    except (ValueError, KeyError, AttributeError) as error:
        raise RegistryUnreachable(
            f"the token service of {call.host} answers without a token", where=call.name
        ) from error


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


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


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
            f"{program} gives no credentials for {server}", detail=message[:500], hint=f"try: {program} get"
        )
    try:
        answer = json.loads(finished.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        # The cause is not chained: it quotes the output, which may be a secret.
        raise Forbidden(f"{program} gives no valid credentials for {server}") from None
    return Credentials("" if username == "<token>" else username, secret, program)


__all__ = ["Credentials", "credentials", "find_digest", "login_hint", "speaks_http", "split"]
