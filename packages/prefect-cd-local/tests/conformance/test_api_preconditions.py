"""Writes that name an earlier object by uid or resourceVersion: which the API server refuses. Recorded on 1.36.3.

The lock and every write of prefect-cd rely on these answers.
"""

from typing import Any
from uuid import uuid4

import pytest

from conformance.api import APPLY, JSON, MERGE, STRATEGIC, Answer, Api

pytestmark = pytest.mark.timeout(60)
Object = dict[str, Any]
OTHER_UID = "00000000-0000-4000-8000-000000000000"
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
IMMUTABLE = f'metadata.uid: Invalid value: "{OTHER_UID}": field is immutable'
MISMATCH = f"uid mismatch: the provided object specified uid {OTHER_UID}, and no existing object was found"
FAILED = f"Precondition failed: UID in precondition: {OTHER_UID}, UID in object meta: "
IN_RECORD = "does not match the {} in record ("
FINALIZER = "example.com/wait"

# Which parts of its preconditions a request sends; `right` and `stale` are versions of the live object.
NO_VERSION, RIGHT, STALE = "", "right", "stale"
NO_UID, RIGHT_UID, WRONG_UID = "", "right", "wrong"


def config_map(name: str, **metadata: Any) -> Object:  # noqa: ANN401  any JSON
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"a": "9"}}


def service(name: str, **metadata: Any) -> Object:  # noqa: ANN401  any JSON
    spec = {"ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **metadata}, "spec": spec}


def lease(name: str, **metadata: Any) -> Object:  # noqa: ANN401  any JSON
    head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    return {**head, "metadata": {"name": name, **metadata}, "spec": {"holderIdentity": "me"}}


def event(name: str, namespace: str, **metadata: Any) -> Object:  # noqa: ANN401  any JSON
    about = {"kind": "Pod", "name": "p", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, **metadata}, "involvedObject": about}


def new_name() -> str:
    return f"c-{uuid4().hex[:8]}"


