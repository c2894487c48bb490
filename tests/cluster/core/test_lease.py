"""One writer per environment, on a real Lease: waiting, dying, losing, and an API server that is away for a while."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.environment import lease as module
from prefect_cd.environment.lease import DURATION, Lock, hold
from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import ClusterUnreachable, EnvironmentBusy, LockLost
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
ACCESS = ClusterAccess()
NO_TIME = timedelta()
SOON = timedelta(seconds=4)
Kubectl = Callable[..., str]


@pytest.fixture
def place(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of four seconds, with writes of at most two: the same order of things as in life, in less time."""
    monkeypatch.setattr(module, "DURATION", SOON)
    monkeypatch.setattr(module, "WRITE_SECONDS", 2)
    monkeypatch.setattr(module, "_RENEW_EVERY", timedelta(seconds=0.5))
    monkeypatch.setattr(module, "_LOOK_EVERY", timedelta(seconds=0.1))


def lease_of(place: Ownership) -> Object | None:
    async def get() -> Object | None:
        async with connect(ACCESS) as cluster:
            return await cluster.get(Ref("coordination.k8s.io/v1", "Lease", place.namespace, "prefect-cd.shop"))

    return asyncio.run(get())


def spec_of(place: Ownership) -> dict[str, Any]:
    lease = lease_of(place)
    assert lease is not None
    return dict(lease["spec"])


def write_by_hand(place: Ownership, holder: str, seconds: int) -> None:
    """Write the lease as another process would, over whatever is there."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": now}
    metadata = {"name": "prefect-cd.shop", "namespace": place.namespace}

    async def write() -> None:
        async with connect(ACCESS) as cluster:
            item = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            await cluster.apply(item, force=True)

    asyncio.run(write())


def guarded(lock: Lock) -> None:
    asyncio.run(lock.guard())


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.05)


def threads_of_locks() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("lock of")]


def held(place: Ownership, name: str, wait: timedelta = NO_TIME) -> Any:  # noqa: ANN401  a context manager
    return hold(ACCESS, place, name, wait=wait)


# --- holding and giving back -----------------------------------------------------------------------------------------


def test_i3_a_held_lock_guards_says_who_holds_it_and_is_given_back(place: Ownership) -> None:
    with held(place, "release/blue-fox/1") as lock:
        guarded(lock)
        spec = spec_of(place)
        assert spec["holderIdentity"] == lock.holder
        assert spec["holderIdentity"].startswith("release/blue-fox/1/")
        assert spec["leaseDurationSeconds"] == DURATION.total_seconds()
        assert spec["leaseTransitions"] == 1
    assert not spec_of(place).get("holderIdentity")
    with pytest.raises(LockLost, match="given back"):
        guarded(lock)
    with held(place, "another") as lock:
        guarded(lock)
        assert spec_of(place)["leaseTransitions"] == 2
    assert threads_of_locks() == []


def test_the_namespace_is_made_for_the_lock(no_namespace: str) -> None:
    with held(Ownership("shop", "staging", no_namespace), "first") as lock:
        guarded(lock)


def test_the_lock_is_given_back_when_the_work_fails(place: Ownership) -> None:
    def work() -> None:
        with held(place, "me"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not spec_of(place).get("holderIdentity")


@pytest.mark.usefixtures("quick")
def test_i3_a_held_lock_is_renewed_for_longer_than_its_duration(place: Ownership) -> None:
    with held(place, "me") as lock:
        begun = time.monotonic()
        first = spec_of(place)["renewTime"]
        wait_for(lambda: time.monotonic() - begun > SOON.total_seconds() + 1)
        guarded(lock)
        assert spec_of(place)["renewTime"] > first
        assert spec_of(place)["leaseTransitions"] == 1


# --- others ----------------------------------------------------------------------------------------------------------


def test_i3_a_second_holder_gives_up_with_the_name_of_the_first(place: Ownership) -> None:
    with held(place, "release/blue-fox/1") as lock:
        busy = pytest.raises(EnvironmentBusy, match="staging is being changed by release/blue-fox/1")
        with busy as caught, held(place, "second", timedelta(seconds=1)):
            pass
        assert place.namespace in caught.value.where
        guarded(lock)


def test_i3_a_second_holder_of_the_same_name_waits_as_well(place: Ownership) -> None:
    """A run that was started again while its first process still lives; two people outside of any run."""
    with held(place, "run//outside-of-a-run") as lock:
        with pytest.raises(EnvironmentBusy), held(place, "run//outside-of-a-run"):
            pass
        guarded(lock)


def test_i3_a_second_holder_waits_until_the_first_is_done(place: Ownership) -> None:
    order: list[str] = []

    def second() -> None:
        with held(place, "second", timedelta(seconds=20)):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(place, "first"):
        thread.start()
        thread.join(timeout=1.5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


HOLDER = """
import sys, time
from datetime import timedelta
from prefect_cd import lock
from prefect_cd.apply import Place
from prefect_cd.pipeline import ClusterAccess
lock.DURATION, lock.WRITE_SECONDS = timedelta(seconds=4), 2
lock._RENEW_EVERY = timedelta(seconds=0.5)
with lock.hold(ClusterAccess(), Place("shop", "staging", sys.argv[1]), "victim", wait=timedelta()):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.usefixtures("quick")
def test_i4_a_holder_that_was_killed_is_replaced_after_the_duration_and_not_before(place: Ownership) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, place.namespace], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "held\n"
        os.kill(victim.pid, signal.SIGKILL)
    begun = time.monotonic()
    with held(place, "heir", timedelta(seconds=30)) as lock:
        waited = time.monotonic() - begun
        guarded(lock)
        assert lock.holder == spec_of(place)["holderIdentity"]
    assert waited >= SOON.total_seconds()


