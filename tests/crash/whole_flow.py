"""Whole flows `release`, with proxies in front of both APIs: killed at what they write to Prefect, or left without it.

Prefect's server is a bystander: what it stores, and whether it answers, decides nothing about an environment.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess

import httpx
import yaml

from tests.crash.actor import Act
from tests.crash.proxy import Boundary, Event, Moment, Outage, WriteProxy, prefect_write
from tests.crash.trial import Disturbance, Outcome, Scene, end, joined, name_of, problem
from tests.crash.view import View, view_of

_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Flow:
    """How whole flows are disturbed.

    Args:
        name: for reports.
        events: what happens at a write.
        by_itself: whether the run goes on, and leaves a whole version without a recovery.
        of_prefect: whether it happens at writes to Prefect only.
    """

    name: str
    events: tuple[Event, ...]
    by_itself: bool = False
    of_prefect: bool = False

    def __str__(self) -> str:
        return self.name


FLOWS = (
    Flow("a whole flow, killed at what it writes to Prefect", tuple(Moment), of_prefect=True),
    Flow("a whole flow, whose Prefect server goes away", (Outage.PREFECT,), by_itself=True),
)


@dataclass(frozen=True)
class Proxies:
    """Those of one run."""

    kubernetes: WriteProxy
    prefect: WriteProxy

    def disturb(self, disturbance: Disturbance, processes: list[BaseProcess]) -> None:
        """Plan a disturbance at one of them."""
        of_prefect = disturbance.boundary.write.startswith("Prefect: ")
        call = self._go if disturbance.event is Outage.PREFECT else partial(end, processes)
        (self.prefect if of_prefect else self.kubernetes).disturb(disturbance.boundary, disturbance.event, call)

    def _go(self) -> None:
        self.prefect.gone = True

    @property
    def reached(self) -> bool:
        """Whether the planned write was reached."""
        return self.kubernetes.reached or self.prefect.reached


@dataclass(frozen=True)
class Stage:
    """A scene with an image for every commit, as whole flows need it."""

    scene: Scene

    def undisturbed(self, flow: Flow) -> tuple[list[Boundary], list[View]]:
        """The writes of a flow that nobody disturbs, and the whole versions: before it, and after it."""
        with self.scene.namespace() as namespace, self._proxied(namespace) as (proxies, act):
            self.scene.prepare(namespace, ("old",))
            before = view_of(namespace)
            assert self.scene.play(act) == 0, act.log.read_text()
            trace = [*proxies.prefect.trace, *([] if flow.of_prefect else proxies.kubernetes.trace)]
            return trace, [before, view_of(namespace)]

    def trial(self, flow: Flow, whole: Sequence[View], disturbance: Disturbance) -> Outcome:
        """Disturb a flow at one of its writes, recover where it was killed, and compare with the whole versions."""
        with self.scene.namespace() as namespace:
            self.scene.prepare(namespace, ("old",))
            with self._proxied(namespace) as (proxies, act):
                processes: list[BaseProcess] = []
                proxies.disturb(disturbance, processes)
                processes.append(act.start())
                started = time.monotonic()
                joined(processes[0], act)
            failure = ""
            if not flow.by_itself:
                started = time.monotonic()
                failure = self.scene.recovered(self.scene.act("recover", namespace))
            seconds = time.monotonic() - started
            after = view_of(namespace)
        return Outcome(disturbance, failure or problem(after, whole), seconds, proxies.reached)

    @contextmanager
    def _proxied(self, namespace: str) -> Iterator[tuple[Proxies, Act]]:
        """The proxies of a run, and the run."""
        proxies = Proxies(WriteProxy(self.scene.api_server), WriteProxy(self.scene.prefect, prefect_write))
        with proxies.kubernetes.serving() as kubernetes, proxies.prefect.serving() as prefect:
            commit = self.scene.commits[1]
            act = self.scene.act("flow", namespace, kubernetes, commit=commit, prefect=f"{prefect}/api")
            file = act.kubeconfig.with_suffix(".pipeline.yaml")
            environment = {
                "name": "production",
                "namespace": namespace,
                "manifests": "k8s",
                "cluster": {"kubeconfig": str(act.kubeconfig)},
                "rollout": {"settle": "0s", "timeout": "60s"},
            }
            pipeline = {
                "application": "shop",
                "source": {"repository": str(self.scene.repository.path), "branch": "main"},
                "image": {"name": name_of(self.scene.image)},
                "environments": [environment],
            }
            file.write_text(yaml.safe_dump(pipeline))
            yield proxies, replace(act, pipeline_file=file)


def open_stage(scene: Scene) -> Stage:
    """Give the image of the pods the tags of the commits: nothing has to be built."""
    name = name_of(scene.image)
    host, _, repository = name.partition("/")
    url = f"http://{host}/v2/{repository}/manifests"
    tag = scene.image.removeprefix(name).removeprefix(":") or "latest"
    manifest = httpx.get(f"{url}/{tag}", headers={"Accept": _MANIFESTS}, trust_env=False).raise_for_status()
    headers = {"Content-Type": manifest.headers["Content-Type"]}
    for commit in scene.commits:
        httpx.put(f"{url}/{commit}", content=manifest.content, headers=headers, trust_env=False).raise_for_status()
    return Stage(scene)
