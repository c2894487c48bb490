"""Clusters and parts of clusters for the tests, each a context manager that leaves nothing behind.

The parts use the API only, so that they can be combined: our controllers with a real API server, the real controllers
with ours. Where there is no real node, `PaperNode` replaces it: it runs nothing, and sets the status of pods as their
annotation says.
"""

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from prefect_cd_local.apiserver import ApiServer
from prefect_cd_local.client import PODS, ApiError, Client, Object, now_text
from prefect_cd_local.cluster import running
from prefect_cd_local.controllers import run_controllers

T = TypeVar("T")
SECONDS_TO_START = 90


@dataclass(frozen=True)
class Cluster:
    """A cluster for a test, and an image there that has a shell."""

    kubeconfig: Path
    image: str = "registry.invalid/shell:1"


@contextlib.contextmanager
def in_a_thread(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Hold an asynchronous context in a loop of its own, for synchronous tests and fixtures."""
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    entered: concurrent.futures.Future[T] = concurrent.futures.Future()

    async def hold() -> None:
        try:
            async with context as value:
                entered.set_result(value)
                await over.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    thread = threading.Thread(target=lambda: loop.run_until_complete(hold()))
    thread.start()
    try:
        yield entered.result(SECONDS_TO_START)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(SECONDS_TO_START)
        loop.close()


@contextlib.asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[Cluster]:
    """The whole embedded cluster."""
    async with running(folder) as cluster:
        yield Cluster(cluster.kubeconfig, cluster.environment["BASE_IMAGE"])
        if cluster.broken.done():
            await cluster.broken


@contextlib.asynccontextmanager
async def embedded_api_server(folder: Path) -> AsyncIterator[Cluster]:
    """The embedded API server without controllers and node."""
    server, kubeconfig = ApiServer(), folder / "kubeconfig"
    await server.start()
    kubeconfig.write_text(server.kubeconfig())
    try:
        yield Cluster(kubeconfig)
    finally:
        await server.stop()


@contextlib.contextmanager
def real_api_server(home: Path) -> Iterator[Cluster]:
    """kube-apiserver and etcd on loopback, without controllers and node."""
    token = "bare-admin"  # noqa: S105 - of a server that lives as long as the test session
    store, peer, port = free_port(), free_port(), free_port()
    (home / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(["openssl", "genrsa", "-out", home / "sa.key", "2048"], check=True, capture_output=True)
    listening = ["-client", f"http://127.0.0.1:{store}", "-peer", f"http://127.0.0.1:{peer}"]
    etcd = ["etcd", "-data-dir", str(home / "etcd"), *listening]
    server = [
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{store}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={home}/certs",
        f"--token-auth-file={home}/tokens.csv",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.98.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={home}/sa.key",
        f"--service-account-signing-key-file={home}/sa.key",
    ]
    url = f"https://127.0.0.1:{port}"
    with program(etcd, home), program(server, home) as process:
        until_ready(url, process, home / "kube-apiserver.log")
        kubeconfig = {
            "clusters": [{"name": "bare", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "bare", "context": {"cluster": "bare", "user": "admin"}}],
            "current-context": "bare",
        }
        (home / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        yield Cluster(home / "kubeconfig")


@contextlib.contextmanager
def real_controllers(server: Cluster, home: Path) -> Iterator[None]:
    """The real kube-controller-manager, with the controllers for rollouts and for new namespaces."""
    wanted = ("deployment-controller", "replicaset-controller", "namespace-controller", "serviceaccount-controller")
    command = [
        "kube-controller-manager",
        f"--kubeconfig={server.kubeconfig}",
        f"--controllers={','.join(wanted)}",
        "--leader-elect=false",
        "--authentication-skip-lookup=true",
        "--secure-port=0",
    ]
    with program(command, home):
        yield


@contextlib.contextmanager
def program(command: list[str], home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that writes its log into a folder and is killed at the end."""
    with (home / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5, context=anyone):  # noqa: S310
                return
        except urllib.error.HTTPError as error:  # it answers, and is not ready yet
            error.close()
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    pytest.fail(f"no bare API server: {log.read_text()[-2000:]}")


class PaperNode:
    """A node that runs nothing: pods get an address, and become ready if their annotation says so."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._addresses = iter(range(1, 60_000))

    async def run(self) -> None:
        items, version = await self._client.list(PODS)
        for pod in items:
            with contextlib.suppress(ApiError):
                await self._look(pod)
        while True:
            async for event in self._client.watch(PODS, resource_version=version):
                version = event.object["metadata"]["resourceVersion"]
                if event.type in {"ADDED", "MODIFIED"}:
                    with contextlib.suppress(ApiError):  # changed or deleted since: a later event follows
                        await self._look(event.object)

    async def _look(self, pod: Object) -> None:
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            await self._client.delete(PODS, meta["name"], meta["namespace"], grace_seconds=0, uid=meta["uid"])
        elif not pod["spec"].get("nodeName"):
            await self._client.bind(pod, "paper")
        elif not pod["status"].get("podIP"):
            address = "10.0.{}.{}".format(*divmod(next(self._addresses), 250))
            ready = "True" if meta["annotations"]["pod"] == "good" else "False"
            condition = {"type": "Ready", "status": ready, "lastTransitionTime": now_text()}
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
            await self._client.patch(PODS, meta["name"], meta["namespace"], {"status": status}, subresource="status")


@contextlib.asynccontextmanager
async def paper_node(server: Cluster) -> AsyncIterator[None]:
    async with Client.from_kubeconfig(server.kubeconfig) as client:
        node = asyncio.ensure_future(PaperNode(client).run())
        try:
            yield
        finally:
            node.cancel()
            await asyncio.gather(node, return_exceptions=True)


@contextlib.asynccontextmanager
async def our_controllers(server: Cluster) -> AsyncIterator[None]:
    async with Client.from_kubeconfig(server.kubeconfig, user_agent="kube-controller-manager") as client:
        ready = asyncio.Event()
        controllers = asyncio.ensure_future(run_controllers(client, ready=ready.set))
        filled = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait([controllers, filled], return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            filled.cancel()
            controllers.cancel()
            await asyncio.gather(controllers, filled, return_exceptions=True)


def sleepers(*seconds: str) -> list[str]:
    """Return the processes of this machine that are `sleep` with one of these arguments."""
    wanted = {f"sleep\0{duration}\0".encode() for duration in seconds}
    processes = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if file.read_bytes() in wanted:
                processes.append(file.parent.name)
    return processes


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
