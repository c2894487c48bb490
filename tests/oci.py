"""The contents of images as a registry stores them, by digest."""

import hashlib
import json
from typing import Any

REVISION = "org.opencontainers.image.revision"


def digest_of(content: bytes) -> str:
    """The digest of some content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def image(**labels: str) -> tuple[str, dict[str, bytes]]:
    """The digest of an image with these labels, and its manifest and configuration by digest."""
    config = json.dumps({"os": "linux", "config": {"Labels": labels}}).encode()
    manifest = json.dumps({"schemaVersion": 2, "config": {"digest": digest_of(config)}, "layers": []}).encode()
    return digest_of(manifest), {digest_of(config): config, digest_of(manifest): manifest}


def index(*entries: tuple[str, str]) -> tuple[str, bytes]:
    """The digest and the content of an index of images; each entry is an operating system and a digest."""
    manifests: list[dict[str, Any]] = [{"digest": digest, "platform": {"os": system}} for system, digest in entries]
    content = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    return digest_of(content), content
