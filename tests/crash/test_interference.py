"""What others do to an environment in the middle of a release: a clear state, and nothing is lost.

A release is stopped just before it writes its Deployment: its record is there, and some of its objects are. Then a
second operator starts, somebody deletes the records, etcd is full, or Prefect's server is gone.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from aiohttp import web

from tests.cluster.harness import Server, wait_for
from tests.crash.actor import SECONDS, Act, ActProcess, perform
from tests.crash.proxy import WriteProxy
from tests.crash.trial import Scene
from tests.crash.view import View, kubectl, view_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
FULL = "etcdserver: mvcc: database space exceeded"
"""What an API server answers to every write but a deletion, with status 500, when its etcd has no space left."""


@dataclass
class Interference(WriteProxy):
    """Calls `interfere` just before a release writes its Deployment, and answers as a full etcd while it is `full`."""

    interfere: Callable[[], None] = lambda: None
    full: bool = False
    _interfered: asyncio.Lock = field(default_factory=asyncio.Lock)
    _done: bool = False

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        writes = request.method in {"POST", "PUT", "PATCH"} and "dryRun" not in request.query
        if writes and request.path.endswith("/deployments/web"):
            async with self._interfered:
                if not self._done:
                    await asyncio.to_thread(self.interfere)
                self._done = True
        if self.full and writes and not request.path.endswith("reviews"):
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": FULL, "code": 500}
            return web.json_response(status, status=500)
        return await super()._handle(request)


@dataclass
class Place:
    """A namespace that runs the old version."""

    scene: Scene
    namespace: str
    before: View

    def release(self, url: str, version: str = "new") -> Act:
        return self.scene.release(self.namespace, version, url)

    def recover(self) -> None:
        recovery = self.scene.act("recover", self.namespace, self.scene.api_server)
        assert self.scene.play(recovery) == 0, recovery.log.read_text()

    @property
    def view(self) -> View:
        return view_of(self.namespace)

    @property
    def greeting(self) -> str:
        return str(self.view.objects["ConfigMap/settings"]["data"]["greeting"])


@pytest.fixture
def place(scene: Scene) -> Iterator[Place]:
    with scene.namespace() as namespace:
        scene.prepare(namespace, ("old",))
        yield Place(scene, namespace, view_of(namespace))


@contextmanager
def interfered(place: Place, interfere: Callable[[Interference], None]) -> Iterator[str]:
    """The URL of an API server where somebody interferes with a release."""
    proxy = Interference(place.scene.api_server)
    proxy.interfere = lambda: interfere(proxy)
    with proxy.serving() as url:
        yield url
    assert proxy._done


def test_i3_of_two_operators_one_releases_and_the_other_is_told_who_does(place: Place, tmp_path: Path) -> None:
    second = replace(place.release(place.scene.api_server), log=tmp_path / "second.log")
    started: list[BaseProcess] = []

    def start_second(_: Interference) -> None:
        started.append(second.start())
        wait_for(lambda: f"production is being changed by {place.view.holder}" in second.log.read_text(), "no name")

    with interfered(place, start_second) as url:
        first = place.release(url)
        assert place.scene.play(first) == 0, first.log.read_text()
    started[0].join(SECONDS)
    assert started[0].exitcode == 0, second.log.read_text()
    assert "production runs" in second.log.read_text()
    assert place.view.states == ("known-good", "known-good", "known-good")  # the baseline, old, and new only once
    assert place.greeting == "two"


@pytest.mark.parametrize(
    ("version", "greeting", "state"), [("new", "two", "known-good"), ("broken", "one", "rolled-back")]
)
def test_i2_records_that_are_deleted_in_the_middle_do_not_stop_a_release_or_its_rollback(
    place: Place, version: str, greeting: str, state: str
) -> None:
    """The process knows what it has recorded, and writes the outcome again."""
    with interfered(place, lambda _: delete_records(place)) as url:
        release = place.release(url, version)
        assert place.scene.play(release) == (0 if version == "new" else 1), release.log.read_text()
    assert place.greeting == greeting
    assert place.view.states == (state,)
    assert place.view.holder == ""


def test_i2_the_rollback_of_a_release_whose_record_was_deleted_removes_what_it_added(place: Place) -> None:
    with interfered(place, lambda _: delete_records(place)) as url:
        place.scene.play(place.release(url, "broken"))
    assert place.view.objects == place.before.objects


def test_i2_a_release_that_fails_where_all_records_were_deleted_takes_nothing_down(place: Place) -> None:
    delete_records(place)
    place.scene.play(place.release(place.scene.api_server, "broken"))
    assert place.view.objects.keys() >= place.before.objects.keys()
    assert place.greeting == "one"


def delete_records(place: Place) -> None:
    kubectl("-n", place.namespace, "delete", "secrets", "-l", "prefect-cd.dev/record")
    assert place.view.states == ()


def test_i4_a_release_that_finds_etcd_full_ends_errored_and_is_recovered_when_there_is_space(place: Place) -> None:
    with interfered(place, lambda proxy: setattr(proxy, "full", True)) as url:
        release = place.release(url)
        process = start_as(perform_impatiently, release)
        process.join(SECONDS)
    log = release.log.read_text()
    assert process.exitcode == 1, log
    error = log.rpartition("prefect_cd.errors.")[2]
    assert "[cluster-unreachable]" in error
    assert error.count(FULL) == 2, log  # in the way there, and in the way back
    assert "production may be between two releases; `recover/shop`" in error
    assert place.view.states == ("known-good", "known-good", "applying")
    place.recover()
    assert place.view.objects == place.before.objects
    assert place.view.states == ("known-good", "known-good", "rolled-back")


def start_as(perform_it: Callable[..., None], act: Act, *arguments: str) -> BaseProcess:
    """Start an act with other settings."""
    process = ActProcess(target=perform_it, args=(act, *arguments))
    process.start()
    return process


def perform_impatiently(act: Act) -> None:
    """In the process: requests are repeated for 3 s instead of minutes, and stages not at all."""
    from prefect_cd.environment import lease  # noqa: PLC0415  the test's own process needs no Prefect
    from prefect_cd.kube.client import Cluster  # noqa: PLC0415
    from prefect_cd.tasks import deployment  # noqa: PLC0415

    patient, short = Cluster.with_patience, timedelta(seconds=3)
    Cluster.with_patience = lambda self, patience: patient(self, min(patience, short))
    lease.PATIENCE = short
    deployment.apply = deployment.apply.with_options(retries=0)
    perform(act)


def test_i4_a_release_that_fails_is_rolled_back_though_prefects_server_was_killed_for_good(
    place: Place, tmp_path: Path
) -> None:
    with Server(tmp_path).running() as server, interfered(place, lambda _: kill(server)) as url:
        release = place.release(url, "broken")
        process = start_as(perform_on, release, f"{server.url}/api")
        done = (("known-good", "known-good", "rolled-back"), "")
        wait_for(lambda: (place.view.states, place.view.holder) == done, release.log.read_text, SECONDS)
        process.kill()  # Prefect goes on trying to report each event to its server, for minutes
        process.join()
    assert "a page of this run is missing" in release.log.read_text()
    assert place.view.objects == place.before.objects


def kill(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


def perform_on(act: Act, url: str) -> None:
    """In the process: play on another Prefect server, whose answers are waited for once."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings  # noqa: PLC0415

    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        perform(act)
