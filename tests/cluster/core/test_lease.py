"""One writer per environment, on a real Lease: waiting, losing it, holders that are killed, and API server outages."""

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
from prefect_cd.environment.apply import UNLOCKED, Writer, apply
from prefect_cd.environment.changes import compute_changes
from prefect_cd.environment.lease import DURATION, Lock, hold
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import RecordStore
from prefect_cd.errors import ClusterUnreachable, EnvironmentBusy, Forbidden, LockLost
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
def ownership(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lease of four seconds, with writes of at most two: the same proportions in less time."""
    monkeypatch.setattr(module, "DURATION", SOON)
    monkeypatch.setattr(module, "WRITE_SECONDS", 2)
    monkeypatch.setattr(module, "_RENEW_INTERVAL", timedelta(seconds=0.5))
    monkeypatch.setattr(module, "_ACQUIRE_INTERVAL", timedelta(seconds=0.1))


def lease_of(ownership: Ownership) -> Object | None:
    async def get() -> Object | None:
        async with connect(ACCESS) as cluster:
            return await cluster.get(Ref("coordination.k8s.io/v1", "Lease", ownership.namespace, "prefect-cd.shop"))

    return asyncio.run(get())


def spec_of(ownership: Ownership) -> dict[str, Any]:
    lease = lease_of(ownership)
    assert lease is not None
    return dict(lease["spec"])


def write_by_hand(ownership: Ownership, holder: str, seconds: int) -> None:
    """Write the lease as another process would, over whatever is there."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": now}
    metadata = {"name": "prefect-cd.shop", "namespace": ownership.namespace}

    async def write() -> None:
        async with connect(ACCESS) as cluster:
            item = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            await cluster.apply(item, force=True)

    asyncio.run(write())


def run_guard(lock: Lock) -> None:
    asyncio.run(lock.guard())


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "the condition did not become true"
        time.sleep(0.05)


def threads_of_locks() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lock of")]


def held(ownership: Ownership, name: str, wait: timedelta = NO_TIME) -> Any:  # noqa: ANN401  a context manager
    return hold(ACCESS, ownership, name, wait=wait)


# --- acquire and release ---------------------------------------------------------------------------------------------


def test_i3_a_held_lock_guards_says_who_holds_it_and_is_released(ownership: Ownership) -> None:
    with held(ownership, "release/blue-fox/1") as lock:
        run_guard(lock)
        spec = spec_of(ownership)
        assert spec["holderIdentity"] == lock.holder
        assert spec["holderIdentity"].startswith("release/blue-fox/1/")
        assert spec["leaseDurationSeconds"] == DURATION.total_seconds()
        assert spec["leaseTransitions"] == 1
    assert not spec_of(ownership).get("holderIdentity")
    with pytest.raises(LockLost, match="the lock was released"):
        run_guard(lock)
    with held(ownership, "another") as lock:
        run_guard(lock)
        assert spec_of(ownership)["leaseTransitions"] == 2
    assert threads_of_locks() == []


def test_the_namespace_is_created_for_the_lock(no_namespace: str) -> None:
    with held(Ownership("shop", "staging", no_namespace), "first") as lock:
        run_guard(lock)


@pytest.mark.needs("roles.rbac.authorization.k8s.io")
def test_i2_who_may_not_read_records_gets_no_lock_and_is_told_what_to_grant(
    ownership: Ownership, kubectl: Kubectl
) -> None:
    namespace, config = ownership.namespace, yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    kubectl("-n", namespace, "create", "serviceaccount", "deployer")
    verbs = "--verb=get,list,create,update,patch,delete"
    kubectl("-n", namespace, "create", "role", "deployer", verbs, "--resource=leases,configmaps,deployments")
    account = f"{namespace}:deployer"
    kubectl("-n", namespace, "create", "rolebinding", "deployer", "--role=deployer", f"--serviceaccount={account}")
    can_i = ["-n", namespace, "auth", "can-i", "create", "leases", f"--as=system:serviceaccount:{account}"]
    wait_for(lambda: kubectl(*can_i, check=False) == "yes\n")  # the authorizer learns of the role with a delay
    token = kubectl("-n", namespace, "create", "token", "deployer").strip()
    access = LoadedKubeconfig({**config, "users": [{**config["users"][0], "user": {"token": token}}]})
    denied = pytest.raises(Forbidden, match='cannot list resource "secrets"')
    with denied as caught, hold(access, ownership, "me", wait=NO_TIME):
        pass
    assert caught.value.hint == "grant this verb on this resource with a Role and a RoleBinding"
    assert lease_of(ownership) is None


