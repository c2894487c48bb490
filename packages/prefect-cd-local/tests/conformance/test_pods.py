"""The behaviour of pods: `pods/pods.yaml`, recorded on a real node, on the embedded one and on KUBECONFIG's.

All pods of a cluster are created at once, and each test waits for its own.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from conformance.clusters import in_a_thread, sleepers, wait_for
from prefect_cd_local import builder
from prefect_cd_local.client import (
    CONFIG_MAPS,
    EVENTS,
    NAMESPACES,
    NODES,
    PODS,
    SECRETS,
    ApiError,
    Client,
    Object,
)  # fmt: skip
from prefect_cd_local.cluster import Cluster, running

CASES = yaml.safe_load((Path(__file__).parent / "pods" / "pods.yaml").read_text())


@dataclass
class Place:
    """A cluster, and where its images come from."""

    kubeconfig: Path
    registry: str
    image: str
    namespace: str = ""
    node: str = ""
    version: str = ""
    seen: dict[str, list[Object]] = field(default_factory=dict)
    """Every state of every pod, by name."""


def place_in(cluster: Cluster) -> Place:
    return Place(cluster.kubeconfig, cluster.registry, f"{cluster.registry}/base:1")


def make_base_image(place: Place, folder: Path) -> None:
    """Make an image without files: the machine has a shell."""
    context = folder / "base"
    context.mkdir()
    (context / "Dockerfile").write_text('FROM scratch\nCMD ["sleep", "600"]\n')
    assert builder.main(["build", "--tag", place.image, str(context)]) == 0
    assert builder.main(["push", place.image]) == 0


@pytest.fixture(scope="session", params=["embedded", pytest.param("real", marks=pytest.mark.cluster)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cluster")
    if request.param == "embedded":
        with pytest.MonkeyPatch.context() as patch, in_a_thread(running(folder)) as cluster:
            place = place_in(cluster)
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            make_base_image(place, folder)
            with watched(place):
                yield place
        return
    if not (os.environ.get("KUBECONFIG") and os.environ.get("REGISTRY")):
        pytest.skip("no KUBECONFIG and REGISTRY")
    registry = os.environ["REGISTRY"]
    place = Place(Path(os.environ["KUBECONFIG"]), registry, f"{registry}/base/busybox:1")
    try:
        with watched(place):
            yield place
    finally:
        asyncio.run(forget(place))


@contextlib.contextmanager
def watched(place: Place) -> Iterator[None]:
    """Create all pods, and record their states."""
    asyncio.run(play(place))
    loop = asyncio.new_event_loop()
    watching = loop.create_task(watch(place))

    def follow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(watching)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(watching.cancel)
        thread.join(30)
        loop.close()


async def watch(place: Place) -> None:
    async with Client.from_kubeconfig(place.kubeconfig) as client:
        while True:
            try:
                async for event in client.watch(PODS, place.namespace, resource_version=place.version):
                    place.version = event.object["metadata"]["resourceVersion"]
                    if event.type != "BOOKMARK":
                        place.seen.setdefault(event.object["metadata"]["name"], []).append(event.object)
            except ApiError:  # others restart the shared cluster's API server
                await asyncio.sleep(0.5)


async def play(place: Place) -> None:
    """Create all pods of `pods.yaml`."""
    place.namespace = f"prefect-cd-pods-{uuid4().hex[:6]}"
    async with Client.from_kubeconfig(place.kubeconfig) as client:
        place.node = (await client.list(NODES)).items[0]["metadata"]["name"]
        await client.create(NAMESPACES, {"metadata": {"name": place.namespace}})
        meta = {"namespace": place.namespace}
        place.version = (await client.list(PODS, place.namespace)).resource_version
        await client.create(
            CONFIG_MAPS, {"metadata": {"name": "greetings", **meta}, "data": {"greeting": "hello", "farewell": ""}}
        )
        await client.create(SECRETS, {"metadata": {"name": "settings", **meta}, "stringData": {"password": "secret"}})
        for case in CASES:
            pod = {"metadata": {"name": slug(case), "labels": {"pods": "yes"}, **meta}, "spec": case["spec"]}
            pod["spec"]["automountServiceAccountToken"] = False
            await patiently(lambda pod=pod: client.create(PODS, filled(pod, place)))


async def patiently(call: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Repeat a call until the namespace has its service account."""
    for _ in range(50):
        try:
            return await call()
        except ApiError as error:
            if error.code not in (0, 403):
                raise
            await asyncio.sleep(0.3)
    return await call()


async def forget(place: Place) -> None:
    async with Client.from_kubeconfig(place.kubeconfig) as client:
        await client.delete(NAMESPACES, place.namespace)


def slug(case: Object) -> str:
    return str(case["name"].replace(" ", "-"))


def filled(value: Any, place: Place, pod: Object | None = None) -> Any:  # noqa: ANN401
    """Return a recorded text with the names of this run."""
    text = json.dumps(value).replace("IMAGE", place.image).replace("REGISTRY", place.registry)
    text = text.replace("NODE", place.node)
    text = re.sub(r"\bNS\b", place.namespace, text).replace("NS/", f"{place.namespace}/")
    text = text.replace("_NS(", f"_{place.namespace}(")
    if pod:
        text = text.replace("UID", pod["metadata"]["uid"]).replace("IP:", f"{pod['status'].get('podIP')}:")
    return json.loads(text)


