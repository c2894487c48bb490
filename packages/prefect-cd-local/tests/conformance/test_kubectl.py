"""kubectl's output and exit codes on the embedded cluster and on a real one, word for word.

One namespace per test. Texts that differ between versions of kubectl are not compared.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from conformance.clusters import Cluster, wait_for
from prefect_cd_local.client import Object

pytestmark = pytest.mark.timeout(180)
SERVE = "echo hello from $VERSION; trap exit TERM; sleep 600 & wait"


class Kubectl:
    """kubectl in a namespace; `kubectl("get", "pods")` returns its output, and fails at another exit code."""

    def __init__(self, cluster: Cluster, namespace: str, cache: Path) -> None:
        self.image, self.namespace = cluster.image, namespace
        self._begin = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", f"--cache-dir={cache}", f"-n={namespace}"]

    def __call__(self, *words: str, code: int = 0, stdin: Object | None = None) -> str:
        """Run it.

        Args:
            words: of the command.
            code: the exit code that is expected.
            stdin: a manifest for its standard input.
        """
        text = yaml.safe_dump(stdin) if stdin else ""
        environment = {**os.environ, "LANG": "C"}
        command = [*self._begin, *words]
        done = subprocess.run(
            command, input=text, check=False, capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == code, f"{' '.join(words)} → {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *words: str) -> Object:
        return json.loads(self(*words, "-o", "json"))  # type: ignore[no-any-return]


@pytest.fixture
def kubectl(cluster: Cluster, tmp_path: Path) -> Iterator[Kubectl]:
    kubectl = Kubectl(cluster, f"prefect-cd-kubectl-{uuid4().hex[:8]}", tmp_path / "cache")
    assert kubectl("create", "namespace", kubectl.namespace) == f"namespace/{kubectl.namespace} created\n"
    end = time.monotonic() + 30
    while "default" not in kubectl("get", "serviceaccounts", "-o", "name"):
        assert time.monotonic() < end
        time.sleep(0.1)
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def web(kubectl: Kubectl, version: str = "1", *, replicas: int = 2, **spec: object) -> Object:
    container = {
        "name": "web",
        "image": kubectl.image,
        "command": ["sh", "-c", SERVE],
        "env": [{"name": "VERSION", "value": version}],
    }
    pod = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod}
    deployment_spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": deployment_spec}


def config_map(**data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data}


def rolled_out(kubectl: Kubectl, version: str = "1", **spec: object) -> None:
    kubectl("apply", "-f", "-", stdin=web(kubectl, version, **spec))
    done = kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert done.endswith('deployment "web" successfully rolled out\n')


def header(table: str) -> list[str]:
    return table.splitlines()[0].split()


def version_of(kubectl: Kubectl) -> str:
    path = "jsonpath={.spec.template.spec.containers[0].env[0].value}"
    return kubectl("get", "deployment", "web", "-o", path)


def test_client_side_apply_creates_configures_and_leaves_unchanged(kubectl: Kubectl) -> None:
    for manifest, verb in (
        (config_map(a="1", b="2"), "created"),
        (config_map(a="1", b="2"), "unchanged"),
        (config_map(a="3"), "configured"),
    ):
        assert kubectl("apply", "-f", "-", stdin=manifest) == f"configmap/settings {verb}\n"
    assert kubectl.json("get", "configmap", "settings")["data"] == {"a": "3"}  # what is no longer applied is removed
    assert kubectl("apply", "--dry-run=server", "-f", "-", stdin=config_map(a="4")).endswith("(server dry run)\n")
    assert kubectl.json("get", "configmap", "settings")["data"] == {"a": "3"}


def test_server_side_apply_names_the_conflicting_manager(kubectl: Kubectl) -> None:
    def apply(manager: str, value: str, *more: str, code: int = 0) -> str:
        words = ("apply", "--server-side", f"--field-manager={manager}", *more, "-f", "-")
        return kubectl(*words, code=code, stdin=config_map(a=value))

    assert apply("one", "1") == "configmap/settings serverside-applied\n"
    refused = apply("two", "2", code=1)
    assert 'Apply failed with 1 conflict: conflict with "one": .data.a' in refused
    assert apply("two", "2", "--force-conflicts") == "configmap/settings serverside-applied\n"
    assert kubectl.json("get", "configmap", "settings")["data"] == {"a": "2"}


def test_a_wrong_manifest_is_refused_with_the_field(kubectl: Kubectl) -> None:
    manifest = web(kubectl)
    manifest["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert 'unknown field "spec.template.spec.containers[0].imagePullPolice"' in kubectl(
        "apply", "-f", "-", code=1, stdin=manifest
    )
    manifest = web(kubectl, selector={"matchLabels": {"app": "other"}})
    assert "`selector` does not match template `labels`" in kubectl("apply", "-f", "-", code=1, stdin=manifest)


@pytest.mark.parametrize("side", ["--server-side=false", "--server-side=true"])
def test_diff_shows_what_an_apply_would_change(kubectl: Kubectl, side: str) -> None:
    kubectl("apply", side, "-f", "-", stdin=config_map(a="1"))
    assert kubectl("diff", side, "-f", "-", stdin=config_map(a="1")) == ""
    lines = kubectl("diff", side, "-f", "-", code=1, stdin=config_map(a="2")).splitlines()
    assert '-  a: "1"' in lines
    assert '+  a: "2"' in lines
    assert kubectl.json("get", "configmap", "settings")["data"] == {"a": "1"}


def test_get_prints_tables_names_and_fields(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    assert header(kubectl("get", "deployments")) == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    wide = kubectl("get", "deployments", "-o", "wide")
    assert header(wide)[5:] == ["CONTAINERS", "IMAGES", "SELECTOR"]
    row = wide.splitlines()[1].split()
    assert (row[:4], row[5:]) == (["web", "2/2", "2", "2"], ["web", kubectl.image, "app=web"])
    assert header(kubectl("get", "replicasets")) == ["NAME", "DESIRED", "CURRENT", "READY", "AGE"]
    pods = kubectl("get", "pods", "-o", "wide", "-l", "app=web").splitlines()
    assert " ".join(header(pods[0])) == "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES"
    assert [row.split()[1:4] for row in pods[1:]] == [["1/1", "Running", "0"]] * 2
    assert kubectl("get", "deployment/web", "-o", "name") == "deployment.apps/web\n"
    assert kubectl("get", "deploy", "web", "-o", "jsonpath={.status.readyReplicas}") == "2"
    assert kubectl("get", "pods", "-l", "app=other", "-o", "name") == ""
    assert len(kubectl("get", "pods", "--field-selector=status.phase=Running", "--no-headers").splitlines()) == 2
    assert {name.split("/")[0] for name in kubectl("get", "all", "-o", "name").splitlines()} == {
        "pod",
        "deployment.apps",
        "replicaset.apps",
    }
    missing = kubectl("get", "deployment", "absent", code=1)
    assert missing == 'Error from server (NotFound): deployments.apps "absent" not found\n'
    assert "the server doesn't have a resource type" in kubectl("get", "nonsense", code=1)


def test_describe_shows_spec_status_and_events(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    description = kubectl("describe", "deployment", "web")
    name = kubectl("get", "replicasets", "-o", "jsonpath={.items[0].metadata.name}")
    for line in (
        "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
        f"NewReplicaSet:   {name} (2/2 replicas created)",
        f"Scaled up replica set {name} from 0 to 2",
    ):
        assert line in description
    pod = kubectl("get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
    description = kubectl("describe", "pod", pod)
    for words in ("Status:           Running", f"Controlled By:  ReplicaSet/{name}", "Scheduled", "Started"):
        assert words in description
    assert "SuccessfulCreate" in kubectl("describe", "replicaset", name)


def test_logs_of_the_present_and_of_the_previous_container(kubectl: Kubectl) -> None:
    rolled_out(kubectl, "7", replicas=1)
    wait_for(lambda: kubectl("logs", "deployment/web") != "")  # a pod without a probe is ready before it prints
    assert kubectl("logs", "deployment/web") == "hello from 7\n"
    assert kubectl("logs", "-l", "app=web", "--tail=1") == "hello from 7\n"
    pod = kubectl("get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
    assert "previous terminated container" in kubectl("logs", pod, "--previous", code=1)
    assert "container other is not valid" in kubectl("logs", pod, "-c", "other", code=1)
    crashing = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "once"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "memory", "emptyDir": {}}],
            "containers": [
                {
                    "name": "main",
                    "image": kubectl.image,
                    "command": [
                        "sh",
                        "-c",
                        "[ -e /memory/1 ] && echo second && exec sleep 600; touch /memory/1; echo first; exit 3",
                    ],
                    "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
                }
            ],
        },
    }
    kubectl("apply", "-f", "-", stdin=crashing)
    kubectl("wait", "pod/once", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "--timeout=60s")
    kubectl("wait", "pod/once", "--for=condition=Ready", "--timeout=60s")
    wait_for(lambda: kubectl("logs", "once") != "")
    assert kubectl("logs", "once") == "second\n"
    assert kubectl("logs", "once", "--previous") == "first\n"


def test_rollout_status_history_and_undo(kubectl: Kubectl) -> None:
    rolled_out(kubectl, "1")
    rolled_out(kubectl, "2")
    lines = kubectl("rollout", "history", "deployment/web").split("\n")
    assert [line.split()[0] for line in lines if line[:1].isdecimal()] == ["1", "2"]
    assert "VERSION:\t1" in kubectl("rollout", "history", "deployment/web", "--revision=1")
    assert "unable to find" in kubectl("rollout", "history", "deployment/web", "--revision=9", code=1)
    assert kubectl("rollout", "undo", "deployment/web") == "deployment.apps/web rolled back\n"
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert version_of(kubectl) == "1"
    lines = kubectl("rollout", "history", "deployment/web").split("\n")
    assert [line.split()[0] for line in lines if line[:1].isdecimal()] == ["2", "3"]
    kubectl("rollout", "undo", "deployment/web", "--to-revision=2")
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert version_of(kubectl) == "2"
    assert "unable to find" in kubectl("rollout", "undo", "deployment/web", "--to-revision=9", code=1)


def test_a_rollout_without_progress_fails(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    kubectl("patch", "deployment", "web", "-p", '{"spec": {"progressDeadlineSeconds": 15}}')
    assert kubectl("set", "image", "deployment/web", f"web={kubectl.image}.nope") == (
        "deployment.apps/web image updated\n"
    )
    assert "timed out waiting" in kubectl("rollout", "status", "deployment/web", "--timeout=1s", code=1)
    error = kubectl("rollout", "status", "deployment/web", "--timeout=60s", code=1)
    assert error.endswith('error: deployment "web" exceeded its progress deadline\n')
    conditions = kubectl.json("get", "deployment", "web")["status"]["conditions"]
    assert "ProgressDeadlineExceeded" in {condition["reason"] for condition in conditions}
    kubectl("wait", "deployment/web", "--for=condition=Available", "--timeout=60s")  # the old pods still serve
    kubectl("rollout", "undo", "deployment/web")
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")


def test_restart_makes_new_pods_of_the_same_template(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    before = set(kubectl("get", "pods", "-o", "name").split())
    assert kubectl("rollout", "restart", "deployment/web") == "deployment.apps/web restarted\n"
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    for pod in before:
        kubectl("wait", pod, "--for=delete", "--timeout=60s")
    assert len(kubectl("get", "pods", "-o", "name").split()) == 2


def test_a_paused_rollout_waits_until_it_is_resumed(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    assert kubectl("rollout", "pause", "deployment/web") == "deployment.apps/web paused\n"
    assert "is already paused" in kubectl("rollout", "pause", "deployment/web", code=1)
    kubectl("set", "env", "deployment/web", "VERSION=2")
    kubectl("scale", "deployment/web", "--replicas=3")
    kubectl("wait", "deployment/web", "--for=jsonpath={.status.availableReplicas}=3", "--timeout=60s")
    assert len(kubectl("get", "replicasets", "-o", "name").split()) == 1
    assert "can't restart paused deployment" in kubectl("rollout", "restart", "deployment/web", code=1)
    assert kubectl("rollout", "resume", "deployment/web") == "deployment.apps/web resumed\n"
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert len(kubectl("get", "replicasets", "-o", "name").split()) == 2
    assert "is not paused" in kubectl("rollout", "resume", "deployment/web", code=1)


def test_set_image_and_scale(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    assert kubectl("set", "image", "deployment/web", f"web={kubectl.image}") == ""  # nothing to change
    assert "unable to find container" in kubectl("set", "image", "deployment/web", "other=x", code=1)
    assert kubectl("scale", "deployment/web", "--replicas=1") == "deployment.apps/web scaled\n"
    kubectl("wait", "deployment/web", "--for=jsonpath={.status.replicas}=1", "--timeout=60s")
    error = kubectl("scale", "deployment/web", "--replicas=3", "--current-replicas=2", code=1)
    assert "Expected replicas to be 2, was 1" in error
    name = kubectl("get", "replicasets", "-o", "name").strip()
    assert kubectl("scale", name, "--replicas=1") == f"{name} scaled\n"
    assert "not found" in kubectl("scale", "deployment/absent", "--replicas=1", code=1)


def test_wait_ends_with_the_condition_or_its_timeout(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    assert kubectl("wait", "deployment/web", "--for=condition=Available", "--timeout=60s") == (
        "deployment.apps/web condition met\n"
    )
    pods = kubectl("wait", "pods", "-l", "app=web", "--for=condition=Ready", "--timeout=60s").splitlines()
    assert len(pods) == 2
    assert "timed out waiting" in kubectl("wait", "deployment/web", "--for=condition=Nonsense", "--timeout=1s", code=1)
    assert "timed out waiting" in kubectl("wait", "deployment/web", "--for=delete", "--timeout=1s", code=1)
    assert "no matching resources found" in kubectl("wait", "pods", "-l", "a=b", "--for=condition=Ready", code=1)


def test_delete_removes_dependents(kubectl: Kubectl) -> None:
    rolled_out(kubectl)
    assert kubectl("delete", "deployment", "web", "--cascade=foreground").startswith('deployment.apps "web" deleted')
    assert kubectl("get", "deployments,replicasets,pods", "-o", "name") == ""
    assert kubectl("delete", "deployment", "web", code=1).endswith('deployments.apps "web" not found\n')
    assert kubectl("delete", "deployment", "web", "--ignore-not-found") == ""
    rolled_out(kubectl)
    kubectl("delete", "deployment", "web", "--cascade=orphan")
    assert len(kubectl("get", "replicasets,pods", "-o", "name").split()) == 3
    kubectl("delete", "replicasets", "--all", "--wait=false")
    kubectl("wait", "pods", "--all", "--for=delete", "--timeout=60s")
