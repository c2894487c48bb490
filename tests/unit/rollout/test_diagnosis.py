"""What is reported about a pod that does not become ready: category, sentence, evidence, next step."""

from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.rollout.diagnosis import (
    Category,
    Cause,
    PortResult,
    as_time,
    diagnose,
    endpoint_problem,
    pod_creation_problem,
    replica_set_creation_problem,
    storage_limit_problem,
)
from prefect_cd.rollout.diagnosis.probes import probe_grace

OBSERVATIONS = Path(__file__).parents[1] / "observations"
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


# --- the sentence


def test_the_summary_is_composed_of_the_fact_the_count_and_the_note() -> None:
    cause = Cause(Category.CRASH, "pod/shop: it crashed", "", "", "pod/shop", times=1)
    assert cause.summary == "pod/shop: it crashed"
    assert replace(cause, times=3).summary == "pod/shop: it crashed, 3 times"
    assert replace(cause, times=3, unit="pods so far").summary == "pod/shop: it crashed, 3 pods so far"
    assert replace(cause, times=2, note="now fixed").summary == "pod/shop: it crashed, 2 times (now fixed)"


# --- recorded pods


# name of the recording -> category, permanent, container; parts of the summary, of the evidence, of the hint
EXPLANATIONS = {
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
    "wrong-architecture": (Category.WRONG_ARCHITECTURE, False, "main", "another CPU architecture", "exit code 255",
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
    "exits-zero": (Category.CRASH, False, "main", "exit code 0, although it should keep running",
     "Completed", "logs"),
    "unschedulable": (Category.UNSCHEDULABLE, False, "", "didn't match Pod's node affinity/selector",
     "Preemption is not helpful", "nodeSelector"),
    "claim-missing": (Category.VOLUME, False, "", 'persistentvolumeclaim "shop-data" not found',
     "0/1 nodes are available", "PersistentVolumeClaim"),
    "readiness-never": (Category.READINESS, False, "main", "its readiness probe fails", "database is away",
     "logs"),
    "liveness-kills": (Category.LIVENESS, False, "main", "killed by its liveness probe, 3 times",
     "failed liveness probe", "livenessProbe"),
    "startup-never": (Category.STARTUP, False, "main", "killed by its startup probe, 3 times",
     "failed startup probe", "startupProbe"),
    "post-start-hook-fails": (Category.CRASH, False, "main", "its postStart hook failed", "PostStartHook failed",
     "lifecycle.postStart"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_a_recorded_pod_is_explained(name: str) -> None:
    category, permanent, container, sentence, evidence, hint = EXPLANATIONS[name]
    cause = next(cause for cause in causes(name) if cause.category is category)
    assert (cause.permanent, cause.container) == (permanent, container)
    assert sentence in cause.summary
    assert evidence in cause.evidence
    assert hint in cause.hint
    assert cause.object.startswith("pod/shop-")
    assert cause.object in cause.summary
    assert cause.since is not None


@pytest.mark.parametrize("name", ["fresh", "rolling", "scaled-to-zero", "stateful-set", "daemon-set", "job", "evicted"])
def test_a_good_pod_has_no_cause(name: str) -> None:
    assert causes(name) == []


@pytest.mark.parametrize(
    ("name", "category", "permanent", "sentence"),
    [
        ("quota", Category.QUOTA, False, "exceeded quota: small, requested: pods=1"),
        ("service-account-missing", Category.SERVICE_ACCOUNT, False, 'serviceaccount "shop-runner" not found'),
        ("pod-security", Category.ADMISSION, True, 'violates PodSecurity "restricted:latest"'),
        ("limit-range", Category.ADMISSION, True, "maximum memory usage per Container is 32Mi"),
        ("policy-denies", Category.ADMISSION, True, "pods need a team label"),
    ],
)
def test_a_recorded_refusal_is_explained(name: str, category: Category, permanent: bool, sentence: str) -> None:  # noqa: FBT001
    owner = recorded(name)["revisions"][0]
    [failure] = [item for item in owner["status"]["conditions"] if item["type"] == "ReplicaFailure"]
    cause = pod_creation_problem(owner, failure["message"], since=None, last_seen=None)
    assert (cause.category, cause.permanent, cause.object) == (
        category,
        permanent,
        f"replicaset/{owner['metadata']['name']}",
    )
    assert sentence in cause.summary
    assert "is forbidden" not in cause.summary


# --- messages that were not recorded: other runtimes and registries


@pytest.mark.parametrize(
    ("message", "category", "permanent"),
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
def test_the_messages_of_registries_decide_what_is_permanent(message: str, category: Category, permanent: bool) -> None:  # noqa: FBT001
    [cause] = diagnose(waiting("ErrImagePull", message), [])
    assert (cause.category, cause.permanent) == (category, permanent)


@pytest.mark.parametrize(
    ("message", "category", "permanent"),
    [
        ('exec: "/app/serve": stat /app/serve: no such file or directory', Category.COMMAND_NOT_FOUND, True),
        ('exec: "/app/serve": permission denied', Category.COMMAND_NOT_FOUND, True),
        ("exec /app/serve: exec format error", Category.WRONG_ARCHITECTURE, True),
        ("container has runAsNonRoot and image will run as root", Category.SECURITY, True),
        ('failed to prepare subPath for volumeMount "data"', Category.VOLUME, False),
        ("context deadline exceeded", Category.UNKNOWN, False),
    ],
)
def test_the_messages_of_runtimes_decide_what_is_permanent(message: str, category: Category, permanent: bool) -> None:  # noqa: FBT001
    [cause] = diagnose(waiting("CreateContainerError", message), [])
    assert (cause.category, cause.permanent) == (category, permanent)


@pytest.mark.parametrize(
    ("message", "category", "permanent"),
    [
        ('admission webhook "policy.example" denied the request: image is not signed', Category.ADMISSION, True),
        (('Internal error occurred: failed calling webhook "policy.example": failed to call webhook: Post '
          '"https://policy.policy.svc:443/": dial tcp 10.0.0.9:443: connect: connection refused'),
         Category.ADMISSION, False),
        ('pods "shop-1" is forbidden: failed quota: small: must specify limits.cpu', Category.ADMISSION, True),
        ('Pod "shop-1" is invalid: spec.containers[0].image: Required value', Category.ADMISSION, True),
        # the text of a policy may contain anything; only the text around it is the API server's
        ("denied request: pods must not use the default service account", Category.ADMISSION, True),
        ('admission webhook "policy.example" denied the request: no timeout, exceeded quota', Category.ADMISSION, True),
        ('pods "session-timeout-1" is forbidden: violates PodSecurity "restricted:latest"', Category.ADMISSION, True),
        ('pods "a" is forbidden: error looking up service account shop/x: serviceaccount "x" not found',
         Category.SERVICE_ACCOUNT, False),
        ('pods "shop-1" is forbidden: no PriorityClass with name high was found', Category.ADMISSION, False),
    ],
)  # fmt: skip
def test_a_policy_that_denies_is_permanent_and_a_webhook_that_does_not_answer_is_not(
    message: str, category: Category, permanent: bool  # noqa: FBT001
) -> None:  # fmt: skip
    cause = pod_creation_problem(
        {"kind": "ReplicaSet", "metadata": {"name": "shop"}}, message, since=None, last_seen=None
    )
    assert (cause.category, cause.permanent) == (category, permanent)


# --- what must not be misread


def test_names_chosen_by_users_do_not_affect_the_category() -> None:
    message = (
        'container has runAsNonRoot and image will run as root (pod: "configmap-1_shop", container: configmap-reload)'
    )
    pod = waiting("CreateContainerConfigError", message)
    pod["spec"]["containers"][0]["name"] = pod["status"]["containerStatuses"][0]["name"] = "configmap-reload"
    [cause] = diagnose(pod, [])
    assert (cause.category, cause.permanent) == (Category.SECURITY, True)
    owner = {"kind": "ReplicaSet", "metadata": {"name": "failed-calling-webhook"}}
    cause = pod_creation_problem(owner, "failed-calling-webhook is invalid", since=None, last_seen=None)
    assert cause.permanent


def test_a_missing_object_is_reported_by_its_name() -> None:
    [cause] = diagnose(waiting("CreateContainerConfigError", 'configmap "shop" not found'), [])
    assert cause.missing == "configmap/shop"
    [cause] = diagnose(unscheduled('0/1 nodes are available: persistentvolumeclaim "data" not found.'), [])
    assert cause.missing == "persistentvolumeclaim/data"
    [cause] = diagnose(waiting("CreateContainerConfigError", "couldn't find key a in ConfigMap shop/b"), [])
    assert cause.missing == ""


def test_a_back_off_without_a_reason_is_explained_by_the_first_event() -> None:
    pod = waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/shop:1"')
    events = [
        event("Failed", "Error: ImagePullBackOff", at="2026-01-01T00:00:03Z"),
        event("Failed", 'Failed to pull image "registry.example/shop:1": manifest unknown'),
    ]
    [cause] = diagnose(pod, events)
    assert cause.category is Category.IMAGE_NOT_FOUND


def test_events_about_another_pod_of_the_same_name_do_not_count() -> None:
    pod = waiting("ImagePullBackOff")
    [cause] = diagnose(pod, [event("Failed", 'Failed to pull image "x": manifest unknown', uid="another")])
    assert not cause.permanent


def test_the_name_of_an_image_proves_nothing() -> None:
    image = "registry.example/not-found/denied:unauthorized"
    [cause] = diagnose(waiting("ErrImagePull", f'pull "{image}": connection refused', image), [])
    assert cause.category is Category.REGISTRY_UNREACHABLE


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_merely_starting_has_no_cause(reason: str) -> None:
    assert diagnose(waiting(reason), [event("Pulling", "Pulling image")]) == ()


def test_a_cold_cache_of_the_kubelet_is_no_missing_configuration() -> None:
    message = "failed to sync configmap cache: timed out waiting for the condition"
    assert diagnose(waiting("CreateContainerConfigError", message), []) == ()
    assert diagnose(waiting("ContainerCreating"), [event("FailedMount", f"MountVolume.SetUp failed: {message}")]) == ()


def test_a_failed_mount_is_over_when_a_container_runs() -> None:
    pod = waiting("ContainerCreating")
    failed = event("FailedMount", 'MountVolume.SetUp failed for volume "s" : configmap "x" not found')
    assert [cause.category for cause in diagnose(pod, [failed])] == [Category.MISSING_CONFIG]
    pod["status"]["containerStatuses"][0] |= {"state": {"running": {}}, "ready": True}
    assert diagnose(pod, [failed]) == ()


def test_a_failed_mount_is_over_when_the_image_is_the_problem() -> None:
    failed = event("FailedMount", 'MountVolume.SetUp failed for volume "s" : configmap "x" not found')
    [cause] = diagnose(waiting("ErrImagePull", "manifest unknown"), [failed])
    assert cause.category is Category.IMAGE_NOT_FOUND


def test_a_termination_message_exec_format_error_proves_another_architecture() -> None:
    pod = waiting("CrashLoopBackOff")
    end = {"exitCode": 1, "reason": "Error", "message": "exec /app/serve: exec format error"}
    pod["status"]["containerStatuses"][0]["lastState"] = {"terminated": end}
    [cause] = diagnose(pod, [])
    assert (cause.category, cause.permanent) == (Category.WRONG_ARCHITECTURE, True)


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"name": "shop-1", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"phase": "Failed", "reason": "Evicted"}},
        {"status": {"phase": "Failed", "reason": "NodeShutdown"}},
        {"status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}},
    ],
)
def test_a_pod_that_the_cluster_disrupts_has_no_cause(change: Object) -> None:
    pod = waiting("InvalidImageName")
    assert diagnose(pod, [])
    for part, values in change.items():
        pod[part] |= values
    assert diagnose(pod, []) == ()


def test_an_unschedulable_pod_has_no_cause_while_an_autoscaler_adds_a_node() -> None:
    data = recorded("unschedulable")
    [pod] = data["pods"]
    about = {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    scaling = {"involvedObject": about, "reason": "TriggeredScaleUp", "message": "pod triggered scale-up"}
    assert diagnose(pod, data["events"])
    assert diagnose(pod, [*data["events"], scaling]) == ()


def test_the_values_of_categories_are_a_contract() -> None:
    assert [category.value for category in Category] == [
        "image-not-found", "image-denied", "image-name-invalid", "registry-unreachable", "crash", "init-container",
        "out-of-memory", "command-not-found", "wrong-architecture", "missing-config", "security", "readiness",
        "liveness", "startup", "unschedulable", "quota", "admission", "volume", "service-account", "deadline",
        "unknown", "node", "storage-limit", "replica-set", "blocked", "service", "port",
    ]  # fmt: skip


# --- pull secrets, and retries in progress


def pull_failed(at: str) -> Object:
    return event("Failed", 'Failed to pull image "registry.example/shop:1": 401 Unauthorized', at=at)


def test_a_refusal_without_the_pull_secret_may_pass_and_with_it_is_permanent() -> None:
    pod = waiting("ErrImagePull", "401 Unauthorized")
    missing = event("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (regcred)")
    [cause] = diagnose(pod, [missing, pull_failed("2026-01-01T00:00:03Z")])
    assert (cause.category, cause.permanent) == (Category.MISSING_CONFIG, False)
    assert "regcred" in cause.summary
    [cause] = diagnose(pod, [missing, pull_failed("2026-01-01T00:00:15Z")])
    assert (cause.category, cause.permanent) == (Category.IMAGE_DENIED, True)


def test_a_pull_that_has_started_again_is_being_retried() -> None:
    pod = waiting("ImagePullBackOff", "connection refused")
    failed = event("Failed", "Failed to pull image: connection refused", at="2026-01-01T00:00:03Z")
    for at, retrying in (("2026-01-01T00:00:02Z", False), ("2026-01-01T00:00:13Z", True)):
        [cause] = diagnose(pod, [failed, event("Pulling", "Pulling image", at=at)])
        assert cause.retrying is retrying


def test_a_tag_or_address_in_a_url_is_not_a_status_code() -> None:
    message = "HEAD request to https://registry.example/v2/shop/manifests/403: dial tcp: i/o timeout"
    [cause] = diagnose(waiting("ErrImagePull", message), [])
    assert cause.category is Category.REGISTRY_UNREACHABLE


# --- no node, or a node that cannot set the pod up


def unscheduled(message: str) -> Object:
    pod = waiting("")
    pod["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                     "message": message}]}  # fmt: skip
    return pod


@pytest.mark.parametrize(
    ("message", "sentence", "hint"),
    [
        ("0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available.",
         "has enough free resources", "requests"),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", "has the labels",
         "nodeSelector"),
        ("0/1 nodes are available: 1 node(s) were unschedulable.", "cordoned", "uncordon"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unschedulable: }.", "cordoned",
         "uncordon"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }.",
         "has a problem", "describe nodes"),
        ("0/2 nodes are available: 2 node(s) had untolerated taint {gpu: true}.", "taint", "toleration"),
        ("0/2 nodes are available: 1 node(s) didn't have free ports, 1 node(s) had untolerated taint(s).",
         "affinity, topology or host port rules", "hostPort"),
        ("0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.",
         "affinity, topology or host port rules", "podAntiAffinity"),
        ("0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.",
         "affinity, topology or host port rules", "hostPort"),
    ],
)  # fmt: skip
def test_a_scheduling_problem_is_explained_by_its_most_specific_reason(message: str, sentence: str, hint: str) -> None:
    [cause] = diagnose(unscheduled(message), [])
    assert (cause.category, cause.permanent) == (Category.UNSCHEDULABLE, False)
    assert sentence in cause.summary
    assert hint in cause.hint
    assert "preemption" not in cause.summary