def test_i3_the_duration_that_the_holder_wrote_counts_and_not_ours(place: Ownership) -> None:
    write_by_hand(place, "somebody", seconds=2)
    with pytest.raises(EnvironmentBusy, match="somebody"), held(place, "heir"):
        pass
    begun = time.monotonic()
    with held(place, "heir", timedelta(seconds=60)):
        assert 2 <= time.monotonic() - begun < DURATION.total_seconds()


@pytest.mark.usefixtures("quick")
def test_i3_a_holder_whose_lease_was_taken_over_stops_before_its_next_write(place: Ownership) -> None:
    with held(place, "me") as lock:
        guarded(lock)
        write_by_hand(place, "taker", seconds=60)
        wait_for(lambda: lock._lost)
        begun = time.monotonic()
        with pytest.raises(LockLost, match="no longer the writer of staging: the lock is now held by taker") as caught:
            guarded(lock)
        assert time.monotonic() - begun < 10
        assert "nothing more was written" in caught.value.hint
    assert spec_of(place)["holderIdentity"] == "taker"


@pytest.mark.usefixtures("quick")
def test_i3_a_holder_whose_lease_was_deleted_stops(place: Ownership, kubectl: Kubectl) -> None:
    with held(place, "me") as lock:
        kubectl("-n", place.namespace, "delete", "lease", "prefect-cd.shop")
        wait_for(lambda: lock._lost)
        with pytest.raises(LockLost, match="held by nobody"):
            guarded(lock)


def test_a_write_beside_ours_does_not_take_the_lock_away(place: Ownership, kubectl: Kubectl) -> None:
    with held(place, "me") as lock:
        before = lease_of(place)
        kubectl("-n", place.namespace, "annotate", "lease", "prefect-cd.shop", "note=beside")
        wait_for(lambda: (lease_of(place) or {})["spec"]["renewTime"] > (before or {})["spec"]["renewTime"])
        guarded(lock)
        assert lock._lost is None


def test_i3_who_is_interrupted_while_waiting_does_not_take_the_lock_later(place: Ownership) -> None:
    class Cancelled(BaseException):
        """As Prefect cancels."""

    def cancel(*_: object) -> None:
        raise Cancelled

    write_by_hand(place, "somebody", seconds=30)
    before = signal.signal(signal.SIGALRM, cancel)
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(Cancelled), held(place, "me", timedelta(seconds=30)):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
    assert threads_of_locks() == []
    assert spec_of(place)["holderIdentity"] == "somebody"


# --- an API server that is away --------------------------------------------------------------------------------------


