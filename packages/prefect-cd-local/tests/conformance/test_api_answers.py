"""Answers of the API server to invalid requests: status codes, reasons and messages. Recorded on Kubernetes 1.36.3."""

from typing import Any

import pytest

from conformance.api import APPLY, JSON, MERGE, Api

pytestmark = pytest.mark.timeout(60)
Object = dict[str, Any]
SUBDOMAIN = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
PERCENT = "a valid percent string must be a numeric string followed by an ending '%'"


def config_map(name: str = "c", **more: Any) -> Object:  # noqa: ANN401  any JSON
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **more}


def deployment(**spec: Any) -> Object:  # noqa: ANN401  any JSON
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec_ = {"selector": {"matchLabels": {"a": "b"}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec_}


def pod(**container: Any) -> Object:  # noqa: ANN401  any JSON
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", **container}]}}


WRONG: list[tuple[str, str, Object, int, str, list[tuple[str, str]], str]] = [
    (
        "a name with capitals",
        "configmaps",
        config_map("A_b"),
        422,
        "Invalid",
        [("metadata.name", "FieldValueInvalid")],
        SUBDOMAIN,
    ),
    (
        "no name",
        "configmaps",
        {"metadata": {}},
        422,
        "Invalid",
        [("metadata.name", "FieldValueRequired")],
        'ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required',
    ),
    (
        "a value of another type",
        "configmaps",
        config_map(data={"a": 1}),
        400,
        "BadRequest",
        [],
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
    ),
    (
        "no base64",
        "secrets",
        {"metadata": {"name": "s"}, "data": {"a": "%%%"}},
        400,
        "BadRequest",
        [],
        "illegal base64 data",
    ),
    (
        "another kind",
        "configmaps",
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}},
        400,
        "BadRequest",
        [],
        "converting (v1.Secret) to (core.ConfigMap): unknown conversion",
    ),
    (
        "another namespace",
        "configmaps",
        {"metadata": {"name": "c", "namespace": "b"}},
        400,
        "BadRequest",
        [],
        "the namespace of the provided object does not match the namespace sent on the request",
    ),
    (
        "a Service without ports",
        "services",
        {"metadata": {"name": "s"}, "spec": {}},
        422,
        "Invalid",
        [("spec.ports", "FieldValueRequired")],
        'Service "s" is invalid: spec.ports: Required value',
    ),
    (
        "a port out of range",
        "services",
        {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 70000, "targetPort": 1}]}},
        422,
        "Invalid",
        [("spec.ports[0].port", "FieldValueInvalid")],
        "Invalid value: 70000: must be between 1 and 65535, inclusive",
    ),
    (
        "an empty Deployment",
        "deployments",
        {"metadata": {"name": "d"}},
        422,
        "Invalid",
        [
            ("spec.selector", "FieldValueRequired"),
            ("spec.template.metadata.labels", "FieldValueInvalid"),
            ("spec.template.spec.containers", "FieldValueRequired"),
        ],
        'Deployment.apps "d" is invalid: [',
    ),
    (
        "a selector that selects others",
        "deployments",
        deployment(selector={"matchLabels": {"a": "c"}}),
        422,
        "Invalid",
        [("spec.template.metadata.labels", "FieldValueInvalid")],
        'Invalid value: {"a":"b"}: `selector` does not match template `labels`',
    ),
    (
        "negative replicas",
        "deployments",
        deployment(replicas=-1),
        422,
        "Invalid",
        [("spec.replicas", "FieldValueInvalid")],
        "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
    ),
    (
        "neither surge nor unavailable",
        "deployments",
        deployment(strategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
        422,
        "Invalid",
        [("spec.strategy.rollingUpdate.maxUnavailable", "FieldValueInvalid")],
        "may not be 0 when `maxSurge` is 0",
    ),
    (
        "Recreate with rolling settings",
        "deployments",
        deployment(strategy={"type": "Recreate", "rollingUpdate": {}}),
        422,
        "Invalid",
        [("spec.strategy.rollingUpdate", "FieldValueForbidden")],
        "may not be specified when strategy `type` is 'Recreate'",
    ),
    (
        "a share that is no percentage",
        "deployments",
        deployment(strategy={"rollingUpdate": {"maxSurge": "a%"}}),
        422,
        "Invalid",
        [("spec.strategy.rollingUpdate.maxSurge", "FieldValueInvalid")],
        PERCENT,
    ),
    (
        "a deadline before the pods are ready",
        "deployments",
        deployment(minReadySeconds=9, progressDeadlineSeconds=5),
        422,
        "Invalid",
        [("spec.progressDeadlineSeconds", "FieldValueInvalid")],
        "must be greater than minReadySeconds",
    ),
    (
        "a pod without image",
        "pods",
        pod(image=""),
        422,
        "Invalid",
        [("spec.containers[0].image", "FieldValueRequired")],
        'Pod "p" is invalid: spec.containers[0].image: Required value',
    ),
    (
        "a probe without handler",
        "pods",
        pod(readinessProbe={}),
        422,
        "Invalid",
        [("spec.containers[0].readinessProbe", "FieldValueRequired")],
        "must specify a handler type",
    ),
    (
        "a mount without volume",
        "pods",
        pod(volumeMounts=[{"name": "n", "mountPath": "/x"}]),
        422,
        "Invalid",
        [("spec.containers[0].volumeMounts[0].name", "FieldValueNotFound")],
        'Not found: "n"',
    ),
    (
        "more asked than allowed",
        "pods",
        pod(resources={"requests": {"cpu": "2"}, "limits": {"cpu": 1}}),
        422,
        "Invalid",
        [("spec.containers[0].resources.requests", "FieldValueInvalid")],
        'Invalid value: "2": must be less than or equal to cpu limit of 1',
    ),
    ("no quantity", "pods", pod(resources={"requests": {"cpu": "2x"}}), 400, "BadRequest", [], "quantities must match"),
]


