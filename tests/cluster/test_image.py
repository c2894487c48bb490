"""Images from real builders in a real registry ($REGISTRY)."""

import http.server
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_cd.errors import BuildFailed, Forbidden, RegistryUnreachable
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.release import registry
from prefect_cd.release.image import find_image
from prefect_cd.release.model import Commit
from tests.images import build

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(60),
    pytest.mark.skipif("REGISTRY" not in os.environ, reason="needs an image registry: set REGISTRY"),
]
REGISTRY = os.environ.get("REGISTRY", "")
BASE = f"{REGISTRY}/base/busybox:1"
# What a container in a container can do; on an ordinary machine the builders need no options.
OPTIONS = {"buildah": ("--isolation", "chroot", "--network", "host"), "podman": ("--isolation", "chroot")}


@pytest.fixture(params=["buildah", "podman"])
def builder(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    if registry.find_digest(BASE.rpartition(":")[0], "1") is None:
        pytest.skip(f"the registry has no {BASE} to build on")
    return str(request.param)


@pytest.fixture
def commit() -> Commit:
    sha = (uuid.uuid4().hex + uuid.uuid4().hex)[:40]
    return Commit(
        repository="https://example.org/acme/shop",
        sha=sha,
        revision="main",
        subject="Sell more",
        author="approver one",
        committed_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "hello").write_text("hello\n")
    (tmp_path / "app" / "Dockerfile").write_text(
        "ARG BASE\nFROM ${BASE}\nARG VERSION\nENV VERSION=${VERSION}\nCOPY hello /hello\nRUN test -e /hello\n"
    )
    return tmp_path


@pytest.fixture
def settings(builder: str, commit: Commit) -> Iterator[ImageSettings]:
    made = ImageSettings.model_validate(
        {
            "name": f"{REGISTRY}/tests/image",
            "context": "app",
            "args": {"BASE": BASE},
            "builder": builder,
            "options": OPTIONS[builder],
        }
    )
    yield made
    forget(made, commit)


def forget(settings: ImageSettings, commit: Commit) -> None:
    """Remove the image from this machine."""
    name = f"{settings.name}:{commit.sha}"
    subprocess.run([str(settings.builder), "rmi", "--force", name], capture_output=True, check=False)


def configuration(name: str, digest: str) -> dict[str, Any]:
    host, repository = registry.split(name)
    url = f"http://{host}/v2/{repository}"
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    manifest = httpx.get(f"{url}/manifests/{digest}", headers={"Accept": accept}, trust_env=False).json()
    config = httpx.get(f"{url}/blobs/{manifest['config']['digest']}", follow_redirects=True, trust_env=False).json()
    return dict(config["config"])


def test_a_commit_becomes_an_image_once(settings: ImageSettings, commit: Commit, tree: Path) -> None:
    assert find_image(settings, commit) is None
    lines: list[str] = []
    built = build(settings, commit, tree, on_line=lines.append)
    assert built.built
    assert registry.find_digest(settings.name, commit.sha) == built.digest
    assert any("COPY hello" in line for line in lines)
    made = configuration(settings.name, built.digest)
    assert f"VERSION={commit.short}" in str(made["Env"])
    assert made["Labels"]["org.opencontainers.image.revision"] == commit.sha
    assert made["Labels"]["org.opencontainers.image.source"] == commit.repository
    (tree / "app" / "hello").write_text("something else")
    again = build(settings, commit, tree)
    assert (again.digest, again.built) == (built.digest, False)


def test_a_dockerfile_that_fails_shows_why(settings: ImageSettings, commit: Commit, tree: Path) -> None:
    with (tree / "app" / "Dockerfile").open("a") as file:
        file.write("RUN echo the compiler says no && false\n")
    with pytest.raises(BuildFailed) as caught:
        build(settings, commit, tree)
    assert "the compiler says no" in caught.value.detail
    assert find_image(settings, commit) is None


def test_a_base_image_from_a_registry_that_is_down_is_no_answer(
    settings: ImageSettings, commit: Commit, tree: Path
) -> None:
    down = settings.model_copy(update={"args": {"BASE": f"127.0.0.1:1/base:{commit.short}"}})
    with pytest.raises(RegistryUnreachable, match="base image"):
        build(down, commit, tree)


class Refusing(http.server.BaseHTTPRequestHandler):
    """An empty registry that refuses every push."""

    code = 403

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(404 if "/manifests/" in self.path else self.code)
        if self.code == 401 and "/manifests/" not in self.path:
            self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD  # noqa: N815


class Closed(Refusing):
    code = 503


class Login(Refusing):
    code = 401


@pytest.fixture(params=[(Refusing, Forbidden), (Login, Forbidden), (Closed, RegistryUnreachable)])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[tuple[str, type[Exception]]]:
    """Another registry, and the error that a failed push to it raises."""
    handler, kind = request.param
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}", kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refused_push_and_an_unreachable_registry_are_different_errors(
    settings: ImageSettings, commit: Commit, tree: Path, elsewhere: tuple[str, type[Exception]]
) -> None:
    host, kind = elsewhere
    there = settings.model_copy(update={"name": f"{host}/acme/shop"})
    try:
        with pytest.raises(kind, match="acme/shop") as caught:
            build(there, commit, tree)
    finally:
        forget(there, commit)
    assert (f"docker login {host}" in str(caught.value)) is (kind is Forbidden)
