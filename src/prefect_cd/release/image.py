"""From a commit to an image in a registry: found when it is there, else built and pushed, once.

Decides which builder is used, how it is called, and what its failure means. Knows nothing of git, clusters or
Prefect. The tag is the full commit SHA, so that the same commit is found again; what counts afterwards is the
digest that the registry has.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_cd.errors import BuildFailed, DeliveryError, Forbidden, Invalid, MissingTool, RegistryUnreachable
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.pipeline.types import duration_text
from prefect_cd.process import Finished, clean_environment, ignore, run
from prefect_cd.release import registry
from prefect_cd.release.model import BuiltImage, Commit

_PROBE = timedelta(seconds=20)
_LINES_SHOWN = 40

# What a builder needs from our environment, besides what every program may see. The commit's own code runs during a
# build, so the secrets of cloud helpers (docker-credential-ecr-login …) are passed to the push only.
_BUILDERS_OWN = (  # noqa: SIM905 - words are read better than a column of strings
    "XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME DBUS_SESSION_BUS_ADDRESS REGISTRY_AUTH_FILE SSH_AUTH_SOCK "
    "DOCKER_HOST DOCKER_CONFIG DOCKER_CONTEXT DOCKER_TLS DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_API_VERSION "
    "DOCKER_BUILDKIT DOCKER_DEFAULT_PLATFORM CONTAINER_HOST CONTAINER_SSHKEY CONTAINER_CONNECTION"
).split()
_BUILDERS_PREFIXES = ("BUILDAH_", "BUILDKIT_", "BUILDX_", "STORAGE_", "CONTAINERS_")
_CLOUD_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_")


@dataclass(frozen=True)
class Builder:
    """One program that builds and pushes images, and how it is spoken to.

    Attributes:
        name: what the pipeline file calls it.
        install: what to do when it is not there.
        containers_tools: it is one of the family of podman and buildah: it writes the digest to a file, and is
            told per call that a registry has no TLS (docker's engine is told in its own settings).
        command: what it is called on PATH, where that is not its name.
        stands_in: its images run on the embedded cluster of this machine only, so it is no replacement for an engine
            that is there and does not work.
    """

    name: str
    install: str
    containers_tools: bool
    command: str = ""
    stands_in: bool = False

    @property
    def program(self) -> str:
        """What it is called on PATH."""
        return self.command or self.name

    def build_command(self, settings: ImageSettings, reference: str, commit: Commit, context: Path) -> list[str]:
        """The command that makes the image and gives it its name on this machine."""
        labels = {
            "org.opencontainers.image.revision": commit.sha,
            "org.opencontainers.image.source": commit.repository,
        }
        arguments = {"VERSION": commit.short, **settings.args}
        return [
            *(self.program, "build", "--file", str(context / settings.dockerfile), "--tag", reference),
            *(flag for key, value in labels.items() for flag in ("--label", f"{key}={value}")),
            *(flag for key, value in arguments.items() for flag in ("--build-arg", f"{key}={value}")),
            *self._tls(settings),
            *settings.options,
            str(context),
        ]

    def push_command(self, settings: ImageSettings, reference: str, digest_file: Path) -> list[str]:
        """The command that brings the image to its registry."""
        digest = ("--digestfile", str(digest_file)) if self.containers_tools else ()
        return [self.program, "push", *digest, *self._tls(settings), reference]

    def _tls(self, settings: ImageSettings) -> tuple[str, ...]:
        host, _ = registry.split(settings.name)
        plain = registry.speaks_http(host, insecure=settings.insecure)
        return ("--tls-verify=false",) if self.containers_tools and plain else ()


_BUILDERS = (
    Builder("docker", "docker: install Docker Engine and start it, or set DOCKER_HOST", containers_tools=False),
    Builder("podman", "podman: apt-get install podman, dnf install podman", containers_tools=True),
    Builder("buildah", "buildah: apt-get install buildah, dnf install buildah", containers_tools=True),
    Builder(
        "embedded",
        "embedded: comes with prefect-cd, install that again",
        containers_tools=True,
        command="prefect-cd-embedded-builder",
        stands_in=True,
    ),
)
_NOT_INSTALLED = "not installed"


def choose_builder(settings: ImageSettings) -> Builder:
    """The first of docker, podman and buildah that works here; only the one the pipeline file names, if it names one.

    `embedded` is taken when it is named, or when none of them is installed and the registry is on this machine.

    Raises:
        MissingTool: none works; says why each was not taken, and what to install.
    """
    reasons: dict[Builder, str] = {}
    for builder in (each for each in _BUILDERS if settings.builder in (None, each.name)):
        if builder.stands_in and set(reasons.values()) - {_NOT_INSTALLED}:
            continue
        reason = _why_not(builder, settings)
        if reason is None:
            return builder
        reasons[builder] = reason
    raise MissingTool(
        f"no image can be built here: {' and '.join(each.name for each in reasons)} "
        f"{'do' if len(reasons) > 1 else 'does'} not work",
        detail="\n".join(f"{builder.name}: {reason}" for builder, reason in reasons.items()),
        hint="one is enough; " + "; ".join(each.install for each in reasons),
    )


def find_image(settings: ImageSettings, commit: Commit) -> BuiltImage | None:
    """The commit's image if the registry has it.

    Raises:
        RegistryUnreachable, Forbidden, Invalid: as `registry.find`.
    """
    digest = registry.find_digest(settings.name, commit.sha, insecure=settings.insecure)
    return BuiltImage(name=settings.name, digest=digest, built=False) if digest else None


def build(
    settings: ImageSettings, commit: Commit, tree: Path, *, on_line: Callable[[str], None] = ignore
) -> BuiltImage:
    """The commit's image, in the registry afterwards; nothing is built when it is there already.

    Args:
        settings: the `image` part of the pipeline file.
        commit: what is built; its SHA becomes the tag.
        tree: a clean checkout of the commit.
        on_line: gets the builder's output, line by line.

    Raises:
        BuildFailed: the image does not build, or not in time.
        Forbidden: the registry refuses the push.
        RegistryUnreachable: the registry, or the one of the base image, does not answer.
        MissingTool: no builder works here.
        Invalid: the commit has no such context or Dockerfile.
    """
    found = find_image(settings, commit)
    if found:
        return found
    context = _context(settings, tree)
    builder = choose_builder(settings)
    reference = f"{settings.name}:{commit.sha}"
    deadline = time.monotonic() + settings.timeout.total_seconds()
    _build(builder.build_command(settings, reference, commit, context), settings, deadline, on_line)
    return BuiltImage(name=settings.name, digest=_push(builder, settings, reference, deadline, on_line), built=True)


def _why_not(builder: Builder, settings: ImageSettings) -> str | None:
    """Why a builder is not taken; None when it works."""
    host, _ = registry.split(settings.name)
    if builder.stands_in and not registry.speaks_http(host, insecure=None):
        return f"makes images for the embedded cluster of this machine, and {host} is elsewhere"
    try:
        ended = run([builder.program, "info"], cwd=Path("/"), env=_environment(), timeout=_PROBE)
    except MissingTool:
        return _NOT_INSTALLED
    if ended.timed_out:
        return f"does not answer within {duration_text(_PROBE)}"
    return ended.last(1) or f"`{builder.program} info` ends with {ended.code}" if ended.code else None


def _context(settings: ImageSettings, tree: Path) -> Path:
    """The build context, which must lie in the commit: a link out of it would ship files of this machine."""
    top = tree.resolve()
    context = (tree / settings.context).resolve()
    dockerfile = (context / settings.dockerfile).resolve()
    for path, what, key in ((context, "build context", "context"), (dockerfile, "Dockerfile", "dockerfile")):
        if not path.is_relative_to(top):
            raise Invalid(f"the {what} is a link that leaves the commit: {path}", hint=f"correct image.{key}")
    if not context.is_dir() or not dockerfile.is_file():
        there = Path(settings.context) / settings.dockerfile
        raise Invalid(f"the commit has no {there}", hint="correct image.context and image.dockerfile")
    return context


def _build(command: Sequence[str], settings: ImageSettings, deadline: float, on_line: Callable[[str], None]) -> None:
    ended = run(command, cwd=Path("/"), env=_environment(), timeout=_left(deadline), on_line=on_line)
    if ended.timed_out:
        raise BuildFailed(
            f"the image did not build within {duration_text(settings.timeout)}",
            where=settings.name,
            detail=ended.last(_LINES_SHOWN),
            hint="raise image.timeout if it only needs longer",
        )
    if ended.code:
        raise _build_failure(ended, settings)


def _push(
    builder: Builder, settings: ImageSettings, reference: str, deadline: float, on_line: Callable[[str], None]
) -> str:
    """Push, and return the digest that the registry has now."""
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        file = Path(folder) / "digest"
        command = builder.push_command(settings, reference, file)
        environment = _environment(cloud=True)
        ended = run(command, cwd=Path("/"), env=environment, timeout=_left(deadline), on_line=on_line)
        if ended.code or ended.timed_out:
            raise _push_failure(ended, settings)
        said = f"digest: {file.read_text()}" if file.exists() else ended.output
    if digests := re.findall(r"digest: (sha256:[0-9a-f]{64})", said):
        return str(digests[-1])
    # An unknown version of a builder, or one that pretends to be another: the registry knows.
    name, _, tag = reference.rpartition(":")
    digest = registry.find_digest(name, tag, insecure=settings.insecure)
    if digest is None:
        raise RegistryUnreachable(
            "the image was pushed, but the registry does not have it", where=reference, hint="try again"
        )
    return digest


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(deadline - time.monotonic(), 0.1))


def _environment(*, cloud: bool = False) -> dict[str, str]:
    prefixes = (*_BUILDERS_PREFIXES, *(_CLOUD_PREFIXES if cloud else ()))
    return clean_environment(
        {name: value for name, value in os.environ.items() if name in _BUILDERS_OWN or name.startswith(prefixes)}
    )


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


def _build_failure(ended: Finished, settings: ImageSettings) -> DeliveryError:
    detail = ended.last(_LINES_SHOWN)
    end = ended.last(5)
    if re.search(_BASE_IMAGE, end) and re.search(_NETWORK, end, re.IGNORECASE):
        return RegistryUnreachable(
            "the registry of the base image does not answer", where=settings.name, detail=detail, hint="try again"
        )
    return BuildFailed(
        f"the image does not build: exit code {ended.code}",
        where=settings.name,
        detail=detail,
        hint=f"build it on your machine: docker build -f {settings.dockerfile} {settings.context}",
    )


def _push_failure(ended: Finished, settings: ImageSettings) -> DeliveryError:
    """What a refused push means; what we do not recognise may heal, so it is errored."""
    host, repository = registry.split(settings.name)
    end, detail = ended.last(5), ended.last(_LINES_SHOWN)
    if re.search(_TLS, end):
        return Invalid(
            f"the registry {host} does not speak TLS",
            where=settings.name,
            detail=detail,
            hint="set image.insecure: true; for docker also insecure-registries in the engine's daemon.json",
        )
    if re.search(_UNTRUSTED, end):
        return Invalid(
            f"the certificate of the registry {host} is not trusted",
            where=settings.name,
            detail=detail,
            hint=f"put the authority that signed it in /etc/containers/certs.d/{host} or /etc/docker/certs.d/{host}",
        )
    if not ended.timed_out and re.search(_DENIED, end, re.IGNORECASE):
        return Forbidden(
            f"the registry {host} refuses the push to {repository}",
            where=settings.name,
            detail=detail,
            hint=registry.login_hint(host),
        )
    return RegistryUnreachable(
        f"the push to {repository} did not reach the registry {host}"
        + (f" within {duration_text(settings.timeout)}" if ended.timed_out else ""),
        where=settings.name,
        detail=detail,
        hint="try again; the image is built, only the push is repeated",
    )


__all__ = ["Builder", "build", "choose_builder", "find_image"]