def test_the_lock_is_released_when_the_work_fails(ownership: Ownership) -> None:
    def work() -> None:
        with held(ownership, "me"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not spec_of(ownership).get("holderIdentity")


@pytest.mark.usefixtures("quick")
def test_i3_a_held_lock_is_renewed_for_longer_than_its_duration(ownership: Ownership) -> None:
    with held(ownership, "me") as lock:
        started = time.monotonic()
        first = spec_of(ownership)["renewTime"]
        wait_for(lambda: time.monotonic() - started > SOON.total_seconds() + 1)
        run_guard(lock)
        assert spec_of(ownership)["renewTime"] > first
        assert spec_of(ownership)["leaseTransitions"] == 1


# --- others ----------------------------------------------------------------------------------------------------------


def test_i3_a_second_holder_gives_up_with_the_name_of_the_first(ownership: Ownership) -> None:
    with held(ownership, "release/blue-fox/1") as lock:
        busy = pytest.raises(EnvironmentBusy, match="staging is being changed by release/blue-fox/1")
        with busy as caught, held(ownership, "second", timedelta(seconds=1)):
            pass
        assert ownership.namespace in caught.value.where
        run_guard(lock)


def test_i3_a_second_holder_of_the_same_name_waits_as_well(ownership: Ownership) -> None:
    """A run that was started again while its first process still runs, or two users outside of any run."""
    with held(ownership, "run//outside-of-a-run") as lock:
        with pytest.raises(EnvironmentBusy), held(ownership, "run//outside-of-a-run"):
            pass
        run_guard(lock)


def test_i3_a_second_holder_waits_until_the_first_has_released_the_lock(ownership: Ownership) -> None:
    order: list[str] = []

    def second() -> None:
        with held(ownership, "second", timedelta(seconds=20)):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(ownership, "first"):
        thread.start()
        thread.join(timeout=1.5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


HOLDER = """
import sys, time
from datetime import timedelta
from prefect_cd.environment import lease
from prefect_cd.environment.ownership import Ownership
from prefect_cd.pipeline.models import ClusterAccess
lease.DURATION, lease.WRITE_SECONDS = timedelta(seconds=int(sys.argv[2])), 2
lease._RENEW_INTERVAL = timedelta(seconds=0.5)
with lease.hold(ClusterAccess(), Ownership("shop", "staging", sys.argv[1]), "victim", wait=timedelta()):
    print("held", flush=True)
    time.sleep(600)
"""


def kill_a_holder(ownership: Ownership, seconds: int = 4) -> None:
    """Kill a process that holds the lock with a Lease of this duration."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, ownership.namespace, str(seconds)], stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "held\n"
        os.kill(victim.pid, signal.SIGKILL)


def test_i4_a_holder_that_was_killed_on_this_machine_is_replaced_before_its_lease_expires(
    ownership: Ownership,
) -> None:
    kill_a_holder(ownership, seconds=300)
    with held(ownership, "successor", timedelta(seconds=60)) as lock:
        run_guard(lock)
        assert lock.holder == spec_of(ownership)["holderIdentity"]


@pytest.mark.usefixtures("quick")
def test_i4_a_holder_that_was_killed_elsewhere_is_replaced_after_the_duration_and_not_before(
    ownership: Ownership, kubectl: Kubectl
) -> None:
    kill_a_holder(ownership)
    elsewhere = "prefect-cd.dev/process=another-boot:1/2/3"
    kubectl("-n", ownership.namespace, "annotate", "--overwrite", "lease", "prefect-cd.shop", elsewhere)
    started = time.monotonic()
    with held(ownership, "successor", timedelta(seconds=30)) as lock:
        waited = time.monotonic() - started
        run_guard(lock)
        assert lock.holder == spec_of(ownership)["holderIdentity"]
    assert waited >= SOON.total_seconds()


def test_i3_the_duration_that_the_holder_wrote_counts_and_not_ours(ownership: Ownership) -> None:
    write_by_hand(ownership, "another", seconds=2)
    with pytest.raises(EnvironmentBusy, match="another"), held(ownership, "successor"):
        pass
    started = time.monotonic()
    with held(ownership, "successor", timedelta(seconds=60)):
        assert 2 <= time.monotonic() - started < DURATION.total_seconds()


@pytest.mark.usefixtures("quick")
def test_i3_a_holder_whose_lease_was_taken_over_stops_before_its_next_write(ownership: Ownership) -> None:
    with held(ownership, "me") as lock:
        run_guard(lock)
        write_by_hand(ownership, "taker", seconds=60)
        wait_for(lambda: lock._lost)
        started = time.monotonic()
        with pytest.raises(LockLost, match="no longer the writer of staging: the lock is now held by taker") as caught:
            run_guard(lock)
        assert time.monotonic() - started < 10
        assert "this run wrote nothing more" in caught.value.hint
    assert spec_of(ownership)["holderIdentity"] == "taker"


@pytest.mark.usefixtures("quick")
def test_i3_a_holder_whose_lease_was_deleted_stops(ownership: Ownership, kubectl: Kubectl) -> None:
    with held(ownership, "me") as lock:
        kubectl("-n", ownership.namespace, "delete", "lease", "prefect-cd.shop")
        wait_for(lambda: lock._lost)
        with pytest.raises(LockLost, match="the lock was deleted"):
            run_guard(lock)


def test_a_write_of_another_client_to_the_metadata_does_not_take_the_lock_away(
    ownership: Ownership, kubectl: Kubectl
) -> None:
    with held(ownership, "me") as lock:
        before = lease_of(ownership)
        kubectl("-n", ownership.namespace, "annotate", "lease", "prefect-cd.shop", "note=beside")
        wait_for(lambda: (lease_of(ownership) or {})["spec"]["renewTime"] > (before or {})["spec"]["renewTime"])
        run_guard(lock)
        assert lock._lost is None


def test_i3_a_holder_that_is_cancelled_while_waiting_does_not_acquire_the_lock_later(ownership: Ownership) -> None:
    class Cancelled(BaseException):
        """The kind of exception with which Prefect cancels."""

    def cancel(*_: object) -> None:
        raise Cancelled

    write_by_hand(ownership, "another", seconds=30)
    before = signal.signal(signal.SIGALRM, cancel)
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(Cancelled), held(ownership, "me", timedelta(seconds=30)):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
    assert threads_of_locks() == []
    assert spec_of(ownership)["holderIdentity"] == "another"


# --- a holder that is stopped between guard and request --------------------------------------------------------------

STALE_WRITER = """
import asyncio, os, signal, sys
from datetime import timedelta
from prefect_cd.environment import lease
from prefect_cd.environment.apply import apply, prune
from prefect_cd.environment.changes import compute_changes
from prefect_cd.environment.ownership import Ownership
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess

namespace, preconditions = sys.argv[1:]
lease.DURATION, lease.WRITE_SECONDS = timedelta(seconds=4), 2
lease._RENEW_INTERVAL = timedelta(seconds=0.5)
ownership, writes = Ownership("shop", "staging", namespace), 3

def without_preconditions(write):
    async def unconditional(*arguments, uid="", version="", **options):
        return await write(*arguments, **options)
    return unconditional

def config_map(name):
    metadata = {"name": name, "namespace": namespace}
    return ownership.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"by": "stale"}})

