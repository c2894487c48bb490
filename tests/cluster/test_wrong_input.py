"""Mistakes of users: every run ends early, its message says where and what to do, and nothing is written.

All runs are started first, because most of them wait for something that does not answer.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from tests.cluster.harness import (
    HELLO,
    REGISTRY,
    SESSION,
    Application,
    Repository,
    Run,
    Server,
    free_port,
    hello_files,
    hello_pipeline,
    kubectl,
    tags,
    untouched,
    wait_for,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NAME = "wrong"
IMAGE = f"{REGISTRY}/test/wrong"
ACCOUNT = f"{SESSION}-wrong"
MORE = "k8s/production/more.yaml"
MANIFESTS = {
    "unknown kind": "apiVersion: v1\nkind: Wombat\nmetadata: {name: w}\n",
    "unknown field": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatta: {a: b}\n",
    "wrong value": "# a comment\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 99999}]}\n",
    "not YAML": "apiVersion: v1\nkind: [ConfigMap\n",
    "other namespace": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: default}\n",
    "cluster-scoped": "apiVersion: v1\nkind: Namespace\nmetadata: {name: t-wrong-other}\n",
}
WORDS = {
    "unknown revision": ["Failed", "unknown-revision", "'maim' is no branch", "did you mean main?"],
    "unknown kind": ["Failed", f"{MORE}:1", "no kind Wombat"],
    "unknown field": ["Failed", f"{MORE}:1", "datta"],
    "wrong value": ["Failed", f"{MORE}:2", "99999"],
    "not YAML": ["Failed", f"{MORE}:3", "not YAML"],
    "other namespace": ["Failed", f"{MORE}:1", "'default'", "leave metadata.namespace out"],
    "cluster-scoped": ["Failed", f"{MORE}:1", "is cluster-scoped", "cluster_scoped"],
    "unreachable repository": ["Errored", "repository-unreachable", "git ls-remote"],
    "missing repository": ["Failed", "there is no such repository", "source.repository"],
    "no builder": ["Failed", "missing-tool", "docker does not work"],
    "push refused": ["Failed", "forbidden", "denies the push"],
    "no Dockerfile": ["Failed", "the commit has no", "image.dockerfile"],
    "unknown context": ["Failed", "there is no context 'nowhere'", "kubectl config get-contexts"],
    "unreachable cluster": ["Errored", "cluster-unreachable"],
    "no block": ["Failed", "no KubernetesCredentials block 'nowhere'", "Prefect UI"],
    "no suite": ["Failed", "missing-suite", "tests/e2e"],
    "no such check folder": ["Failed", "missing-suite", "nowhere"],
    "broken pipeline file": ["Failed", "invalid-pipeline", f"{NAME}.yaml:", "did you mean"],
}


class Refusing(BaseHTTPRequestHandler):
    """An empty registry that refuses every push."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(404 if "/manifests/" in self.path else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD  # noqa: N815  http.server's names


@pytest.fixture(scope="module")
def refusing_registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Version 1, and a branch for each way of writing a wrong manifest."""
    repository = Repository(tmp_path_factory.mktemp("wrong") / "repository")
    files = {name: content.replace(HELLO, IMAGE) for name, content in hello_files().items()}
    repository.commit(files, "Say hello")
    for wrong, manifest in MANIFESTS.items():
        repository.switch("main")
        repository.commit({MORE: manifest}, wrong, on=wrong.replace(" ", "-"))
    repository.switch("main")
    return repository


@pytest.fixture(scope="module")
def right(repository: Repository) -> dict[str, Any]:
    pipeline = hello_pipeline(NAME, repository.path)
    pipeline["image"]["name"] = IMAGE
    return pipeline


@pytest.fixture(scope="module")
def wrong_pipelines(
    right: dict[str, Any], refusing_registry: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Mistake of the operator -> the pipeline file."""
    folder = tmp_path_factory.mktemp("kubeconfigs")
    closed = kubeconfig(folder / "closed", server=f"https://127.0.0.1:{free_port()}")
    refused = f"{refusing_registry}/wrong"
    other = Repository(folder / "repository")
    other.commit({name: content.replace(HELLO, refused) for name, content in hello_files().items()}, "Say hello")
    return {
        "unreachable repository": with_(right, source={"repository": f"http://127.0.0.1:{free_port()}/shop.git"}),
        "missing repository": with_(right, source={"repository": str(folder / "nowhere")}),
        "no builder": with_(right, image={"builder": "docker"}),
        "push refused": with_(right, image={"name": refused}, source={"repository": str(other.path)}),
        "no Dockerfile": with_(right, image={"dockerfile": "Containerfile"}),
        "unknown context": with_(right, cluster={"context": "nowhere"}),
        "unreachable cluster": with_(right, cluster={"kubeconfig": str(closed)}),
        "no block": with_(right, cluster={"credentials": "nowhere"}),
        "no suite": with_(right, gates=[{"name": "E2E", "browser": "tests/e2e"}]),
        "no such check folder": with_(right, checks=[{"name": "units", "run": ["true"], "directory": "nowhere"}]),
        "broken pipeline file": {**right, "enviroments": []},
    }


