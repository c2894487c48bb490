from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd_local.controllers import endpoints, objects, ownership, pods

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=timezone.utc)
Object = dict[str, Any]


def pod(name: str, *, ready: int | None = 60, node: str = "n", phase: str = "Running", **more: Any) -> Object:  # noqa: ANN401 - labels, counters, times
    """Make a pod that has been ready for some seconds, or is not."""
    condition = {"type": "Ready", "status": "True" if ready is not None else "False"}
    condition["lastTransitionTime"] = objects.time_text(NOW - timedelta(seconds=ready or 0))
    spec: Object = {"nodeName": node} if node else {}
    spec["containers"] = [{"name": "c", "ports": more.pop("ports", [])}]
    status = {"phase": phase, "conditions": [condition], "podIP": more.pop("address", "127.1.0.1")}
    status["containerStatuses"] = [{"restartCount": more.pop("restarts", 0)}]
    born = objects.time_text(NOW - timedelta(seconds=more.pop("age", 3600)))
    meta = {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": born, "labels": {"app": "web"}, **more}
    return {"metadata": meta, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pod("z", node=""), pod("b", ready=None)),
        (pod("z", phase="Pending", ready=None), pod("b", ready=None)),
        (pod("z", ready=None), pod("b")),
        (pod("z", annotations={"controller.kubernetes.io/pod-deletion-cost": "-5"}), pod("b", ready=1)),
        (pod("z", ready=1), pod("b", ready=3000)),
        (pod("z", restarts=3), pod("b")),
        (pod("z", age=2), pod("b")),
    ],
    ids=["not scheduled", "pending", "not ready", "cheap", "ready since just now", "restarted", "young"],
)
def test_the_least_useful_pod_is_deleted_first(first: Object, second: Object) -> None:
    for order in ([first, second], [second, first]):
        assert pods.pods_to_delete(order, 1, NOW) == [first]


def replica_set(**spec: object) -> Object:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}
    meta = {"name": "web-1", "namespace": "shop", "uid": "r", "generation": 3}
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": {"template": template, **spec}}


def test_a_ready_pod_is_available_after_its_seconds() -> None:
    rs = replica_set(replicas=3, minReadySeconds=10)
    active = [pod("a", ready=10), pod("b", ready=4), pod("c", ready=None)]
    status = pods.set_status(rs, active, 1, None, NOW)
    expected = {"replicas": 3, "fullyLabeledReplicas": 3, "readyReplicas": 2, "availableReplicas": 1}
    assert status == {**expected, "terminatingReplicas": 1, "observedGeneration": 3}
    assert pods.next_available(rs, active, NOW) == 6


def test_a_failure_is_reported_once_and_removed_when_it_is_over() -> None:
    rs = replica_set(replicas=1)
    rs["status"] = pods.set_status(rs, [], 0, ("FailedCreate", "exceeded quota"), NOW)
    assert rs["status"]["conditions"][0]["reason"] == "FailedCreate"
    assert pods.set_status(rs, [], 0, ("FailedCreate", "other"), NOW)["conditions"] == rs["status"]["conditions"]
    assert "conditions" not in pods.set_status(rs, [], 0, None, NOW)


def service(**spec: object) -> Object:
    meta = {"name": "web", "namespace": "shop", "uid": "s", "labels": {"team": "x"}}
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    spec = {"selector": {"app": "web"}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


HTTP = [{"name": "http", "containerPort": 8080}]


@pytest.mark.parametrize(
    ("one_pod", "ready", "serving", "terminating"),
    [
        (pod("a", ports=HTTP), True, True, False),
        (pod("a", ports=HTTP, ready=None), False, False, False),
        (pod("a", ports=HTTP, deletionTimestamp="x"), False, True, True),
        (pod("a", ports=HTTP, ready=None, deletionTimestamp="x"), False, False, True),
    ],
    ids=["ready", "not ready", "ending and ready", "ending and not ready"],
)
def test_an_endpoint_has_conditions_for_new_and_for_old_connections(
    one_pod: Object, *, ready: bool, serving: bool, terminating: bool
) -> None:
    (slice_,) = endpoints.slices_of(service(), [one_pod])
    assert slice_["endpoints"][0]["conditions"] == {"ready": ready, "serving": serving, "terminating": terminating}
    assert slice_["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    assert slice_["metadata"]["labels"] == {
        "team": "x",
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }


def test_pods_that_have_finished_or_have_no_address_are_not_listed() -> None:
    candidates = [
        pod("a", phase="Failed", ports=HTTP),
        pod("b", address="", ports=HTTP),
        pod("c", ports=HTTP, labels={}),
    ]
    (slice_,) = endpoints.slices_of(service(), candidates)
    assert slice_["endpoints"] == []


def test_pods_with_another_number_for_the_named_port_are_in_another_slice() -> None:
    other = [{"name": "http", "containerPort": 9090}]
    wishes = endpoints.slices_of(service(), [pod("a", ports=HTTP), pod("b", ports=other), pod("c", ports=HTTP)])
    listed = [[entry["targetRef"]["name"] for entry in slice_["endpoints"]] for slice_ in wishes]
    assert listed == [["a", "c"], ["b"]]


def test_a_headless_service_that_publishes_all_pods_marks_them_ready() -> None:
    headless = service(clusterIP="None", publishNotReadyAddresses=True)
    (slice_,) = endpoints.slices_of(headless, [pod("a", ready=None, ports=HTTP)])
    assert slice_["endpoints"][0]["conditions"]["ready"]
    assert slice_["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"key": "app", "operator": "In", "values": ["web"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["web"]}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["web"]}, True),
        ({"key": "tier", "operator": "Exists"}, False),
        ({"key": "tier", "operator": "DoesNotExist"}, True),
    ],
)
def test_selectors_with_expressions(expression: Object, *, expected: bool) -> None:
    assert ownership.selects({"matchExpressions": [expression]}, {"app": "web"}) is expected
    assert ownership.selects({}, {"app": "web"})