class Live:
    """A ConfigMap that was changed once since it was made."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.name = new_name()
        self.path = f"{api.core}/configmaps/{self.name}"
        made = api.post(f"{api.core}/configmaps", {**config_map(self.name), "data": {"a": "1"}})
        self.stale = made.body["metadata"]["resourceVersion"]
        changed = api.ask("PATCH", self.path, {"data": {"a": "2"}}, MERGE)
        self.uid, self.version = (changed.body["metadata"][key] for key in ("uid", "resourceVersion"))

    def preconditions(self, uid: str, version: str) -> dict[str, str]:
        uids = {RIGHT_UID: self.uid, WRONG_UID: OTHER_UID}
        versions = {RIGHT: self.version, STALE: self.stale}
        return {
            **({"uid": uids[uid]} if uid else {}),
            **({"resourceVersion": versions[version]} if version else {}),
        }

    @property
    def value(self) -> str:
        return str(self._api.get(self.path).body["data"]["a"])


def send(api: Api, how: str, path: str, preconditions: dict[str, str]) -> Answer:
    name = path.rpartition("/")[2]
    if how == "DELETE":
        return api.ask("DELETE", path, {"preconditions": preconditions})
    if how == "PUT":
        return api.ask("PUT", path, config_map(name, **preconditions))
    if how == APPLY:
        return api.apply(path, config_map(name, **preconditions), "m", "&force=true")
    if how == JSON:
        fields = [{"op": "add", "path": f"/metadata/{key}", "value": value} for key, value in preconditions.items()]
        return api.ask("PATCH", path, [*fields, {"op": "add", "path": "/data/a", "value": "9"}], JSON)
    return api.ask("PATCH", path, {"metadata": preconditions, "data": {"a": "9"}}, how)


@pytest.mark.parametrize(
    ("how", "uid", "version", "status", "words"),
    [
        *[(how, NO_UID, STALE, 409, MODIFIED) for how in ("PUT", APPLY, MERGE, STRATEGIC, JSON)],
        *[(how, RIGHT_UID, STALE, 409, MODIFIED) for how in ("PUT", APPLY, MERGE, STRATEGIC, JSON)],
        *[(how, WRONG_UID, STALE, 409, MODIFIED) for how in (APPLY, MERGE, STRATEGIC, JSON)],
        *[(how, WRONG_UID, NO_VERSION, 422, IMMUTABLE) for how in (APPLY, MERGE, STRATEGIC, JSON)],
        *[(how, WRONG_UID, RIGHT, 422, IMMUTABLE) for how in (APPLY, MERGE, STRATEGIC, JSON)],
        *[("PUT", WRONG_UID, version, 409, FAILED) for version in (NO_VERSION, RIGHT, STALE)],
        *[("DELETE", WRONG_UID, version, 409, IN_RECORD.format("UID")) for version in (NO_VERSION, RIGHT, STALE)],
        *[("DELETE", uid, STALE, 409, IN_RECORD.format("ResourceVersion")) for uid in (NO_UID, RIGHT_UID)],
        *[(how, RIGHT_UID, RIGHT, 200, "") for how in ("PUT", APPLY, MERGE, STRATEGIC, JSON, "DELETE")],
        *[(how, RIGHT_UID, NO_VERSION, 200, "") for how in ("PUT", APPLY, MERGE, STRATEGIC, JSON, "DELETE")],
        *[(how, NO_UID, RIGHT, 200, "") for how in ("PUT", APPLY, MERGE, STRATEGIC, JSON, "DELETE")],
    ],
)
def test_a_write_to_a_live_object_lands_only_where_its_preconditions_hold(
    api: Api, how: str, uid: str, version: str, status: int, words: str
) -> None:
    live = Live(api)
    answer = send(api, how, live.path, live.preconditions(uid, version))
    assert answer.status == status, answer.body
    if status == 200:
        assert api.get(live.path).status == 404 if how == "DELETE" else live.value == "9"
        return
    assert answer.reason == ("Conflict" if status == 409 else "Invalid")
    assert words in answer.message
    assert live.value == "2"


@pytest.mark.parametrize(
    ("how", "preconditions", "status", "words"),
    [
        (APPLY, {}, 201, ""),
        (APPLY, {"resourceVersion": "1"}, 201, ""),
        (APPLY, {"uid": OTHER_UID}, 409, MISMATCH),
        (APPLY, {"uid": OTHER_UID, "resourceVersion": "1"}, 409, MISMATCH),
        *[
            (how, preconditions, 404, "not found")
            for how in ("PUT", MERGE, STRATEGIC, JSON, "DELETE")
            for preconditions in ({}, {"resourceVersion": "1"}, {"uid": OTHER_UID})
        ],
    ],
)
def test_a_write_to_an_object_that_is_gone_makes_none_where_it_names_a_uid(
    api: Api, how: str, preconditions: dict[str, str], status: int, words: str
) -> None:
    path = f"{api.core}/configmaps/{new_name()}"
    answer = send(api, how, path, preconditions)
    assert answer.status == status, answer.body
    assert words in answer.message
    assert api.get(path).status == (200 if status == 201 else 404)


@pytest.mark.parametrize("plural", ["services", "leases", "events"])
def test_a_put_of_some_kinds_makes_an_object_that_is_gone_but_not_with_a_uid(api: Api, plural: str) -> None:
    name = new_name()
    path = f"{api.leases if plural == 'leases' else f'{api.core}/{plural}'}/{name}"

    def put(**metadata: str) -> Answer:
        make = {"services": service, "leases": lease}.get(plural)
        return api.ask("PUT", path, make(name, **metadata) if make else event(name, api.namespace, **metadata))

    for metadata in ({"uid": OTHER_UID}, {"uid": OTHER_UID, "resourceVersion": "1"}):
        refused = put(**metadata)
        assert (refused.status, refused.reason) == (409, "Conflict")
        assert FAILED in refused.message
        assert api.get(path).status == 404
    made = put(resourceVersion="1")
    assert made.status == 201
    assert made.body["metadata"]["resourceVersion"] != "1"
    assert api.ask("DELETE", path).status == 200
    again = put()
    assert again.status == 201
    assert again.body["metadata"]["uid"] != made.body["metadata"]["uid"]


def test_an_apply_at_version_1_only_creates(api: Api) -> None:
    """The server's first version is that of no object."""
    name = new_name()
    for path, item in (
        (f"{api.core}/configmaps/{name}", config_map(name, resourceVersion="1")),
        (f"{api.core}/services/{name}", service(name, resourceVersion="1")),
        (f"{api.leases}/{name}", lease(name, resourceVersion="1")),
    ):
        made = api.apply(path, item, "m", "&force=true")
        assert made.status == 201
        assert made.body["metadata"]["resourceVersion"] != "1"
        again = api.apply(path, item, "m", "&force=true")
        assert (again.status, again.reason) == (409, "Conflict")
        assert again.message.endswith(MODIFIED)
        assert api.get(path).body["metadata"]["resourceVersion"] == made.body["metadata"]["resourceVersion"]


