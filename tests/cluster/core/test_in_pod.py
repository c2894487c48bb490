"""The core inside a pod: its service account, its namespace's Role, and a Service by its DNS name."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.release.model import Commit
from tests.images import build

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.needs("roles.rbac.authorization.k8s.io"),
]
REGISTRY = os.environ.get("REGISTRY", "")
BASE = f"{REGISTRY}/base/python:3.11"
NEEDED = ("kubernetes-asyncio", "pydantic", "pyyaml", "stamina", "httpx", "junitparser")
PINNED = " ".join(f"{name}=={version(name)}" for name in NEEDED)
SOURCES = Path(__file__).resolve().parents[3] / "src" / "prefect_cd"
Kubectl = Callable[..., str]

DOCKERFILE = f"""\
ARG BASE
FROM $BASE
RUN python3 -m pip install --no-cache-dir --break-system-packages {PINNED}
COPY prefect_cd /opt/core/prefect_cd
COPY look.py /opt/core/
CMD ["python3", "/opt/core/look.py"]
"""

LOOK = """\
import asyncio, json, sys
import httpx
from prefect_cd.kube.client import connect
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.service_url import open_url
from prefect_cd.pipeline.models import ClusterAccess

async def main(namespace, access):
    async with connect(access) as cluster:
        config_map = await cluster.get(Ref("v1", "ConfigMap", namespace, "settings"))
        allowed = [await cluster.is_allowed("get", "", plural, namespace) for plural in ("configmaps", "secrets")]
        async with open_url(cluster, namespace, "service/shop:web") as url:
            async with httpx.AsyncClient() as client:
                answer = (await client.get(url, timeout=30)).text
        return {"server": cluster.server, "data": config_map["data"], "allowed": allowed, "url": url, "answer": answer}

for access in (ClusterAccess(), ClusterAccess(in_cluster=True)):
    print(json.dumps(asyncio.run(main(sys.argv[1], access))), flush=True)
"""

SERVE = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind='0.0.0.0')"


@pytest.fixture(scope="module")
def core_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with the core and what it needs; a second run finds its layers in the builder's cache."""
    context = tmp_path_factory.mktemp("core")
    shutil.copytree(SOURCES, context / "prefect_cd", ignore=shutil.ignore_patterns("__pycache__"))
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "look.py").write_text(LOOK)
    sha = hashlib.sha256(
        b"".join(sorted(path.read_bytes() for path in context.rglob("*") if path.is_file()))
    ).hexdigest()
    commit = Commit(
        repository="https://example.org/acme/core",
        sha=sha[:40],
        revision="main",
        subject="The core",
        author="Test Author",
        committed_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )
    options = ("--isolation", "chroot", "--network", "host")
    settings = ImageSettings(
        name=f"{REGISTRY}/test/core", context=".", builder="buildah", args={"BASE": BASE}, options=options
    )
    return build(settings, commit, context).reference


@pytest.fixture
def account(namespace: str, kubectl: Kubectl) -> str:
    """A service account that may read ConfigMaps, Services and EndpointSlices of its namespace, and nothing else."""
    kubectl("-n", namespace, "create", "serviceaccount", "deployer")
    readable = "configmaps,services,endpointslices.discovery.k8s.io"
    kubectl("-n", namespace, "create", "role", "reader", "--verb=get,list", f"--resource={readable}")
    kubectl(
        "-n", namespace, "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:deployer"
    )
    return "deployer"


def test_a_pod_reaches_its_own_cluster_with_its_service_account(
    namespace: str, account: str, core_image: str, kubectl: Kubectl, objects: Any
) -> None:
    shop = objects.deployment(namespace, BASE, "python3", "-c", SERVE)
    looker = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "looker", "namespace": namespace},
        "spec": {
            "serviceAccountName": account,
            "restartPolicy": "Never",
            "containers": [
                {"name": "looker", "image": core_image, "args": ["python3", "/opt/core/look.py", namespace]}
            ],
        },
    }
    for item in (objects.config_map(namespace, "settings", word="read in the pod"), shop, objects.service(namespace)):
        kubectl("apply", "-f", "-", stdin=json.dumps(item))
    kubectl("-n", namespace, "rollout", "status", "deployment/shop", "--timeout=60s")
    kubectl("apply", "-f", "-", stdin=json.dumps(looker))
    kubectl("-n", namespace, "wait", "pod/looker", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    reports = [json.loads(line) for line in kubectl("-n", namespace, "logs", "looker").splitlines()]
    assert len(reports) == 2  # with the access detected, and with in_cluster set
    for report in reports:
        assert report["data"] == {"word": "read in the pod"}
        assert report["allowed"] == [True, False]
        assert report["url"] == f"http://shop.{namespace}.svc:80"
        assert "Directory listing" in report["answer"]
