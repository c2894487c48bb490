"""The embedded cluster as a whole: starting, refusing to start, stopping without leftovers, several on one machine."""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from conformance.clusters import sleepers, wait_for
from prefect_cd_local.client import (
    ENDPOINT_SLICES,
    EVENTS,
    NODES,
    PODS,
    SERVICES,
    ApiError,
    Client,
    Object,
    Resource,
)
from prefect_cd_local.cluster import Cluster, NotStarted, running

LOCAL = [sys.executable, "-m", "prefect_cd_local"]
MARK = "86753"  # the argument of `sleep` in the pods of this module, by which their processes are found


@pytest.mark.timeout(180)
def test_a_cluster_runs_within_the_block_and_leaves_no_kubeconfig(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            assert stat.S_IMODE(cluster.kubeconfig.stat().st_mode) == 0o600
            assert cluster.environment["REGISTRY"] == cluster.registry
            async with Client.from_kubeconfig(cluster.kubeconfig) as client:
                (node,) = (await client.list(NODES)).items
                version = await client.request("GET", "/version")
        assert node["status"]["nodeInfo"]["kubeletVersion"].endswith("+embedded")
        assert version["gitVersion"].endswith("+embedded")
        assert any("not enforced" in sentence for sentence in cluster.banner)
        assert not cluster.kubeconfig.exists()

    asyncio.run(scenario())


def refusal(folder: Path, **options: object) -> str:
    async def start() -> None:
        async with running(folder, **options):  # type: ignore[arg-type]
            pytest.fail("it started")

    with pytest.raises(NotStarted) as caught:
        asyncio.run(start())
    return str(caught.value)


def test_ports_in_use_are_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"the API server cannot listen: port {port}" in refusal(tmp_path, port=port)
        assert f"the registry cannot listen: port {port}" in refusal(tmp_path, registry_port=port)


def test_the_kubeconfig_of_another_cluster_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("clusters: [{name: production}]\n")
    assert "not the kubeconfig of an embedded cluster" in refusal(tmp_path / "cluster", kubeconfig=file)
    assert file.read_text() == "clusters: [{name: production}]\n"


@pytest.mark.timeout(180)
def test_a_folder_is_locked_until_its_cluster_ends_or_is_killed(tmp_path: Path) -> None:
    with started(tmp_path) as (process, environment):
        assert "is running in" in refusal(tmp_path)
        process.kill()
        process.wait()
        assert Path(environment["KUBECONFIG"]).exists()  # a killed process removes nothing
    with started(tmp_path) as (_, environment):
        assert "embedded" in kubectl(environment, "get", "nodes", "--output=name")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_no_pod_outlives_the_cluster(tmp_path: Path, how: signal.Signals) -> None:
    with started(tmp_path) as (process, environment):
        script = f"trap '' TERM; setsid sleep {MARK} & sleep {MARK}; true"
        kubectl(
            environment, "run", "stubborn", "--image", environment["BASE_IMAGE"], "--command", "--", "sh", "-c", script
        )
        wait_for(lambda: len(sleepers(MARK)) == 2)
        process.send_signal(how)
        code = process.wait()
        assert code == (-how if how == signal.SIGKILL else 0)
    wait_for(lambda: not sleepers(MARK))
    assert Path(environment["KUBECONFIG"]).exists() == (how == signal.SIGKILL)


@pytest.mark.timeout(180)
def test_a_command_finds_the_cluster_and_its_exit_code_is_returned(tmp_path: Path) -> None:
    script = "kubectl get nodes --output=name && test -n $REGISTRY && exit 7"
    command = [*LOCAL, "--folder", str(tmp_path), "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "node/embedded" in done.stdout
    assert done.returncode == 7


@pytest.mark.timeout(180)
def test_a_signal_ends_the_command_before_its_cluster(tmp_path: Path) -> None:
    script = "trap 'kubectl get nodes --output=name; exit 3' TERM; echo ready; while true; do sleep 0.1; done"
    command = [*LOCAL, "--folder", str(tmp_path), "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line == "ready\n" for line in process.stdout)
        process.terminate()
        assert "node/embedded\n" in process.stdout.read()
        assert process.wait() == 3


async def _pods(kubeconfig: Path) -> int:
    async with Client.from_kubeconfig(kubeconfig) as client:
        return len((await client.list(PODS)).items)


@pytest.mark.timeout(180)
def test_a_restart_in_the_same_folder_has_no_old_objects(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int]:
        async with running(tmp_path) as cluster, Client.from_kubeconfig(cluster.kubeconfig) as client:
            container = {"name": "main", "image": cluster.environment["BASE_IMAGE"], "command": ["sleep", MARK]}
            pod = {"metadata": {"name": "one", "namespace": "default"}, "spec": {"containers": [container]}}
            while not await client.find(PODS, "one", "default"):
                with contextlib.suppress(Exception):  # the namespace gets its service account first
                    await client.create(PODS, pod)
                await asyncio.sleep(0.05)
            before = await _pods(cluster.kubeconfig)
        async with running(tmp_path) as cluster:
            return before, await _pods(cluster.kubeconfig)

    assert asyncio.run(scenario()) == (1, 0)
    wait_for(lambda: not sleepers(MARK))


# --- several clusters, and other programs, on one machine ---

SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())

http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


def pod(cluster: Cluster, text: str) -> Object:
    """A pod that answers every request with a text."""
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    command = ["python3", "-c", SERVER, text]
    container = {"name": "web", "image": cluster.environment["BASE_IMAGE"], "command": command, "readinessProbe": probe}
    metadata = {"name": "web", "namespace": "default", "labels": {"app": "web"}}
    return {"metadata": metadata, "spec": {"containers": [container]}}


def service(**port: int) -> Object:
    spec = {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"targetPort": 8080, **port}]}
    return {"metadata": {"name": "web", "namespace": "default"}, "spec": spec}


