"""What is deployed: one immutable candidate, and its identity for all later stages.

A release is a commit, an image digest and the rendered manifests of every environment. It knows nothing of
clusters, builders or git: those produce its parts.
"""

import hashlib
import json
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from prefect_cd.kube.objects import Object


class Result(BaseModel):
    """A frozen, typed result of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageReference(NamedTuple):
    """The parts of a reference to an image, as it is written; `tag` and `digest` are empty where it has none."""

    repository: str
    tag: str
    digest: str

    @classmethod
    def of(cls, text: str) -> "ImageReference":
        """The parts of a text: `host:5000/name:tag@sha256:…` has the repository `host:5000/name`."""
        name, _, digest = text.partition("@")
        head, slash, last = name.rpartition("/")
        last, _, tag = last.partition(":")
        return cls(head + slash + last, tag, digest)


class Commit(Result):
    """Exactly one commit of a repository."""

    repository: str = Field(description="where it was cloned from: URL or path, without credentials")
    sha: str = Field(pattern="^[0-9a-f]{40}$")
    revision: str = Field(description="the revision of the request: a branch, tag or short SHA")
    subject: str
    author: str
    committed_at: datetime

    @property
    def short(self) -> str:
        """The first seven digits, as in logs and release ids."""
        return self.sha[:7]


class BuiltImage(Result):
    """An image in a registry, identified by its digest."""

    name: str = Field(description="repository without tag, for example registry.example.com/acme/shop")
    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$")
    built: bool = Field(description="False when the commit's image was found and nothing was built")
    revision: str = Field(default="", description="of an image that was found: the commit that its label names")

    @property
    def reference(self) -> str:
        """What a pod pulls: name@digest."""
        return f"{self.name}@{self.digest}"


class Release(Result):
    """Commit + image digest + rendered manifests per environment.

    The hash covers exactly what would be applied, so two releases with one hash are one release.
    """

    application: str
    commit: Commit
    image: BuiltImage
    manifests: dict[str, tuple[Object, ...]] = Field(description="environment name -> objects, image pinned")

    @cached_property
    def hash(self) -> str:
        """SHA-256 over application, commit, digest and manifests, 64 hex digits."""
        return digest_of([self.application, self.commit.sha, self.image.digest, self.manifests])

    @property
    def id(self) -> str:
        """The name in labels, logs and forms: short commit and eight digits of the hash."""
        return f"{self.commit.short}-{self.hash[:8]}"


def digest_of(value: object) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces), 64 hex digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