class Proxy:
    """A TCP proxy to the API server that can go away and come back on the same port."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self.port = 0
        self.start()

    def start(self) -> None:
        self._do(self._start())

    def stop(self) -> None:
        """Refuse connections and cut those that there are."""
        self._do(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:  # noqa: ANN401  a coroutine
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server:
            self._server.close()
        for pipe in tuple(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = asyncio.ensure_future(self._carry(reader, writer))
        self._pipes.add(pipe)
        pipe.add_done_callback(self._pipes.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        out_reader, out_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(self._copy(reader, out_writer), self._copy(out_reader, writer))
        finally:
            for each in (writer, out_writer):
                each.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@contextmanager
def proxied() -> Iterator[tuple[Proxy, LoadedKubeconfig]]:
    """The API server behind a proxy, and a kubeconfig that goes through it."""
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    cluster = config["clusters"][0]["cluster"]
    host, _, port = cluster["server"].removeprefix("https://").partition(":")
    proxy = Proxy(host, int(port))
    cluster |= {"server": f"https://127.0.0.1:{proxy.port}", "tls-server-name": host}
    try:
        yield proxy, LoadedKubeconfig(config)
    finally:
        proxy.close()


@pytest.mark.usefixtures("quick")
def test_i3_the_lock_survives_an_outage_shorter_than_its_duration(place: Ownership) -> None:
    with proxied() as (proxy, access), hold(access, place, "me", wait=NO_TIME) as lock:
        guarded(lock)
        proxy.stop()
        wait_for(lambda: module._now() > lock._valid_until)  # from here on the guard holds writes back
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(lock.guard(), 0.3))
        proxy.start()
        begun = time.monotonic()
        guarded(lock)
        assert time.monotonic() - begun < 30
        assert spec_of(place)["leaseTransitions"] == 1
    assert not spec_of(place).get("holderIdentity")


@pytest.mark.usefixtures("quick")
def test_i3_after_an_outage_longer_than_its_duration_another_has_the_lock_and_we_stop(place: Ownership) -> None:
    with proxied() as (proxy, access), hold(access, place, "me", wait=NO_TIME) as lock:
        proxy.stop()
        with held(place, "heir", timedelta(seconds=30)) as heir:
            assert module._now() > lock._valid_until
            guarded(heir)
            proxy.start()
            with pytest.raises(LockLost, match="held by heir"):
                guarded(lock)
            guarded(heir)


@pytest.mark.usefixtures("quick")
def test_i3_who_waits_does_not_take_the_lock_because_neither_could_reach_the_server(place: Ownership) -> None:
    took: list[float] = []

    def wait_for_it(access: LoadedKubeconfig) -> None:
        with hold(access, place, "heir", wait=timedelta(seconds=60)):
            took.append(module._now())

    with proxied() as (proxy, access):
        with hold(access, place, "me", wait=NO_TIME) as lock:
            waiter = threading.Thread(target=wait_for_it, args=(access,))
            waiter.start()
            proxy.stop()
            wait_for(lambda: module._now() > lock._valid_until + SOON.total_seconds())  # it has lapsed for both
            proxy.start()
            guarded(lock)
            back = module._now()
            wait_for(lambda: module._now() > back + 1.5 * SOON.total_seconds())
            guarded(lock)
            assert not took
        waiter.join()
    assert took
    assert spec_of(place)["leaseTransitions"] == 2


@pytest.mark.usefixtures("quick")
def test_i3_a_guard_that_cannot_find_out_gives_up_after_the_patience_and_is_the_writer_still_when_it_can(
    place: Ownership, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied() as (proxy, access), hold(access, place, "me", wait=NO_TIME) as lock:
        monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=1))
        proxy.stop()
        wait_for(lambda: module._now() > lock._valid_until)
        begun = time.monotonic()
        with pytest.raises(ClusterUnreachable, match="the lock of staging could not be renewed for 1 s"):
            guarded(lock)
        assert 1 <= time.monotonic() - begun < 30
        monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=60))
        proxy.start()
        guarded(lock)
        assert spec_of(place)["leaseTransitions"] == 1


def test_a_server_that_never_answers_is_said_to_be_unreachable(
    place: Ownership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=1))
    with proxied() as (proxy, access):
        proxy.stop()
        with pytest.raises(ClusterUnreachable), hold(access, place, "me", wait=timedelta(minutes=30)):
            pass


def test_a_waiting_release_survives_a_short_outage(place: Ownership) -> None:
    write_by_hand(place, "somebody", seconds=6)
    with proxied() as (proxy, access):
        stopper = threading.Timer(1, proxy.stop)
        starter = threading.Timer(4, proxy.start)
        for each in (stopper, starter):
            each.start()
        with hold(access, place, "me", wait=timedelta(seconds=40)) as lock:
            guarded(lock)
        for each in (stopper, starter):
            each.join()
