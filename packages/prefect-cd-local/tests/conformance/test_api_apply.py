"""Field ownership: server-side apply, updates beside it, conflicts. Recorded on Kubernetes 1.36.3."""

from typing import Any

import pytest

from conformance.api import JSON, MERGE, STRATEGIC, Answer, Api, claims

pytestmark = pytest.mark.timeout(60)
Object = dict[str, Any]
LEAF: Object = {}


def deployment(name: str, containers: list[Object], *, labels: Object | None = None, **spec: Any) -> Object:  # noqa: ANN401
    """A paused Deployment without pods, so that no controller changes it."""
    template = {"metadata": {"labels": {"a": name}}, "spec": {"containers": containers}}
    full_spec = {"selector": {"matchLabels": {"a": name}}, "template": template, "paused": True, **spec}
    metadata = {"name": name, **({"labels": labels} if labels is not None else {})}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": full_spec}


def container(name: str = "x", image: str = "i:1", **more: Any) -> Object:  # noqa: ANN401  any JSON
    return {"name": name, "image": image, **more}


def names(answer: Answer) -> list[str]:
    return [entry["name"] for entry in answer.body["spec"]["template"]["spec"]["containers"]]


def env(answer: Answer) -> list[str]:
    return [entry["name"] for entry in answer.body["spec"]["template"]["spec"]["containers"][0].get("env") or ()]


def test_an_apply_owns_what_it_sets_and_a_create_owns_defaults_too(api: Api) -> None:
    body = deployment("own", [container(ports=[{"containerPort": 80}])], replicas=0)
    item = api.apply(f"{api.apps}/deployments/own", body, "m1").body
    port = {'k:{"containerPort":80,"protocol":"TCP"}': {".": LEAF, "f:containerPort": LEAF}}
    assert claims(item)["m1 Apply"] == {
        "f:spec": {
            "f:paused": LEAF,
            "f:replicas": LEAF,
            "f:selector": LEAF,
            "f:template": {
                "f:metadata": {"f:labels": {"f:a": LEAF}},
                "f:spec": {
                    "f:containers": {'k:{"name":"x"}': {".": LEAF, "f:image": LEAF, "f:name": LEAF, "f:ports": port}}
                },
            },
        }
    }
    made = api.post(
        f"{api.apps}/deployments?fieldManager=c&dryRun=All", deployment("own2", [container()], replicas=0)
    ).body
    owned = claims(made)["c Update"]["f:spec"]
    assert owned["f:strategy"] == {
        "f:rollingUpdate": {".": LEAF, "f:maxSurge": LEAF, "f:maxUnavailable": LEAF},
        "f:type": LEAF,
    }
    assert owned["f:template"]["f:metadata"] == {"f:labels": {".": LEAF, "f:a": LEAF}}
    assert owned["f:template"]["f:spec"]["f:containers"] == {
        'k:{"name":"x"}': {
            ".": LEAF,
            "f:image": LEAF,
            "f:imagePullPolicy": LEAF,
            "f:name": LEAF,
            "f:resources": LEAF,
            "f:terminationMessagePath": LEAF,
            "f:terminationMessagePolicy": LEAF,
        }
    }


def test_a_conflict_names_the_other_owner_and_the_field(api: Api) -> None:
    path = f"{api.apps}/deployments/conflict"
    api.apply(path, deployment("conflict", [container()], replicas=0, minReadySeconds=1), "m1")
    one = api.apply(path, deployment("conflict", [container()], replicas=0, minReadySeconds=2), "m2")
    assert (one.status, one.reason) == (409, "Conflict")
    assert one.message == 'Apply failed with 1 conflict: conflict with "m1": .spec.minReadySeconds'
    assert one.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "m1"', "field": ".spec.minReadySeconds"}
    ]
    two = api.apply(path, deployment("conflict", [container(image="i:2")], replicas=0, minReadySeconds=2), "m2")
    assert two.message == (
        'Apply failed with 2 conflicts: conflicts with "m1":\n- .spec.minReadySeconds\n'
        '- .spec.template.spec.containers[name="x"].image'
    )
    api.ask("PATCH", f"{path}?fieldManager=u1", {"spec": {"minReadySeconds": 7}}, MERGE)
    updated = api.apply(path, deployment("conflict", [container()], replicas=0, minReadySeconds=1), "m1")
    assert updated.message == 'Apply failed with 1 conflict: conflict with "u1" using apps/v1: .spec.minReadySeconds'


