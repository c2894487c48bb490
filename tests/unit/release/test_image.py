"""Choosing a builder, calling it, and reading its output, with small scripts in place of the builders.

The real builders and a real registry are in tests/cluster/test_image.py.
"""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefect_cd import process
from prefect_cd.errors import BuildFailed, Forbidden, Invalid, MissingTool, RegistryUnreachable
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.release import image
from prefect_cd.release.image import choose_builder, find_image
from prefect_cd.release.model import Commit
from tests import oci
from tests.images import build

DIGEST = f"sha256:{'a' * 64}"
OTHER = f"sha256:{'b' * 64}"
COMMIT = Commit(
    repository="https://example.org/acme/shop",
    sha="0123456789abcdef0123456789abcdef01234567",
    revision="main",
    subject="Sell more",
    author="An author",
    committed_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
)
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a builder on PATH that records its arguments and environment; PATH has nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))

    def install(program: str, *, info: str = "exit 0", build: str = "exit 0", push: str = "exit 0") -> Path:
        notes = tmp_path / program
        notes.mkdir()
        (folder / program).write_text(
            "#!/bin/sh\n"
            f'for word in "$@"; do printf "%s\\n" "$word"; done > {notes}/$1\n'
            f"/usr/bin/env > {notes}/$1.environment\n"
            f"case $1 in info) {info};; build) {build};; push) {push};; esac\n"
        )
        (folder / program).chmod(0o755)
        return notes

    return install


class Registry:
    """A registry that has the digests in `tags`."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.contents: dict[str, bytes] = {}
        self.requests: list[str] = []
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                registry.requests.append(self.path)
                digest = registry.tags.get(self.path.rpartition("/")[2])
                self.send_response(200 if digest else 404)
                self.send_header("Docker-Content-Digest", digest or "")
                self.end_headers()

            def do_GET(self) -> None:
                content = registry.contents[self.path.rpartition("/")[2]]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server.server_port}/acme/shop"


@pytest.fixture
def registry() -> Iterator[Registry]:
    running = Registry()
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Dockerfile").write_text("FROM scratch\n")
    return tree


OverWhen = Callable[[timedelta, Callable[[], object]], None]


@pytest.fixture
def over_when(monkeypatch: pytest.MonkeyPatch) -> OverWhen:
    """A program's time limit is over as soon as a condition holds, however long this machine took until then."""

    def over_when(limit: timedelta, condition: Callable[[], object]) -> None:
        def monotonic() -> float:
            return time.monotonic() + (limit.total_seconds() if condition() else 0)

        monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))

    return over_when


PUSHED = f'printf "The push refers to repository\\nlatest: digest: {DIGEST} size: 528\\n"'


def test_docker_comes_before_podman_before_buildah(install: Install, registry: Registry) -> None:
    settings = ImageSettings(name=registry.name)
    for program in ("buildah", "podman", "docker"):
        install(program)
        assert choose_builder(settings).program == program


def test_an_installed_builder_that_does_not_work_is_skipped(install: Install, registry: Registry) -> None:
    install("docker", info="echo Cannot connect to the Docker daemon; exit 1")
    install("podman", info="echo cannot clone: Operation not permitted; exit 125")
    install("buildah")
    assert choose_builder(ImageSettings(name=registry.name)).program == "buildah"


def test_a_builder_that_does_not_answer_is_skipped(install: Install, registry: Registry, over_when: OverWhen) -> None:
    called = install("docker", info="exec /bin/sleep 60") / "info.environment"
    install("podman")
    over_when(image._INFO_TIMEOUT, called.exists)
    assert choose_builder(ImageSettings(name=registry.name)).program == "podman"


def test_when_no_builder_works_the_error_has_reasons_and_how_to_install_one(
    install: Install, registry: Registry
) -> None:
    install("docker", info="echo Server:; echo Cannot connect to the Docker daemon >&2; exit 1")
    install("podman", info="exit 125")
    with pytest.raises(MissingTool) as caught:
        choose_builder(ImageSettings(name=registry.name))
    assert caught.value.detail.splitlines() == [
        "docker: Cannot connect to the Docker daemon",
        "podman: `podman info` ends with 125",
        "buildah: not installed",
    ]
    assert all(f"{program}: " in caught.value.hint for program in ("docker", "podman", "buildah"))


def test_only_the_builder_that_the_pipeline_names_is_used(install: Install, registry: Registry) -> None:
    install("docker")
    install("buildah")
    assert choose_builder(ImageSettings(name=registry.name, builder="buildah")).program == "buildah"
    with pytest.raises(MissingTool, match="podman does not work") as caught:
        choose_builder(ImageSettings(name=registry.name, builder="podman"))
    assert caught.value.detail == "podman: not installed"