@pytest.fixture(scope="module")
def forbidden_pipeline(right: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A pipeline whose service account has no permissions."""
    kubectl("-n", "default", "create", "serviceaccount", ACCOUNT)
    token = kubectl("-n", "default", "create", "token", ACCOUNT).strip()
    powerless = kubeconfig(tmp_path_factory.mktemp("powerless") / "kubeconfig", token=token)
    yield with_(right, cluster={"kubeconfig": str(powerless)})
    kubectl("-n", "default", "delete", "serviceaccount", ACCOUNT)


@pytest.fixture(scope="module")
def runs(server: Server, right: dict[str, Any], wrong_pipelines: dict[str, dict[str, Any]]) -> Iterator[dict[str, Run]]:
    """One run for each mistake."""
    with server.serving(right) as (application,):
        started = {name: application.release(name.replace(" ", "-")) for name in MANIFESTS}
        started["unknown revision"] = application.release("maim")
        for run in started.values():
            wait_until_read(run)
        started |= {name: released(application, pipeline) for name, pipeline in wrong_pipelines.items()}
        yield started


def released(application: Application, pipeline: dict[str, Any]) -> Run:
    """A run that uses this pipeline file."""
    application.pipeline = pipeline
    application.write(application.server.folder)
    run = application.release("main")
    wait_until_read(run)
    return run


def wait_until_read(run: Run) -> None:
    """The pipeline file is read once, at the start of a run: after the first task it may be changed."""
    wait_for(lambda: run.ended or bool(run.tasks()), run.log)


def with_(right: dict[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """The right pipeline with changes; `cluster` and `gates` change the first environment."""
    pipeline = json.loads(json.dumps(right))
    for key in ("cluster", "gates"):
        if key in changes:
            pipeline["environments"][0][key] = changes.pop(key)
    for key, value in changes.items():
        pipeline[key] = {**pipeline[key], **value} if isinstance(value, dict) else value
    return dict(pipeline)


def kubeconfig(path: Path, *, server: str = "", token: str = "") -> Path:
    """The tests' kubeconfig for another server, or with another token."""
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    if server:
        config["clusters"][0]["cluster"]["server"] = server
    if token:
        config["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("mistake", WORDS)
def test_the_message_says_what_is_wrong_and_where(runs: dict[str, Run], mistake: str) -> None:
    name, *words = WORDS[mistake]
    assert_message(runs[mistake].wait(name), words)


@pytest.mark.needs("roles.rbac.authorization.k8s.io")
def test_the_message_lists_all_missing_permissions(runs: dict[str, Run], forbidden_pipeline: dict[str, Any]) -> None:
    application = next(iter(runs.values())).application
    run = released(application, forbidden_pipeline).wait("Failed")
    assert_message(run, ["forbidden", "we may not", "create secrets", "patch deployments.apps"])


def assert_message(run: Run, words: list[str]) -> None:
    """Check that the run's message contains these words and a hint."""
    missing = [word for word in words if word not in run.message]
    assert not missing, run.message
    assert "hint: " in run.message
    assert len(run.message) < 1500


def test_no_mistake_leaves_anything_behind(runs: dict[str, Run]) -> None:
    for run in runs.values():
        wait_for(lambda run=run: run.ended, run.log)
    assert all(untouched(f"{SESSION}-{NAME}-{environment}") for environment in ("staging", "production"))
    assert tags(IMAGE) == set()
