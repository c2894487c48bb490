"""`prefect-cd rollout` as a terminal, a log and a program get it, on a real cluster."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]
REGISTRY = os.environ.get("REGISTRY", "")
BUSYBOX = os.environ.get("BASE_IMAGE") or f"{REGISTRY}/base/busybox:1"
PYTHON = os.environ.get("BASE_IMAGE") or f"{REGISTRY}/base/python:3.11"
COMMAND = [sys.executable, "-m", "prefect_cd.deployments.cli", "rollout"]
Kubectl = Callable[..., str]


def rollout(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def applied(kubectl: Kubectl, *items: Any) -> None:
    for item in items:
        kubectl("apply", "-f", "-", stdin=json.dumps(item))


def test_a_rollout_is_watched_to_its_end_and_reported_at_once_when_complete(
    namespace: str, objects: Any, kubectl: Kubectl
) -> None:
    listening = objects.deployment(namespace, PYTHON, "python3", "-m", "http.server", "8000", replicas=2)
    applied(kubectl, listening, objects.service(namespace))
    done = rollout("deployment/shop", "-n", namespace, "--settle", "2s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 2 replicas ready" in done.stdout.splitlines()[-1]
    done = rollout("deploy/shop", "-n", namespace, "--settle", "2s", "-o", "json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["verdict"], answer["error"], answer["troubles"]) == (0, "complete", None, [])
    assert [(row["workload"], row["ready"]) for row in answer["workloads"]] == [("deployment/shop", 2)]
    assert set(answer) == {"verdict", "summary", "seconds", "workloads", "troubles", "error"}


def test_a_failed_rollout_is_reported_with_cause_evidence_and_hint(
    namespace: str, objects: Any, kubectl: Kubectl
) -> None:
    good = objects.deployment(namespace, BUSYBOX, "sleep", "600", name="good")
    applied(kubectl, objects.deployment(namespace, f"{REGISTRY}/base/none:1"), good)
    done = rollout("deployment/shop", "deployment/good", "-n", namespace)
    assert done.returncode == 1
    assert "none:1 does not exist" in done.stderr
    assert "not found" in done.stderr
    assert "hint: push the image" in done.stderr
    answer = json.loads(rollout("deployment/shop", "-n", namespace, "-o", "json").stdout)
    assert (answer["verdict"], answer["troubles"][0]["category"]) == ("doomed", "image-not-found")
    assert answer["error"]["code"] == "rollout-failed"


def test_a_terminal_shows_a_table_that_stays(namespace: str, objects: Any, kubectl: Kubectl) -> None:
    applied(kubectl, objects.deployment(namespace, BUSYBOX, "sleep", "600"))
    ours, theirs = pty.openpty()
    running = subprocess.Popen([*COMMAND, "deployment/shop", "-n", namespace, "--settle", "1s"], stdout=theirs)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert running.wait() == 0
    assert "✔ deployment/shop" in seen.decode()
    assert "Running" in seen.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deployment/none"], "there is no Deployment 'none' in namespace"),
        (["widget/shop"], "'widget' is not a kind with a rollout"),
        (["shop"], "'shop' is not KIND/NAME"),
        (["deployment/shop", "--context", "nowhere"], "there is no context 'nowhere'"),
        (["deployment/shop", "--kubeconfig", "/nowhere"], "no cluster to talk to"),
        (["deployment/shop", "--timeout", "soon"], "'soon' is not a duration"),
    ],
)
def test_without_a_verdict_the_exit_code_is_2_and_the_error_has_the_reason(
    namespace: str, arguments: list[str], message: str
) -> None:
    done = rollout(*arguments, "-n", namespace)
    assert done.returncode == 2
    assert message in done.stderr
    answer = json.loads(rollout(*arguments, "-n", namespace, "-o", "json").stdout)
    assert (answer["verdict"], answer["workloads"]) == ("unknown", [])
    assert message in answer["error"]["reason"]


def test_a_server_that_does_not_answer_is_no_verdict(namespace: str, tmp_path: Any) -> None:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    done = rollout("deployment/shop", "-n", namespace, "--kubeconfig", str(file))
    assert done.returncode == 2
    assert "the API server does not answer" in done.stderr