def test_docker_builds_and_pushes_under_the_full_sha_and_its_digest_is_read(
    install: Install, registry: Registry, tree: Path
) -> None:
    (tree / "app").mkdir()
    (tree / "app" / "Containerfile").touch()
    notes = install("docker", build="echo building", push=PUSHED)
    lines: list[str] = []
    settings = ImageSettings(
        name=registry.name,
        context="app",
        dockerfile="Containerfile",
        args={"BASE": "python:3.13"},
        options=("--no-cache",),
    )
    built = build(settings, COMMIT, tree, on_line=lines.append)
    assert (built.reference, built.built) == (f"{registry.name}@{DIGEST}", True)
    assert (notes / "build").read_text().splitlines() == [
        *("build", "--file", f"{tree}/app/Containerfile", "--tag", f"{registry.name}:{COMMIT.sha}"),
        *("--label", f"org.opencontainers.image.revision={COMMIT.sha}"),
        *("--label", "org.opencontainers.image.source=https://example.org/acme/shop"),
        *("--build-arg", "VERSION=0123456", "--build-arg", "BASE=python:3.13"),
        *("--no-cache", f"{tree}/app"),
    ]
    assert (notes / "push").read_text().splitlines() == ["push", f"{registry.name}:{COMMIT.sha}"]
    assert lines[0] == "building"


@pytest.mark.parametrize("program", ["podman", "buildah"])
def test_podman_and_buildah_write_the_digest_and_get_the_tls_option(
    install: Install, registry: Registry, tree: Path, program: str
) -> None:
    # $3 is the file after --digestfile.
    notes = install(program, push=f'printf {DIGEST} > "$3"; echo pushed {OTHER}')
    assert build(ImageSettings(name=registry.name), COMMIT, tree).digest == DIGEST
    assert "--tls-verify=false" in (notes / "build").read_text().splitlines()
    assert "--tls-verify=false" in (notes / "push").read_text().splitlines()


@pytest.mark.parametrize("name", ["registry.example.org/shop", "127.0.0.1:5000/shop"])
def test_tls_is_verified_unless_it_is_this_machine(name: str) -> None:
    builder = image._BUILDERS[2]
    command = builder.push_command(ImageSettings(name=name), f"{name}:tag", Path("/digest"))
    assert ("--tls-verify=false" in command) is name.startswith("127.")
    verified = builder.push_command(ImageSettings(name=name, insecure=False), f"{name}:tag", Path("/digest"))
    assert "--tls-verify=false" not in verified


def test_a_version_in_the_pipeline_file_overrides() -> None:
    settings = ImageSettings(name="registry.example.org/shop", args={"VERSION": "v1"})
    command = image._BUILDERS[0].build_command(settings, "reference", COMMIT, Path("/tree"))
    assert [word for word in command if word.startswith("VERSION=")] == ["VERSION=v1"]


def test_the_digest_comes_from_the_registry_when_the_builder_does_not_print_it(
    install: Install, registry: Registry, tree: Path
) -> None:
    """podman that calls itself docker, for example."""
    install("docker", push="echo pushed")

    def push_arrives(line: str) -> None:
        if line == "pushed":
            registry.tags[COMMIT.sha] = DIGEST

    assert build(ImageSettings(name=registry.name), COMMIT, tree, on_line=push_arrives).digest == DIGEST
    registry.tags.clear()
    with pytest.raises(RegistryUnreachable, match="does not have it"):
        build(ImageSettings(name=registry.name), COMMIT, tree)


def test_an_existing_image_is_found_and_nothing_is_built(install: Install, registry: Registry, tree: Path) -> None:
    notes = install("docker", build="exit 1")
    digest, registry.contents = oci.image(**{oci.REVISION: COMMIT.sha})
    registry.tags = {COMMIT.sha: digest}
    built = build(ImageSettings(name=registry.name), COMMIT, tree)
    assert (built.digest, built.built) == (digest, False)
    assert registry.requests == [f"/v2/acme/shop/manifests/{COMMIT.sha}"]
    assert not list(notes.iterdir())


def test_a_missing_image_is_not_found(registry: Registry) -> None:
    assert find_image(ImageSettings(name=registry.name), COMMIT) is None


def test_a_failed_build_shows_its_last_40_lines_and_pushes_nothing(
    install: Install, registry: Registry, tree: Path
) -> None:
    notes = install("docker", build="/usr/bin/seq 100; exit 3")
    with pytest.raises(BuildFailed, match="does not build: exit code 3") as caught:
        build(ImageSettings(name=registry.name), COMMIT, tree)
    assert caught.value.detail.splitlines() == [str(n) for n in range(61, 101)]
    assert not (notes / "push").exists()


def test_a_build_over_its_time_limit_has_failed(
    install: Install, registry: Registry, tree: Path, over_when: OverWhen
) -> None:
    install("docker", build="echo compiling; exec /bin/sleep 60")
    lines: list[str] = []
    limit = timedelta(minutes=5)
    over_when(limit, lambda: "compiling" in lines)
    with pytest.raises(BuildFailed, match="did not build within 5m") as caught:
        build(ImageSettings(name=registry.name, timeout=limit), COMMIT, tree, on_line=lines.append)
    assert caught.value.detail == "compiling"


