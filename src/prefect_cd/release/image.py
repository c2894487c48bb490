"""Find a commit's image in its registry; otherwise build and push it, once.

Decides which builder is used, how it is called, and what its failure means. Knows nothing of git, clusters or Prefect.
The tag is the full commit SHA, so that the image of a commit is found again; later stages use the digest only.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_cd.errors import (
    BuildFailed,
    DeliveryError,
    Forbidden,
    Invalid,
    InvalidManifest,
    MissingTool,
    RegistryUnreachable,
)
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.pipeline.types import duration_text
from prefect_cd.process import Finished, Isolation, clean_environment, ignore, run
from prefect_cd.release import registry
from prefect_cd.release.model import BuiltImage, Commit, ImageReference

_INFO_TIMEOUT = timedelta(seconds=20)
_LINES_SHOWN = 40
_ENDED_WITH_ALL = Isolation("none")
"""A builder isolates what it executes of a commit itself, and needs its own files and namespaces for that."""

# Variables that a builder needs, besides those that every program gets. The commit's own code runs during a build, so
# the secrets of cloud credential helpers (docker-credential-ecr-login …) are passed to the push only.
_BUILDER_VARIABLES = (  # noqa: SIM905 - lines of words are easier to read than a column of strings
    "XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME DBUS_SESSION_BUS_ADDRESS REGISTRY_AUTH_FILE SSH_AUTH_SOCK "
    "DOCKER_HOST DOCKER_CONFIG DOCKER_CONTEXT DOCKER_TLS DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_API_VERSION "
    "DOCKER_BUILDKIT DOCKER_DEFAULT_PLATFORM CONTAINER_HOST CONTAINER_SSHKEY CONTAINER_CONNECTION"
).split()
_BUILDER_PREFIXES = ("BUILDAH_", "BUILDKIT_", "BUILDX_", "STORAGE_", "CONTAINERS_")
_CLOUD_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_")


@dataclass(frozen=True)
class Builder:
    """One program that builds and pushes images, and how it is called.

    Attributes:
        name: its name in the pipeline file.
        install: how to install it.
        containers_tools: it has the options of podman and buildah: `--digestfile`, and `--tls-verify=false` for a
            registry without TLS (docker's engine has a setting of its own for that).
        command: the program's name on PATH, where that is another one.
        local_only: its images run on the embedded cluster of this machine only, so it does not replace an installed
            engine that does not work.
    """

    name: str
    install: str
    containers_tools: bool
    command: str = ""
    local_only: bool = False

    @property
    def program(self) -> str:
        """The program's name on PATH."""
        return self.command or self.name

    def build_command(self, settings: ImageSettings, reference: str, commit: Commit, context: Path) -> list[str]:
        """The command that builds the image and tags it on this machine."""
        labels = {
            registry.REVISION: commit.sha,
            "org.opencontainers.image.source": commit.repository,
        }
        arguments = {"VERSION": commit.short, **settings.args}
        return [
            *(self.program, "build", "--file", str(context / settings.dockerfile), "--tag", reference),
            *(flag for key, value in labels.items() for flag in ("--label", f"{key}={value}")),
            *(flag for key, value in arguments.items() for flag in ("--build-arg", f"{key}={value}")),
            *self._tls_options(settings),
            *settings.options,
            str(context),
        ]

    def push_command(self, settings: ImageSettings, reference: str, digest_file: Path) -> list[str]:
        """The command that pushes the image to its registry."""
        digest = ("--digestfile", str(digest_file)) if self.containers_tools else ()
        return [self.program, "push", *digest, *self._tls_options(settings), reference]

    def _tls_options(self, settings: ImageSettings) -> tuple[str, ...]:
        host, _ = registry.split(settings.name)
        plain = registry.speaks_http(host, insecure=settings.insecure)
        return ("--tls-verify=false",) if self.containers_tools and plain else ()


_BUILDERS = (
    Builder("docker", "docker: install Docker Engine and start it, or set DOCKER_HOST", containers_tools=False),
    Builder("podman", "podman: apt-get install podman, dnf install podman", containers_tools=True),
    Builder("buildah", "buildah: apt-get install buildah, dnf install buildah", containers_tools=True),
    Builder(
        "embedded",
        "embedded: pip install 'prefect-cd[local]'",
        containers_tools=True,
        command="prefect-cd-embedded-builder",
        local_only=True,
    ),
)
_NOT_INSTALLED = "not installed"


def choose_builder(settings: ImageSettings) -> Builder:
    """The builder that the pipeline file names; without one, the first of docker, podman and buildah that works here.

    `embedded` is used when it is named, or when none of the others is installed and the registry is on this machine.

    Raises:
        MissingTool: no builder works; the detail has the reason for each one, and the hint what to install.
    """
    reasons: dict[Builder, str] = {}
    for builder in _BUILDERS:
        if settings.builder not in (None, builder.name):
            continue
        if builder.local_only and any(reason != _NOT_INSTALLED for reason in reasons.values()):
            continue
        reason = _unusable(builder, settings)
        if reason is None:
            return builder
        reasons[builder] = reason
    names, verb = " and ".join(builder.name for builder in reasons), "do" if len(reasons) > 1 else "does"
    raise MissingTool(
        f"no image can be built here: {names} {verb} not work",
        detail="\n".join(f"{builder.name}: {reason}" for builder, reason in reasons.items()),
        hint="one is enough; " + "; ".join(builder.install for builder in reasons),
    )


def find_image(settings: ImageSettings, commit: Commit) -> BuiltImage | None:
    """The commit's image if the registry has it.

    A tag can be moved to anything, so an image whose label names another commit is refused. Without a label, nothing is
    known; and whoever may push to the repository can write one. So what is found is called found, and not built.

    Raises:
        Invalid: the image with the commit's tag says that it was built from another one.
        RegistryUnreachable, Forbidden, Invalid: as `registry.find_digest`.
    """
    name, insecure, token_service = settings.name, settings.insecure, settings.token_service
    digest = registry.find_digest(name, commit.sha, insecure=insecure, token_service=token_service)
    if digest is None:
        return None
    revision = registry.find_revision(name, digest, insecure=insecure, token_service=token_service)
    if revision not in {None, commit.sha}:
        raise Invalid(
            "the registry has an image with the tag of this commit that was not built from it: "
            f"its label {registry.REVISION} is {str(revision)[:80]!r}",
            where=f"{settings.name}:{commit.sha} ({digest})",
            hint="find out who pushed it, and remove the tag, so that it is built here; a builder elsewhere has to set "
            f"the right label: --label {registry.REVISION}={commit.sha}",
        )
    return BuiltImage(name=settings.name, digest=digest, built=False, revision=revision or "")


def find_digest_of_other(settings: ImageSettings, reference: str) -> str | None:
    """The digest of another image that manifests name, where `pin` of the pipeline file lists its repository.

    Args:
        settings: `image` of the pipeline file.
        reference: as it stands in a manifest.

    Returns:
        The digest; None where the reference has one already, or `pin` does not list it.

    Raises:
        InvalidManifest: there is no such image.
        RegistryUnreachable, Forbidden, Invalid: as `registry.find_digest`.
    """
    repository, tag, digest = ImageReference.of(reference)
    host, path = registry.split(repository)
    if digest or not any(f"{host}/{path}/".startswith(f"{listed}/") for listed in settings.pin):
        return None
    own = host == registry.split(settings.name)[0]
    digest_of_tag = registry.find_digest(
        repository,
        tag or "latest",
        insecure=settings.insecure if own else None,
        token_service=settings.token_service if own else None,
    )
    if digest_of_tag is None:
        raise InvalidManifest(
            f"the image {reference} does not exist in its registry", hint="correct the name or tag, or push the image"
        )
    return digest_of_tag


def builder_named(name: str) -> Builder:
    """The builder that the pipeline file calls `name`; KeyError when there is none."""
    return {builder.name: builder for builder in _BUILDERS}[name]


def build(
    settings: ImageSettings, commit: Commit, tree: Path, builder: Builder, *, on_line: Callable[[str], None] = ignore
) -> BuiltImage:
    """Build the commit's image and push it.

    Args:
        settings: the `image` part of the pipeline file.
        commit: what is built; its SHA becomes the tag.
        tree: a clean checkout of the commit.
        builder: from `choose_builder`.
        on_line: called with each line of the builder's output.

    Raises:
        BuildFailed: the image does not build, or not in time.
        Forbidden: the registry denies the push.
        RegistryUnreachable: the registry, or the one of the base image, does not answer.
        MissingTool: the builder is not installed.
        Invalid: the commit has no such context or Dockerfile.
    """
    context = _context(settings, tree)
    reference = f"{settings.name}:{commit.sha}"
    deadline = time.monotonic() + settings.timeout.total_seconds()
    _build(builder.build_command(settings, reference, commit, context), settings, deadline, on_line)
    return BuiltImage(name=settings.name, digest=_push(builder, settings, reference, deadline, on_line), built=True)


def _unusable(builder: Builder, settings: ImageSettings) -> str | None:
    """Why a builder cannot be used; None when it works."""
    host, _ = registry.split(settings.name)
    if builder.local_only and not registry.speaks_http(host, insecure=None):
        return f"builds images for the embedded cluster of this machine only, and the registry {host} is not on it"
    try:
        finished = run([builder.program, "info"], cwd=Path("/"), env=_environment(), timeout=_INFO_TIMEOUT)
    except MissingTool:
        return _NOT_INSTALLED
    if finished.timed_out:
        return f"does not answer within {duration_text(_INFO_TIMEOUT)}"
    if finished.code:
        return finished.last(1) or f"`{builder.program} info` ends with {finished.code}"
    return None


def _context(settings: ImageSettings, tree: Path) -> Path:
    """The build context, which must lie in the commit: a link could put files of this machine into the image."""
    top = tree.resolve()
    context = (tree / settings.context).resolve()
    dockerfile = (context / settings.dockerfile).resolve()
    for path, name, key in ((context, "build context", "context"), (dockerfile, "Dockerfile", "dockerfile")):
        if not path.is_relative_to(top):
            raise Invalid(f"the {name} is a link that leaves the commit: {path}", hint=f"correct image.{key}")
    if not context.is_dir() or not dockerfile.is_file():
        missing = Path(settings.context) / settings.dockerfile
        raise Invalid(f"the commit has no {missing}", hint="correct image.context and image.dockerfile")
    return context


def _build(command: Sequence[str], settings: ImageSettings, deadline: float, on_line: Callable[[str], None]) -> None:
    finished = run(
        command,
        cwd=Path("/"),
        env=_environment(),
        timeout=_remaining(deadline),
        on_line=on_line,
        isolation=_ENDED_WITH_ALL,
    )
    if finished.timed_out:
        raise BuildFailed(
            f"the image did not build within {duration_text(settings.timeout)}",
            where=settings.name,
            detail=finished.last(_LINES_SHOWN),
            hint="raise image.timeout if the build only needs more time",
        )
    if finished.code:
        raise _build_failure(finished, settings)


def _push(
    builder: Builder, settings: ImageSettings, reference: str, deadline: float, on_line: Callable[[str], None]
) -> str:
    """Push the image, and return its digest in the registry."""
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        file = Path(folder) / "digest"
        command = builder.push_command(settings, reference, file)
        environment = _environment(cloud=True)
        finished = run(command, cwd=Path("/"), env=environment, timeout=_remaining(deadline), on_line=on_line)
        if finished.code or finished.timed_out:
            raise _push_failure(finished, settings)
        output = f"digest: {file.read_text()}" if file.exists() else finished.output
    if digests := re.findall(r"digest: (sha256:[0-9a-f]{64})", output):
        return str(digests[-1])
    # The builder printed no digest, for example podman under the name of docker: ask the registry.
    name, _, tag = reference.rpartition(":")
    digest = registry.find_digest(name, tag, insecure=settings.insecure, token_service=settings.token_service)
    if digest is None:
        raise RegistryUnreachable(
            "the image was pushed, but the registry does not have it", where=reference, hint="try again"
        )
    return digest


def _remaining(deadline: float) -> timedelta:
    return timedelta(seconds=max(deadline - time.monotonic(), 0.1))


def _environment(*, cloud: bool = False) -> dict[str, str]:
    prefixes = (*_BUILDER_PREFIXES, *(_CLOUD_PREFIXES if cloud else ()))
    return clean_environment(
        {name: value for name, value in os.environ.items() if name in _BUILDER_VARIABLES or name.startswith(prefixes)}
    )


# Messages of docker, podman and buildah, of which only the last lines are searched.
_NETWORK = (
    r"connection refused|no such host|i/o timeout|timed? ?out|connection reset|network is unreachable|unexpected EOF"
    r"|: EOF|no route to host|deadline exceeded|status: 5\d\d|\b50[0234] |too ?many ?requests|TLS handshake timeout"
)
_BASE_IMAGE = r"initializing source|pinging container registry|resolve source metadata|Get \"https?://\S+/v2/"
_DENIED = (
    r"denied|unauthorized|authentication required|no basic auth credentials|forbidden|insufficient_scope|\b40[13]\b"
)
_TLS = r"server gave HTTP response to HTTPS client"
_UNTRUSTED = r"x509: |certificate signed by unknown authority"


def _build_failure(finished: Finished, settings: ImageSettings) -> DeliveryError:
    detail = finished.last(_LINES_SHOWN)
    last_lines = finished.last(5)
    if re.search(_BASE_IMAGE, last_lines) and re.search(_NETWORK, last_lines, re.IGNORECASE):
        return RegistryUnreachable(
            "the registry of the base image does not answer", where=settings.name, detail=detail, hint="try again"
        )
    return BuildFailed(
        f"the image does not build: exit code {finished.code}",
        where=settings.name,
        detail=detail,
        hint=f"build it on your machine: docker build -f {settings.dockerfile} {settings.context}",
    )


def _push_failure(finished: Finished, settings: ImageSettings) -> DeliveryError:
    """The error for a failed push; an unknown failure may be temporary, so it is Errored."""
    host, repository = registry.split(settings.name)
    last_lines, detail = finished.last(5), finished.last(_LINES_SHOWN)
    if re.search(_TLS, last_lines):
        return Invalid(
            f"the registry {host} does not speak TLS",
            where=settings.name,
            detail=detail,
            hint="set image.insecure: true; for docker also insecure-registries in the engine's daemon.json",
        )
    if re.search(_UNTRUSTED, last_lines):
        return Invalid(
            f"the certificate of the registry {host} is not trusted",
            where=settings.name,
            detail=detail,
            hint=f"put the authority that signed it in /etc/containers/certs.d/{host} or /etc/docker/certs.d/{host}",
        )
    if not finished.timed_out and re.search(_DENIED, last_lines, re.IGNORECASE):
        return Forbidden(
            f"the registry {host} denies the push to {repository}",
            where=settings.name,
            detail=detail,
            hint=registry.login_hint(host),
        )
    return RegistryUnreachable(
        f"the push to {repository} did not reach the registry {host}"
        + (f" within {duration_text(settings.timeout)}" if finished.timed_out else ""),
        where=settings.name,
        detail=detail,
        hint="try again; the image is built, only the push is repeated",
    )


__all__ = ["Builder", "build", "builder_named", "choose_builder", "find_image"]
