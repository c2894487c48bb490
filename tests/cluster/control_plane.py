"""Restarting parts of a cluster's control plane: only where the program for it exists, and only for our own cluster."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.harness import REGISTRY, REPOSITORY, SESSION, kubectl, remove_namespaces, wait_for

PROGRAM = Path(os.environ.get("KUBE_CLUSTER") or REPOSITORY.parent / "shared" / "cluster" / "cluster")


def restart(component: str, seconds: int, signal: str = "TERM") -> None:
    """End a component, and start it again after so many seconds."""
    command = [PROGRAM, "restart", component, str(seconds), signal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def full_etcd() -> Iterator[None]:
    """Have etcd refuse all writes, as it does when it has no space left: with its own alarm."""
    try:
        _alarm("ACTIVATE")
        yield
    finally:
        _alarm("DEACTIVATE")


def _alarm(action: str) -> None:
    etcd, body = "http://127.0.0.1:12379/v3/maintenance/alarm", f'{{"action": "{action}", "alarm": "NOSPACE"}}'
    command = [PROGRAM, "in", "curl", "--silent", "--show-error", "--fail", "--max-time", "20", "--data", body, etcd]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def recovered() -> None:
    """Return when every controller is connected to the API server again, which may take a minute.

    A pod that serves needs all of them: for its namespace's account, its ReplicaSet, itself, and its endpoints.
    """
    namespace = f"{SESSION}-recovered"
    wait_for(lambda: answers("/readyz"), "no API server")
    try:
        # a server that starts may still refuse, and a fresh namespace is not known to all of it at once
        wait_for(lambda: _done("create", "namespace", namespace), "no namespace can be made")
        image, command = f"--image={REGISTRY}/base/busybox:1", ["--", "sleep", "600"]
        create = ["create", "deployment", "again", image, "--port=80", *command]
        wait_for(lambda: _done("-n", namespace, *create), "no deployment can be made")
        wait_for(lambda: _done("-n", namespace, "expose", "deployment", "again"), "no service can be made")
        reached = ["get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].conditions.ready}"]
        wait_for(lambda: kubectl("-n", namespace, *reached, check=False) == "true", "it has not recovered")
    finally:
        remove_namespaces([namespace])


def answers(path: str) -> bool:
    """Whether the API server answers a request to this path."""
    return _done("get", "--raw", path)


def _done(*arguments: str) -> bool:
    """Whether it is done now, or was before, by a call whose answer was lost."""
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    return done.returncode == 0 or "AlreadyExists" in done.stderr


def _restarts_ours() -> bool:
    """Whether the program is there, and its cluster is that of KUBECONFIG."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if not (kubeconfig and PROGRAM.is_file()):
        return False
    return kubeconfig in subprocess.run([PROGRAM, "env"], capture_output=True, text=True, check=False).stdout


needs_restarts = pytest.mark.skipif(
    not _restarts_ours(), reason=f"no program to restart this API server with: {PROGRAM}"
)