@pytest.mark.parametrize(
    ("plural", "body", "status", "reason", "causes", "words"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
def test_invalid_objects_are_refused_with_the_messages_of_the_real_server(
    api: Api, plural: str, body: Object, status: int, reason: str, causes: list[tuple[str, str]], words: str
) -> None:
    root = api.apps if plural == "deployments" else api.core
    answer = api.post(f"{root}/{plural}?dryRun=All", body)
    assert (answer.status, answer.reason) == (status, reason), answer.message
    assert answer.causes == causes
    assert words in answer.message


def test_unknown_fields_are_refused_warned_about_or_ignored_as_requested(api: Api) -> None:
    path, body = f"{api.apps}/deployments?dryRun=All", deployment(replica=1)
    body["spec"]["template"]["spec"]["containers"][0]["imag"] = "x"
    strict = api.post(f"{path}&fieldValidation=Strict", body)
    assert strict.status == 400
    for field in ("spec.replica", "spec.template.spec.containers[0].imag"):
        assert f'unknown field "{field}"' in strict.message
    assert strict.message.startswith(
        'Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: '
    )
    warned = api.post(path, deployment(replica=1))
    assert (warned.status, warned.warnings) == (201, ['299 - "unknown field \\"spec.replica\\""'])
    ignored = api.post(f"{path}&fieldValidation=Ignore", deployment(replica=1))
    assert (ignored.status, ignored.warnings) == (201, [])
    applied = api.apply(f"{api.apps}/deployments/d", deployment(replica=1), "m", "&dryRun=All")
    assert applied.status == 500
    assert applied.message.startswith("failed to create typed patch object (/d; apps/v1, Kind=Deployment): ")
    assert ".spec.replica: field not declared in schema" in applied.message


def test_a_name_can_be_used_again_with_another_uid(api: Api) -> None:
    path = f"{api.core}/configmaps"
    made = api.post(path, config_map("one"))
    assert made.status == 201
    again = api.post(path, config_map("one"))
    assert (again.status, again.reason, again.message) == (409, "AlreadyExists", 'configmaps "one" already exists')
    stale = api.ask("PUT", f"{path}/one", {**config_map("one"), "metadata": {"name": "one", "resourceVersion": "1"}})
    assert (stale.status, stale.reason) == (409, "Conflict")
    assert stale.message.endswith(
        "the object has been modified; please apply your changes to the latest version and try again"
    )
    other = api.ask("DELETE", f"{path}/one", {"preconditions": {"uid": "x"}})
    assert (other.status, other.reason) == (409, "Conflict")
    gone = api.ask("DELETE", f"{path}/one")
    assert (gone.status, gone.body["status"], gone.body["details"]["uid"]) == (
        200,
        "Success",
        made.body["metadata"]["uid"],
    )
    assert api.ask("DELETE", f"{path}/one").message == 'configmaps "one" not found'


def test_a_write_that_changes_nothing_leaves_the_version(api: Api) -> None:
    made = api.post(f"{api.core}/configmaps", config_map("same", data={"a": "1"}))
    again = api.ask("PATCH", f"{api.core}/configmaps/same", {"data": {"a": "1"}}, MERGE)
    assert again.body["metadata"]["resourceVersion"] == made.body["metadata"]["resourceVersion"]


def test_a_dry_run_stores_nothing(api: Api) -> None:
    answer = api.post(f"{api.core}/configmaps?dryRun=All", config_map("dry"))
    assert answer.status == 201
    assert "uid" in answer.body["metadata"]
    assert "resourceVersion" not in answer.body["metadata"]
    assert api.get(f"{api.core}/configmaps/dry").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/api/v1/foos", 404, "NotFound"),
        ("PUT", "{core}/pods", 405, "MethodNotAllowed"),
        ("GET", "{core}/pods?labelSelector=a%20b", 400, "BadRequest"),
        ("GET", "{core}/pods?fieldSelector=spec.foo%3Dx", 400, "BadRequest"),
        ("GET", "{core}/pods?resourceVersionMatch=Exact", 422, "Invalid"),
        ("GET", "{core}/pods?resourceVersion=9999999999", 504, "Timeout"),
        ("GET", "{core}/pods?watch=1&sendInitialEvents=true", 422, "Invalid"),
        ("GET", "{core}/pods/none/log", 404, "NotFound"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(api: Api, method: str, path: str, status: int, reason: str) -> None:
    answer = api.ask(method, path.format(core=api.core), {} if method == "PUT" else None)
    assert (answer.status, answer.reason) == (status, reason)


def test_unsupported_media_types_are_415_and_406(api: Api) -> None:
    assert api.ask("POST", f"{api.core}/configmaps", {}, "text/plain").status == 415
    assert api.ask("PATCH", f"{api.core}/configmaps/x", {}, "application/json").status == 415
    assert api.get(f"{api.core}/configmaps", Accept="text/html").status == 406


def test_a_wrong_token_is_401(api: Api) -> None:
    if not api.by_token:
        pytest.skip("this kubeconfig has a client certificate, which is asked first")
    answer = api.get("/api/v1/pods", Authorization="Bearer wrong")
    assert (answer.status, answer.reason, answer.message) == (401, "Unauthorized", "Unauthorized")


def test_an_apply_needs_a_manager_and_names_one_object(api: Api) -> None:
    path = f"{api.core}/configmaps/x"
    nobody = api.ask("PATCH", path, config_map("x"), APPLY)
    assert (nobody.status, nobody.causes) == (422, [("fieldManager", "FieldValueRequired")])
    assert (
        api.apply(path, config_map("y"), "m").message
        == "the name of the object (y) does not match the name on the URL (x)"
    )
    claimed = {**config_map("x"), "metadata": {"name": "x", "managedFields": [{"manager": "x"}]}}
    assert api.apply(path, claimed, "m").message == "metadata.managedFields must be nil"
    forced = api.ask("PATCH", f"{path}?force=true", {}, MERGE)
    assert (forced.status, forced.causes) == (422, [("force", "FieldValueForbidden")])
    failed = api.post(f"{api.core}/configmaps", config_map("x", data={"a": "1"})) and api.ask(
        "PATCH", path, [{"op": "test", "path": "/data/a", "value": "2"}], JSON
    )
    assert (failed.status, failed.reason) == (422, "Invalid")


def test_immutable_fields_are_kept(api: Api) -> None:
    api.post(f"{api.apps}/deployments", deployment(replicas=0))
    changed = deployment(selector={"matchLabels": {"x": "y"}}, replicas=0)
    changed["spec"]["template"]["metadata"]["labels"] = {"x": "y"}
    answer = api.ask("PATCH", f"{api.apps}/deployments/d", {"spec": changed["spec"]}, MERGE)
    assert answer.causes == [("spec.selector", "FieldValueInvalid")]
    assert answer.message.endswith("field is immutable")
    api.post(f"{api.core}/services", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})
    moved = api.ask("PATCH", f"{api.core}/services/s", {"spec": {"clusterIP": "10.96.1.1"}}, MERGE)
    assert moved.causes == [("spec.clusterIPs[0]", "FieldValueInvalid")]


def test_nothing_is_created_in_a_missing_namespace(api: Api) -> None:
    answer = api.post("/api/v1/namespaces/e-a-nowhere/configmaps", config_map())
    assert (answer.status, answer.message) == (404, 'namespaces "e-a-nowhere" not found')


TWICE_JSON = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"twice"},"data":{"a":"1","a":"2"}}'
TWICE_YAML = b'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twice\ndata:\n  a: "1"\n  a: "2"\n'
ON_LINE = 'line {}: key "a" already set in map'


