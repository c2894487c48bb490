"""Status, environment, scheduling and names of images, as pure functions."""

import asyncio
from typing import Any

import pytest

from prefect_cd_local.client import Resource
from prefect_cd_local.node import environment, scheduler, status
from prefect_cd_local.node.pull import PullError, parse
from prefect_cd_local.node.status import Record

Object = dict[str, Any]
WAITS: Object = {"waiting": {"reason": "ContainerCreating"}}
RUNS: Object = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def ended(code: int) -> Object:
    return status.terminated(code, "", "", "")


def record(state: Object, *, last: Object | None = None, ready: bool = False, sidecar: bool = False) -> Record:
    return Record("main", "image", state, last or {}, ready=ready, started="running" in state, sidecar=sidecar)


@pytest.mark.parametrize(
    ("policy", "init", "main", "over", "phase"),
    [
        ("Always", [], [record(WAITS)], False, "Pending"),
        ("Always", [], [record(WAITS, last=ended(1))], False, "Running"),
        ("Always", [], [record(RUNS), record(WAITS)], False, "Pending"),
        ("Always", [record(RUNS)], [record(WAITS)], False, "Pending"),
        ("Always", [record(ended(0))], [record(RUNS)], False, "Running"),
        ("Always", [], [record(ended(0))], False, "Running"),
        ("Never", [], [record(ended(0)), record(RUNS)], False, "Running"),
        ("Never", [], [record(ended(0))], False, "Succeeded"),
        ("Never", [], [record(ended(1)), record(ended(0))], False, "Failed"),
        ("OnFailure", [], [record(ended(1))], False, "Running"),
        ("Never", [record(ended(1))], [record(WAITS)], False, "Failed"),
        ("Always", [record(RUNS, sidecar=True)], [record(RUNS)], False, "Running"),
        ("Always", [], [record(ended(0))], True, "Succeeded"),
        ("Always", [], [record(ended(143))], True, "Failed"),
    ],
)
def test_the_phase_follows_from_the_containers(
    policy: str,
    init: list[Record],
    main: list[Record],
    over: bool,  # noqa: FBT001
    phase: str,
) -> None:
    assert status.phase(policy, init, main, over=over) == phase


def test_conditions_name_the_containers_that_are_missing() -> None:
    conditions = status.conditions("Pending", [record(RUNS)], [record(WAITS)], sandbox=True)
    assert conditions["Initialized"] == (
        "False",
        "ContainersNotInitialized",
        "containers with incomplete status: [main]",
    )
    assert conditions["Ready"] == ("False", "ContainersNotReady", "containers with unready status: [main]")
    assert conditions["PodReadyToStartContainers"][0] == "True"
    assert status.conditions("Running", [], [record(RUNS, ready=True)], sandbox=True)["Ready"] == ("True", "", "")


def test_the_time_of_a_condition_changes_with_its_status_only() -> None:
    first = status.merged([], {"Ready": ("False", "A", "")}, "1", None)
    second = status.merged(first, {"Ready": ("False", "B", "")}, "2", None)
    third = status.merged(second, {"Ready": ("True", "", "")}, "3", 4)
    assert [conditions[0]["lastTransitionTime"] for conditions in (first, second, third)] == ["1", "1", "3"]
    assert third[0]["observedGeneration"] == 4


def test_variables_are_expanded_as_kubernetes_does() -> None:
    assert environment.expand("$(A) $(B) $$(A) $A", {"A": "a"}) == "a $(B) $(A) $A"


@pytest.mark.parametrize(("text", "number"), [("250m", "0.250"), ("1Ki", "1024"), ("2", "2"), ("1.5G", "1500000000.0")])
def test_quantities_are_numbers(text: str, number: str) -> None:
    assert str(environment.quantity(text)) == number


def variables(env: list[Object], **objects: Object) -> dict[str, str]:
    async def find(_: Resource, name: str, __: str | None) -> Object | None:
        return objects.get(name)

    pod = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "main"}]}}
    container = {"name": "main", "env": env}
    return asyncio.run(environment.variables(pod, container, find, base={}, allocatable={"cpu": "4"}))


