"""One trial: a run is killed at one of its writes, and recovery runs; then kubectl says what the namespace contains.

What prefect-cd itself finds there is the second oracle: both have to say that it is whole.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import baseline
from prefect_cd.environment.recovery import look
from prefect_cd.environment.state import read_state
from prefect_cd.environment.wholeness import Defect
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from tests.cluster.harness import Server
from tests.crash import versions
from tests.crash.actor import Act
from tests.crash.proxy import Boundary, Moment, WriteProxy
from tests.tasks.examples import GitRepository

Object = dict[str, Any]
SECONDS = 120
_OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "namespace", "selfLink")
_OF_A_CONTROLLER = ("deployment.kubernetes.io/revision", "kubectl.kubernetes.io/last-applied-configuration")


def kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class View:
    """What a stranger sees of an environment: its objects as they were asked for, and the states of its records."""

    objects: dict[str, Object]
    states: tuple[str, ...]
    holder: str

    @property
    def is_settled(self) -> bool:
        """Whether the newest record has an outcome; one over which another was started is history."""
        return not set(self.states[-1:]) & {"prepared", "applying", "verifying"}


def view_of(namespace: str) -> View:
    """The namespace as kubectl shows it, without what the server and controllers write."""
    listed = json.loads(kubectl("-n", namespace, "get", "configmaps,deployments,services", "-o", "json"))["items"]
    objects = {
        f"{item['kind']}/{item['metadata']['name']}": _wanted(item)
        for item in listed
        if item["metadata"]["name"] not in {"kube-root-ca.crt", "kubernetes"}
    }
    secrets = json.loads(kubectl("-n", namespace, "get", "secrets", "-l", "prefect-cd.dev/record", "-o", "json"))
    labels = [item["metadata"]["labels"] for item in secrets["items"]]
    numbered = sorted((int(label["prefect-cd.dev/number"]), label["prefect-cd.dev/state"]) for label in labels)
    leases = json.loads(kubectl("-n", namespace, "get", "leases", "-o", "json"))["items"]
    holder = str(leases[0]["spec"].get("holderIdentity") or "") if leases else ""
    return View(objects, tuple(state for _, state in numbered), holder)


def _wanted(item: Object) -> Object:
    metadata = {key: value for key, value in item["metadata"].items() if key not in _OF_THE_SERVER}
    if annotations := metadata.get("annotations"):
        metadata["annotations"] = {key: value for key, value in annotations.items() if key not in _OF_A_CONTROLLER}
    return {key: value for key, value in item.items() if key != "status"} | {"metadata": metadata}


def kubeconfig_of(url: str) -> dict[str, Any]:
    """A kubeconfig of an API server without TLS."""
    cluster = {"name": "proxied", "cluster": {"server": url}}
    context = {"name": "proxied", "context": {"cluster": "proxied", "user": "nobody"}}
    users = [{"name": "nobody", "user": {}}]
    return {"clusters": [cluster], "contexts": [context], "users": users, "current-context": "proxied"}


def defects_of(url: str, namespace: str) -> tuple[Defect, ...]:
    """What prefect-cd itself finds there that is not whole."""
    ownership = Ownership("shop", "production", namespace)

    async def find() -> tuple[Defect, ...]:
        async with connect(LoadedKubeconfig(kubeconfig_of(url))) as cluster:
            state = await read_state(cluster, ownership)
            chosen = state.known_good or baseline(ownership, (), datetime.now(timezone.utc))
            return await look(cluster, ownership, chosen, state)

    return asyncio.run(find())


@dataclass(frozen=True)
class Scene:
    """Where trials take place, and the two commits of the application."""

    api_server: str
    image: str
    repository: Path
    first: str
    second: str
    folder: Path

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A new namespace that runs nothing."""
        name = f"t-crash-{uuid.uuid4().hex[:8]}"
        kubectl("create", "namespace", name)
        try:
            yield name
        finally:
            kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    def act(self, name: str, namespace: str, url: str, objects: list[Object] | None = None, commit: str = "") -> Act:
        kubeconfig = self.folder / f"{namespace}-{url.rpartition(':')[2]}.yaml"
        kubeconfig.write_text(yaml.safe_dump(kubeconfig_of(url)))
        log = self.folder / f"{namespace}.log"
        return Act(name, kubeconfig, namespace, self.repository, log, tuple(objects or ()), commit)

    def play(self, act: Act) -> int:
        """Run to the end; returns the exit code."""
        process = act.start()
        process.join(SECONDS)
        assert process.exitcode is not None, f"{act.name} did not end:\n{act.log.read_text()}"
        return process.exitcode

    def release(self, namespace: str, url: str, version: str) -> Act:
        """The release of a version: the older commit has the objects `old`, the newer one all others."""
        objects: list[Object] = getattr(versions, version)(self.image)
        return self.act("release", namespace, url, objects, self.first if version == "old" else self.second)

    def undisturbed(self, scenario: "Scenario") -> tuple[list[Boundary], list[View]]:
        """The writes of a run that nobody disturbs, and the whole versions: before the scenario, and after it."""
        with self.namespace() as namespace:
            before = self._prepare(namespace, scenario)
            proxy = WriteProxy(self.api_server)
            with proxy.serving() as url:
                code = self.play(scenario.act(self, namespace, url))
            assert code == scenario.exit_code, (self.folder / f"{namespace}.log").read_text()
            return proxy.trace, [before, view_of(namespace)]

    def trial(self, scenario: "Scenario", whole: list[View], kill: "Kill") -> "Outcome":
        """Kill a run at one of its writes, recover, and compare the namespace with the whole versions."""
        with self.namespace() as namespace:
            self._prepare(namespace, scenario)
            killed = self._kill(namespace, scenario.act, kill)
            started = time.monotonic()
            recovery = self.act("recover", namespace, self.api_server)
            assert self.play(recovery) == 0, recovery.log.read_text()
            seconds = time.monotonic() - started
            after, defects = view_of(namespace), defects_of(self.api_server, namespace)
        if not killed:
            return Outcome(kill, "the run has no such write", seconds)
        return Outcome(kill, _problem(after, whole) or ", ".join(map(str, defects)), seconds)

    def _prepare(self, namespace: str, scenario: "Scenario") -> View:
        """Play what comes before the scenario; returns the view before anything is interrupted."""
        for version in scenario.before:
            act = self.release(namespace, self.api_server, version)
            assert self.play(act) == 0, act.log.read_text()
        view = view_of(namespace)
        if scenario.interrupted:
            assert self._kill(namespace, Scenario("interrupted").act, IN_THE_MIDDLE)
        return view

    def _kill(self, namespace: str, act: Callable[["Scene", str, str], Act], kill: "Kill") -> bool:
        """Run until the write, and kill the run there; False when it ended without this write."""
        proxy = WriteProxy(self.api_server)
        with proxy.serving() as url:
            process = act(self, namespace, url).start()
            proxy.kill_at(kill.boundary, kill.moment, lambda: _end(process))
            process.join(SECONDS)
        assert process.exitcode is not None, f"it did not end:\n{(self.folder / f'{namespace}.log').read_text()}"
        return proxy.killed


