"""Manifests that lose requests during an update: three wrong ones must, the good one must not in 10,000.

The tests run on the embedded cluster always, and on that of KUBECONFIG when it is set: the embedded cluster is useful
only if it shows the faults of a real one. Requests are sent at a fixed rate, answered or not, each over its own
connection; the application is updated again and again until the first request is lost, or all are answered.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
import yaml

from prefect_cd_local import builder
from prefect_cd_local.client import DEPLOYMENTS, NAMESPACES, PODS, SERVICES, Client
from prefect_cd_local.cluster import running

Object = dict[str, Any]
RATE, COUNT = 200, 10_000  # requests in a second, and in all
SECONDS_TO_ANSWER = 60
SERVER = """
import http.server, os, signal, time

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # ends at once, as many programs do
time.sleep(1)  # an application takes its time to start
Server(("0.0.0.0", 8080), Answer).serve_forever()
"""
GOOD = """
replicas: 2
selector: {matchLabels: {app: web}}
template:
  metadata: {labels: {app: web}}
  spec:
    containers:
      - name: web
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
        lifecycle: {preStop: {sleep: {seconds: 10}}}
"""
SERVICE = {"selector": {"app": "web"}, "ports": [{"port": 8080}]}


def without_pre_stop(spec: Object) -> None:
    del spec["template"]["spec"]["containers"][0]["lifecycle"]


def without_readiness(spec: Object) -> None:
    del spec["template"]["spec"]["containers"][0]["readinessProbe"]


def with_recreate(spec: Object) -> None:
    spec["strategy"] = {"type": "Recreate"}


class Users:
    """Sends requests at a fixed rate, and counts the results."""

    def __init__(self, host: str, port: int) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self.over = asyncio.Event()  # one was lost, or all were answered
        self._address = host, port

    async def send_requests(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        requests = []
        for number in range(COUNT):
            await asyncio.sleep(began + number / RATE - clock())
            requests.append(asyncio.create_task(self._count()))
        await asyncio.gather(*requests)
        self.over.set()

    async def _count(self) -> None:
        try:
            with anyio.fail_after(SECONDS_TO_ANSWER):
                await self.ask()
        except OSError as error:
            self.lost.append(repr(error))
            self.over.set()
        else:
            self.answered += 1

    async def ask(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await reader.read()
        finally:
            writer.close()
        if not answer.startswith(b"HTTP/1.0 200 "):
            raise OSError(f"the answer was {answer[:80]!r}")


def make_image(name: str, folder: Path) -> None:
    """Make an image without files: the machine has a Python."""
    context = folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM python\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert builder.main(["build", "--tag", name, str(context)]) == 0
        assert builder.main(["push", name]) == 0


@contextlib.asynccontextmanager
async def served(kind: str, folder: Path, spec: Object) -> AsyncIterator[tuple[Client, str, Users]]:
    """Run the application in a namespace of its own; yields a client, the namespace, and the users, not yet started."""
    async with contextlib.AsyncExitStack() as stack:
        if kind == "embedded":
            cluster = await stack.enter_async_context(running(folder))
            kubeconfig, image = cluster.kubeconfig, f"{cluster.registry}/python:1"
            await asyncio.to_thread(make_image, image, folder)
        else:
            kubeconfig, image = Path(os.environ["KUBECONFIG"]), f"{os.environ['REGISTRY']}/base/python:3.11"
        client = await stack.enter_async_context(Client.from_kubeconfig(kubeconfig))
        namespace = f"prefect-cd-load-{uuid4().hex[:8]}"
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
        stack.push_async_callback(client.delete, NAMESPACES, namespace)
        meta = {"name": "web", "namespace": namespace}
        container = spec["template"]["spec"]["containers"][0]
        container.update(image=image, command=["python3", "-c", SERVER])
        service = await client.create(SERVICES, {"metadata": meta, "spec": SERVICE})
        await client.create(DEPLOYMENTS, {"metadata": meta, "spec": spec})
        users = Users(service["spec"]["clusterIP"], 8080)
        await rolled_out(client, namespace)
        # Without a readiness probe the rollout completes before the pods listen, and the Service may get one late.
        for pod in (await client.list(PODS, namespace)).items:
            await answering(Users(pod["status"]["podIP"], 8080))
        await answering(users)
        yield client, namespace, users


async def rolled_out(client: Client, namespace: str) -> None:
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    while True:
        deployment = await client.get(DEPLOYMENTS, "web", namespace)
        status = deployment.get("status") or {}
        seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
        if seen and {status.get(count) for count in counts} == {deployment["spec"]["replicas"]}:
            return
        await asyncio.sleep(0.1)


async def answering(users: Users) -> None:
    """Wait until the pod or Service answers 20 requests in a row."""
    row = 0
    while row < 20:
        try:
            with anyio.fail_after(SECONDS_TO_ANSWER):
                await users.ask()
            row += 1
        except OSError:
            row = 0
            await asyncio.sleep(0.1)


async def first_of(*calls: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(call) for call in calls]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


async def updated_under_load(kind: str, folder: Path, spec: Object) -> tuple[Users, int]:
    """Return the users' results, and the number of complete updates."""
    async with served(kind, folder, spec) as (client, namespace, users):
        traffic = asyncio.ensure_future(users.send_requests())
        try:
            while users.answered < RATE:
                await asyncio.sleep(0.05)
            assert users.lost == [], "before any update"
            updates = -1
            while not users.over.is_set():
                updates += 1
                change = {"spec": {"template": {"metadata": {"annotations": {"update": str(updates)}}}}}
                await client.patch(DEPLOYMENTS, "web", namespace, change)
                await first_of(rolled_out(client, namespace), users.over.wait())
            return users, updates
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.cluster)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "real" and not (os.environ.get("KUBECONFIG") and os.environ.get("REGISTRY")):
        pytest.skip("no KUBECONFIG and REGISTRY")
    return str(request.param)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("spoil", [without_pre_stop, without_readiness, with_recreate])
def test_a_wrong_manifest_loses_requests_during_an_update(
    kind: str, tmp_path: Path, spoil: Callable[[Object], None]
) -> None:
    spec = yaml.safe_load(GOOD)
    spoil(spec)
    users, _ = asyncio.run(updated_under_load(kind, tmp_path, spec))
    assert users.lost != []


@pytest.mark.alone  # a core that is busy for long loses requests, too
@pytest.mark.timeout(600)
def test_the_good_manifest_loses_none_of_ten_thousand_requests(kind: str, tmp_path: Path) -> None:
    users, updates = asyncio.run(updated_under_load(kind, tmp_path, yaml.safe_load(GOOD)))
    assert users.lost == []
    assert users.answered == COUNT
    assert updates >= 2
