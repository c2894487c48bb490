"""Which fields become ours, so that the next apply removes them, and which stay with their owners."""

import copy
from typing import Any

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.managed_fields import (
    fields_to_take,
    with_fields,
    with_live_strategy,
    with_own_strategy,
    without_fields,
)

OURS = "prefect-cd"


def entry(manager: str, operation: str, fields: Object, **more: object) -> Object:
    return {"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsV1": fields, **more}


def data(*keys: str) -> Object:
    return {"f:data": {".": {}, **{f"f:{key}": {} for key in keys}}}


def config_map(*entries: Object, kind: str = "ConfigMap", **values: str) -> Object:
    metadata = {"name": "shop", "managedFields": list(entries)}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": values}


KUBECTL = entry("kubectl-client-side-apply", "Update", data("keep", "legacy"))
APPLIED = entry(OURS, "Apply", data("keep"))
THEIRS = entry("someone", "Update", data("theirs"))
LIVE = config_map(KUBECTL, APPLIED, THEIRS, keep="1", legacy="1", theirs="1")
WANTED = config_map(keep="1")


def test_what_kubectl_applied_becomes_ours_and_kubectl_is_no_manager_any_more() -> None:
    fields = fields_to_take(LIVE, WANTED, OURS, client_side=True)
    assert fields == KUBECTL["fieldsV1"]
    before = copy.deepcopy(LIVE)
    assert with_fields(LIVE, fields, OURS) == [entry(OURS, "Apply", data("keep", "legacy")), THEIRS]
    assert before == LIVE


def test_where_we_have_applied_nothing_yet_there_is_a_new_entry() -> None:
    live = config_map(KUBECTL, keep="1", legacy="1")
    (ours,) = with_fields(live, fields_to_take(live, WANTED, OURS, client_side=True), OURS)
    assert (ours["manager"], ours["operation"], ours["apiVersion"]) == (OURS, "Apply", "v1")
    assert ours["fieldsV1"] == KUBECTL["fieldsV1"]


def test_the_plan_shows_the_object_without_what_only_kubectl_wanted() -> None:
    fields = fields_to_take(LIVE, WANTED, OURS, client_side=True)
    assert without_fields(LIVE, fields, OURS)["data"] == {"keep": "1", "theirs": "1"}
    shared = config_map(KUBECTL, APPLIED, entry("someone", "Update", data("legacy")), keep="1", legacy="1")
    fields = fields_to_take(shared, WANTED, OURS, client_side=True)
    assert without_fields(shared, fields, OURS)["data"] == {"keep": "1", "legacy": "1"}


@pytest.mark.parametrize(
    "other",
    [
        {**KUBECTL, "subresource": "status"},
        {**KUBECTL, "apiVersion": "v2"},
        {**KUBECTL, "operation": "Apply"},
        {**KUBECTL, "manager": "kubectl-edit"},
    ],
)
def test_fields_of_other_managers_stay_theirs(other: Object) -> None:
    live = config_map(other, APPLIED, keep="1", legacy="1")
    assert fields_to_take(live, WANTED, OURS, client_side=True) == {}
    assert without_fields(live, {}, OURS) == live


def test_nothing_is_taken_without_being_asked_for() -> None:
    assert fields_to_take(LIVE, WANTED, OURS, client_side=False) == {}


def test_items_of_lists_are_removed_by_their_keys_and_values() -> None:
    item = {'k:{"name":"a"}': {".": {}, "f:name": {}}, 'k:{"name":"b"}': {"f:value": {}}}
    fields = {"f:spec": {"f:env": item, "f:finalizers": {'v:"x"': {}}, "f:gone": {}}}
    spec = {"env": [{"name": "a"}, {"name": "b", "value": "1"}], "finalizers": ["x", "y"]}
    live = {"apiVersion": "v1", "kind": "Any", "metadata": {"name": "shop"}, "spec": spec}
    assert without_fields(live, fields, OURS)["spec"] == {"env": [{"name": "b"}], "finalizers": ["y"]}


def test_keys_of_a_secret_that_nobody_owns_become_ours() -> None:
    string_data = entry(OURS, "Apply", {"f:stringData": {"f:user": {}, "f:colour": {}}})
    live = config_map(string_data, THEIRS, kind="Secret", user="1", colour="1", theirs="1")
    wanted = config_map(kind="Secret", colour="1")
    fields = fields_to_take(live, wanted, OURS, client_side=False)
    assert fields == {"f:data": {"f:user": {}}}
    assert without_fields(live, fields, OURS)["data"] == {"colour": "1", "theirs": "1"}
    older = {**config_map(kind="Secret"), "stringData": {"user": "1", "colour": "1"}}
    assert fields_to_take(live, older, OURS, client_side=False) == {}
    assert fields_to_take(config_map(string_data, user="1"), WANTED, OURS, client_side=False) == {}  # no Secret


def workload(kind: str, **strategy: Any) -> Object:  # noqa: ANN401  JSON is anything
    key = "strategy" if kind == "Deployment" else "updateStrategy"
    spec = {key: strategy} if strategy else {}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "shop"}, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "other"), [("Deployment", "Recreate"), ("StatefulSet", "OnDelete"), ("DaemonSet", "OnDelete")]
)
def test_a_default_strategy_makes_room_for_another_one(kind: str, other: str) -> None:
    live = workload(kind, type="RollingUpdate", rollingUpdate={"maxUnavailable": "25%"})
    item = workload(kind, type=other)
    key = "f:strategy" if kind == "Deployment" else "f:updateStrategy"
    expected = {"f:spec": {key: {"f:rollingUpdate": {"f:maxUnavailable": {}}}}}
    assert fields_to_take(live, item, OURS, client_side=False) == expected
    dry_run = with_live_strategy(live, item)
    assert dry_run["spec"] == live["spec"]
    assert with_own_strategy(dry_run, item)["spec"] == item["spec"]


@pytest.mark.parametrize(
    ("live", "item"),
    [
        (workload("Deployment", type="Recreate"), workload("Deployment")),
        (workload("Deployment", type="Recreate"), workload("Deployment", type="Recreate")),
        (workload("Deployment", type="RollingUpdate", rollingUpdate={"maxSurge": 1}), workload("Deployment")),
        (  # of a manifest that contradicts itself, the server says what is wrong
            workload("Deployment", type="RollingUpdate", rollingUpdate={"maxSurge": 1}),
            workload("Deployment", type="Recreate", rollingUpdate={"maxSurge": 1}),
        ),
    ],
)
def test_other_strategies_are_applied_as_they_are(live: Object, item: Object) -> None:
    assert fields_to_take(live, item, OURS, client_side=False) == {}
    assert with_live_strategy(live, item) == item