def test_force_takes_a_field_and_what_is_no_longer_applied_is_removed(api: Api) -> None:
    path = f"{api.apps}/deployments/force"
    variables = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    api.apply(path, deployment("force", [container(env=variables)], replicas=0, minReadySeconds=1), "m1")
    forced = api.apply(path, deployment("force", [container()], replicas=0, minReadySeconds=3), "m2", "&force=true")
    assert forced.body["spec"]["minReadySeconds"] == 3
    assert "f:minReadySeconds" not in claims(forced.body)["m1 Apply"]["f:spec"]
    dropped = api.apply(path, deployment("force", [container(env=variables[:1])], replicas=0), "m1")
    assert env(dropped) == ["A"]
    assert dropped.body["spec"]["minReadySeconds"] == 3  # another manager owns it now
    alone = api.apply(path, deployment("force", [container()], replicas=0), "m2")
    assert "minReadySeconds" not in alone.body["spec"]  # no manager owns it any more


def test_labels_that_are_no_longer_applied_are_removed_and_the_object_stays(api: Api) -> None:
    path = f"{api.core}/configmaps/labels"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "labels", "labels": {"a": "b"}}}
    assert api.apply(path, {**body, "data": {"x": "1"}}, "m1").body["metadata"]["labels"] == {"a": "b"}
    bare = api.apply(path, {**body, "metadata": {"name": "labels"}}, "m1")
    assert (bare.status, bare.body.get("data"), bare.body["metadata"].get("labels")) == (200, None, None)
    assert claims(bare.body) == {}


def test_elements_of_two_managers_share_a_list_in_the_order_of_the_last_apply(api: Api) -> None:
    path = f"{api.apps}/deployments/order"
    api.apply(path, deployment("order", [container()], replicas=0), "m1")
    assert names(api.apply(path, deployment("order", [container("side"), container()], replicas=0), "m2")) == [
        "side",
        "x",
    ]
    assert names(api.apply(path, deployment("order", [container(), container("z")], replicas=0), "m1")) == [
        "side",
        "x",
        "z",
    ]
    assert names(api.apply(path, deployment("order", [container()], replicas=0), "m2")) == ["x", "z"]


