"""`service/NAME` becomes a URL that answers from this machine, and keeps answering while pods are replaced."""

# ruff: noqa: ANN401  a fixture that is a class is of no type that can be imported
import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from prefect_cd.errors import GateErrored, Invalid
from prefect_cd.kube import service_url
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.service_url import open_url
from prefect_cd.pipeline.models import ClusterAccess
from tests.cluster.harness import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
ACCESS = ClusterAccess()
IMAGE = os.environ.get("BASE_IMAGE") or f"{os.environ.get('REGISTRY', '')}/base/python:3.11"
Kubectl = Callable[..., str]

# GET answers with the pod's name, POST with what was sent; connections are kept alive for ever
ECHO = """
import http.server, os
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(os.uname().nodename.encode())
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))
http.server.ThreadingHTTPServer(("", 8000), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def shop(kubectl: Kubectl, make_objects: Any) -> Iterator[str]:
    """A namespace with a Service `shop` and two ready pods behind it."""
    name = f"h-core-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    items = [
        make_objects.deployment(name, IMAGE, "python3", "-c", ECHO, replicas=2, readinessProbe=probe),
        make_objects.service(name),
        make_objects.service(name, "nobody"),
    ]
    for item in items:
        kubectl("apply", "-f", "-", stdin=json.dumps(item))
    kubectl("-n", name, "rollout", "status", "deployment/shop", "--timeout=180s")
    yield name
    kubectl("delete", "namespace", name, "--wait=false", check=False)


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=20)


async def get(url: str) -> str:
    async with client() as browser:
        return (await browser.get(url)).text


@pytest.mark.timeout(120)
@pytest.mark.parametrize("url", ["service/shop", "service/shop:80", "service/shop:web"])
async def test_a_service_is_reached_through_the_api_server(url: str, shop: str) -> None:
    async with connect(ACCESS) as cluster, open_url(cluster, shop, url) as reached:
        assert reached.startswith("http://127.0.0.1:")
        assert (await get(reached)).startswith("shop-")


async def test_a_url_is_used_as_it_is(shop: str) -> None:
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "https://shop.example.com/") as reached:
        assert reached == "https://shop.example.com"


async def test_inside_the_cluster_a_service_is_reached_by_its_name(shop: str) -> None:
    async with connect(ACCESS) as cluster:
        cluster.in_pod = True
        async with open_url(cluster, shop, "service/shop") as reached:
            assert reached == f"http://shop.{shop}.svc:80"


async def test_an_unknown_service_and_an_unknown_port_are_invalid(shop: str) -> None:
    async with connect(ACCESS) as cluster:
        for url, message in (
            ("service/none", "there is no Service 'none'"),
            ("service/shop:81", "no port '81'; there are: web"),
            ("service/shop:grpc", "no port 'grpc'"),
        ):
            with pytest.raises(Invalid, match=message) as caught:
                async with open_url(cluster, shop, url):
                    pass
            assert caught.value.where == url


async def test_a_service_without_a_ready_pod_is_errored_and_not_failed(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_url, "_ENDPOINT_LAG_SECONDS", 0.5)
    async with connect(ACCESS) as cluster:
        with pytest.raises(GateErrored, match="no pod behind Service 'nobody' is ready") as caught:
            async with open_url(cluster, shop, "service/nobody"):
                pass
    assert f"kubectl -n {shop} describe service nobody" in caught.value.hint


async def test_many_requests_at_once_and_large_bodies_go_through(shop: str) -> None:
    large = os.urandom(4_000_000)
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "service/shop") as reached, client() as browser:

        async def echoed(body: bytes) -> bool:
            return (await browser.post(reached, content=body)).content == body

        assert all(await asyncio.gather(*(echoed(os.urandom(50_000)) for _ in range(12)), echoed(large)))
        assert await echoed(b"kept alive")


async def test_after_a_pod_is_deleted_the_next_connection_goes_to_one_that_is_ready(
    shop: str, kubectl: Kubectl
) -> None:
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "service/shop") as reached:
        first = await get(reached)
        await asyncio.to_thread(kubectl, "-n", shop, "delete", "pod", first, "--now")
        second = await get(reached)
        assert second.startswith("shop-")
        assert second != first


async def test_a_deleted_pod_that_the_endpoints_still_name_is_skipped(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = service_url._ready_pods

    async def stale(*arguments: Any) -> list[tuple[str, int]]:
        return [("shop-gone", 8000), *await real(*arguments)]

    monkeypatch.setattr(service_url, "_ready_pods", stale)
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "service/shop") as reached:
        assert (await get(reached)).startswith("shop-")


async def test_when_no_pod_accepts_a_connection_it_is_closed_and_the_next_one_works(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "service/shop") as reached:
        with monkeypatch.context() as patched:

            async def gone(*_: Any) -> list[tuple[str, int]]:
                return [("shop-gone", 8000)]

            patched.setattr(service_url, "_ready_pods", gone)
            with pytest.raises(httpx.TransportError):
                await get(reached)
        assert (await get(reached)).startswith("shop-")


async def test_a_connection_that_is_kept_alive_does_not_keep_the_block_open(shop: str) -> None:
    async with connect(ACCESS) as cluster, client() as browser:
        async with open_url(cluster, shop, "service/shop") as reached:
            assert (await browser.get(reached)).is_success
            leaving = time.monotonic()
        assert time.monotonic() - leaving < 15
        with pytest.raises(httpx.TransportError):
            await browser.get(reached)


def port_of(reached: str) -> int:
    return int(reached.rpartition(":")[2])


async def test_a_client_that_disconnects_leaves_no_connection_behind(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_url, "_LINGER_SECONDS", 0.2)
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "service/shop") as reached:
        before = len(asyncio.all_tasks())
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(reached))
            writer.write(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
        deadline = time.monotonic() + 20
        while len(asyncio.all_tasks()) > before and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) <= before


async def test_a_client_that_has_closed_its_side_still_gets_its_answer(shop: str) -> None:
    async with connect(ACCESS) as cluster, open_url(cluster, shop, "service/shop") as reached:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(reached))
        writer.write(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        writer.write_eof()
        assert b"\r\n\r\nshop-" in await reader.read()
        writer.close()


# --- addresses -------------------------------------------------------------------------------------------------------


async def service(cluster: Cluster, namespace: str, name: str) -> Any:
    item = await cluster.get(Ref("v1", "Service", namespace, name))
    assert item is not None
    return item


async def wait_until_accepted(host: str, number: int) -> None:
    """Wait for kube-proxy, which serves a new Service with a delay."""
    while not await service_url._accepts(host, number):
        await asyncio.sleep(0.1)


def expose(kubectl: Kubectl, objects: Any, namespace: str, name: str, kind: str) -> None:
    item = objects.service(namespace, name, kind)
    item["spec"]["selector"] = {"app": "shop"}
    kubectl("apply", "-f", "-", stdin=json.dumps(item))


async def test_a_node_port_is_used_where_it_answers(shop: str, objects: Any, kubectl: Kubectl) -> None:
    expose(kubectl, objects, shop, "node", "NodePort")
    async with connect(ACCESS) as cluster:
        number = (await service(cluster, shop, "node"))["spec"]["ports"][0]["nodePort"]
        (node,) = await cluster.list(await cluster.kind("v1", "Node"))
        host = node["status"]["addresses"][0]["address"]
        await wait_until_accepted(host, number)
        async with open_url(cluster, shop, "service/node") as reached:
            assert reached == f"http://{host}:{number}"
            assert (await get(reached)).startswith("shop-")


async def test_a_load_balancer_is_used_where_it_answers_and_skipped_where_it_does_not(
    shop: str, objects: Any, kubectl: Kubectl
) -> None:
    expose(kubectl, objects, shop, "balanced", "LoadBalancer")

    def set_balancer(address: str) -> None:
        status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})
        kubectl("-n", shop, "patch", "service", "balanced", "--subresource=status", "--type=merge", "-p", status)

    async with connect(ACCESS) as cluster:
        balanced = await service(cluster, shop, "balanced")
        address = balanced["spec"]["clusterIP"]
        set_balancer(address)
        await wait_until_accepted(address, 80)
        async with open_url(cluster, shop, "service/balanced") as reached:
            assert reached == f"http://{address}:80"
            assert (await get(reached)).startswith("shop-")
        set_balancer("192.0.2.1")  # RFC 5737: an address for documentation, which does not answer
        async with open_url(cluster, shop, "service/balanced") as reached:
            assert reached.endswith(f":{balanced['spec']['ports'][0]['nodePort']}")


@pytest.mark.needs("roles.rbac.authorization.k8s.io")
async def test_without_permission_to_list_nodes_a_port_forward_is_used(
    shop: str, objects: Any, kubectl: Kubectl
) -> None:
    expose(kubectl, objects, shop, "node", "NodePort")
    kubectl("-n", shop, "create", "serviceaccount", "gate")
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "gate", "namespace": shop},
        "rules": [
            {"apiGroups": [""], "resources": ["services"], "verbs": ["get"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
        ],
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(role))
    kubectl("-n", shop, "create", "rolebinding", "gate", "--role=gate", f"--serviceaccount={shop}:gate")
    identity = f"--as=system:serviceaccount:{shop}:gate"
    # the authorizer learns of the role with a delay
    can_i = ["-n", shop, "auth", "can-i", "get", "services", identity]
    wait_for(lambda: kubectl(*can_i, check=False) == "yes\n", "no role")
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())  # noqa: ASYNC240
    token = kubectl("-n", shop, "create", "token", "gate").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    async with connect(LoadedKubeconfig(config)) as cluster, open_url(cluster, shop, "service/node") as reached:
        assert reached.startswith("http://127.0.0.1:")
        assert (await get(reached)).startswith("shop-")


def test_external_addresses_come_before_internal_ones() -> None:
    nodes = [
        [{"type": "InternalIP", "address": "a"}, {"type": "Hostname", "address": "b"}],
        [{"type": "ExternalIP", "address": "c"}],
    ]
    assert service_url._hosts(nodes) == ["c", "a"]