@pytest.mark.parametrize(
    "message",
    [
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        "0/2 nodes are available: 2 node(s) had volume node affinity conflict.",
    ],
)
def test_a_volume_claim_that_no_node_can_serve_is_a_volume_problem(message: str) -> None:
    [cause] = diagnose(unscheduled(message), [])
    assert cause.category is Category.VOLUME


def test_an_image_that_is_pulled_shows_that_the_volumes_are_mounted() -> None:
    pod = waiting("ContainerCreating")
    failed = event("FailedMount", 'MountVolume.SetUp failed for volume "s" : configmap "x" not found')
    assert [cause.category for cause in diagnose(pod, [failed])] == [Category.MISSING_CONFIG]
    assert diagnose(pod, [failed, event("Pulling", "Pulling image", at="2026-01-01T00:00:05Z")]) == ()
    pod["status"]["conditions"] = [{"type": "PodReadyToStartContainers", "status": "True"}]
    assert diagnose(pod, [failed]) == ()


def test_a_sandbox_that_the_node_cannot_create_is_a_node_problem() -> None:
    [cause] = diagnose(waiting("ContainerCreating"), [event("FailedCreatePodSandBox", "cni plugin not initialized")])
    assert (cause.category, cause.permanent) == (Category.NODE, False)


def test_a_memory_limit_too_low_to_create_the_sandbox_is_out_of_memory() -> None:
    message = "Failed to create pod sandbox: container init was OOM-killed (memory limit too low?)"
    [cause] = diagnose(waiting("ContainerCreating"), [event("FailedCreatePodSandBox", message)])
    assert (cause.category, cause.permanent) == (Category.OUT_OF_MEMORY, True)


