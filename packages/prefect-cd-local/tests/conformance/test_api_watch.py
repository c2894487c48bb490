"""Lists in parts, watches from a version, deletion of objects. Recorded on Kubernetes 1.36.3."""

from typing import Any

import pytest

from conformance.api import MERGE, Api

pytestmark = pytest.mark.timeout(60)
Object = dict[str, Any]


def make(api: Api, name: str, **labels: str) -> Object:
    return api.post(f"{api.core}/configmaps", {"metadata": {"name": name, "labels": labels}}).body  # type: ignore[no-any-return]


def summary(events: list[Object]) -> list[tuple[str, str]]:
    return [(item["type"], item["object"]["metadata"].get("name", "")) for item in events]


def test_a_list_in_parts_shows_one_state(api: Api) -> None:
    for name in ("l1", "l2", "l3"):
        make(api, name, t="list")
    path = f"{api.core}/configmaps?labelSelector=t%3Dlist&limit=2"
    first = api.get(path).body
    assert [item["metadata"]["name"] for item in first["items"]] == ["l1", "l2"]
    assert "kind" not in first["items"][0]
    api.ask("DELETE", f"{api.core}/configmaps/l3")
    second = api.get(f"{path}&continue={first['metadata']['continue']}").body
    assert [item["metadata"]["name"] for item in second["items"]] == ["l3"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]


def test_a_watch_reports_the_changes_since_a_version(api: Api) -> None:
    version = make(api, "w0", t="watch")["metadata"]["resourceVersion"]
    make(api, "w1", t="watch")
    api.ask("PATCH", f"{api.core}/configmaps/w1", {"data": {"a": "1"}}, MERGE)
    last = api.get(f"{api.core}/configmaps/w1").body["metadata"]["resourceVersion"]
    api.ask("DELETE", f"{api.core}/configmaps/w1")
    query = f"watch=1&resourceVersion={version}&timeoutSeconds=1&labelSelector=t%3Dwatch"
    events = api.events(f"{api.core}/configmaps?{query}")
    assert summary(events) == [("ADDED", "w1"), ("MODIFIED", "w1"), ("DELETED", "w1")]
    assert int(events[-1]["object"]["metadata"]["resourceVersion"]) > int(last)
    assert events[0]["object"]["kind"] == "ConfigMap"


def test_a_watch_reports_an_object_that_stops_matching_as_deleted(api: Api) -> None:
    version = make(api, "s1", t="sel")["metadata"]["resourceVersion"]
    for value in ("other", "sel"):
        api.ask("PATCH", f"{api.core}/configmaps/s1", {"metadata": {"labels": {"t": value}}}, MERGE)
    query = f"watch=1&resourceVersion={version}&timeoutSeconds=1&labelSelector=t%3Dsel"
    events = api.events(f"{api.core}/configmaps?{query}")
    assert summary(events) == [("DELETED", "s1"), ("ADDED", "s1")]
    assert events[0]["object"]["metadata"]["labels"] == {"t": "sel"}


def test_a_watch_can_begin_with_a_list_and_marks_its_end(api: Api) -> None:
    make(api, "i1", t="initial")
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    events = api.events(f"{api.core}/configmaps?{query}&labelSelector=t%3Dinitial")
    assert summary(events)[:2] == [("ADDED", "i1"), ("BOOKMARK", "")]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_finalizers_delay_removal_and_cannot_be_added_late(api: Api) -> None:
    path = f"{api.core}/configmaps/held"
    api.post(f"{api.core}/configmaps", {"metadata": {"name": "held", "finalizers": ["e.x/held"]}})
    dying = api.ask("DELETE", path, {"propagationPolicy": "Background"}).body
    assert dying["metadata"]["deletionGracePeriodSeconds"] == 0
    assert "deletionTimestamp" in dying["metadata"]
    late = api.ask("PATCH", path, {"metadata": {"finalizers": ["e.x/held", "e.x/late"]}}, MERGE)
    assert set(late.causes) == {("metadata.finalizers", "FieldValueForbidden")}
    assert api.ask("PATCH", path, {"metadata": {"finalizers": None}}, MERGE).status == 200
    assert api.get(path).status == 404


def test_a_pod_on_a_node_is_deleted_in_two_steps(api: Api) -> None:
    pod = {"metadata": {"name": "grace"}, "spec": {"nodeName": "e-a-none", "containers": [{"name": "c", "image": "i"}]}}
    assert api.post(f"{api.core}/pods", pod).body["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    first = api.ask("DELETE", f"{api.core}/pods/grace", {"gracePeriodSeconds": 50}).body["metadata"]
    assert first["deletionGracePeriodSeconds"] == 50
    api.ask("DELETE", f"{api.core}/pods/grace", {"gracePeriodSeconds": 0})
    assert api.get(f"{api.core}/pods/grace").status == 404


def test_a_pod_is_bound_once(api: Api) -> None:
    pod = {
        "metadata": {"name": "bound"},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "i"}]},
    }
    api.post(f"{api.core}/pods", pod)
    binding = {"metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "e-a-n1"}}
    assert api.ask("POST", f"{api.core}/pods/bound/binding", binding).status == 201
    again = api.ask("POST", f"{api.core}/pods/bound/binding", binding)
    assert (again.status, again.message.rpartition(": ")[2]) == (409, 'pod bound is already assigned to node "e-a-n1"')
    bound = api.get(f"{api.core}/pods/bound").body
    assert bound["spec"]["nodeName"] == "e-a-n1"
    assert [(condition["type"], condition["status"]) for condition in bound["status"]["conditions"]] == [
        ("PodScheduled", "True")
    ]
    api.ask("DELETE", f"{api.core}/pods/bound", {"gracePeriodSeconds": 0})


def test_a_lease_changes_its_holder_by_version(api: Api) -> None:
    body = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z"}}
    made = api.post(api.leases, body).body
    taken = api.ask("PUT", f"{api.leases}/l", {**made, "spec": {**made["spec"], "holderIdentity": ""}})
    assert (taken.status, taken.body["spec"]["holderIdentity"]) == (200, "")
    assert api.ask("PUT", f"{api.leases}/l", made).reason == "Conflict"


def test_lists_as_tables_and_as_metadata_only(api: Api) -> None:
    make(api, "t1", t="table")
    path = f"{api.core}/configmaps?labelSelector=t%3Dtable"
    table = api.get(path, Accept="application/json;as=Table;g=meta.k8s.io;v=v1").body
    assert [(column["name"], column["priority"]) for column in table["columnDefinitions"]] == [
        ("Name", 0),
        ("Data", 0),
        ("Age", 0),
    ]
    assert table["rows"][0]["cells"][:2] == ["t1", 0]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    partial = api.get(path, Accept="application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").body
    assert partial["kind"] == "PartialObjectMetadataList"
    assert set(partial["items"][0]) <= {"kind", "apiVersion", "metadata"}


def test_a_service_gets_an_address_and_defaults(api: Api) -> None:
    made = api.post(f"{api.core}/services", {"metadata": {"name": "addr"}, "spec": {"ports": [{"port": 80}]}}).body[
        "spec"
    ]
    assert made["clusterIPs"] == [made["clusterIP"]]
    del made["clusterIP"], made["clusterIPs"]
    assert made == {
        "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        "sessionAffinity": "None",
        "type": "ClusterIP",
    }