def test_the_owner_of_a_field_is_asked_before_the_version_of_the_object(api: Api) -> None:
    live = Live(api)
    theirs = api.apply(live.path, config_map(live.name), "m1", "&force=true")
    item = {**config_map(live.name, resourceVersion=live.stale), "data": {"a": "8"}}
    refused = api.apply(live.path, item, "m2")
    assert (refused.status, refused.reason) == (409, "Conflict")
    assert [reason for _, reason in refused.causes] == ["FieldManagerConflict"]
    assert theirs.status == 200


def test_an_object_is_created_without_a_version_and_gets_a_uid_of_its_own(api: Api) -> None:
    path = f"{api.core}/configmaps"
    refused = api.post(path, config_map(new_name(), resourceVersion="5"))
    assert refused.status == 500
    assert "resourceVersion should not be set on objects to be created" in refused.message
    made = api.post(path, config_map(new_name(), uid=OTHER_UID))
    assert made.status == 201
    assert made.body["metadata"]["uid"] != OTHER_UID


def test_a_dry_run_of_an_apply_shows_uid_and_version_of_the_live_object(api: Api) -> None:
    live = Live(api)
    shown = api.apply(live.path, config_map(live.name), "m", "&force=true&dryRun=All").body["metadata"]
    assert (shown["uid"], shown["resourceVersion"]) == (live.uid, live.version)
    name = new_name()
    new = api.apply(f"{api.core}/configmaps/{name}", config_map(name), "m", "&dryRun=All").body["metadata"]
    assert "resourceVersion" not in new


def test_an_object_that_waits_for_its_finalizers_is_still_applied_to_and_deleted_at_its_version(api: Api) -> None:
    name = new_name()
    path = f"{api.core}/configmaps/{name}"
    made = api.post(f"{api.core}/configmaps", config_map(name, finalizers=[FINALIZER])).body["metadata"]
    assert api.ask("DELETE", path).status == 200
    going = api.get(path).body["metadata"]
    for more in ("&dryRun=All", ""):
        applied = api.apply(path, config_map(name), "m", f"&force=true{more}")
        assert applied.status == 200
        assert applied.body["metadata"]["deletionTimestamp"] == going["deletionTimestamp"]
    stale = api.ask("DELETE", path, {"preconditions": {"resourceVersion": made["resourceVersion"]}})
    assert (stale.status, stale.reason) == (409, "Conflict")
    current = api.get(path).body["metadata"]["resourceVersion"]
    right = api.ask("DELETE", path, {"preconditions": {"uid": made["uid"], "resourceVersion": current}})
    assert right.status == 200
    assert api.ask("PATCH", path, {"metadata": {"finalizers": None}}, MERGE).status == 200
    assert api.get(path).status == 404


@pytest.mark.parametrize(
    ("how", "escaped", "status"),
    [
        (APPLY, rb"\ud83c\udf89", 400),
        (APPLY, rb"\uD83C", 400),
        (APPLY, b"\xed\xa0\xbc", 400),
        (APPLY, rb"\\ud83c\\udf89", 201),
        (APPLY, rb"\u00e9", 201),
        (APPLY, "🎉".encode(), 201),
        ("POST", rb"\ud83c\udf89", 201),
    ],
    ids=["a pair", "half of a pair", "half of a pair in UTF-8", "text that looks so", "below", "not escaped", "JSON"],
)
def test_an_apply_is_yaml_which_has_no_surrogates(api: Api, how: str, escaped: bytes, status: int) -> None:
    name = new_name()
    head = b'{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "%s"}, ' % name.encode()
    body = head + b'"data": {"a": "' + escaped + b'"}}'
    path = f"{api.core}/configmaps"
    if how == "POST":
        answer = api.ask("POST", path, body)
    else:
        answer = api.ask("PATCH", f"{path}/{name}?fieldManager=m", body, APPLY)
    assert answer.status == status, answer.body
    if status == 400:
        assert answer.message.startswith("error decoding YAML: ")
        assert b"\\" not in escaped or "invalid Unicode character escape code" in answer.message
    else:
        wanted = {rb"\ud83c\udf89": "🎉", "🎉".encode(): "🎉", rb"\u00e9": "é"}.get(escaped, r"\ud83c\udf89")
        assert answer.body["data"]["a"] == wanted
