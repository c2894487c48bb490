"""Restarting parts of a cluster's control plane: only where its program is at hand, and only our own cluster's."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.harness import REPOSITORY

PROGRAM = Path(os.environ.get("KUBE_CLUSTER") or REPOSITORY.parent / "shared" / "cluster" / "cluster")


def restart(component: str, seconds: int, signal: str = "TERM") -> None:
    """End a component, and start it again after so many seconds."""
    command = [PROGRAM, "restart", component, str(seconds), signal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _restarts_ours() -> bool:
    """Whether the program is there, and its cluster is that of KUBECONFIG."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if not (kubeconfig and PROGRAM.is_file()):
        return False
    return kubeconfig in subprocess.run([PROGRAM, "env"], capture_output=True, text=True, check=False).stdout


needs_restarts = pytest.mark.skipif(
    not _restarts_ours(), reason=f"no program to restart this API server with: {PROGRAM}"
)