@pytest.mark.parametrize(
    ("method", "content", "body", "status", "words"),
    [
        ("POST", "application/json", TWICE_JSON, 400, 'duplicate field "data.a"'),
        ("POST", "application/yaml", TWICE_YAML, 400, ON_LINE.format(7)),
        ("PATCH", APPLY, TWICE_YAML, 400, ON_LINE.format(7)),
        ("PATCH", APPLY, TWICE_JSON, 400, ON_LINE.format(1)),
        ("PATCH", MERGE, b'{"data":{"a":"1","a":"2"}}', 422, 'duplicate field "data.a"'),
        ("PATCH", JSON, b'[{"op":"add","op":"add","path":"/data","value":{}}]', 422, 'duplicate field "[0].op"'),
    ],
    ids=["JSON", "YAML", "apply of YAML", "apply of JSON", "merge patch", "JSON patch"],
)
def test_duplicate_keys_are_refused_or_warned_about(
    api: Api, method: str, content: str, body: bytes, status: int, words: str
) -> None:
    name = "" if method == "POST" else "/twice"
    if content in {MERGE, JSON}:
        api.post(f"{api.core}/configmaps", config_map("twice"))
    path = f"{api.core}/configmaps{name}?dryRun=All&fieldManager=m&fieldValidation="
    strict = api.ask(method, f"{path}Strict", body, content)
    assert (strict.status, words in strict.message) == (status, True), strict.message
    warned = api.ask(method, f"{path}Warn", body, content)
    assert warned.status in {200, 201}
    assert [words in warning.replace("\\", "") for warning in warned.warnings] == [True]