async def create(client: Client, resource: Resource, item: Object) -> Object:
    while True:
        try:
            return await client.create(resource, item)
        except ApiError as error:  # the namespace gets its service account first
            if error.code == 422:
                raise
            await asyncio.sleep(0.05)


async def addresses(client: Client) -> list[tuple[str, int]]:
    """Cluster IP and node port of the Service."""
    spec = (await client.get(SERVICES, "web", "default"))["spec"]
    (node,) = (await client.list(NODES)).items
    (port,) = spec["ports"]
    return [(spec["clusterIP"], port["port"]), (node["status"]["addresses"][0]["address"], port["nodePort"])]


async def ask(host: str, port: int) -> str:
    """Return the answer at an address; empty where nothing answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode().rpartition("\r\n\r\n")[2]
        writer.close()
    except OSError:
        return ""
    return text


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    while not await condition():
        await asyncio.sleep(0.1)


def occupied(port: int = 0) -> socket.socket:
    """Another program that listens on all addresses of this machine."""
    return socket.create_server(("0.0.0.0", port))  # noqa: S104


async def warnings(client: Client) -> list[str]:
    events = (await client.list(EVENTS, "default", fields="involvedObject.kind=Service")).items
    assert all(event["type"] == "Warning" and event["involvedObject"]["name"] == "web" for event in events)
    return [event["message"] for event in events]


async def ready_endpoints(client: Client) -> list[bool]:
    slices = (await client.list(ENDPOINT_SLICES, "default")).items
    return [endpoint["conditions"]["ready"] for slice_ in slices for endpoint in slice_.get("endpoints") or []]


@pytest.mark.timeout(180)
def test_two_clusters_at_once_serve_their_own_pods_at_the_same_ports(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            places_of: dict[str, list[tuple[str, int]]] = {}
            for name in ("one", "other"):
                cluster = await stack.enter_async_context(running(tmp_path / name))
                client = await stack.enter_async_context(Client.from_kubeconfig(cluster.kubeconfig))
                await create(client, PODS, pod(cluster, name))
                await create(client, SERVICES, service(port=8080, nodePort=30080))
                places_of[name] = await addresses(client)
            for name, places in places_of.items():
                for host, port in places:
                    await until(lambda host=host, port=port: ask(host, port))  # type: ignore[misc]
                    assert await ask(host, port) == name

    asyncio.run(scenario())


@pytest.mark.timeout(180)
def test_a_service_whose_port_another_program_has_warns_and_is_not_found_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster, Client.from_kubeconfig(cluster.kubeconfig) as client:
            with occupied() as program:
                taken = program.getsockname()[1]
                await create(client, PODS, pod(cluster, "pod"))
                await create(client, SERVICES, service(port=taken))
                (address, _), node = await addresses(client)
                await until(lambda: warnings(client))
                (message,) = await warnings(client)
                assert message.startswith(f"cannot listen on {address}:{taken} (Address already in use)")
                hosts = tmp_path / "node" / "hosts" / "default"
                await until(lambda: ask(*node))  # the node port is served
                assert address not in hosts.read_text()
            await until(lambda: ask(address, taken))
            assert await ask(address, taken) == "pod"
            assert address in hosts.read_text()

    asyncio.run(scenario())


@pytest.mark.timeout(180)
def test_a_node_port_that_another_program_takes_leaves_no_ready_endpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster, Client.from_kubeconfig(cluster.kubeconfig) as client:
            await create(client, SERVICES, service(port=8080))
            _, (host, number) = await addresses(client)
            with occupied(number):
                await create(client, PODS, pod(cluster, "pod"))
                await until(lambda: warnings(client))
                (message,) = await warnings(client)
                assert message.startswith(f"cannot listen on {host}:{number} (Address already in use)")
                await until(lambda: ready_endpoints(client))
                await asyncio.sleep(3)  # the node has tried again, without another result
                assert await ready_endpoints(client) == [False]
                assert len(await warnings(client)) == 1
            await until(lambda: ask(host, number))
            assert await ask(host, number) == "pod"
            assert await ready_endpoints(client) == [True]

    asyncio.run(scenario())


@pytest.mark.timeout(180)
def test_a_node_port_that_another_program_has_is_not_allocated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster, Client.from_kubeconfig(cluster.kubeconfig) as client:
            first = (await create(client, SERVICES, service(port=80)))["spec"]["ports"][0]["nodePort"]
            await client.delete(SERVICES, "web", "default")
            with occupied(first + 1):
                with pytest.raises(ApiError, match="provided port is already allocated"):
                    await create(client, SERVICES, service(port=80, nodePort=first + 1))
                names = iter("abc")
                numbers = []
                for name in names:
                    item = service(port=80)
                    item["metadata"]["name"] = name
                    numbers.append((await create(client, SERVICES, item))["spec"]["ports"][0]["nodePort"])
            assert numbers == [first, first + 2, first + 3]

    asyncio.run(scenario())


@contextlib.contextmanager
def started(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Run the command of the README; yields the process and the variables that it prints."""
    with subprocess.Popen([*LOCAL, "--folder", str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        export = next(line for line in process.stdout if line.startswith("export "))
        try:
            yield process, {**os.environ, **dict(word.split("=", 1) for word in shlex.split(export)[1:])}
        finally:
            process.terminate()


def kubectl(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(["kubectl", *words], env=environment, check=True, capture_output=True, text=True).stdout
