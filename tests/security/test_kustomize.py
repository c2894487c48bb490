"""An overlay of a commit reaches no file, no network and no repository outside of it, and fills no memory."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from prefect_cd.errors import InvalidManifest
from prefect_cd.manifests import kustomize
from prefect_cd.manifests.load import load
from tests.isolation import isolated
from tests.security.memory import at_most

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not (shutil.which("kubectl") or shutil.which("kustomize")), reason="needs kustomize"),
]
MEGABYTE = 2**20
FOREIGN = "apiVersion: v1\nkind: Secret\nmetadata: {name: of-the-machine}\n"
CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\n"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An overlay in a checkout, and beside the checkout a base of somebody else."""
    write(tmp_path / "elsewhere/secret.yaml", FOREIGN)
    write(tmp_path / "elsewhere/kustomization.yaml", "resources: [secret.yaml]\n")
    write(tmp_path / "checkout/k8s/app.yaml", CONFIG)
    return tmp_path / "checkout/k8s"


@pytest.fixture
def web() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback with a manifest at every path: its URL, and the paths that were requested."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(FOREIGN.encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


def attacks(overlay: Path, url: str) -> dict[str, str]:
    """Ways out of a commit."""
    elsewhere = overlay.parent.parent / "elsewhere"
    (overlay / "base").symlink_to(elsewhere)
    (overlay / "secret.yaml").symlink_to(elsewhere / "secret.yaml")
    return {
        "a base by ..": "resources: [../../elsewhere]",
        "a base by its path": f"resources: [{elsewhere}]",
        "a linked base": "resources: [base]",
        "a linked file": "resources: [secret.yaml]",
        "a file: URL": f"resources: ['file://{elsewhere}']",
        "a git repository by file:": f"resources: ['git::file://{elsewhere}']",
        "a loopback URL": f"resources: ['{url}/all.yaml']",
        "a loopback URL in capitals": f"resources: ['{url.upper()}/all.yaml']",
        "a repository on loopback": f"resources: ['{url}/acme/shop.git']",
        "a patch by URL": f"resources: [app.yaml]\npatches: [{{path: '{url}/patch.yaml'}}]",
        "a patch by ..": "resources: [app.yaml]\npatches: [{path: ../../elsewhere/secret.yaml}]",
        "a component by URL": f"resources: [app.yaml]\ncomponents: ['{url}/component']",
        "a schema by URL": f"resources: [app.yaml]\nopenapi: {{path: '{url}/schema.json'}}",
        "a file of a ConfigMap": "configMapGenerator: [{name: a, files: [a=../../elsewhere/secret.yaml]}]",
        "a chart": f"helmCharts: [{{name: a, repo: '{url}'}}]",
    }


def test_an_overlay_reaches_nothing_outside_of_its_commit(overlay: Path, web: tuple[str, list[str]]) -> None:
    url, requests = web
    for name, text in attacks(overlay, url).items():
        write(overlay / "kustomization.yaml", f"{text}\n")
        with pytest.raises(InvalidManifest, match="the overlay refers to") as caught:
            load(overlay, overlay.parent)
        assert "of-the-machine" not in str(caught.value), name
    assert requests == []


@isolated
def test_the_build_has_no_network_even_where_the_check_misses_a_url(
    overlay: Path, web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, requests = web
    monkeypatch.setattr(kustomize._Walk, "check_folder", lambda *_: 1)
    write(overlay / "kustomization.yaml", f"resources: ['{url}/all.yaml']\n")
    with pytest.raises(InvalidManifest, match="cannot build"):
        load(overlay, overlay.parent)
    write(overlay / "kustomization.yaml", f"resources: ['file://{overlay.parent.parent}/elsewhere//']\n")
    with pytest.raises(InvalidManifest, match="cannot build"):
        load(overlay, overlay.parent)
    assert requests == []


def test_programs_are_not_run_by_an_overlay(overlay: Path) -> None:
    plugin = "apiVersion: a/v1\nkind: Evil\nmetadata: {name: x, annotations: {config.kubernetes.io/function: '%s'}}\n"
    (overlay / "evil.sh").write_text("#!/bin/sh\ntouch evil\n")
    (overlay / "evil.sh").chmod(0o755)
    for function in ("{exec: {path: ./evil.sh}}", "{container: {image: evil}}", "{starlark: {path: evil.sh}}"):
        write(overlay / "evil.yaml", plugin % function)
        for key in ("generators", "transformers", "validators"):
            write(overlay / "kustomization.yaml", f"resources: [app.yaml]\n{key}: [evil.yaml]\n")
            with pytest.raises(InvalidManifest):
                load(overlay, overlay.parent)
    assert not list(overlay.parent.rglob("evil"))


def test_bases_that_double_with_every_step_are_refused(overlay: Path) -> None:
    for step in range(30):
        below = f"[../a-{step + 1}, ../b-{step + 1}]" if step < 29 else "[../app.yaml]"
        for name in "ab":
            write(overlay / f"{name}-{step}/kustomization.yaml", f"namePrefix: {name}-\nresources: {below}\n")
    write(overlay / "kustomization.yaml", "resources: [a-0]\n")
    started = monotonic()
    with pytest.raises(InvalidManifest, match="includes more than") as caught:
        load(overlay, overlay.parent)
    assert caught.value.where.startswith("k8s/a-")
    assert monotonic() - started < 10


def test_a_long_chain_of_bases_is_refused(overlay: Path) -> None:
    for step in range(2000):
        write(overlay / f"{step}/kustomization.yaml", f"resources: [../{step + 1}]\n")
    write(overlay / "kustomization.yaml", "resources: ['0']\n")
    with pytest.raises(InvalidManifest, match="or deeper than"):
        load(overlay, overlay.parent)


def test_a_circle_of_bases_is_refused(overlay: Path) -> None:
    write(overlay / "kustomization.yaml", "resources: [a]\n")
    write(overlay / "a/kustomization.yaml", "resources: [..]\n")
    with pytest.raises(InvalidManifest, match="cannot build"):
        load(overlay, overlay.parent)


def test_many_entries_are_checked_in_time(overlay: Path) -> None:
    write(overlay / "kustomization.yaml", "resources:\n" + "- app.yaml\n" * 20_000 + "- ../../elsewhere\n")
    started = monotonic()
    with pytest.raises(InvalidManifest, match="the overlay refers to") as caught:
        load(overlay, overlay.parent)
    assert caught.value.where == "k8s/kustomization.yaml:20002"
    assert monotonic() - started < 20


@pytest.mark.parametrize("name", ["huge.yaml", "kustomization.yaml"])
def test_a_huge_file_is_not_read(overlay: Path, name: str) -> None:
    with (overlay / name).open("wb") as file:
        file.truncate(1024 * MEGABYTE)
    with at_most(60 * MEGABYTE), pytest.raises(InvalidManifest, match="larger than 10 MB"):
        load(overlay, overlay.parent)


def test_many_files_are_not_too_much_together(overlay: Path) -> None:
    for number in range(20):
        (overlay / f"{number}.yaml").write_text("#" * 1_000_000)
    with pytest.raises(InvalidManifest, match="larger than 10 MB"):
        load(overlay, overlay.parent)
