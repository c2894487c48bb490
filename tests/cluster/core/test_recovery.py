"""Recovery on a real cluster: by hand, two at once, and where the open record was deleted."""

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.environment.apply import apply
from prefect_cd.environment.changes import compute_changes
from prefect_cd.environment.lease import hold
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import State
from prefect_cd.environment.record_format import encode
from prefect_cd.environment.records import RecordStore
from prefect_cd.kube.client import connect
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess
from tests.cluster.core.conftest import Kubectl
from tests.records import record

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PIPELINE = """\
application: shop
source: {{repository: https://example.org/shop.git}}
image: {{name: registry.example.org/shop}}
environments:
  - {{name: staging, namespace: {namespace}, manifests: k8s}}
"""


def config_map(ownership: Ownership, name: str, **data: str) -> Object:
    metadata = {"name": name, "namespace": ownership.namespace}
    return ownership.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


async def interrupt(ownership: Ownership) -> None:
    """Bring a version in, and begin with the next one: one object is changed, one is added, and nothing is removed."""
    old = [config_map(ownership, "settings", greeting="old"), config_map(ownership, "removed")]
    new = [config_map(ownership, "settings", greeting="new"), config_map(ownership, "added")]
    known = tuple(map(Ref.of, old))
    async with connect(ClusterAccess()) as cluster:
        store = RecordStore(cluster, ownership)
        good = await store.start(record(1, State.APPLYING, *old))
        await apply(cluster, ownership, old, await compute_changes(cluster, ownership, old))
        for state in (State.APPLYING, State.VERIFYING, State.KNOWN_GOOD):
            await store.move(good, state)
        holding = hold(ClusterAccess(), ownership, "killed", wait=timedelta())
        lock = await asyncio.to_thread(holding.__enter__)
        await store.start(record(2, State.APPLYING, *new, known=known), mark=lock.mark_open)
        await apply(cluster, ownership, new, await compute_changes(cluster, ownership, new))
        await asyncio.to_thread(holding.__exit__, None, None, None)


@pytest.fixture
def interrupted(namespace: str, tmp_path: Path) -> list[str]:
    """The command that recovers an environment whose rollout was interrupted."""
    asyncio.run(interrupt(Ownership("shop", "staging", namespace)))
    return recover(namespace, tmp_path)


def recover(namespace: str, folder: Path) -> list[str]:
    """The command that recovers the environment of this namespace."""
    file = folder / "pipeline.yaml"
    file.write_text(PIPELINE.format(namespace=namespace))
    return [sys.executable, "-m", "prefect_cd.deployments.cli", "recover", str(file), "-o", "json"]


def settings(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    items = json.loads(kubectl("-n", namespace, "get", "configmaps", "-o", "json"))["items"]
    return {item["metadata"]["name"]: item.get("data") for item in items if item["metadata"]["name"][0] != "k"}


WHOLE = {"settings": {"greeting": "old"}, "removed": None}


def entry(output: str) -> dict[str, Any]:
    (only,) = json.loads(output)["environments"]
    assert isinstance(only, dict)
    return only


def test_i3_i4_two_recoveries_at_once_do_no_harm(interrupted: list[str], namespace: str, kubectl: Kubectl) -> None:
    processes = [subprocess.Popen(interrupted, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert settings(kubectl, namespace) == WHOLE
    assert sorted(str(entry(output)["done"]) for output in outputs) == [
        "nothing: no rollout was interrupted",
        "went back from release-2 to release-1",
    ]
    assert all(entry(output)["condition"] == "whole" for output in outputs)


def test_i4_a_rollout_whose_record_was_deleted_is_undone(
    interrupted: list[str], namespace: str, kubectl: Kubectl
) -> None:
    copy = json.loads(kubectl("-n", namespace, "get", "configmap", "added", "-o", "json"))
    copy["metadata"] = {"name": "our-copy", "labels": copy["metadata"]["labels"]}
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(copy))
    kubectl("-n", namespace, "delete", "secret", "prefect-cd.shop.2")
    done = subprocess.run(interrupted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert settings(kubectl, namespace) == {**WHOLE, "our-copy": None}
    assert entry(done.stdout)["newest"]["state"] == "rolled-back"


@pytest.mark.parametrize("kind", ["ConfigMap", "ClusterRole"])
def test_i1_a_forged_record_brings_nothing_out_of_its_namespace(
    kind: str, namespace: str, no_namespace: str, tmp_path: Path, kubectl: Kubectl
) -> None:
    """A commit of staging, or a pod there that may write Secrets, forges what a recovery would bring back."""
    kubectl("create", "namespace", no_namespace)
    ownership = Ownership("shop", "staging", namespace)
    forged: Object = ownership.label({"apiVersion": "v1", "kind": kind, "metadata": {"name": namespace}})
    if kind == "ClusterRole":
        rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
        forged |= {"apiVersion": "rbac.authorization.k8s.io/v1", "rules": rules}
    else:
        forged["metadata"]["namespace"] = no_namespace
    for item in (record(1, State.KNOWN_GOOD, forged), record(2, State.APPLYING)):
        kubectl("create", "-f", "-", stdin=json.dumps(encode(ownership, item, 1)[0]))
    done = subprocess.run(recover(namespace, tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout
    where = "is cluster-scoped" if kind == "ClusterRole" else f"is in namespace '{no_namespace}'"
    assert f"it is not one of this environment: {kind} {namespace} {where}" in entry(done.stdout)["error"]
    assert kubectl("-n", no_namespace, "get", kind.lower(), namespace, "--ignore-not-found") == ""