def test_a_token_of_a_missing_service_account_is_not_a_volume_problem() -> None:
    message = 'MountVolume.SetUp failed for volume "token" : failed to fetch token: serviceaccounts "runner" not found'
    [cause] = diagnose(waiting("ContainerCreating"), [event("FailedMount", message)])
    assert cause.category is Category.SERVICE_ACCOUNT


def test_pods_evicted_for_their_own_storage_limit_count_like_crashes() -> None:
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds the total "
               "limit of containers 10Mi. "}  # fmt: skip
    pods = [{"kind": "Pod", "metadata": {"name": f"shop-{n}"}, "status": evicted} for n in range(3)]
    cause = storage_limit_problem(pods)
    assert cause is not None
    assert (cause.category, cause.times, cause.counted) == (Category.STORAGE_LIMIT, 3, True)
    pods = [{**pod, "status": {**evicted, "message": "The node was low on resource: memory."}} for pod in pods]
    assert storage_limit_problem(pods) is None


# --- runs that ended


def ended(code: int, *, reason: str = "Error", restarts: int = 0, **container: object) -> Object:
    pod = waiting("CrashLoopBackOff")
    end = {
        "exitCode": code,
        "reason": reason,
        "startedAt": "2026-01-01T00:00:10Z",
        "finishedAt": "2026-01-01T00:00:10Z",
    }
    pod["status"]["containerStatuses"][0] |= {"lastState": {"terminated": end}, "restartCount": restarts, **container}
    return pod


