"""What a person is told about a pod that does not come up: category, sentence, evidence, next step."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.diagnosis import Category, Cause, diagnose, refusal

OBSERVATIONS = Path(__file__).parent / "observations"
Object = dict[str, Any]


@cache
def recorded(name: str) -> Any:  # noqa: ANN401  YAML is anything
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((OBSERVATIONS / f"{name}.yaml").read_text(), Loader=loader)  # noqa: S506  a safe loader


def causes(name: str) -> list[Cause]:
    data = recorded(name)
    return [cause for pod in data["pods"] for cause in diagnose(pod, data["events"])]


def waiting(reason: str, message: str = "", image: str = "registry.example/shop:1") -> Object:
    return {
        "kind": "Pod",
        "metadata": {"name": "shop-1", "namespace": "staging", "uid": "u1"},
        "spec": {"containers": [{"name": "main", "image": image}]},
        "status": {
            "phase": "Pending",
            "containerStatuses": [{"name": "main", "state": {"waiting": {"reason": reason, "message": message}}}],
        },
    }


def event(reason: str, message: str, uid: str = "u1", at: str = "2026-01-01T00:00:01Z") -> Object:
    about = {"kind": "Pod", "name": "shop-1", "uid": uid, "fieldPath": "spec.containers{main}"}
    return {"involvedObject": about, "reason": reason, "message": message, "firstTimestamp": at, "lastTimestamp": at}


# --- recorded pods


# name of the recording -> category, proven, container; words of the summary, of the evidence, of the hint
TOLD = {
    "image-not-found": (Category.IMAGE_NOT_FOUND, True, "main", "localhost:5000/shop-missing:9 does not exist",
     "code = NotFound", "push the image"),
    "image-name-invalid": (Category.IMAGE_NAME_INVALID, True, "main", "is not a valid image name",
     "must be lowercase", "correct the image name"),
    "registry-unreachable": (Category.REGISTRY_UNREACHABLE, False, "main", "cannot reach the registry",
     "connection refused", "host name"),
    "command-not-found": (Category.COMMAND_NOT_FOUND, True, "main", "its command is not in the image",
     '"no-such-program": executable file not found', "command and args"),
    "command-not-found-back-off": (Category.COMMAND_NOT_FOUND, True, "main", "its command is not in the image",
     '"no-such-program": executable file not found', "command and args"),
    "shell-command-not-found": (Category.COMMAND_NOT_FOUND, True, "main", "cannot be found (exit code 127)",
     "exit code 127", "-c main --previous"),
    "wrong-architecture": (Category.WRONG_ARCHITECTURE, False, "main", "another processor", "exit code 255",
     "exec format error"),
    "out-of-memory": (Category.OUT_OF_MEMORY, False, "main", "more memory than its limit of 16Mi, 3 times",
     "OOMKilled", "limits.memory"),
    "missing-configmap-env": (Category.MISSING_CONFIG, False, "main", 'configmap "shop-settings" not found',
     'configmap "shop-settings" not found', "get configmaps,secrets"),
    "missing-configmap-volume": (Category.MISSING_CONFIG, False, "", 'configmap "shop-settings" not found',
     "MountVolume.SetUp failed", "add it to the manifests"),
    "missing-secret-key": (Category.MISSING_CONFIG, False, "main", "find key password in Secret",
     "couldn't find key password", "get configmaps,secrets"),
    "init-container-fails": (Category.INIT_CONTAINER, False, "migrate", "container migrate must succeed",
     "exit code 3", "-c migrate --previous"),
    "sidecar-crashes": (Category.CRASH, False, "proxy", "container proxy crashed with exit code 3, 3 times",
     "exit code 3", "-c proxy --previous"),
    "exits-zero": (Category.CRASH, False, "main", "exit code 0, though it should keep running",
     "Completed", "logs"),
    "unschedulable": (Category.UNSCHEDULABLE, False, "", "didn't match Pod's node affinity/selector",
     "Preemption is not helpful", "nodeSelector"),
    "claim-missing": (Category.VOLUME, False, "", 'persistentvolumeclaim "shop-data" not found',
     "0/1 nodes are available", "PersistentVolumeClaim"),
    "readiness-never": (Category.READINESS, False, "main", "its readiness probe says no", "database is away",
     "logs"),
    "liveness-kills": (Category.LIVENESS, False, "main", "killed by its liveness probe, 3 times",
     "failed liveness probe", "livenessProbe"),
    "startup-never": (Category.STARTUP, False, "main", "killed by its startup probe, 3 times",
     "failed startup probe", "startupProbe"),
    "post-start-hook-fails": (Category.CRASH, False, "main", "its postStart hook failed", "PostStartHook failed",
     "lifecycle.postStart"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_a_recorded_pod_is_explained(name: str) -> None:
    category, proven, container, sentence, evidence, hint = TOLD[name]
    found = next(cause for cause in causes(name) if cause.category is category)
    assert (found.proven, found.container) == (proven, container)
    assert sentence in found.summary
    assert evidence in found.evidence
    assert hint in found.hint
    assert found.object.startswith("pod/shop-")
    assert found.object in found.summary
    assert found.since is not None


@pytest.mark.parametrize("name", ["fresh", "rolling", "scaled-to-zero", "stateful-set", "daemon-set", "job", "evicted"])
def test_a_good_pod_has_no_cause(name: str) -> None:
    assert causes(name) == []


@pytest.mark.parametrize(
    ("name", "category", "proven", "sentence"),
    [
        ("quota", Category.QUOTA, False, "exceeded quota: small, requested: pods=1"),
        ("service-account-missing", Category.SERVICE_ACCOUNT, False, 'serviceaccount "shop-runner" not found'),
        ("pod-security", Category.ADMISSION, True, 'violates PodSecurity "restricted:latest"'),
        ("limit-range", Category.ADMISSION, True, "maximum memory usage per Container is 32Mi"),
        ("policy-denies", Category.ADMISSION, True, "pods need a team label"),
    ],
)
def test_a_recorded_refusal_is_explained(name: str, category: Category, proven: bool, sentence: str) -> None:  # noqa: FBT001
    owner = recorded(name)["revisions"][0]
    [failure] = [each for each in owner["status"]["conditions"] if each["type"] == "ReplicaFailure"]
    found = refusal(owner, failure["message"], since=None, seen=None)
    assert (found.category, found.proven, found.object) == (category, proven, f"replicaset/{owner['metadata']['name']}")
    assert sentence in found.summary
    assert "is forbidden" not in found.summary


# --- words that were not recorded: other runtimes and registries


@pytest.mark.parametrize(
    ("message", "category", "proven"),
    [
        # Docker Hub by containerd: a private or absent repository
        (("failed to resolve reference: pull access denied, repository does not exist or may require authorization: "
          "server message: insufficient_scope: authorization failed"), Category.IMAGE_DENIED, True),
        ("failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized",
         Category.IMAGE_DENIED, True),
        ("unexpected status from HEAD request to https://registry.example/v2/shop/manifests/1: 403 Forbidden",
         Category.IMAGE_DENIED, True),
        ("no basic auth credentials", Category.IMAGE_DENIED, True),  # Amazon ECR
        ("reading manifest 9 in registry.example/shop: manifest unknown", Category.IMAGE_NOT_FOUND, True),  # CRI-O
        ("no match for platform in manifest sha256:0f: not found", Category.WRONG_ARCHITECTURE, True),
        ("dial tcp: lookup registry.example on 10.0.0.2:53: no such host", Category.REGISTRY_UNREACHABLE, False),
        ("net/http: TLS handshake timeout: dial tcp 10.0.0.3:443: i/o timeout", Category.REGISTRY_UNREACHABLE, False),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority",
         Category.REGISTRY_UNREACHABLE, False),
        ("toomanyrequests: You have reached your pull rate limit", Category.REGISTRY_UNREACHABLE, False),
        ("unexpected status code 503 Service Unavailable", Category.REGISTRY_UNREACHABLE, False),
        ("failed to extract layer: mkdir /x: permission denied", Category.UNKNOWN, False),
        ("failed to extract layer: write /x: no space left on device", Category.UNKNOWN, False),
    ],
)  # fmt: skip
def test_the_words_of_registries_tell_what_is_proven(message: str, category: Category, proven: bool) -> None:  # noqa: FBT001
    [found] = diagnose(waiting("ErrImagePull", message), [])
    assert (found.category, found.proven) == (category, proven)


@pytest.mark.parametrize(
    ("message", "category", "proven"),
    [
        ('exec: "/app/serve": stat /app/serve: no such file or directory', Category.COMMAND_NOT_FOUND, True),
        ('exec: "/app/serve": permission denied', Category.COMMAND_NOT_FOUND, True),
        ("exec /app/serve: exec format error", Category.WRONG_ARCHITECTURE, True),
        ("container has runAsNonRoot and image will run as root", Category.SECURITY, True),
        ('failed to prepare subPath for volumeMount "data"', Category.UNKNOWN, False),
    ],
)
def test_the_words_of_runtimes_tell_what_is_proven(message: str, category: Category, proven: bool) -> None:  # noqa: FBT001
    [found] = diagnose(waiting("CreateContainerError", message), [])
    assert (found.category, found.proven) == (category, proven)


@pytest.mark.parametrize(
    ("message", "category", "proven"),
    [
        ('admission webhook "policy.example" denied the request: image is not signed', Category.ADMISSION, True),
        (('Internal error occurred: failed calling webhook "policy.example": failed to call webhook: Post '
          '"https://policy.policy.svc:443/": dial tcp 10.0.0.9:443: connect: connection refused'),
         Category.ADMISSION, False),
        ('pods "shop-1" is forbidden: failed quota: small: must specify limits.cpu', Category.ADMISSION, True),
        ('Pod "shop-1" is invalid: spec.containers[0].image: Required value', Category.ADMISSION, True),
        ('pods "shop-1" is forbidden: no PriorityClass with name high was found', Category.ADMISSION, False),
    ],
)  # fmt: skip
def test_a_policy_that_denies_is_proof_and_a_webhook_that_does_not_answer_is_none(
    message: str, category: Category, proven: bool  # noqa: FBT001
) -> None:  # fmt: skip
    found = refusal({"kind": "ReplicaSet", "metadata": {"name": "shop"}}, message, since=None, seen=None)
    assert (found.category, found.proven) == (category, proven)


# --- what must not mislead


def test_a_back_off_without_words_is_explained_by_the_first_event() -> None:
    pod = waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/shop:1"')
    told = [
        event("Failed", "Error: ImagePullBackOff", at="2026-01-01T00:00:03Z"),
        event("Failed", 'Failed to pull image "registry.example/shop:1": manifest unknown'),
    ]
    [found] = diagnose(pod, told)
    assert found.category is Category.IMAGE_NOT_FOUND


def test_events_about_a_namesake_do_not_count() -> None:
    pod = waiting("ImagePullBackOff")
    [found] = diagnose(pod, [event("Failed", 'Failed to pull image "x": manifest unknown', uid="another")])
    assert not found.proven


def test_the_name_of_an_image_proves_nothing() -> None:
    image = "registry.example/not-found/denied:unauthorized"
    [found] = diagnose(waiting("ErrImagePull", f'pull "{image}": connection refused', image), [])
    assert found.category is Category.REGISTRY_UNREACHABLE


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_merely_starting_has_no_cause(reason: str) -> None:
    assert diagnose(waiting(reason), [event("Pulling", "Pulling image")]) == ()


def test_a_cold_cache_of_the_kubelet_is_no_missing_configuration() -> None:
    said = "failed to sync configmap cache: timed out waiting for the condition"
    assert diagnose(waiting("CreateContainerConfigError", said), []) == ()
    assert diagnose(waiting("ContainerCreating"), [event("FailedMount", f"MountVolume.SetUp failed: {said}")]) == ()


def test_a_mount_that_failed_once_is_history_when_a_container_runs() -> None:
    pod = waiting("ContainerCreating")
    failed = event("FailedMount", 'MountVolume.SetUp failed for volume "s" : configmap "x" not found')
    assert [cause.category for cause in diagnose(pod, [failed])] == [Category.MISSING_CONFIG]
    pod["status"]["containerStatuses"][0] |= {"state": {"running": {}}, "ready": True}
    assert diagnose(pod, [failed]) == ()


def test_a_mount_that_failed_is_history_when_the_image_is_the_trouble() -> None:
    failed = event("FailedMount", 'MountVolume.SetUp failed for volume "s" : configmap "x" not found')
    [found] = diagnose(waiting("ErrImagePull", "manifest unknown"), [failed])
    assert found.category is Category.IMAGE_NOT_FOUND


def test_a_program_for_another_processor_is_proven_by_its_own_last_words() -> None:
    pod = waiting("CrashLoopBackOff")
    end = {"exitCode": 1, "reason": "Error", "message": "exec /app/serve: exec format error"}
    pod["status"]["containerStatuses"][0]["lastState"] = {"terminated": end}
    [found] = diagnose(pod, [])
    assert (found.category, found.proven) == (Category.WRONG_ARCHITECTURE, True)


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"name": "shop-1", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"phase": "Failed", "reason": "Evicted"}},
        {"status": {"phase": "Failed", "reason": "NodeShutdown"}},
        {"status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}},
    ],
)
def test_a_pod_that_the_cluster_takes_away_is_not_blamed(change: Object) -> None:
    pod = waiting("InvalidImageName")
    assert diagnose(pod, [])
    for part, values in change.items():
        pod[part] |= values
    assert diagnose(pod, []) == ()


def test_an_autoscaler_at_work_is_waited_for() -> None:
    data = recorded("unschedulable")
    [pod] = data["pods"]
    about = {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    scaling = {"involvedObject": about, "reason": "TriggeredScaleUp", "message": "pod triggered scale-up"}
    assert diagnose(pod, data["events"])
    assert diagnose(pod, [*data["events"], scaling]) == ()


def test_the_words_of_categories_are_a_contract() -> None:
    assert [category.value for category in Category] == [
        "image-not-found", "image-denied", "image-name-invalid", "registry-unreachable", "crash", "init-container",
        "out-of-memory", "command-not-found", "wrong-architecture", "missing-config", "security", "readiness",
        "liveness", "startup", "unschedulable", "quota", "admission", "volume", "service-account", "deadline",
        "unknown",
    ]  # fmt: skip