def test_service_addresses_in_use_or_out_of_range_are_refused(api: Api) -> None:
    def service(name: str, **spec: Any) -> Object:  # noqa: ANN401  any JSON
        return {"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}], **spec}}

    had = api.post(f"{api.core}/services", service("had")).body["spec"]
    assert 30000 <= had["ports"][0]["nodePort"] <= 32767
    for changes, words in (
        ({"clusterIP": had["clusterIP"]}, "provided IP is already allocated"),
        ({"clusterIP": "10.1.1.1"}, "the provided network does not match the current range"),
        ({"ports": [{"port": 1, "nodePort": had["ports"][0]["nodePort"]}]}, "provided port is already allocated"),
        ({"ports": [{"port": 1, "nodePort": 80}]}, "The range of valid ports is 30000-32767"),
        (
            {"type": "ClusterIP", "ports": [{"port": 1, "nodePort": 32766}]},
            "may not be used when `type` is 'ClusterIP'",
        ),
    ):
        answer = api.post(f"{api.core}/services", service("b", **changes))
        assert (answer.status, words in answer.message) == (422, True), answer.message
    inside = api.ask("PATCH", f"{api.core}/services/had", {"spec": {"type": "ClusterIP"}}, MERGE).body["spec"]
    assert (inside["clusterIP"], "nodePort" in inside["ports"][0]) == (had["clusterIP"], False)


def test_closed_lists_and_required_fields_are_checked_at_every_depth(api: Api) -> None:
    probe = {"httpGet": {"port": 0, "scheme": "w"}}
    answer = api.post(
        f"{api.core}/pods?dryRun=All",
        pod(imagePullPolicy="Z", ports=[{"containerPort": 0}], env=[{"value": "v"}], readinessProbe=probe),
    )
    at = "spec.containers[0]."
    assert set(answer.causes) == {
        (f"{at}imagePullPolicy", "FieldValueNotSupported"),
        (f"{at}ports[0].containerPort", "FieldValueRequired"),
        (f"{at}env[0].name", "FieldValueRequired"),
        (f"{at}readinessProbe.httpGet.port", "FieldValueInvalid"),
        (f"{at}readinessProbe.httpGet.scheme", "FieldValueNotSupported"),
    }


def test_an_access_review_allows_everything(api: Api) -> None:
    review = {"spec": {"resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": api.namespace}}}
    answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert (answer.status, answer.body["status"]["allowed"]) == (201, True)
    if is_embedded(api):
        assert "no RBAC" in answer.body["status"]["reason"]


def is_embedded(api: Api) -> bool:
    return bool(api.get("/version").body["gitVersion"].endswith("+embedded"))


@pytest.mark.parametrize(
    "path",
    [
        "batch/v1/jobs",
        "apps/v1/statefulsets",
        "apps/v1/daemonsets",
        "policy/v1/poddisruptionbudgets",
        "rbac.authorization.k8s.io/v1/roles",
    ],
)
def test_kinds_without_a_controller_are_not_served(api: Api, path: str) -> None:
    if not is_embedded(api):
        pytest.skip("a real cluster runs them")
    version, _, plural = path.rpartition("/")
    assert api.get(f"/apis/{version}/namespaces/{api.namespace}/{plural}").status == 404


def test_unsupported_requests_are_refused(api: Api) -> None:
    if not is_embedded(api):
        pytest.skip("a real cluster can")
    api.post(f"{api.core}/pods", pod())
    assert api.ask("DELETE", f"{api.core}/pods").status == 405
    assert api.get(f"{api.core}/pods/p/exec").status == 404
    assert api.get(f"{api.core}/pods/p/portforward?ports=80").status == 501
