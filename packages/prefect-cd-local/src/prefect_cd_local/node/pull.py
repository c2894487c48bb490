"""Pull images to the node, with the error messages of the kubelet and containerd.

The messages were recorded on Kubernetes 1.36 with containerd 2.3, because people and programs search for them. The
grammar of image names is that of distribution/reference. Registries on this machine are used without TLS.
"""

import asyncio
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from prefect_cd_local.images import MACHINE_LABEL, MANIFEST, Layout, digest_of, is_loopback

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?"
_REFERENCE = re.compile(
    rf"(?:(?P<host>{_HOST})/)??(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?P<digest>@sha256:[0-9a-f]{{64}})?"
)
_SECONDS = 30
_NOT_FOUND, _FIRST_ERROR = 404, 400


class PullError(Exception):
    """An image could not be pulled.

    Args:
        reason: as in a container's waiting state: ErrImagePull, InvalidImageName, ErrImageNeverPull.
        message: the cause, in containerd's words.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Reference:
    """The parts of an image's name; the version is a tag or a digest."""

    host: str
    path: str
    version: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}{'@' if self.version.startswith('sha256:') else ':'}{self.version}"

    def url(self, what: str) -> str:
        """Return a URL of this repository in the registry."""
        return f"http{'' if is_loopback(self.host) else 's'}://{self.host}/v2/{self.path}/{what}"

    def failed(self, why: str, code: str = "") -> PullError:
        """Return a pull error; the kubelet leaves out an unknown code."""
        prefix = f"rpc error: code = {code} desc = " if code else ""
        return PullError("ErrImagePull", f'{prefix}failed to pull and unpack image "{self}": {why}')


@dataclass(frozen=True)
class Image:
    """An image on the node: its configuration, and the files of its layers.

    Attributes:
        identity: the imageID in a container's status.
        size: in bytes.
    """

    identity: str
    config: dict[str, Any]
    layers: tuple[str, ...]
    size: int

    @property
    def machine_folders(self) -> list[str]:
        """Folders of the machine that the image needs."""
        return list(json.loads(self.config["Labels"][MACHINE_LABEL]))


def parse(text: str) -> Reference:
    """Parse an image's name, with defaults for what it leaves out.

    Raises:
        PullError: InvalidImageName.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        path = re.sub(r"(@.*|:[^:/]*)$", "", text)
        first, _, rest = path.partition("/")
        name = rest if re.search(r"[.:]|^localhost$", first) else path
        why = f": repository name ({name}) must be lowercase" if name != name.lower() else ""
        message = f'couldn\'t parse image name "{text}": invalid reference format{why}'
        raise PullError("InvalidImageName", f'Failed to apply default image tag "{text}": {message}')
    host, path = match["host"] or "", match["path"]
    first, slash, rest = path.partition("/")
    if not host and slash and ("." in first or first == "localhost"):
        host, path = first, rest
    if not host:
        host, path = "docker.io", path if slash else f"library/{path}"
    return Reference(host, path, (match["digest"] or "").lstrip("@") or match["tag"] or "latest")


class Puller:
    """The images of the node."""

    def __init__(self, folder: Path) -> None:
        self._layout = Layout(folder)
        self._present: dict[Reference, Image] = {}
        self._locks: dict[Reference, asyncio.Lock] = {}

    def present(self, reference: Reference) -> Image | None:
        """Return an image that is on the node, or None."""
        return self._present.get(reference)

    async def pull(self, reference: Reference) -> tuple[Image, float, float]:
        """Pull an image; returns it, the seconds of pulling, and the seconds including the wait for another pull of it.

        Raises:
            PullError: ErrImagePull.
        """
        requested_at = time.monotonic()
        async with self._locks.setdefault(reference, asyncio.Lock()):
            began = time.monotonic()
            try:
                image = self._present[reference] = await self._fetch(reference)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise reference.failed(f"invalid manifest: {error}") from error
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                message = f'failed to do request: Head "{reference.url("manifests")}/{reference.version}"'
                raise reference.failed(f"failed to resolve image: {message}: {_why(reference, error)}") from error
        now = time.monotonic()
        return image, now - began, now - requested_at

    async def _fetch(self, reference: Reference) -> Image:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, headers={"Accept": MANIFEST}) as http:
            manifest = await _get(http, reference, f"manifests/{reference.version}")
            document = json.loads(manifest)
            if document.get("mediaType") != MANIFEST:
                raise _stranger(reference)
            parts = [document["config"], *document["layers"]]
            for blob in parts:
                if not self._layout.blob(blob["digest"]).is_file():
                    content = await _get(http, reference, f"blobs/{blob['digest']}")
                    if self._layout.put(content) != blob["digest"]:
                        raise reference.failed(f"unexpected commit digest {digest_of(content)}")
        files = [self._layout.blob(blob["digest"]) for blob in parts]
        config = json.loads(files[0].read_bytes())["config"]
        if MACHINE_LABEL not in (config.get("Labels") or {}):
            raise _stranger(reference)
        identity = f"{reference.host}/{reference.path}@{digest_of(manifest)}"
        return Image(identity, config, tuple(map(str, files[1:])), sum(blob["size"] for blob in parts))


async def _get(http: aiohttp.ClientSession, reference: Reference, what: str) -> bytes:
    async with http.get(reference.url(what)) as answer:
        if answer.status == _NOT_FOUND:
            raise reference.failed(f"failed to resolve image: {reference}: not found", code="NotFound")
        if answer.status >= _FIRST_ERROR:
            message = f"unexpected status from GET request to {answer.url}: {answer.status} {answer.reason}"
            raise reference.failed(f"failed to resolve image: {message}")
        return await answer.read()


def _why(reference: Reference, error: Exception) -> str:
    """Return a network error as Go's network library would describe it."""
    host, _, port = reference.host.partition(":")
    address = f"{'127.0.0.1' if host == 'localhost' else host}:{port or (80 if is_loopback(host) else 443)}"
    if isinstance(error, asyncio.TimeoutError):
        return f"dial tcp {address}: i/o timeout"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return f"dial tcp {address}: connect: {os.strerror(number).lower() if number else error}"
    return str(error) or type(error).__name__


def _stranger(reference: Reference) -> PullError:
    return reference.failed(
        "the image was not built by the builder embedded, and the embedded cluster runs no other images",
        code="Unimplemented",
    )
