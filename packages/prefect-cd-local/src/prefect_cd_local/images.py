"""Images in folders, and a registry that serves them on loopback, for builders, nodes and releases.

A repository is one OCI image layout (opencontainers/image-spec, image-layout.md): blobs by digest, tags in index.json.
The registry implements the distribution specification (opencontainers/distribution-spec): GET and HEAD of manifests
and blobs, the two ways of pushing a blob, and errors with their codes. docker, podman, skopeo and buildah can use it.
It has no authentication and no TLS, so it listens on loopback only, where all of them accept that.
"""

import hashlib
import json
import re
import secrets
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MACHINE_LABEL = "dev.prefect-cd.embedded"  # the folders of the machine that an image needs, as a JSON list
_TAG_KEY = "org.opencontainers.image.ref.name"
Entry = dict[str, Any]
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")  # distribution-spec, "Pulling manifests"
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


def digest_of(content: bytes) -> str:
    """Return the digest of some content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def is_repository(name: str) -> bool:
    """Return whether a text can be the name of a repository, and so a path below a folder of repositories."""
    return bool(_NAME.fullmatch(name))


def is_loopback(host: str) -> bool:
    """Return whether a registry is on this machine: clients need no TLS there, and other machines cannot reach it."""
    name = host.partition(":")[0]
    return name == "localhost" or name.startswith("127.")


class Layout:
    """One repository: an OCI image layout in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, digest: str) -> Path:
        """Return the path of a blob, whether it exists or not.

        Raises:
            ValueError: that is no digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no digest of SHA-256")
        algorithm, _, name = digest.partition(":")
        return self.folder / "blobs" / algorithm / name

    def put(self, content: bytes) -> str:
        """Store a blob; returns its digest."""
        digest = digest_of(content)
        _write(self.blob(digest), content)
        return digest

    def tag(self, manifest: bytes, tag: str, media_type: str = MANIFEST) -> str:
        """Store a manifest and move a tag to it; a digest is accepted in place of a tag."""
        digest = self.put(manifest)
        entry: Entry = {"mediaType": media_type, "digest": digest, "size": len(manifest)}
        others = [{**entry, "annotations": {}} if _tag(entry) == tag else entry for entry in self._index()]
        kept = [entry for entry in others if _tag(entry) or entry["digest"] != digest]
        named = {**entry, "annotations": {_TAG_KEY: tag}} if tag != digest else entry
        index = {"schemaVersion": 2, "manifests": [*kept, named]}
        _write(self.folder / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _write(self.folder / "index.json", json.dumps(index, indent=1).encode())
        return digest

    def manifest(self, reference: str) -> tuple[str, str] | None:
        """Return digest and media type of the manifest with a tag or digest."""
        for entry in self._index():
            if reference in (_tag(entry), entry["digest"]):
                return str(entry["digest"]), str(entry["mediaType"])
        return None

    def tags(self) -> list[str]:
        """All tags."""
        return sorted(filter(None, map(_tag, self._index())))

    def _index(self) -> list[Entry]:
        try:
            return list(json.loads((self.folder / "index.json").read_bytes())["manifests"])
        except FileNotFoundError:
            return []


def _tag(entry: Entry) -> str:
    return str(entry.get("annotations", {}).get(_TAG_KEY, ""))


def _write(file: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    part.write_bytes(content)
    part.replace(file)


class Registry:
    """An HTTP server for the repositories below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uploads: dict[str, bytearray] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is in use.
        """
        name = "/v2/{name:[a-z0-9._/-]+?}"
        application = web.Application(client_max_size=1 << 30, middlewares=[_with_valid_names])
        application.add_routes([
            web.get("/v2/", _here),  # also HEAD
            web.get(name + "/tags/list", self._tags),
            web.get(name + "/manifests/{reference}", self._manifest),
            web.put(name + "/manifests/{reference}", self._put_manifest),
            web.post(name + "/blobs/uploads/", self._begin),
            web.patch(name + "/blobs/uploads/{upload}", self._continue),
            web.put(name + "/blobs/uploads/{upload}", self._continue),
            web.get(name + "/blobs/{digest}", self._blob),
        ])  # fmt: skip
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    def layout(self, repository: str) -> Layout:
        """The layout of a repository, whether it exists or not."""
        return Layout(self._folder / repository)

    def _of(self, request: web.Request) -> Layout:
        return self.layout(request.match_info["name"])

    async def _tags(self, request: web.Request) -> web.Response:
        name, tags = request.match_info["name"], self._of(request).tags()
        return web.json_response({"name": name, "tags": tags}) if tags else _error(404, "NAME_UNKNOWN", name)

    async def _manifest(self, request: web.Request) -> web.Response:
        reference = request.match_info["reference"]
        stored = self._of(request).manifest(reference)
        if stored is None:
            return _error(404, "MANIFEST_UNKNOWN", f"manifest unknown: {reference}")
        digest, media_type = stored
        content = self._of(request).blob(digest).read_bytes()
        return web.Response(body=content, headers={"Docker-Content-Digest": digest, "Content-Type": media_type})

    async def _put_manifest(self, request: web.Request) -> web.Response:
        layout, reference = self._of(request), request.match_info["reference"]
        content = await request.read()
        try:
            document = json.loads(content)
            needed = [document["config"], *document["layers"]] if "layers" in document else []
            missing = [blob["digest"] for blob in needed if not layout.blob(blob["digest"]).is_file()]
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, "MANIFEST_INVALID", str(error))
        if missing:
            return _error(404, "MANIFEST_BLOB_UNKNOWN", f"blob unknown: {missing[0]}")
        if _DIGEST.fullmatch(reference) and reference != digest_of(content):
            return _error(400, "DIGEST_INVALID", "the content has another digest")
        digest = layout.tag(content, reference, request.headers.get("Content-Type", MANIFEST))
        location = f"/v2/{request.match_info['name']}/manifests/{digest}"
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": location})

    async def _begin(self, request: web.Request) -> web.Response:
        upload = secrets.token_hex(8)
        self._uploads[upload] = bytearray()
        return await self._more(request, upload)

    async def _continue(self, request: web.Request) -> web.Response:
        upload = request.match_info["upload"]
        if upload not in self._uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN", upload)
        return await self._more(request, upload)

    async def _more(self, request: web.Request, upload: str) -> web.Response:
        """Receive a part of a blob; the request that has the digest brings the last part."""
        self._uploads[upload] += await request.read()
        blobs, digest = f"/v2/{request.match_info['name']}/blobs", request.query.get("digest")
        if digest is None:
            last = max(len(self._uploads[upload]) - 1, 0)
            return web.Response(status=202, headers={"Location": f"{blobs}/uploads/{upload}", "Range": f"0-{last}"})
        content = bytes(self._uploads.pop(upload))
        if digest_of(content) != digest:
            return _error(400, "DIGEST_INVALID", "the content has another digest")
        self._of(request).put(content)
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": f"{blobs}/{digest}"})

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        file = self._of(request).blob(digest)
        if not file.is_file():
            return _error(404, "BLOB_UNKNOWN", f"blob unknown: {digest}")
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        return web.FileResponse(file, headers=headers)


@web.middleware
async def _with_valid_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse names that are none, after their percent-escapes are decoded: they become paths."""
    parts = request.match_info
    if not is_repository(parts.get("name", "a")):
        return _error(400, "NAME_INVALID", "invalid repository name")
    if not _DIGEST.fullmatch(parts.get("digest", f"sha256:{'0' * 64}")):
        return _error(400, "DIGEST_INVALID", "invalid digest")
    reference = parts.get("reference", "latest")
    if not (_DIGEST.fullmatch(reference) or _TAG.fullmatch(reference)):
        return _error(400, "TAG_INVALID", "invalid tag")
    return await handler(request)


async def _here(_: web.Request) -> web.Response:
    return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status)