def test_a_signal_is_reported_by_its_name() -> None:
    [cause] = diagnose(ended(139), [])
    assert "exit code 139 (signal SIGSEGV)" in cause.summary
    [cause] = diagnose(ended(255, restarts=1) | {}, [])
    assert "signal" not in cause.summary


def test_a_log_of_exec_format_error_and_nothing_else_proves_another_architecture() -> None:
    line = "exec /app/serve: exec format error\n"
    [cause] = diagnose(ended(255), [], {"main": line})
    assert (cause.category, cause.permanent) == (Category.WRONG_ARCHITECTURE, True)
    for pod, log in ((ended(255), "starting\n" + line), (ended(1), line), (ended(255), "")):
        [cause] = diagnose(pod, [], {"main": log})
        assert not cause.permanent


def test_a_shells_exit_code_for_a_missing_command_is_permanent_the_second_time() -> None:
    assert [diagnose(ended(127, restarts=n), [])[0].permanent for n in (0, 1)] == [False, True]
    pod = ended(127, restarts=1)
    token = {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    pod["spec"]["containers"][0]["volumeMounts"] = [token]
    assert diagnose(pod, [])[0].permanent
    pod["spec"]["containers"][0]["volumeMounts"] = [
        token,
        {"mountPath": "/tools"},
    ]  # may contain the command
    assert not diagnose(pod, [])[0].permanent


def test_a_program_that_wrote_a_log_runs_on_this_architecture() -> None:
    [cause] = diagnose(ended(255), [], {"main": "PHP Fatal error: no such class"})
    assert cause.category is Category.CRASH


def test_a_crash_after_a_long_run_is_counted_alone() -> None:
    pod = ended(1, restarts=7)
    assert diagnose(pod, [])[0].times == 8
    pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["startedAt"] = "2025-12-31T00:00:00Z"
    assert diagnose(pod, [])[0].times == 1


def test_a_missing_command_below_a_mounted_volume_is_not_permanent() -> None:
    pod = waiting("CreateContainerError", 'exec: "/scripts/start": stat /scripts/start: no such file or directory')
    assert diagnose(pod, [])[0].permanent
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "scripts", "mountPath": "/scripts"}]
    assert not diagnose(pod, [])[0].permanent


