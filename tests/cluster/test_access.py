"""Access to what is not public: a private repository, a cluster from a block, a Service without ingress."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.harness import (
    RBAC,
    Application,
    Repository,
    Run,
    Server,
    get,
    hello_files,
    hello_manifests,
    hello_pipeline,
    images,
    kubeconfig_of,
    kubectl,
    records,
    wait_for,
)
from tests.git_server import git_over_http, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
TOKEN = "the-token-of-the-repository"  # noqa: S105
MANIFEST_SECRET = "the-word-in-a-manifest"  # noqa: S105
KUSTOMIZATION = f"""\
resources: [../base]
secretGenerator:
  - {{name: hello-secret, literals: [word={MANIFEST_SECRET}], options: {{disableNameSuffixHash: true}}}}
"""
BLOCKS = """\
import sys
from prefect.blocks.system import Secret
from prefect_kubernetes.credentials import KubernetesClusterConfig, KubernetesCredentials

Secret(value=sys.argv[1]).save("git-token")
KubernetesCredentials(cluster_config=KubernetesClusterConfig.from_file(sys.argv[2])).save("cluster")
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private repository: staging is a kustomize overlay with a Secret, production a Service with a node port."""
    root = tmp_path_factory.mktemp("private")
    overlay = {"k8s/base/hello.yaml": hello_manifests(), "k8s/staging/kustomization.yaml": KUSTOMIZATION}
    overlay["k8s/base/kustomization.yaml"] = "resources: [hello.yaml]\n"
    files = {**hello_files(), **overlay, "k8s/production/hello.yaml": with_node_port(hello_manifests())}
    del files["k8s/staging/hello.yaml"]
    Repository(root / "repository").commit(files, "Say hello")
    with serving(git_over_http(root, [], login=f"git:{TOKEN}")) as address:
        yield f"{address}/repository/.git"


def with_node_port(manifests: str) -> str:
    objects = list(yaml.safe_load_all(manifests))
    for item in objects:
        if item["kind"] == "Service":
            item["spec"]["type"] = "NodePort"
    return yaml.safe_dump_all(objects)


@pytest.fixture(scope="module")
def application(server: Server, url: str) -> Iterator[Application]:
    """Nothing in the pipeline file is secret, and the process that serves has no kubeconfig."""
    block = {"cluster": {"credentials": "cluster"}}
    pipeline = hello_pipeline("access", Path("/"), staging=block, production=block)
    pipeline["source"] = {"repository": url, "credentials": "secret/git-token"}
    to_be_served = Application(server, pipeline)
    to_be_served.write(server.folder)
    kubeconfig = kubeconfig_of([to_be_served], cluster_wide=True)  # to read the addresses of nodes
    blocks = [sys.executable, "-c", BLOCKS, TOKEN, kubeconfig]
    subprocess.run(blocks, env=server.environment, check=True, capture_output=True)
    with server.serving(pipeline, KUBECONFIG="/nowhere") as (served,):
        yield served
    for kind in ("clusterrole", "clusterrolebinding") if RBAC else ():
        kubectl("delete", kind, "prefect-cd-access")


@pytest.fixture(scope="module")
def run(application: Application) -> Run:
    return application.release("main").wait("Completed")


def test_a_private_repository_is_released_into_a_cluster_from_a_block(application: Application, run: Run) -> None:
    assert run.name == "Completed"
    (record,) = records(application.production)
    assert images(application.production) == {f"{record['image']['name']}@{record['image']['digest']}"}


def test_a_kustomize_overlay_is_what_staging_runs(application: Application, run: Run) -> None:
    assert run.ended
    secret = get(application.staging, "secret/hello-secret")
    assert secret is not None
    assert base64.b64decode(secret["data"]["word"]).decode() == MANIFEST_SECRET
    assert get(application.production, "secret/hello-secret") is None


def _reached(run: Run) -> list[tuple[str, str]]:
    return re.findall(r"answers against http://(\S+):(\d+)", run.log())


def test_a_service_is_reached_by_its_node_port_or_else_through_the_api_server(
    application: Application, run: Run
) -> None:
    reached = wait_for(lambda: urls if len(urls := _reached(run)) > 1 else None, run.log)
    (host, _), (_, port) = reached[:2]
    assert host == "127.0.0.1"  # a forwarded port
    service = get(application.production, "service/hello")
    assert service is not None
    assert int(port) == service["spec"]["ports"][0]["nodePort"]


def test_i7_no_secret_reaches_a_log_a_parameter_an_artifact_or_a_file(application: Application, run: Run) -> None:
    server = application.server
    of_the_run = {"flow_runs": {"id": {"any_": [run.id]}}}
    outputs = {
        "log": run.log(),
        "run": server.post("/flow_runs/filter", of_the_run),
        "tasks": server.post("/task_runs/filter", of_the_run),
        "artifacts": run.artifacts(),
        "deployments": server.post("/deployments/filter", {"limit": 50}),
        "served": (server.folder / "serve-access.log").read_text(),
    }
    encoded = {secret: base64.b64encode(secret.encode()).decode() for secret in (TOKEN, MANIFEST_SECRET)}
    for where, content in outputs.items():
        text = json.dumps(content)
        assert len(text) > 100, where
        for plain, hidden in encoded.items():
            assert plain not in text, where
            assert hidden not in text, where
    written = [path for path in (server.folder / "cd").rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
