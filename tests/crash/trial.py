"""One trial: a run is disturbed at one of its writes, recovery runs, and kubectl says what the namespace contains.

What prefect-cd itself finds there is the second oracle: both have to say that it is whole.
"""

import asyncio
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
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
from tests.crash.actor import SECONDS, Act
from tests.crash.proxy import AT_THE_END, Boundary, Event, Fault, Moment, WriteProxy
from tests.crash.view import Objects, Snapshot, View, kubectl, view_of
from tests.tasks.examples import GitRepository

Object = dict[str, Any]
COPY = "copied"
"""An object with our labels that no release brought in: someone copied one of ours."""
LINGERING, LINGERS_SECONDS = "removed", 0.5
"""The object whose deletion takes some time in some scenarios, and how long after it was planned to bring it back."""


_MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own in it
_WRITING_SERVICES = ("TASK_RUN_RECORDER", "SCHEDULER", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS")


@dataclass(frozen=True)
class Disturbance:
    """What happens to a run, and at which of its writes."""

    boundary: Boundary
    event: Event

    def __str__(self) -> str:
        return f"{self.boundary}, {self.event.value}"


@dataclass(frozen=True)
class Outcome:
    """What became of the environment after a disturbance and a recovery.

    Args:
        disturbance: of the run.
        problem: what is not whole; empty when the environment is exactly the old or the new version.
        seconds: from the start of the recovery to its end.
        reached: whether the run came to the write: a write that was repeated once need not be repeated again.
    """

    disturbance: Disturbance
    problem: str
    seconds: float
    reached: bool


@dataclass(frozen=True)
class Finalizer:
    """Somebody's finalizer on an object, who removes it when the object is being deleted and is wanted back.

    Args:
        objects: of the namespace.
    """

    objects: Objects

    def add(self) -> None:
        self.objects.merge("ConfigMap", LINGERING, {"metadata": {"finalizers": ["example.org/slow"]}})

    def remove_soon(self, planned: str) -> None:
        """Remove it some time after a plan for the object, in which it was still being deleted."""
        if planned.endswith(f"/configmaps/{LINGERING}"):
            threading.Timer(LINGERS_SECONDS, self.remove).start()

    def remove(self) -> None:
        with suppress(httpx.HTTPError):  # the trial is over
            live = self.objects.get("ConfigMap", LINGERING)
            if live and "deletionTimestamp" in live["metadata"]:
                self.objects.merge("ConfigMap", LINGERING, {"metadata": {"finalizers": None}})


def _at(write: str, event: Event, occurrence: int = 1) -> Disturbance:
    return Disturbance(Boundary(write, occurrence), event)


IN_THE_MIDDLE = _at("PATCH deployments/web", Moment.ANSWERED)


@dataclass(frozen=True)
class Scenario:
    """What is disturbed.

    Args:
        name: for reports.
        flow: `release`, `rollback` or `recover`.
        before: the versions that run before, one after the other.
        interrupted: whether a release of the newer version was killed in the middle after that.
        version: that is released.
        exit_code: of the run when nobody disturbs it.
        taken_over: whether somebody else's objects are there before, and the release takes them over.
        lingering: whether the deletion of an object takes some time.
        always: disturbances that each sample contains, because they show what others do not.
    """

    name: str
    flow: str = "release"
    before: tuple[str, ...] = ("old",)
    interrupted: bool = False
    version: str = "new"
    exit_code: int = 0
    taken_over: bool = False
    lingering: bool = False
    always: tuple[Disturbance, ...] = ()

    def __str__(self) -> str:
        return self.name


_REMOVED = "DELETE configmaps/removed"
SCENARIOS = (
    Scenario("the first release", before=()),
    Scenario(
        "the first release, which takes over",
        before=(),
        taken_over=True,
        always=(IN_THE_MIDDLE,),
    ),
    Scenario("a release", always=(_at(_REMOVED, Fault.OVERTAKEN), IN_THE_MIDDLE)),
    Scenario("a release that removes slowly", lingering=True, always=(_at(_REMOVED, Moment.ANSWERED),)),
    Scenario(
        "a release whose rollout fails",
        version="broken",
        exit_code=1,
        always=(_at("PATCH configmaps/settings", Fault.TWICE_AT_THE_END),),
    ),
    Scenario("a rollback", flow="rollback", before=("old", "new")),
    Scenario("a release over an interrupted one", version="broken", interrupted=True, exit_code=1),
    Scenario("a rollback over an interrupted release", flow="rollback", interrupted=True),
    Scenario("a recovery", flow="recover", interrupted=True),
)


@dataclass(frozen=True)
class Scene:
    """Where trials take place, and the commits of the application.

    Args:
        api_server: URL of the API server without TLS.
        image: of the pods.
        repository: with the commits.
        commits: the oldest first.
        folder: for logs and kubeconfigs.
        prefect: URL of the Prefect server.
    """

    api_server: str
    image: str
    repository: GitRepository
    commits: tuple[str, ...]
    folder: Path
    prefect: str
    _snapshots: dict[tuple[tuple[str, ...], bool], Snapshot] = field(default_factory=dict)
    _building: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A new namespace that runs nothing."""
        name = f"t-crash-{uuid.uuid4().hex[:8]}"
        kubectl("create", "namespace", name)
        try:
            yield name
        finally:
            self.objects(name).merge("ConfigMap", LINGERING, {"metadata": {"finalizers": None}})
            kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    def objects(self, namespace: str) -> Objects:
        return Objects(self.api_server, namespace)

    def act(self, name: str, namespace: str, url: str = "", **more: Any) -> Act:  # noqa: ANN401  see `Act`
        """A process that talks to the API server at `url`; default: without a proxy."""
        url = url or self.api_server
        kubeconfig = self.folder / f"{namespace}-{url.rpartition(':')[2]}.yaml"
        cluster = {"name": "proxied", "cluster": {"server": url}}
        context = {"name": "proxied", "context": {"cluster": "proxied", "user": "nobody"}}
        users = [{"name": "nobody", "user": {}}]
        config = {"clusters": [cluster], "contexts": [context], "users": users, "current-context": "proxied"}
        kubeconfig.write_text(yaml.safe_dump(config))
        return Act(name, kubeconfig, namespace, str(self.repository.path), self.log(namespace), **more)

    def log(self, namespace: str) -> Path:
        return self.folder / f"{namespace}.log"

    def release(self, namespace: str, version: str, url: str = "", *, pods: bool = True, **more: Any) -> Act:  # noqa: ANN401
        """The release of a version."""
        objects = tuple(versions.objects(version, self.image, pods=pods))
        commit = self.commits[versions.COMMITS[version]]
        return self.act("release", namespace, url, objects=objects, commit=commit, **more)

    def play(self, act: Act) -> int:
        """Run to the end; returns the exit code."""
        process = act.start()
        return joined(process, act)

    def recovered(self, act: Act) -> str:
        """Run a recovery to the end; returns why it failed, and an empty text where it did not."""
        code = self.play(act)
        return f"the recovery ended with exit code {code}: {act.log.read_text()}" if code else ""

    def prepare(self, namespace: str, before: Sequence[str], *, pods: bool = True) -> None:
        """Have the last of these versions run in a namespace: as records of another one say, once there is one."""
        if not before:
            return
        with self._building:
            key = (tuple(before), pods)
            if key not in self._snapshots:
                self._snapshots[key] = self._played(before, pods=pods)
        self._snapshots[key].restore(self.objects(namespace))

    def _played(self, before: Sequence[str], *, pods: bool) -> Snapshot:
        with self.namespace() as namespace:
            self.prepare(namespace, before[:-1], pods=pods)
            act = self.release(namespace, before[-1], pods=pods)
            assert self.play(act) == 0, act.log.read_text()
            return Snapshot.of(self.objects(namespace))

    def undisturbed(self, scenario: Scenario) -> tuple[list[Boundary], list[View]]:
        """The writes of a run that nobody disturbs, and the whole versions: before the scenario, and after it."""
        with self._begun(scenario) as (namespace, before):
            proxy = WriteProxy(self.api_server)
            with proxy.serving() as url:
                code = self.play(self._run(scenario, namespace, url))
            assert code == scenario.exit_code, self.log(namespace).read_text()
            after = self._after(namespace)
        assert not scenario.before or f"ConfigMap/{COPY}" in after.objects, "it removed what is not its own"
        return proxy.trace, [before, after]

    def trial(self, scenario: Scenario, whole: Sequence[View], disturbance: Disturbance) -> Outcome:
        """Disturb a run at one of its writes, recover, and compare the namespace with the whole versions."""
        with self._begun(scenario) as (namespace, _):
            act = partial(self._run, scenario, namespace, impatient=isinstance(disturbance.event, Fault))
            reached = self._disturb(act, disturbance)
            started = time.monotonic()
            proxy = WriteProxy(self.api_server, planned=Finalizer(self.objects(namespace)).remove_soon)
            with proxy.serving() as url:
                failure = self.recovered(self.act("recover", namespace, url))
            seconds = time.monotonic() - started
            after = self._after(namespace)
            found = failure or problem(after, whole, labels=not scenario.taken_over)
            if not found and not scenario.taken_over:  # what was taken over and given back has no labels of ours
                found = self.defects(namespace)
        return Outcome(disturbance, found, seconds, reached)

    def defects(self, namespace: str) -> str:
        """What prefect-cd itself finds not whole; empty when there is nothing."""
        ownership = Ownership("shop", "production", namespace)
        act = self.act("look", namespace)

        async def find() -> tuple[Defect, ...]:
            async with connect(LoadedKubeconfig(yaml.safe_load(act.kubeconfig.read_text()))) as cluster:
                state = await read_state(cluster, ownership)
                chosen = state.known_good or baseline(ownership, (), datetime.now(timezone.utc))
                return await look(cluster, ownership, chosen, state)

        return ", ".join(map(str, asyncio.run(find())))

    def _after(self, namespace: str) -> View:
        """The view when every deletion is through."""
        Finalizer(self.objects(namespace)).remove()
        return view_of(namespace)

    @contextmanager
    def _begun(self, scenario: Scenario) -> Iterator[tuple[str, View]]:
        """A namespace with what comes before the scenario, and the view before anything is interrupted."""
        with self.namespace() as namespace:
            objects = self.objects(namespace)
            self.prepare(namespace, scenario.before)
            if scenario.taken_over:
                for item in versions.objects("old", self.image):
                    objects.apply(item, "somebody-else")
            elif settings := objects.get("ConfigMap", "settings"):
                copy = {"name": COPY, "labels": settings["metadata"]["labels"]}
                objects.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": copy, "data": {"copied": "yes"}})
            view = view_of(namespace)
            if scenario.interrupted:
                act = partial(self.release, namespace, "new")
                assert self._disturb(act, IN_THE_MIDDLE), self.log(namespace).read_text()
            if scenario.lingering:
                Finalizer(objects).add()
            yield namespace, view

    def _run(self, scenario: Scenario, namespace: str, url: str, **more: Any) -> Act:  # noqa: ANN401
        """The run that is disturbed."""
        more["take_over"] = scenario.taken_over
        if scenario.flow == "release":
            return self.release(namespace, scenario.version, url, **more)
        return self.act(scenario.flow, namespace, url, **more)

    def _disturb(self, act: Callable[..., Act], disturbance: Disturbance) -> bool:
        """Run to the end, or until it is killed; False when it has no such write."""
        proxy = WriteProxy(self.api_server)
        with proxy.serving() as url:
            playing = act(url=url)
            proxy.planned = Finalizer(self.objects(playing.namespace)).remove_soon
            ended: list[BaseProcess] = []
            kill = partial(end, ended) if isinstance(disturbance.event, Moment) else _do_nothing
            proxy.disturb(disturbance.boundary, disturbance.event, kill)
            ended.append(playing.start())
            joined(ended[0], playing)
            proxy.deliver()
        return proxy.reached


def is_certain(disturbance: Disturbance, before: View) -> bool:
    """Whether a whole version must follow: a create that arrives when the run has ended makes an object by itself.

    Nothing in the API says that an object must have existed before. The next release removes it.
    """
    if disturbance.event not in AT_THE_END or not disturbance.boundary.write.startswith("PATCH "):
        return True
    name = disturbance.boundary.write.split()[1].rpartition("/")[2]
    return name.startswith("prefect-cd.") or name in {key.partition("/")[2] for key in before.objects}


def joined(process: BaseProcess, act: Act) -> int:
    """The exit code of a process, once it has ended."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{act.name} did not end within {SECONDS} s:\n{act.log.read_text()}")
    return process.exitcode


