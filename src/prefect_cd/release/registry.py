"""What a registry says about an image: the few calls of the OCI distribution specification that we need.

Decides which digest a tag has, whether a registry is spoken to without TLS, and which credentials it gets.
Knows nothing of builders or commits. Sources: the distribution specification (opencontainers/distribution-spec,
"Pulling manifests"), the token protocol (distribution.github.io/distribution/spec/auth/token/), and
containers-auth.json(5) for where credentials lie.
"""

import base64
import binascii
import hashlib
import ipaddress
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from prefect_cd.errors import Forbidden, Invalid, MissingTool, RegistryUnreachable

_ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB = "docker.io"
_HUB_NAMES = (_HUB, "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"  # what docker login writes for it
_HELPER_SECONDS = 30
_TOO_MANY = 429


@dataclass(frozen=True)
class Credentials:
    """What a registry is told about us.

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
        RegistryUnreachable: no answer, or one that may be different next time.
        Forbidden: the registry refuses us.
        Invalid: it speaks TLS where we do not, or the other way round, or its certificate is not trusted.
    """
    host, repository = split(name)
    plain = speaks_http(host, insecure=insecure)
    # A proxy is for reaching others: what is on this machine is never behind it.
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
                f"the registry {host} answers with a redirect that leads nowhere: {error}", where=name
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
    """What to do when a registry refuses us."""
    return f"log in as someone who may: docker login {host} (or podman login, buildah login)"


def credentials(host: str, repository: str) -> Credentials | None:
    """What the auth files of docker, podman and buildah say about a registry; the first that says something.

    Raises:
        MissingTool: they name a credential helper that is not installed.
        Forbidden: the helper fails.
    """
    for file in _auth_files():
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and (found := _credentials_in(content, file, host, repository)):
            return found
    return None


@dataclass(frozen=True)
class _Call:
    """Whom we speak to, and about what."""

    client: httpx.Client
    host: str
    repository: str
    scheme: str

    def manifest(self, tag: str) -> str:
        api = "registry-1.docker.io" if self.host == _HUB else self.host
        return f"{self.scheme}://{api}/v2/{self.repository}/manifests/{tag}"

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"


def _digest(call: _Call, tag: str) -> str | None:
    headers = {"Accept": _ACCEPT}
    response = call.client.head(call.manifest(tag), headers=headers)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        headers["Authorization"] = _authorization(call, response)
        response = call.client.head(call.manifest(tag), headers=headers)
    digest = response.headers.get("Docker-Content-Digest", "")
    if response.status_code == httpx.codes.METHOD_NOT_ALLOWED or (
        response.is_success and not _DIGEST.fullmatch(digest)
    ):
        response = call.client.get(call.manifest(tag), headers=headers)
        digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
    if response.status_code == httpx.codes.NOT_FOUND:
        return None
    _check(call, response)
    return str(digest)


def _check(call: _Call, response: httpx.Response) -> None:
    code = response.status_code
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise _refusal(call)
    if not response.is_success:
        kind = "is busy" if code == _TOO_MANY else "has a problem"
        raise RegistryUnreachable(
            f"the registry {call.host} {kind}: HTTP {code} for {call.repository}",
            where=call.name,
            detail=response.text[:500],
            hint="try again; the registry's own log says more",
        )


def _authorization(call: _Call, refused: httpx.Response) -> str:
    """The Authorization header that the registry asks for."""
    challenges = dict(_challenges(refused))
    known = credentials(call.host, call.repository)
    if "bearer" in challenges:
        return f"Bearer {_token(call, challenges['bearer'], known)}"
    if "basic" in challenges and known:
        return "Basic " + base64.b64encode(f"{known.username}:{known.secret}".encode()).decode()
    raise _refusal(call, known)


def _challenges(response: httpx.Response) -> Iterator[tuple[str, dict[str, str]]]:
    for header in response.headers.get_list("WWW-Authenticate"):
        scheme, _, rest = header.partition(" ")
        pairs = [pair for pair in parse_http_list(rest) if "=" in pair]
        yield scheme.lower(), {key.lower(): value for key, value in parse_keqv_list(pairs).items()}


def _token(call: _Call, challenge: dict[str, str], known: Credentials | None) -> str:
    realm = httpx.URL(challenge.get("realm", ""))
    if realm.scheme != "https" and call.scheme == "https":
        raise RegistryUnreachable(
            f"the registry {call.host} sends us for a token to {str(realm)!r}, which is not https",
            where=call.name,
            hint="nothing was sent there; correct the registry's token realm",
        )
    asked = {
        "service": challenge.get("service", ""),
        "scope": challenge.get("scope", f"repository:{call.repository}:pull"),
    }
    # No redirects here: the next host would get what the registry's token service was meant to get.
    if known and not known.username:
        form = {"grant_type": "refresh_token", "refresh_token": known.secret, "client_id": "prefect-cd", **asked}
        response = call.client.post(realm, data=form, follow_redirects=False)
    else:
        auth = (known.username, known.secret) if known else None
        response = call.client.get(realm.copy_merge_params(asked), auth=auth, follow_redirects=False)
    if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise _refusal(call, known)
    _check(call, response)
    try:
        answer = response.json()
        return str(answer.get("token") or answer["access_token"])
    except (ValueError, KeyError, AttributeError) as error:
        raise RegistryUnreachable(
            f"the token service of {call.host} answers without a token", where=call.name
        ) from error


def _refusal(call: _Call, known: Credentials | None = None) -> Forbidden:
    known = known or credentials(call.host, call.repository)
    who = f"the credentials of {known.origin}" if known else "us, because we have no credentials for it"
    return Forbidden(
        f"the registry {call.host} refuses {who}: no access to {call.repository}",
        where=call.name,
        hint=login_hint(call.host),
    )


def _no_answer(call: _Call, error: httpx.TransportError) -> RegistryUnreachable | Invalid:
    said = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return Invalid(
            f"the certificate of the registry {call.host} is not trusted: {said}",
            where=call.name,
            hint="set SSL_CERT_FILE to the authority that signed it",
        )
    if "WRONG_VERSION_NUMBER" in said:
        return Invalid(
            f"the registry {call.host} does not speak TLS: {said}",
            where=call.name,
            hint="set image.insecure: true for a registry with plain HTTP, and in the builder's own settings",
        )
    return RegistryUnreachable(
        f"the registry {call.host} does not answer: {said}",
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
    """Where docker, podman and buildah keep credentials; what the environment names comes first."""
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
        found = _ask_helper(str(helper), server)
        if found:
            return found
    entries = {_bare(key): entry for key, entry in (content.get("auths") or {}).items() if isinstance(entry, dict)}
    for key in _keys(host, repository):
        if key in entries and (found := _credentials_of(entries[key], str(file))):
            return found
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """Entries that are good for a repository, the closest first: host/acme/shop, host/acme, host."""
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
    """Credentials from `docker-credential-HELPER get`, which runs with our whole environment: it is the operator's."""
    program = f"docker-credential-{helper}"
    try:
        ended = subprocess.run(
            [program, "get"], input=server, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise MissingTool(
            f"the credentials for {server} are kept by {program}, which is not installed",
            hint=f"install {program}, or log in without it",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RegistryUnreachable(f"{program} gave no credentials for {server} in {_HELPER_SECONDS} s") from error
    if ended.returncode:
        said = (ended.stdout + ended.stderr).strip()
        if "not found" in said:
            return None
        raise Forbidden(f"{program} gives no credentials for {server}", detail=said[:500], hint=f"try: {program} get")
    try:
        answer = json.loads(ended.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        # The cause is not chained: it quotes what was read, which may be a secret.
        raise Forbidden(f"{program} answers something else than credentials for {server}") from None
    return Credentials("" if username == "<token>" else username, secret, program)


__all__ = ["Credentials", "credentials", "find_digest", "login_hint", "speaks_http", "split"]