class StoppedWriter:
    # a lock whose process stops when all writes have passed the guard, and none has been sent
    def __init__(self, lock):
        self.confirm, self.epoch, self._lock = lock.confirm, lock.epoch, lock
        self._passed, self._continued = 0, asyncio.Event()

    async def guard(self):
        if self._continued.is_set():
            return await self._lock.guard()
        await self._lock.guard()
        self._passed += 1
        if self._passed == writes:
            print("guarded", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._continued.set()
        await self._continued.wait()

async def write(lock):
    async with connect(ClusterAccess()) as cluster:
        objects = [config_map("changed"), config_map("made")]
        known = [Ref.of(config_map(name)) for name in ("changed", "dropped")]
        planned = await compute_changes(cluster, ownership, objects, known=known)
        print(planned, flush=True)
        if preconditions == "without":
            Cluster.apply, Cluster.delete = map(without_preconditions, (Cluster.apply, Cluster.delete))
        stopped = StoppedWriter(lock)
        return await asyncio.gather(
            *(apply(cluster, ownership, [item], planned, force=True, lock=stopped) for item in objects),
            prune(cluster, ownership, planned, lock=stopped),
            return_exceptions=True,
        )

with lease.hold(ClusterAccess(), ownership, "victim", wait=timedelta()) as lock:
    for result in asyncio.run(write(lock)):
        print(type(result).__name__, flush=True)
"""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("preconditions", ["with", "without"])
def test_i3_a_holder_that_was_stopped_between_guard_and_request_changes_nothing_of_its_successor(
    preconditions: str, ownership: Ownership
) -> None:
    """Without preconditions all three writes land: it is they that the server refuses, and nothing else."""

    def config_map(name: str, by: str) -> Object:
        metadata = {"name": name, "namespace": ownership.namespace}
        item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"by": by}}
        return ownership.label(item)

    async def bring(by: str, *names: str, lock: Writer = UNLOCKED) -> None:
        async with connect(ACCESS) as cluster:
            items = [config_map(name, by) for name in names]
            planned = await compute_changes(cluster, ownership, items)
            await apply(cluster, ownership, items, planned, lock=lock)

    async def values() -> dict[str, str]:
        async with connect(ACCESS) as cluster:
            kind = await cluster.kind("v1", "ConfigMap")
            items = await cluster.list(kind, ownership.namespace, labels=ownership.selector)
            return {item["metadata"]["name"]: item["data"]["by"] for item in items}

    asyncio.run(bring("first", "changed", "dropped"))
    command = [sys.executable, "-c", STALE_WRITER, ownership.namespace, preconditions]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        try:
            assert victim.stdout.readline() == "1 created, 1 changed, 1 pruned\n"
            assert victim.stdout.readline() == "guarded\n"
            wait_for(lambda: state_of(victim.pid) == "T")
            with held(ownership, "successor", timedelta(seconds=30)) as lock:
                asyncio.run(bring("successor", "changed", "made", "dropped", lock=lock))
                os.kill(victim.pid, signal.SIGCONT)
                results = victim.stdout.read().split()
                run_guard(lock)
        finally:
            victim.kill()
    if preconditions == "with":
        assert results == ["LockLost"] * 3
        assert asyncio.run(values()) == dict.fromkeys(("changed", "made", "dropped"), "successor")
    else:
        assert results == ["NoneType"] * 3
        assert asyncio.run(values()) == dict.fromkeys(("changed", "made"), "stale")


def state_of(process: int) -> str:
    """R, S, T (stopped) …, as in proc(5)."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_i3_a_lease_that_was_deleted_goes_on_after_the_epochs_of_the_records(
    ownership: Ownership,
    record: Any,  # noqa: ANN401  a fixture
    kubectl: Kubectl,
) -> None:
    async def write_record(lock: Lock) -> None:
        async with connect(ACCESS) as cluster:
            await lock.confirm(cluster)
            await RecordStore(cluster, ownership, lock.epoch).start(record(ownership), guard=lock.guard)

    epochs = []
    for _ in range(3):
        with held(ownership, "me") as lock:
            epochs.append(lock.epoch)
            assert spec_of(ownership)["leaseTransitions"] == lock.epoch
            asyncio.run(write_record(lock))
        kubectl("-n", ownership.namespace, "delete", "lease", "prefect-cd.shop")
    assert epochs == [1, 2, 3]