def _do_nothing() -> None:
    """With a fault, the process goes on."""


def end(processes: list[BaseProcess]) -> None:
    with suppress(ProcessLookupError):
        os.kill(processes[0].pid or 0, signal.SIGKILL)


def problem(after: View, whole: Sequence[View], *, labels: bool = True) -> str:
    """How the view differs from every whole version; empty when it does not.

    Args:
        after: the view.
        whole: the whole versions.
        labels: whether those count that say that an object is ours.
    """
    if not labels:
        after, whole = after.without_labels(), [view.without_labels() for view in whole]
    if after.objects not in [view.objects for view in whole]:
        names = sorted({*after.objects, *(name for view in whole for name in view.objects)})
        views = {name: [view.objects.get(name) for view in (after, *whole)] for name in names}
        return f"neither the old version nor the new one: {[v for v in views.values() if v.count(v[0]) < len(v)]}"
    return "" if after.is_settled else f"a record without an outcome is left: {after.states}"


@contextmanager
def open_scene(folder: Path) -> Iterator[Scene]:
    """A Prefect server, the cluster's API server without TLS, and a git repository with three commits."""
    server = FrugalServer(folder, services_off=_WRITING_SERVICES)
    with server.running(), pytest.MonkeyPatch.context() as patch, _without_tls() as api_server:
        for name, value in {**server.environment, "GIT_CONFIG_GLOBAL": "/dev/null"}.items():
            patch.setenv(name, value)  # the processes inherit it
        image = os.environ.get("BASE_IMAGE") or f"{os.environ.get('REGISTRY', '')}/base/busybox:1"
        repository = GitRepository(folder / "repository")
        files = [yaml.safe_dump_all(versions.objects(version, name_of(image))) for version in ("old", "new", "newest")]
        commits = tuple(repository.commit({"k8s/all.yaml": file}).sha for file in files)
        yield Scene(api_server, image, repository, commits, folder, server.url)


def name_of(image: str) -> str:
    """The image without its tag."""
    name, _, tag = image.rpartition(":")
    return image if "/" in tag else name


class FrugalServer(Server):
    """A Prefect server that writes only what a run waits for.

    SQLite has one writer. Beside the events of many runs at once, the others wait, get 503, and back off for minutes.
    """

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
        }

    @contextmanager
    def running(self) -> Iterator["Server"]:
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None, prefix="crash-") as folder:
            self._database = Path(folder) / "prefect.db"
            with super().running():
                yield self


@contextmanager
def _without_tls() -> Iterator[str]:
    """The URL of `kubectl proxy`, which adds TLS and credentials."""
    command = ["kubectl", "proxy", "--port=0", "--disable-filter=true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as proxy:
        assert proxy.stdout
        address = re.search(r"127\.0\.0\.1:\d+", proxy.stdout.readline())
        assert address
        try:
            yield f"http://{address[0]}"
        finally:
            proxy.terminate()
