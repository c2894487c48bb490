"""Who changed what by hand, by the fields' managers as the API server notes them."""

import json

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.hand_edits import hand_edits

WEB = json.dumps({"name": "web"})
RESTART = {"f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}}}}}
IMAGE = {"f:spec": {"f:template": {"f:spec": {"f:containers": {f"k:{WEB}": {"f:image": {}}}}}}}


def live(*entries: Object) -> Object:
    return {"kind": "Deployment", "metadata": {"name": "web", "managedFields": list(entries)}}


def entry(manager: str, fields: Object, time: str = "2026-01-01T09:00:00Z", **more: object) -> Object:
    return {"manager": manager, "operation": "Update", "time": time, "fieldsV1": fields, **more}


def test_it_names_who_changed_which_field_when() -> None:
    (edit,) = hand_edits(live(entry("kubectl-patch", IMAGE)))
    assert str(edit) == "kubectl-patch changed spec.template.spec.containers[web].image at 2026-01-01 09:00 UTC"


def test_the_oldest_comes_first_and_many_fields_are_counted() -> None:
    keys = {f"f:key-{number}": {} for number in range(7)}
    data = entry("kubectl-edit", {"f:data": keys}, "2026-01-01T08:00:00Z")
    edits = hand_edits(live(entry("kubectl-patch", IMAGE), data))
    assert [edit.manager for edit in edits] == ["kubectl-edit", "kubectl-patch"]
    assert str(edits[0]).startswith(
        "kubectl-edit changed data.key-0, data.key-1, data.key-2, data.key-3, data.key-4 and 2 more"
    )


@pytest.mark.parametrize(
    "entry_of_others",
    [
        entry("prefect-cd", IMAGE),
        entry("kube-controller-manager", IMAGE),
        entry("kubectl", IMAGE),
        entry("kubectl-client-side-apply", IMAGE),
        entry("kubectl-create", IMAGE),
        entry("kubectl-scale", {"f:spec": {"f:replicas": {}}}, subresource="scale"),
        entry("kubectl-rollout", RESTART),
    ],
    ids=lambda one: one["manager"],
)
def test_deliveries_controllers_and_restarts_are_no_hand_edits(entry_of_others: Object) -> None:
    assert hand_edits(live(entry_of_others)) == ()


def test_an_object_without_managers_has_none() -> None:
    assert hand_edits({"kind": "ConfigMap", "metadata": {"name": "a"}}) == ()


def test_items_of_lists_without_keys_are_shown_by_their_value() -> None:
    (edit,) = hand_edits(live(entry("kubectl-edit", {"f:spec": {"f:finalizers": {'v:"a"': {}}}})))
    assert edit.fields == ("spec.finalizers[a]",)


def test_an_item_that_somebody_added_is_named_as_a_whole() -> None:
    added = {f"k:{json.dumps({'name': 'BOOM'})}": {".": {}, "f:name": {}, "f:value": {}}}
    containers = {f"k:{WEB}": {"f:env": added}}
    (edit,) = hand_edits(live(entry("kubectl-set", {"f:spec": {"f:containers": containers}})))
    assert edit.fields == ("spec.containers[web].env[BOOM]",)