def test_patches_take_ownership_of_what_they_change(api: Api) -> None:
    path = f"{api.apps}/deployments/patch"
    variables = [{"name": "A", "value": "1"}, {"name": "C", "value": "1"}]
    api.apply(path, deployment("patch", [container(env=variables)], replicas=0), "m1")
    changed = {"name": "x", "image": "i:9", "env": [{"name": "A", "$patch": "delete"}, {"name": "Q", "value": "q"}]}
    body = {"spec": {"template": {"spec": {"containers": [changed]}}}}
    strategic = api.ask("PATCH", f"{path}?fieldManager=u1", body, STRATEGIC)
    assert env(strategic) == ["Q", "C"]
    owned = claims(strategic.body)["u1 Update"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    variable = {'k:{"name":"Q"}': {".": LEAF, "f:name": LEAF, "f:value": LEAF}}
    assert owned == {'k:{"name":"x"}': {"f:env": variable, "f:image": LEAF}}
    merged = api.ask("PATCH", f"{path}?fieldManager=u1", {"metadata": {"annotations": {"n": "1"}}}, MERGE)
    assert claims(merged.body)["u1 Update"]["f:metadata"] == {"f:annotations": {".": LEAF, "f:n": LEAF}}
    operations = [
        {"op": "add", "path": "/metadata/annotations/z", "value": "z"},
        {"op": "remove", "path": "/metadata/annotations/n"},
        {"op": "replace", "path": "/spec/template/spec/containers/0/env", "value": [{"name": "W", "value": "w"}]},
    ]
    by_path = api.ask("PATCH", f"{path}?fieldManager=u2", operations, JSON)
    assert env(by_path) == ["W"]
    assert claims(by_path.body)["u2 Update"]["f:metadata"] == {"f:annotations": {"f:z": LEAF}}
    kept = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert api.ask("PATCH", path, kept, STRATEGIC).body["spec"]["strategy"] == {"type": "Recreate"}
    sidecar = {
        "$setElementOrder/containers": [{"name": "n"}, {"name": "x"}],
        "containers": [container("n"), container("x")],
    }
    assert names(api.ask("PATCH", path, {"spec": {"template": {"spec": sidecar}}}, STRATEGIC)) == ["n", "x"]
    one = {"spec": {"template": {"spec": {"containers": [{"name": "x", "image": "i:10"}]}}}}
    assert names(api.ask("PATCH", path, one, STRATEGIC)) == ["n", "x"]


def test_the_same_apply_twice_changes_nothing_at_all(api: Api) -> None:
    body = deployment("twice", [container(resources={"limits": {"memory": "1024Mi", "cpu": "1000m"}})], replicas=0)
    first = api.apply(f"{api.apps}/deployments/twice", body, "m1").body
    limits = first["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "1Gi", "cpu": "1"}
    again = api.apply(f"{api.apps}/deployments/twice", body, "m1").body
    assert again["metadata"]["generation"] == first["metadata"]["generation"]
    entries = [
        [entry for entry in item["metadata"]["managedFields"] if entry["manager"] == "m1"] for item in (first, again)
    ]
    assert entries[0] == entries[1]  # the time is the same, too


def test_managed_fields_that_were_removed_return_with_the_next_apply(api: Api) -> None:
    path = f"{api.core}/configmaps/wiped"
    api.post(f"{api.core}/configmaps?fieldManager=c", {"metadata": {"name": "wiped"}, "data": {"a": "1"}})
    assert claims(api.ask("PATCH", path, {"metadata": {"managedFields": [{}]}}, MERGE).body) == {}
    assert claims(api.ask("PATCH", path, {"data": {"a": "2"}}, MERGE).body) == {}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wiped"}, "data": {"a": "3"}}
    refused = api.apply(path, body, "m")
    assert refused.message == 'Apply failed with 1 conflict: conflict with "before-first-apply" using v1: .data.a'
    assert claims(api.apply(path, body, "m", "&force=true").body)["m Apply"] == {"f:data": {"f:a": LEAF}}


def test_status_and_scale_are_written_and_owned_separately(api: Api) -> None:
    path = f"{api.apps}/replicasets/apart"
    spec = {"replicas": 0, "selector": {"matchLabels": {"a": "apart"}}}
    spec["template"] = {"metadata": {"labels": {"a": "apart"}}, "spec": {"containers": [container()]}}
    made = api.post(
        f"{api.apps}/replicasets?fieldManager=c",
        {"metadata": {"name": "apart"}, "spec": spec, "status": {"replicas": 9}},
    )
    assert made.body["status"] == {"replicas": 0}
    condition = {"type": "X", "status": "True"}
    written = {"spec": {"replicas": 5}, "status": {"conditions": [condition]}}
    scaled = api.ask("PATCH", f"{path}/status?fieldManager=s", written, MERGE).body
    assert (scaled["spec"]["replicas"], scaled["metadata"]["generation"]) == (0, 1)
    assert claims(scaled)["s Update/status"]["f:status"]["f:conditions"]['k:{"type":"X"}'] == {
        ".": LEAF,
        "f:lastTransitionTime": LEAF,
        "f:status": LEAF,
        "f:type": LEAF,
    }
    scale = api.get(f"{path}/scale").body
    assert (scale["kind"], scale["spec"], scale["status"]["selector"]) == ("Scale", {}, "a=apart")
    refused = api.ask("PATCH", f"{path}/scale", {"spec": {"replicas": -1}}, MERGE)
    assert (refused.status, refused.message.split(":")[0]) == (422, 'Scale.autoscaling "apart" is invalid')
    assert api.ask("PATCH", f"{path}/scale?fieldManager=k&dryRun=All", {"spec": {"replicas": 1}}, MERGE).body[
        "spec"
    ] == {"replicas": 1}


def test_a_secret_s_text_becomes_data(api: Api) -> None:
    body = {"metadata": {"name": "text"}, "stringData": {"a": "b"}, "data": {"c": "ZA=="}}
    made = api.post(f"{api.core}/secrets?fieldManager=c", body).body
    assert (made["data"], made["type"]) == ({"a": "Yg==", "c": "ZA=="}, "Opaque")
    assert claims(made)["c Update"] == {"f:data": {".": LEAF, "f:a": LEAF, "f:c": LEAF}, "f:type": LEAF}
