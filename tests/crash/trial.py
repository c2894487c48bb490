"""One trial: a run is killed at one of its writes, recovery runs, and kubectl says what the namespace contains."""

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from tests.crash import versions
from tests.crash.actor import Act
from tests.crash.proxy import Boundary, Moment, WriteProxy

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
        return "started" not in self.states


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
        cluster = {"name": "proxied", "cluster": {"server": url}}
        context = {"name": "proxied", "context": {"cluster": "proxied", "user": "nobody"}}
        users = [{"name": "nobody", "user": {}}]
        config = {"clusters": [cluster], "contexts": [context], "users": users, "current-context": "proxied"}
        kubeconfig.write_text(yaml.safe_dump(config))
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

    def prepare(self, namespace: str, scenario: "Scenario") -> None:
        """Release what runs before the scenario."""
        for version in scenario.before:
            act = self.release(namespace, self.api_server, version)
            assert self.play(act) == 0, act.log.read_text()

    def trace(self, namespace: str, scenario: "Scenario") -> list[Boundary]:
        """The writes of a run that nobody disturbs."""
        proxy = WriteProxy(self.api_server)
        with proxy.serving() as url:
            code = self.play(scenario.act(self, namespace, url))
        assert code == scenario.exit_code, (self.folder / f"{namespace}.log").read_text()
        return proxy.trace

    def kill(self, namespace: str, scenario: "Scenario", boundary: Boundary, moment: Moment) -> bool:
        """Run until the write, and kill the run there; False when it ended without this write."""
        proxy = WriteProxy(self.api_server)
        with proxy.serving() as url:
            process = scenario.act(self, namespace, url).start()
            proxy.kill_at(boundary, moment, lambda: _kill(process))
            process.join(SECONDS)
        assert process.exitcode is not None, f"it did not end:\n{(self.folder / f'{namespace}.log').read_text()}"
        return proxy.killed

    def recover(self, namespace: str) -> None:
        act = self.act("recover", namespace, self.api_server)
        assert self.play(act) == 0, act.log.read_text()


def _kill(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGKILL)


@dataclass(frozen=True)
class Scenario:
    """What is killed.

    Args:
        name: for reports.
        flow: `release` or `rollback`.
        before: the versions that run before, one after the other.
        version: that is released.
        exit_code: of the run when nobody disturbs it.
    """

    name: str
    flow: str = "release"
    before: tuple[str, ...] = ("old",)
    version: str = "new"
    exit_code: int = 0

    def act(self, scene: Scene, namespace: str, url: str) -> Act:
        """The run that is killed."""
        if self.flow == "rollback":
            return scene.act("rollback", namespace, url)
        return scene.release(namespace, url, self.version)


SCENARIOS = (
    Scenario("the first release", before=()),
    Scenario("a release"),
    Scenario("a release whose rollout fails", version="broken", exit_code=1),
    Scenario("a rollback", flow="rollback", before=("old", "new")),
)