@pytest.mark.usefixtures("quick")
def test_i3_the_lease_tells_a_holder_that_another_took_over_before_its_own_thread_knows(ownership: Ownership) -> None:
    async def confirm(lock: Lock) -> None:
        async with connect(ACCESS) as cluster:
            await lock.confirm(cluster)

    with held(ownership, "me") as lock:
        asyncio.run(confirm(lock))
        write_by_hand(ownership, "taker", seconds=60)
        with pytest.raises(LockLost, match="the lock is now held by taker"):
            asyncio.run(confirm(lock))


# --- outages of the API server ---------------------------------------------------------------------------------------


class Proxy:
    """A TCP proxy to the API server that can be stopped and started again on the same port."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._open = False
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self.port = 0
        self.start()

    def start(self) -> None:
        self._do(self._start())

    def stop(self) -> None:
        """Refuse new connections and cut existing ones."""
        self._do(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:  # noqa: ANN401  a coroutine
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _start(self) -> None:
        self._open = True
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._open = False
        if self._server:
            self._server.close()
        for pipe in tuple(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:  # a connection that was accepted just before it stopped
            writer.transport.abort()
            return
        pipe = asyncio.ensure_future(self._carry(reader, writer))
        self._pipes.add(pipe)
        pipe.add_done_callback(self._pipes.discard)
        pipe.add_done_callback(lambda _: writer.transport.abort())  # also of one that was cancelled before it began

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        out_reader, out_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(self._copy(reader, out_writer), self._copy(out_reader, writer))
        finally:
            out_writer.transport.abort()

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
def test_i3_the_lock_survives_an_outage_shorter_than_its_duration(ownership: Ownership) -> None:
    with proxied() as (proxy, access), hold(access, ownership, "me", wait=NO_TIME) as lock:
        run_guard(lock)
        proxy.stop()
        wait_for(lambda: module._now() > lock._valid_until)  # from here on the guard holds back writes
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(lock.guard(), 0.3))
        proxy.start()
        started = time.monotonic()
        run_guard(lock)
        assert time.monotonic() - started < 30
        assert spec_of(ownership)["leaseTransitions"] == 1
    assert not spec_of(ownership).get("holderIdentity")


@pytest.mark.usefixtures("quick")
def test_i3_after_an_outage_longer_than_its_duration_another_has_the_lock_and_we_stop(ownership: Ownership) -> None:
    with proxied() as (proxy, access), hold(access, ownership, "me", wait=NO_TIME) as lock:
        proxy.stop()
        with held(ownership, "successor", timedelta(seconds=30)) as successor:
            assert module._now() > lock._valid_until
            run_guard(successor)
            proxy.start()
            with pytest.raises(LockLost, match="held by successor"):
                run_guard(lock)
            run_guard(successor)


@pytest.mark.usefixtures("quick")
def test_i3_an_outage_for_both_does_not_give_the_lock_to_the_one_that_waits(ownership: Ownership) -> None:
    took: list[float] = []

    def wait_for_it(access: LoadedKubeconfig) -> None:
        with hold(access, ownership, "successor", wait=timedelta(seconds=60)):
            took.append(module._now())

    with proxied() as (proxy, access):
        with hold(access, ownership, "me", wait=NO_TIME) as lock:
            waiter = threading.Thread(target=wait_for_it, args=(access,))
            waiter.start()
            proxy.stop()
            wait_for(lambda: module._now() > lock._valid_until + SOON.total_seconds())  # it has expired for both
            proxy.start()
            run_guard(lock)
            back = module._now()
            wait_for(lambda: module._now() > back + 1.5 * SOON.total_seconds())
            run_guard(lock)
            assert not took
        waiter.join()
    assert took
    assert spec_of(ownership)["leaseTransitions"] == 2


@pytest.mark.usefixtures("quick")
def test_i3_a_guard_gives_up_when_the_lock_is_not_renewed_in_time_and_passes_again_after_a_renewal(
    ownership: Ownership, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied() as (proxy, access), hold(access, ownership, "me", wait=NO_TIME) as lock:
        monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=1))
        proxy.stop()
        wait_for(lambda: module._now() > lock._valid_until)
        started = time.monotonic()
        with pytest.raises(ClusterUnreachable, match="the lock of staging could not be renewed for 1 s"):
            run_guard(lock)
        assert 1 <= time.monotonic() - started < 30
        monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=60))
        proxy.start()
        run_guard(lock)
        assert spec_of(ownership)["leaseTransitions"] == 1


def test_a_server_that_never_answers_is_an_error(ownership: Ownership, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=1))
    with proxied() as (proxy, access):
        proxy.stop()
        with pytest.raises(ClusterUnreachable), hold(access, ownership, "me", wait=timedelta(minutes=30)):
            pass


def test_a_waiting_release_survives_a_short_outage(ownership: Ownership) -> None:
    write_by_hand(ownership, "another", seconds=6)
    with proxied() as (proxy, access):
        stopper = threading.Timer(1, proxy.stop)
        starter = threading.Timer(4, proxy.start)
        for timer in (stopper, starter):
            timer.start()
        with hold(access, ownership, "me", wait=timedelta(seconds=40)) as lock:
            run_guard(lock)
        for timer in (stopper, starter):
            timer.join()
