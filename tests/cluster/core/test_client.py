"""Every request takes one checked path: what the API server rejects is raised, with a hint at what to do."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import asyncio
import base64
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typing_extensions import Self

from prefect_cd.errors import ClusterUnreachable, Forbidden, Invalid, InvalidManifest, OwnershipConflict
from prefect_cd.kube import client as module
from prefect_cd.kube import resources
from prefect_cd.kube.client import Cluster, Conflict, connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.pipeline.models import ClusterAccess
from tests.cluster.harness import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
ACCESS = ClusterAccess()
SHORT = timedelta(seconds=1)
Kubectl = Callable[..., str]


def kubeconfig(server: str, **user: Any) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


def real() -> dict[str, Any]:
    return dict(yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text()))


def server_of() -> str:
    return str(real()["clusters"][0]["cluster"]["server"])


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_an_apply_into_a_namespace_that_is_missing_raises_404(no_namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        with pytest.raises(ApiError) as caught:
            await cluster.apply(objects.config_map(no_namespace))
    assert (caught.value.status, caught.value.cause) == (404, "NotFound")
    assert no_namespace in caught.value.reason
    assert caught.value.where == "configmap/shop"


async def test_a_conflict_names_both_owners_and_the_field(namespace: str, objects: Any, kubectl: Kubectl) -> None:
    text = json.dumps(objects.config_map(namespace, a="1"))
    kubectl("apply", "--server-side", "--field-manager=helm", "-f", "-", stdin=text)
    async with connect(ACCESS) as cluster:
        with pytest.raises(OwnershipConflict) as caught:
            await cluster.apply(objects.config_map(namespace, a="2"))
        assert "prefect-cd" in caught.value.reason
        assert "helm" in caught.value.reason
        assert ".data.a" in caught.value.detail
        assert "take_over" in caught.value.hint
        assert (await cluster.apply(objects.config_map(namespace, a="2"), force=True))["data"] == {"a": "2"}


async def test_an_invalid_object_raises_with_the_message_of_the_server(namespace: str, objects: Any) -> None:
    service = objects.service(namespace, port=99999)
    async with connect(ACCESS) as cluster:
        with pytest.raises(InvalidManifest, match=r"must be between 1 and 65535") as caught:
            await cluster.apply(service)
    assert caught.value.where == "service/shop"


@pytest.mark.parametrize("how", ["apply", "dry run", "create"])
async def test_an_unknown_field_is_an_error_of_the_manifest(how: str, namespace: str, objects: Any) -> None:
    item = {**objects.config_map(namespace), "dat": {"a": "b"}}
    async with connect(ACCESS, patience=SHORT) as cluster:
        with pytest.raises(InvalidManifest, match="dat"):
            await (cluster.create(item) if how == "create" else cluster.apply(item, dry_run=how == "dry run"))


async def test_a_value_of_the_wrong_type_is_answered_with_500_and_is_an_error_of_the_manifest(
    namespace: str, objects: Any
) -> None:
    item = {**objects.config_map(namespace), "data": {"a": 1}}
    async with connect(ACCESS, patience=SHORT) as cluster:
        with pytest.raises(InvalidManifest, match=r"\.data\.a: expected string"):
            await cluster.apply(item)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stringData": {"pin": 314159}},
        {"stringData": {"pin": 314159, "more": {"x": 271828}}},
        {"data": {"pin": 314159}},
        {"data": ["314159"]},
        {"data": {"pin": "314159!"}},
        {"stringData": {"bad key": "314159"}},
        {"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "314159"}},
    ],
)
async def test_i7_the_error_about_an_invalid_secret_does_not_contain_its_values(
    wrong: dict[str, Any], namespace: str
) -> None:
    item = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": namespace}, **wrong}
    async with connect(ACCESS, patience=SHORT) as cluster:
        for attempt in (cluster.apply(item, dry_run=True), cluster.create(item, dry_run=True)):
            with pytest.raises(InvalidManifest) as caught:
                await attempt
            assert "314159" not in str(caught.value)
            assert "271828" not in str(caught.value)
            assert base64.b64encode(b"314159").decode() not in str(caught.value)


async def test_a_kind_that_the_cluster_does_not_serve_is_an_error_of_the_manifest(objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        for api_version, kind in (("v1", "Widget"), ("example.com/v1", "Widget"), ("v9", "ConfigMap")):
            with pytest.raises(InvalidManifest, match=f"no kind {kind} in {api_version}") as caught:
                await cluster.apply({**objects.config_map("default"), "apiVersion": api_version, "kind": kind})
            assert "kubectl api-resources" in caught.value.hint


async def test_a_subresource_is_not_a_kind() -> None:
    async with connect(ACCESS) as cluster:
        with pytest.raises(InvalidManifest):
            await cluster.kind("apps/v1", "Scale")
        assert (await cluster.kind("apps/v1", "Deployment")).plural == "deployments"


@pytest.mark.needs("resourcequotas")
async def test_an_exceeded_quota_is_not_a_missing_permission(namespace: str, objects: Any, kubectl: Kubectl) -> None:
    kubectl("-n", namespace, "create", "quota", "q", "--hard=services=0")
    quota = Ref("v1", "ResourceQuota", namespace, "q")
    async with connect(ACCESS) as cluster:
        while "hard" not in ((await cluster.get(quota) or {}).get("status") or {}):
            await asyncio.sleep(0.1)
        with pytest.raises(InvalidManifest, match="exceeded quota"):
            await cluster.apply(objects.service(namespace))


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_get_of_a_missing_object_is_none(namespace: str) -> None:
    async with connect(ACCESS) as cluster:
        assert await cluster.get(Ref("v1", "ConfigMap", namespace, "none")) is None
        assert await cluster.get(Ref("v1", "Namespace", "", "h-core-none")) is None


async def test_i7_a_name_with_a_path_in_it_reaches_no_other_object(namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        await cluster.apply(objects.config_map(namespace, "target"))
        path = f"../../{namespace}/configmaps/target"
        for name in (path, f"x/../{path}", "target/"):
            assert await cluster.get(Ref("v1", "ConfigMap", "default", name)) is None


async def test_a_list_is_read_page_by_page(namespace: str, objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    async with connect(ACCESS) as cluster:
        for name in "abcde":
            await cluster.apply(objects.config_map(namespace, name, x=name))
        kind = await cluster.kind("v1", "ConfigMap")
        items = await cluster.list(kind, namespace, fields="metadata.name!=kube-root-ca.crt")
        assert [item["metadata"]["name"] for item in items] == list("abcde")
        assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
        bare = await cluster.list(kind, namespace, fields="metadata.name=a", only_metadata=True)
        assert [(item["kind"], "data" in item) for item in bare] == [("ConfigMap", False)]


async def test_a_list_is_selected_by_labels(namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        item = objects.config_map(namespace)
        item["metadata"]["labels"] = {"a": "b"}
        await cluster.apply(item)
        kind = await cluster.kind("v1", "ConfigMap")
        assert len(await cluster.list(kind, namespace, labels="a=b")) == 1
        assert await cluster.list(kind, namespace, labels="a=c") == []


async def test_delete_of_a_missing_object_and_of_another_uid_changes_nothing(namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        ref = Ref.of(await cluster.apply(objects.config_map(namespace)))
        with pytest.raises(Conflict):
            await cluster.delete(ref, uid="00000000-0000-0000-0000-000000000000")
        assert await cluster.get(ref) is not None
        await cluster.delete(ref)
        await cluster.delete(ref)
        assert await cluster.get(ref) is None


async def test_replace_of_an_object_that_has_changed_is_a_conflict(namespace: str, objects: Any) -> None:
    async with connect(ACCESS) as cluster:
        first = await cluster.create(objects.config_map(namespace, a="1"))
        await cluster.replace({**first, "data": {"a": "2"}})
        with pytest.raises(ApiError) as caught:
            await cluster.replace({**first, "data": {"a": "3"}})
        assert (caught.value.status, caught.value.cause) == (409, "Conflict")
        with pytest.raises(ApiError) as caught:
            await cluster.create(objects.config_map(namespace))
        assert (caught.value.status, caught.value.cause) == (409, "AlreadyExists")


async def test_i3_the_guard_is_awaited_before_every_write_and_can_stop_it(namespace: str, objects: Any) -> None:
    async def stop() -> None:
        raise Forbidden("not the writer")

    async with connect(ACCESS) as cluster:
        live = await cluster.create(objects.config_map(namespace, "there"))
        for write in (
            cluster.apply(objects.config_map(namespace), guard=stop),
            cluster.create(objects.config_map(namespace), guard=stop),
            cluster.replace({**live, "data": {"a": "b"}}, guard=stop),
            cluster.delete(Ref.of(live), guard=stop),
        ):
            with pytest.raises(Forbidden, match="not the writer"):
                await write
        assert await cluster.get(Ref("v1", "ConfigMap", namespace, "shop")) is None
        assert await cluster.get(Ref.of(live)) == live


async def test_logs_of_a_missing_pod_are_none(namespace: str) -> None:
    async with connect(ACCESS) as cluster:
        assert await cluster.logs(namespace, "none", "main") is None


async def test_version_returns_the_version_of_the_server() -> None:
    async with connect(ACCESS) as cluster:
        assert (await cluster.version()).startswith("v1.")


# --- permissions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def token(namespace: str, kubectl: Kubectl) -> str:
    """A ServiceAccount that may read ConfigMaps of its namespace, and nothing else."""
    kubectl("-n", namespace, "create", "serviceaccount", "reader")
    kubectl("-n", namespace, "create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    kubectl("-n", namespace, "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader")
    identity = f"--as=system:serviceaccount:{namespace}:reader"
    # the authorizer learns of the role with a delay
    can_i = ["-n", namespace, "auth", "can-i", "get", "configmaps", identity]
    wait_for(lambda: kubectl(*can_i, check=False) == "yes\n", "the role is not known")
    return kubectl("-n", namespace, "create", "token", "reader").strip()


@pytest.fixture
def least(token: str) -> LoadedKubeconfig:
    config = real()
    user = {"users": [{"name": config["users"][0]["name"], "user": {"token": token}}]}
    return LoadedKubeconfig({**config, **user})


@pytest.mark.needs("roles.rbac.authorization.k8s.io")
async def test_a_missing_permission_is_forbidden_with_verb_and_resource(
    least: LoadedKubeconfig, namespace: str, objects: Any
) -> None:
    async with connect(least, patience=SHORT) as cluster:
        assert await cluster.get(Ref("v1", "ConfigMap", namespace, "none")) is None
        attempts = {
            "patch": cluster.apply(objects.config_map(namespace)),
            "create": cluster.create(objects.config_map(namespace)),
            "delete": cluster.delete(Ref("v1", "ConfigMap", namespace, "none")),
        }
        for verb, attempt in attempts.items():
            with pytest.raises(Forbidden, match=f'cannot {verb} resource "configmaps"') as caught:
                await attempt
            assert "RoleBinding" in caught.value.hint
        with pytest.raises(Forbidden, match='cannot get resource "secrets"'):
            await cluster.get(Ref("v1", "Secret", namespace, "none"))


@pytest.mark.needs("roles.rbac.authorization.k8s.io")
async def test_is_allowed_returns_the_decision_of_the_server(least: LoadedKubeconfig, namespace: str) -> None:
    async with connect(least) as cluster:
        assert await cluster.is_allowed("get", "", "configmaps", namespace)
        assert not await cluster.is_allowed("patch", "", "configmaps", namespace)
        assert not await cluster.is_allowed("get", "", "configmaps", "default")
        assert not await cluster.is_allowed("get", "", "pods/log", namespace)
    async with connect(ACCESS) as cluster:
        assert await cluster.is_allowed("get", "", "pods/log", namespace)


async def test_a_token_that_is_not_accepted_is_forbidden() -> None:
    async with connect(LoadedKubeconfig(kubeconfig(server_of(), token="x")), patience=SHORT) as cluster:  # noqa: S106
        with pytest.raises(Forbidden, match="does not accept our credentials"):
            await cluster.get(Ref("v1", "ConfigMap", "default", "x"))


@pytest.mark.needs("roles.rbac.authorization.k8s.io")
async def test_an_expired_token_is_renewed(token: str, namespace: str, tmp_path: Path) -> None:
    """With an exec plugin, as clouds have them: their tokens expire within minutes."""
    plugin, token_file = tmp_path / "plugin", tmp_path / "token"
    plugin.write_text(
        '#!/bin/sh\nprintf \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", '
        f'"status": {{"token": "%s"}}}}\' "$(cat {token_file})"\n'
    )
    plugin.chmod(stat.S_IRWXU)
    token_file.write_text("expired")
    execute = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    async with connect(LoadedKubeconfig(kubeconfig(server_of(), exec=execute)), patience=SHORT) as cluster:
        with pytest.raises(Forbidden):
            await cluster.get(Ref("v1", "ConfigMap", namespace, "none"))
        token_file.write_text(token)
        reads = (cluster.get(Ref("v1", "ConfigMap", namespace, "none")) for _ in range(5))
        assert await asyncio.gather(*reads) == [None] * 5


# --- kubeconfigs -----------------------------------------------------------------------------------------------------


async def invalid(access: ClusterAccess | LoadedKubeconfig) -> Invalid:
    with pytest.raises(Invalid) as caught:
        async with connect(access):
            pass
    return caught.value


async def test_the_error_about_an_unknown_context_lists_the_known_ones() -> None:
    known = real()["contexts"][0]["name"]
    error = await invalid(ClusterAccess(context="nowhere"))
    assert f"there is no context 'nowhere'; there are: {known}" in error.reason
    assert error.where == os.environ["KUBECONFIG"]
    assert "nowhere" in (await invalid(LoadedKubeconfig(real(), "nowhere"))).reason


async def test_a_named_context_needs_no_current_one(tmp_path: Path) -> None:
    config = {key: value for key, value in real().items() if key != "current-context"}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    path = str(tmp_path / "config")
    async with connect(ClusterAccess(kubeconfig=path, context=config["contexts"][0]["name"])) as cluster:
        assert await cluster.version()
    assert "current-context" in (await invalid(ClusterAccess(kubeconfig=path))).reason


async def test_kubeconfig_is_read_from_the_environment_at_every_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(yaml.safe_dump(kubeconfig("https://127.0.0.1:1")))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    async with connect(ACCESS) as cluster:
        assert cluster.server == "https://127.0.0.1:1"


@pytest.mark.parametrize("text", [None, "", "[", "a: b", "hello", "clusters: 1", "users: [hunter2"])
async def test_i7_an_unusable_kubeconfig_is_invalid_and_not_quoted(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config").write_text(text)
    for context in (None, "x"):
        error = await invalid(ClusterAccess(kubeconfig=str(tmp_path / "config"), context=context))
        assert error.where == str(tmp_path / "config")
        assert "hunter2" not in str(error)


async def test_i7_the_token_of_an_unusable_user_is_not_quoted(tmp_path: Path) -> None:
    config = kubeconfig("https://127.0.0.1:1", token="hunter2", exec={"args": []})  # noqa: S106
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    for access in (ClusterAccess(kubeconfig=str(tmp_path / "config")), LoadedKubeconfig(config)):
        error = await invalid(access)
        assert "hunter2" not in f"{error}{error.__cause__}"
        assert "hunter2" not in repr(access)


async def test_the_error_about_a_missing_exec_plugin_names_it() -> None:
    execute = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin"}
    error = await invalid(LoadedKubeconfig(kubeconfig("https://127.0.0.1:1", exec=execute)))
    assert "no-such-plugin" in error.reason


# --- servers that do not answer --------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def read_error(server: str, patience: timedelta = SHORT) -> tuple[Exception, float]:
    """What a read from `server` raises, and after how many seconds."""
    started = time.monotonic()
    async with connect(LoadedKubeconfig(kubeconfig(server)), patience=patience) as cluster:
        try:
            await cluster.version()
        except Exception as error:  # noqa: BLE001  the result
            return error, time.monotonic() - started
    raise AssertionError("it answered")


async def test_a_server_that_is_down_is_unreachable_after_the_patience_and_not_before() -> None:
    error, seconds = await read_error(f"https://127.0.0.1:{closed_port()}", timedelta(seconds=2))
    assert isinstance(error, ClusterUnreachable)
    assert "kubectl cluster-info" in error.hint
    assert 2 <= seconds < 30


async def test_writes_that_must_not_happen_twice_are_not_retried(objects: Any) -> None:
    access = LoadedKubeconfig(kubeconfig(f"https://127.0.0.1:{closed_port()}"))
    async with connect(access, patience=timedelta(seconds=30)) as cluster:
        cluster._kinds["v1"] = {"ConfigMap": resources.Kind("v1", "ConfigMap", "configmaps", namespaced=True)}
        started = time.monotonic()
        for write in (cluster.create(objects.config_map("x")), cluster.replace(objects.config_map("x"))):
            with pytest.raises(ClusterUnreachable):
                await write
        assert time.monotonic() - started < 25


async def test_a_server_that_closes_the_connection_is_unreachable_and_not_untrusted() -> None:
    async def close_connection(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close_connection, "127.0.0.1", 0) as server:
        error, _ = await read_error(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert isinstance(error, ClusterUnreachable)


async def test_an_untrusted_certificate_is_invalid_at_once() -> None:
    config = real()
    config["clusters"][0]["cluster"].pop("certificate-authority", None)
    config["clusters"][0]["cluster"].pop("certificate-authority-data", None)
    started = time.monotonic()
    async with connect(LoadedKubeconfig(config), patience=timedelta(seconds=30)) as cluster:
        with pytest.raises(Invalid, match="certificate is not trusted") as caught:
            await cluster.version()
    assert "certificate-authority" in caught.value.hint
    assert time.monotonic() - started < 25


Answer = tuple[int, str]


class Scripted:
    """A server with a script of answers that a real one cannot be made to give; the last answer repeats."""

    def __init__(self, *answers: Answer) -> None:
        script = list(answers)
        self.requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.requests.append(handler.path)
                status, body = script.pop(0) if len(script) > 1 else script[0]
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body.encode())

            def log_message(handler, *_: object) -> None:  # noqa: N805
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*answers: Answer) -> Scripted:
        servers.append(Scripted(*answers).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_an_error_that_may_heal_is_retried(status: int, scripted: Callable[..., Scripted]) -> None:
    server = scripted((status, "later"), (status, "later"), (200, '{"gitVersion": "v1.36.0"}'))
    async with connect(LoadedKubeconfig(kubeconfig(server.url)), patience=timedelta(seconds=20)) as cluster:
        assert await cluster.version() == "v1.36.0"
    assert len(server.requests) == 3


@pytest.mark.parametrize("body", ["<html>please log in</html>", "[]", "", "null"])
async def test_an_answer_that_is_not_from_an_api_server_is_unreachable(
    body: str, scripted: Callable[..., Scripted]
) -> None:
    error, _ = await read_error(scripted((200, body)).url)
    assert isinstance(error, ClusterUnreachable)
    assert "not from an API server" in error.reason


async def test_a_403_of_a_proxy_on_a_read_is_forbidden(scripted: Callable[..., Scripted]) -> None:
    server = scripted((403, "access denied by policy"))
    error, _ = await read_error(server.url, timedelta(seconds=20))
    assert isinstance(error, Forbidden)
    assert len(server.requests) == 1


async def test_a_403_of_a_server_that_starts_is_retried(scripted: Callable[..., Scripted]) -> None:
    server = scripted((503, "later"), (403, "RBAC: clusterrole not found"), (200, '{"gitVersion": "v1.36.0"}'))
    async with connect(LoadedKubeconfig(kubeconfig(server.url)), patience=timedelta(seconds=20)) as cluster:
        assert await cluster.version() == "v1.36.0"
    assert len(server.requests) == 3


async def test_a_list_whose_continue_token_has_expired_starts_over(scripted: Callable[..., Scripted]) -> None:
    def page(name: str, more: str) -> Answer:
        return 200, json.dumps({"metadata": {"continue": more}, "items": [{"metadata": {"name": name}}]})

    server = scripted(page("a", "t1"), (410, '{"reason": "Expired"}'), page("b", "t2"), page("c", ""))
    async with connect(LoadedKubeconfig(kubeconfig(server.url))) as cluster:
        items = await cluster.list(resources.Kind("v1", "ConfigMap", "configmaps", namespaced=True), "x")
    assert [item["metadata"]["name"] for item in items] == ["b", "c"]


_LOG_FILE = "/var/log/pods/shop_shop-679bc_a74a9917/shop/1.log"
_GONE = f"lstat {_LOG_FILE}: no such file or directory"
OPENED = 'failed to open log file "/data/a.log": open /data/a.log: permission denied\n'


@pytest.mark.parametrize(
    ("answer", "log"),
    [
        ("unable to retrieve container logs for containerd://1f2e", None),
        (f'failed to try resolving symlinks in path "{_LOG_FILE}": {_GONE}', None),
        (f'failed to open log file "{_LOG_FILE}": open {_LOG_FILE}: no such file or directory\n', None),
        (OPENED, OPENED),  # the application's own words
        (f"{OPENED}bye", f"{OPENED}bye"),
    ],
)
async def test_what_the_kubelet_says_of_a_removed_log_is_no_log(
    scripted: Callable[..., Scripted], answer: str, log: str | None
) -> None:
    async with connect(LoadedKubeconfig(kubeconfig(scripted((200, answer)).url))) as cluster:
        assert await cluster.logs("n", "p", "c") == log


async def test_logs_neither_fail_nor_take_long_when_the_node_is_down(scripted: Callable[..., Scripted]) -> None:
    server = scripted((500, '{"message": "Get https://node:10250: connection refused"}'))
    started = time.monotonic()
    async with connect(LoadedKubeconfig(kubeconfig(server.url)), patience=timedelta(minutes=1)) as cluster:
        assert await cluster.logs("n", "p", "c") is None
    assert time.monotonic() - started < 15


def test_a_path_has_group_namespace_and_name() -> None:
    core = resources.Kind("v1", "ConfigMap", "configmaps", namespaced=True)
    role = resources.Kind("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", namespaced=False)
    assert core.path("n", "x") == "/api/v1/namespaces/n/configmaps/x"
    assert core.path() == "/api/v1/configmaps"
    assert core.path("a/b", "../x") == "/api/v1/namespaces/a%2Fb/configmaps/..%2Fx"
    assert role.path("", "system:x") == "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Ax"
    assert isinstance(Cluster, type)