def contains(actual: object, wanted: object) -> bool:
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(key in actual and contains(actual[key], wanted[key]) for key in wanted)
    return actual == wanted


def difference(case: Object, pod: Object, events: list[Object], place: Place) -> str:
    """Return what is not (yet) as recorded; empty when all is."""
    case = filled(case, place, pod)
    status = pod["status"]
    conditions = {condition["type"]: condition.get("reason") for condition in status.get("conditions") or []}
    main = (status.get("containerStatuses") or [{}])[0]
    for name, actual in (("phase", status["phase"]), ("conditions", conditions), ("state", main.get("state")),
                         ("last", main.get("lastState")), ("restarts", main.get("restartCount"))):  # fmt: skip
        if name in case and not contains(actual, case[name]):
            return f"{name}: {actual}, not {case[name]}"
    seen = {(_container(event), event["type"], event["reason"], event["message"]) for event in events}
    missing = [event for event in case.get("events") or [] if tuple(event) not in seen]
    return f"missing events: {missing}; seen: {sorted(seen)}" if missing else ""


_GONE = ("unable to retrieve container logs", "failed to try resolving symlinks in path")
"""A real kubelet's messages about a container in the status that it has removed, or not yet started."""


def _container(event: Object) -> str:
    return re.sub(r"spec\.(initC|c)ontainers\{(.*)\}", r"\2", event["involvedObject"].get("fieldPath", ""))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES, ids=[slug(case) for case in CASES])
def test_a_pod_behaves_as_recorded(place: Place, case: Object) -> None:
    async def judge() -> None:
        async with Client.from_kubeconfig(place.kubeconfig) as client:
            wrong, end = "", time.monotonic() + 60
            while time.monotonic() < end:
                fields = f"involvedObject.name={slug(case)}"
                events = (
                    await patiently(lambda fields=fields: client.list(EVENTS, place.namespace, fields=fields))
                ).items
                differences = [difference(case, pod, events, place) for pod in place.seen.get(slug(case), [])]
                if "" in differences:
                    return
                wrong = str(differences[-1:])
                await asyncio.sleep(0.2)
            pytest.fail(wrong)

    asyncio.run(judge())
    for flag, key in (("", "log"), ("--previous", "previous")):
        if key in case:
            output = _GONE[0]
            while output.startswith(_GONE):
                output = kubectl(place, "logs", slug(case), *filter(None, [flag]))
            assert output == filled(case[key], place)


def kubectl(place: Place, *words: str) -> str:
    command = ["kubectl", "--kubeconfig", str(place.kubeconfig), "-n", place.namespace, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.timeout(120)
def test_a_pod_that_is_deleted_gets_its_pre_stop_hook_then_sigterm_then_time_then_sigkill(place: Place) -> None:
    script = "trap 'echo got TERM' TERM; echo up; while true; do sleep 0.1; done"  # it ignores SIGTERM
    spec = {
        "terminationGracePeriodSeconds": 3,
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "main",
                "image": place.image,
                "command": ["sh", "-c", script],
                "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo asked > /proc/1/fd/1; sleep 1"]}}},
            }
        ],
    }

    async def scenario() -> tuple[str, float]:
        async with Client.from_kubeconfig(place.kubeconfig) as client:
            await client.create(PODS, {"metadata": {"name": "stubborn", "namespace": place.namespace}, "spec": spec})
            while (await client.get(PODS, "stubborn", place.namespace))["status"]["phase"] != "Running":
                await asyncio.sleep(0.1)
            following = await asyncio.create_subprocess_exec(
                "kubectl", "--kubeconfig", str(place.kubeconfig), "-n", place.namespace, "logs", "-f", "stubborn",
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert following.stdout is not None
            first = await following.stdout.readline()  # it listens
            began = time.monotonic()
            await client.delete(PODS, "stubborn", place.namespace)
            while await client.find(PODS, "stubborn", place.namespace):
                await asyncio.sleep(0.05)
            took = time.monotonic() - began
            return (first + (await following.communicate())[0]).decode(), took

    output, took = asyncio.run(scenario())
    assert output.splitlines() == ["up", "asked", "got TERM"]
    assert 2.8 < took < 25  # the grace that it would have by default is 30


# --- no processes are left ---

SLEEPS = ("4321", "4322", "4323", "4324", "4325")  # as they are started below
STORY = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conformance.test_pods import *
async def main():
    folder = Path(sys.argv[1])
    async with running(folder) as cluster:
        place = place_in(cluster)
        await asyncio.to_thread(make_base_image, place, folder)
        async with Client.from_kubeconfig(place.kubeconfig) as client:
            hidden = "sleep 4321 & setsid sleep 4322 & sh -c 'sleep 4323; true' & (setsid sleep 4324 &)"
            script = hidden + "; exec sleep 4325"
            spec = {"containers": [{"name": "main", "image": place.image, "command": ["sh", "-c", script]}]}
            await client.create(PODS, {"metadata": {"name": "many", "namespace": "default"}, "spec": spec})
            while (await client.get(PODS, "many", "default"))["status"]["phase"] != "Running":
                await asyncio.sleep(0.05)
        print("running", flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_when_the_node_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", STORY, str(tmp_path), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as node:
        assert node.stdout
        assert any(line == "running\n" for line in node.stdout)
        wait_for(lambda: len(sleepers(*SLEEPS)) == 5)
        node.send_signal(how)
    wait_for(lambda: not sleepers(*SLEEPS))