def _end(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGKILL)


def _problem(after: View, whole: list[View]) -> str:
    """How the view differs from every whole version; empty when it does not."""
    if after.objects not in [view.objects for view in whole]:
        names = sorted({*after.objects, *(name for view in whole for name in view.objects)})
        views = {name: [view.objects.get(name) for view in (after, *whole)] for name in names}
        return f"neither the old version nor the new one: {[v for v in views.values() if v.count(v[0]) < len(v)]}"
    return "" if after.is_settled else f"a record without an outcome is left: {after.states}"


@dataclass(frozen=True)
class Kill:
    """Where and when a run is killed."""

    boundary: Boundary
    moment: Moment

    def __str__(self) -> str:
        return f"{self.boundary}, {self.moment.value}"


@dataclass(frozen=True)
class Outcome:
    """What became of the environment after a kill and a recovery.

    Args:
        kill: of the run.
        problem: what is not whole; empty when the environment is exactly the old or the new version.
        seconds: from the start of the recovery to its end.
    """

    kill: Kill
    problem: str
    seconds: float


IN_THE_MIDDLE = Kill(Boundary("PATCH deployments/web", 1), Moment.ANSWERED)


@dataclass(frozen=True)
class Scenario:
    """What is killed.

    Args:
        name: for reports.
        flow: `release`, `rollback` or `recover`.
        before: the versions that run before, one after the other.
        interrupted: whether a release of the newer version was killed in the middle after that.
        version: that is released.
        exit_code: of the run when nobody disturbs it.
    """

    name: str
    flow: str = "release"
    before: tuple[str, ...] = ("old",)
    interrupted: bool = False
    version: str = "new"
    exit_code: int = 0

    def act(self, scene: Scene, namespace: str, url: str) -> Act:
        """The run that is killed."""
        if self.flow == "release":
            return scene.release(namespace, url, self.version)
        return scene.act(self.flow, namespace, url)


SCENARIOS = (
    Scenario("the first release", before=()),
    Scenario("a release"),
    Scenario("a release whose rollout fails", version="broken", exit_code=1),
    Scenario("a rollback", flow="rollback", before=("old", "new")),
    Scenario("a release over an interrupted one", version="broken", interrupted=True, exit_code=1),
    Scenario("a rollback over an interrupted release", flow="rollback", interrupted=True),
    Scenario("a recovery", flow="recover", interrupted=True),
)


@contextmanager
def open_scene(folder: Path) -> Iterator[Scene]:
    """A Prefect server, the cluster's API server without TLS, and a git repository with two commits."""
    server = Server(folder)
    with server.running(), pytest.MonkeyPatch.context() as patch, _without_tls() as api_server:
        for name, value in {**server.environment, "GIT_CONFIG_GLOBAL": "/dev/null"}.items():
            patch.setenv(name, value)  # the processes inherit it
        repository = GitRepository(folder / "repository")
        first, second = (repository.commit({"version": version}).sha for version in ("1", "2"))
        image = os.environ.get("BASE_IMAGE") or f"{os.environ.get('REGISTRY', '')}/base/busybox:1"
        yield Scene(api_server, image, repository.path, first, second, folder)


@contextmanager
def _without_tls() -> Iterator[str]:
    """The URL of `kubectl proxy`, which adds TLS and credentials."""
    command = ["kubectl", "proxy", "--port=0", "--disable-filter=true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as proxy:
        assert proxy.stdout
        address = re.search(r"127\.0\.0\.1:\d+", proxy.stdout.readline())
        assert address
        yield f"http://{address[0]}"
        proxy.terminate()