def test_a_probe_that_killed_a_container_explains_only_the_run_that_it_ended() -> None:
    killed = event("Killing", "Container main failed liveness probe, will be restarted", at="2026-01-01T00:00:10Z")
    message = event(
        "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500", at="2026-01-01T00:00:09Z"
    )
    [cause] = diagnose(ended(137), [killed, message])
    assert cause.category is Category.LIVENESS
    assert "statuscode: 500" in cause.evidence
    before = event("Killing", "Container main failed liveness probe, will be restarted", at="2026-01-01T00:00:02Z")
    [cause] = diagnose(ended(1), [before])
    assert cause.category is Category.CRASH


def test_a_container_that_has_crashed_and_runs_unready_has_two_causes() -> None:
    pod = ended(1, restarts=1, state={"running": {"startedAt": "2026-01-01T00:00:11Z"}})
    pod["spec"]["containers"][0]["readinessProbe"] = {}
    assert [cause.category for cause in diagnose(pod, [])] == [Category.CRASH, Category.READINESS]


# --- probes


@pytest.mark.parametrize(
    ("probe", "seconds"),
    [
        (None, 0),
        ({}, 30),
        ({"periodSeconds": 2, "failureThreshold": 5}, 10),
        ({"initialDelaySeconds": 7, "periodSeconds": 2, "failureThreshold": 1}, 9),
        ({"periodSeconds": 1, "timeoutSeconds": 4, "failureThreshold": 3}, 12),
        ({"periodSeconds": 5, "failureThreshold": 1, "successThreshold": 3}, 15),
    ],
)
def test_a_probe_may_fail_for_as_long_as_its_settings_allow(probe: object, seconds: int) -> None:
    assert probe_grace(probe) == timedelta(seconds=seconds)


