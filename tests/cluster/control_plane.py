"""Restarting parts of a cluster's control plane: only where its program is at hand, and only our own cluster's."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.harness import REGISTRY, REPOSITORY, SESSION, kubectl, remove_namespaces, wait_for

PROGRAM = Path(os.environ.get("KUBE_CLUSTER") or REPOSITORY.parent / "shared" / "cluster" / "cluster")


def restart(component: str, seconds: int, signal: str = "TERM") -> None:
    """End a component, and start it again after so many seconds."""
    command = [PROGRAM, "restart", component, str(seconds), signal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def recovered() -> None:
    """Return when every controller has heard of the API server again, which may take each of them a minute.

    A pod that serves needs all of them: for its namespace's account, its ReplicaSet, itself, and its endpoints.
    """
    namespace = f"{SESSION}-recovered"
    ready = ["kubectl", "get", "--raw", "/readyz"]
    wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "no API server")
    kubectl("create", "namespace", namespace)
    try:
        image, command = f"--image={REGISTRY}/base/busybox:1", ["--", "sleep", "600"]
        kubectl("-n", namespace, "create", "deployment", "again", image, "--port=80", *command)
        kubectl("-n", namespace, "expose", "deployment", "again")
        reached = ["get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].conditions.ready}"]
        wait_for(lambda: kubectl("-n", namespace, *reached) == "true", "the control plane has not recovered", 180)
    finally:
        remove_namespaces([namespace])


def _restarts_ours() -> bool:
    """Whether the program is there, and its cluster is that of KUBECONFIG."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if not (kubeconfig and PROGRAM.is_file()):
        return False
    return kubeconfig in subprocess.run([PROGRAM, "env"], capture_output=True, text=True, check=False).stdout


needs_restarts = pytest.mark.skipif(
    not _restarts_ours(), reason=f"no program to restart this API server with: {PROGRAM}"
)