def test_values_come_from_config_maps_secrets_and_the_pod() -> None:
    environment_ = variables(
        [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": True}}},
            {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "E", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ],
        c={"data": {"k": "1"}},
        s={"data": {"k": "Mg=="}},
    )
    assert environment_ == {"A": "1", "B": "2", "D": "p", "E": "4"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "none", "key": "k"}}, 'configmap "none" not found'),
        ({"secretKeyRef": {"name": "none", "key": "k"}}, 'secret "none" not found'),
        ({"configMapKeyRef": {"name": "c", "key": "x"}}, "couldn't find key x in ConfigMap n/c"),
        ({"secretKeyRef": {"name": "c", "key": "x"}}, "couldn't find key x in Secret n/c"),
    ],
)
def test_missing_objects_are_reported_with_the_kubelets_messages(source: Object, message: str) -> None:
    with pytest.raises(environment.ConfigError) as caught:
        variables([{"name": "A", "valueFrom": source}], c={"data": {}})
    assert str(caught.value) == message


def test_services_become_environment_variables() -> None:
    api = {"metadata": {"name": "kubernetes", "namespace": "default"},
           "spec": {"clusterIP": "127.96.0.1", "ports": [{"name": "https", "port": 443}]}}  # fmt: skip
    mine = {
        "metadata": {"name": "my-db", "namespace": "n"},
        "spec": {"clusterIP": "127.96.0.2", "ports": [{"port": 5}]},
    }
    environment_ = environment.of_services([api, mine], "n", links=True)
    assert environment_["KUBERNETES_SERVICE_HOST"] == "127.96.0.1"
    assert environment_["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    assert environment_["MY_DB_PORT_5_TCP"] == "tcp://127.96.0.2:5"
    assert "MY_DB_SERVICE_HOST" not in environment.of_services([api, mine], "n", links=False)


@pytest.mark.parametrize(
    ("container", "image", "argv"),
    [
        ({}, {"Entrypoint": ["e"], "Cmd": ["c"]}, ["e", "c"]),
        ({"args": ["$(A)"]}, {"Entrypoint": ["e"], "Cmd": ["c"]}, ["e", "a"]),
        ({"command": ["$(A)"]}, {"Entrypoint": ["e"], "Cmd": ["c"]}, ["a"]),
        ({"command": ["x"], "args": ["y"]}, {"Entrypoint": ["e"], "Cmd": ["c"]}, ["x", "y"]),
    ],
)
def test_command_and_args_replace_those_of_the_image(container: Object, image: Object, argv: list[str]) -> None:
    assert environment.command(container, image, {"A": "a"}) == argv


NODE: Object = {
    "metadata": {"labels": {"disk": "slow"}},
    "spec": {},
    "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}},
}


def pod(cpu: str = "0", **spec: object) -> Object:
    return {"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}], **spec}}


@pytest.mark.parametrize(
    ("wanted", "node", "why"),
    [
        (pod(), {}, None),
        (pod(nodeSelector={"disk": "slow"}), {}, None),
        (pod(nodeSelector={"disk": "fast"}), {}, "1 node(s) didn't match Pod's node affinity/selector"),
        (pod(), {"unschedulable": True}, "1 node(s) were unschedulable"),
        (pod(), {"taints": [{"key": "a", "effect": "NoSchedule"}]}, "1 node(s) had untolerated taint(s)"),
        (pod(tolerations=[{"operator": "Exists"}]), {"taints": [{"key": "a", "effect": "NoSchedule"}]}, None),
        (pod("1"), {}, None),
        (pod("1500m"), {}, "1 Insufficient cpu"),  # the other pod has one
    ],
)
def test_the_scheduler_reports_why_the_node_does_not_accept_a_pod(
    wanted: Object, node: Object, why: str | None
) -> None:
    reason = scheduler.why_not(wanted, {**NODE, "spec": node}, [pod("1")])
    assert (reason is None) == (why is None)
    if why:
        assert str(reason).startswith(f"0/1 nodes are available: {why}. no new claims")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("acme/shop:1", "docker.io/acme/shop:1"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        (f"example.com/a@sha256:{'1' * 64}", f"example.com/a@sha256:{'1' * 64}"),
        (f"example.com/a:1@sha256:{'1' * 64}", f"example.com/a@sha256:{'1' * 64}"),
    ],
)
def test_image_names_get_defaults(text: str, whole: str) -> None:
    assert str(parse(text)) == whole


@pytest.mark.parametrize("text", ["Nginx", "a b", "x:", "localhost:5000/Not_Valid:1"])
def test_a_wrong_image_name_is_refused(text: str) -> None:
    with pytest.raises(PullError) as caught:
        parse(text)
    assert caught.value.reason == "InvalidImageName"