def running(**status: object) -> Object:
    pod = waiting("")
    container = {"name": "main", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "started": True, **status}
    pod["spec"]["containers"][0] |= {"startupProbe": {"periodSeconds": 1, "failureThreshold": 20},
                                     "readinessProbe": {"periodSeconds": 2, "failureThreshold": 2}}  # fmt: skip
    pod["status"]["containerStatuses"] = [container]
    return pod


def test_the_grace_periods_of_startup_and_readiness_probe_add_up() -> None:
    [cause] = diagnose(running(started=False), [])
    assert (cause.category, cause.grace) == (Category.STARTUP, timedelta(seconds=25))
    [cause] = diagnose(running(), [])
    assert (cause.category, cause.grace) == (Category.READINESS, timedelta(seconds=25))


def test_readiness_that_was_lost_has_no_grace_period() -> None:
    pod = running()
    lost = {"type": "ContainersReady", "status": "False", "lastTransitionTime": "2026-01-01T00:10:00Z"}
    pod["status"]["conditions"] = [lost]
    [cause] = diagnose(pod, [])
    assert (cause.since, cause.grace) == (as_time("2026-01-01T00:10:00Z"), timedelta())


def test_a_readiness_gate_that_is_not_true_is_reported() -> None:
    pod = running(ready=True)
    pod["spec"]["readinessGates"] = [{"conditionType": "target-health"}]
    pod["status"]["conditions"] = [{"type": "ContainersReady", "status": "True"}]
    [cause] = diagnose(pod, [])
    assert cause.category is Category.READINESS
    assert "target-health" in cause.summary


# --- Services


TEMPLATE = {"metadata": {"labels": {"app": "shop"}},
            "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}]}}  # fmt: skip


def service(*ports: Object, **spec: object) -> Object:
    return {"kind": "Service", "metadata": {"name": "shop", "namespace": "staging"},
            "spec": {"selector": {"app": "shop"}, "ports": list(ports), **spec}}  # fmt: skip


def endpoints(*names: str, ready: bool | None = True) -> Object:
    return {"metadata": {"labels": {"kubernetes.io/service-name": "shop"}}, "ports": [{"name": name} for name in names],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]}  # fmt: skip


def test_a_service_with_a_ready_endpoint_for_each_port_has_no_cause() -> None:
    assert (
        endpoint_problem(service({"port": 80, "targetPort": "http"}), [endpoints("")], [TEMPLATE], since=None) is None
    )
    assert endpoint_problem(service({"port": 80}), [endpoints("", ready=None)], [TEMPLATE], since=None) is None
    assert endpoint_problem(service(clusterIP="None"), [], [TEMPLATE], since=None) is None