@pytest.mark.parametrize(
    "message",
    [
        "initializing source docker://x/base:1: pinging container registry x: dial tcp: connect: connection refused",
        'failed to resolve source metadata for x/base:1: failed to do request: Head "https://x/v2/": no such host',
    ],
)
def test_an_unreachable_base_image_is_errored(install: Install, registry: Registry, tree: Path, message: str) -> None:
    install("docker", build=f"echo '{message}'; exit 125")
    with pytest.raises(RegistryUnreachable, match="base image"):
        build(ImageSettings(name=registry.name), COMMIT, tree)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("denied: requested access to the resource is denied", Forbidden),
        ("unauthorized: authentication required", Forbidden),
        ("no basic auth credentials", Forbidden),
        ("pinging container registry x: invalid status code from registry 403 (Forbidden)", Forbidden),
        ("error from registry: 401 Unauthorized", Forbidden),
        ('Get "http://x/v2/": dial tcp 127.0.0.1:5401: connect: connection refused', RegistryUnreachable),
        ("invalid status code from registry 503 (Service Unavailable)", RegistryUnreachable),
        ("net/http: TLS handshake timeout", RegistryUnreachable),
        ("an unknown message", RegistryUnreachable),
        ('Get "https://x/v2/": http: server gave HTTP response to HTTPS client', Invalid),
        ("x509: certificate signed by unknown authority", Invalid),
    ],
)
def test_messages_of_a_push_become_the_right_error(
    install: Install, registry: Registry, tree: Path, message: str, kind: type[Exception]
) -> None:
    install("docker", push=f"echo '{message}' >&2; exit 1")
    with pytest.raises(kind) as caught:
        build(ImageSettings(name=registry.name), COMMIT, tree)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    if kind is Forbidden:
        assert "denies the push to acme/shop" in str(caught.value)
        assert f"docker login {registry.name.partition('/')[0]}" in str(caught.value)


def test_a_push_over_its_time_limit_is_errored(
    install: Install, registry: Registry, tree: Path, over_when: OverWhen
) -> None:
    install("docker", push="echo pushing; exec /bin/sleep 60")
    lines: list[str] = []
    limit = timedelta(minutes=5)
    over_when(limit, lambda: "pushing" in lines)
    with pytest.raises(RegistryUnreachable, match="within 5m"):
        build(ImageSettings(name=registry.name, timeout=limit), COMMIT, tree, on_line=lines.append)


def test_an_unreachable_registry_is_an_error_before_the_build(install: Install, tree: Path) -> None:
    notes = install("docker")
    with pytest.raises(RegistryUnreachable):
        build(ImageSettings(name="127.0.0.1:1/acme/shop"), COMMIT, tree)
    assert not list(notes.iterdir())


def test_the_build_gets_the_variables_that_a_builder_needs_and_no_secret(
    install: Install, registry: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KUBECONFIG", "PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY", "DOCKER_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    for name in ("DOCKER_HOST", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "BUILDAH_ISOLATION", "STORAGE_DRIVER"):
        monkeypatch.setenv(name, "needed")
    notes = install("docker", push=PUSHED)
    build(ImageSettings(name=registry.name), COMMIT, tree)
    building = (notes / "build.environment").read_text()
    assert "secret" not in building
    assert building.count("=needed") == 5
    assert "HOME=" in building
    pushing = (notes / "push.environment").read_text()
    assert [line for line in pushing.splitlines() if "secret" in line] == ["AWS_SECRET_ACCESS_KEY=secret"]


@pytest.mark.parametrize("settings", [{"context": "absent"}, {"dockerfile": "Absent"}, {"context": "Dockerfile"}])
def test_a_commit_without_the_dockerfile_is_invalid(
    install: Install, registry: Registry, tree: Path, settings: dict[str, str]
) -> None:
    install("docker")
    with pytest.raises(Invalid, match="the commit has no") as caught:
        build(ImageSettings.model_validate({"name": registry.name, **settings}), COMMIT, tree)
    assert "image.dockerfile" in caught.value.hint


@pytest.mark.parametrize("link", ["context", "dockerfile"])
def test_a_link_that_leaves_the_commit_is_not_followed(
    install: Install, registry: Registry, tree: Path, tmp_path: Path, link: str
) -> None:
    notes = install("docker")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    target = outside if link == "context" else outside / "Dockerfile"
    (tree / "link").symlink_to(target)
    with pytest.raises(Invalid, match="leaves the commit"):
        build(ImageSettings.model_validate({"name": registry.name, link: "link"}), COMMIT, tree)
    assert not (notes / "build").exists()