def test_a_target_port_name_that_no_container_declares_is_permanent() -> None:
    two_ports = service({"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "targetPort": "web"})
    cause = endpoint_problem(two_ports, [endpoints("a")], [TEMPLATE], since=None)
    assert cause is not None
    assert (cause.category, cause.permanent) == (Category.PORT, True)
    assert "named web" in cause.summary
    assert "http" in cause.evidence


def test_a_target_port_of_another_workloads_pods_is_not_this_workloads_problem() -> None:
    one_port = service({"port": 80, "targetPort": "web"})
    assert endpoint_problem(one_port, [endpoints("", ready=False)], [TEMPLATE], since=None) is None


def test_a_service_without_ready_endpoints_may_recover() -> None:
    for slices in ([], [endpoints("", ready=False)]):
        cause = endpoint_problem(service({"port": 80, "targetPort": 8080}), slices, TEMPLATE, since=None)
        assert cause is not None
        assert (cause.category, cause.permanent) == (Category.SERVICE, False)


def test_a_port_that_refuses_connections_is_reported_with_the_declared_ports() -> None:
    one_port = service({"port": 80, "targetPort": 9999})
    port_results = [PortResult("shop", 80, open=False, error="dial tcp 10.0.0.1:9999: connect: connection refused")]
    cause = endpoint_problem(one_port, [endpoints("")], [TEMPLATE], port_results, since=None)
    assert cause is not None
    assert (cause.category, cause.permanent) == (Category.PORT, False)
    assert "9999" in cause.summary
    assert "8080" in cause.summary
    assert "refused" in cause.evidence
    assert (
        endpoint_problem(one_port, [endpoints("")], [TEMPLATE], [PortResult("shop", 80, open=True)], since=None) is None
    )


# --- a ReplicaSet that is refused


@pytest.mark.parametrize(
    ("message", "category", "sentence"),
    [
        ('Failed to create new replica set "shop-6f": replicasets.apps "shop-6f" is forbidden: exceeded quota: sets',
         Category.QUOTA, "may not create the ReplicaSet: exceeded quota: sets"),
        ('Failed to create new replica set "shop-6f": admission webhook "policy.example" denied the request: no',
         Category.ADMISSION, "refuses the ReplicaSet of deployment/shop"),
        ('Failed to create new replica set "shop-6f": etcdserver: leader changed', Category.REPLICA_SET,
         "cannot create its new ReplicaSet: etcdserver"),
    ],
)  # fmt: skip
def test_a_replica_set_that_is_not_created_is_explained(message: str, category: Category, sentence: str) -> None:
    owner = {"kind": "Deployment", "metadata": {"name": "shop"}}
    cause = replica_set_creation_problem(owner, message, since=None, last_seen=None)
    assert cause.category is category
    assert sentence in cause.summary


def test_each_problem_of_a_container_has_its_own_start() -> None:
    pulled = event("Failed", 'Failed to pull image "x": connection refused', at="2026-01-01T00:00:01Z")
    events = [pulled, event("Failed", 'Error: configmap "x" not found', at="2026-01-01T00:00:31Z")]
    [cause] = diagnose(waiting("CreateContainerConfigError", 'configmap "x" not found'), events)
    assert cause.since == as_time("2026-01-01T00:00:31Z")
    [cause] = diagnose(waiting("ErrImagePull", "connection refused"), events)
    assert cause.since == as_time("2026-01-01T00:00:01Z")


def test_a_problem_cannot_have_started_before_the_latest_run() -> None:
    pod = ended(1, restarts=1, state={"waiting": {"reason": "ErrImagePull", "message": "connection refused"}})
    pulled = event("Failed", 'Failed to pull image "x": connection refused', at="2026-01-01T00:00:01Z")
    [cause] = diagnose(pod, [pulled])
    assert cause.since == as_time("2026-01-01T00:00:10Z")


def test_a_repeatedly_failing_start_began_with_the_first_failure() -> None:
    failed = event(
        "Failed", "Error: failed to create containerd task: not a directory: mount", at="2026-01-01T00:00:01Z"
    )
    end = {"exitCode": 128, "reason": "StartError", "message": "mount", "finishedAt": "2026-01-01T00:00:31Z"}
    for state in ({"waiting": {"reason": "CrashLoopBackOff"}}, {"waiting": {"reason": "RunContainerError"}}):
        pod = ended(0, state=state, lastState={"terminated": end})
        assert diagnose(pod, [failed])[0].since == as_time("2026-01-01T00:00:01Z")
