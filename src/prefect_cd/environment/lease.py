"""One writer per environment: a Lease that is renewed while we work, and a guard before every write.

The decision (`decide`) is pure. The holder renews from a thread of its own, so that it goes on while a stage blocks.
A holder whose renewal is overdue waits before its next write until it knows; when somebody else took over, it stops.
While nobody reaches the API server nobody takes over; behind a partition somebody may, and our next renewal tells.
A write takes at most WRITE_SECONDS, and none is begun in the last WRITE_SECONDS of a lease, so none outlives it.
As in client-go's leader election, a lease counts as abandoned only when it was *seen* unchanged for its whole
duration: no clocks of two machines are compared, and time in which nobody could look is none.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from types import TracebackType

from typing_extensions import Self

from prefect_cd.environment.ownership import Ownership, ensure_namespace
from prefect_cd.errors import ClusterUnreachable, DeliveryError, EnvironmentBusy, Forbidden, LockLost
from prefect_cd.kube.client import PATIENCE, WRITE_SECONDS, Cluster, connect
from prefect_cd.kube.kubeconfig import Access
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.labels import PREFIX

DURATION = timedelta(seconds=20)
TAKEOVER = DURATION + timedelta(seconds=10)
"""So long it takes at most until a dead holder's lock can be taken."""
_RENEW_EVERY = timedelta(seconds=3)
_LOOK_EVERY = timedelta(milliseconds=500)
_GLANCE_SECONDS = 0.1
_log = logging.getLogger(__name__)


def _now() -> float:
    """Seconds that also pass while the machine sleeps: a laptop that wakes up must not believe in its old lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Step(str, Enum):
    """What to do about a lease."""

    TAKE = "take"
    WAIT = "wait"


@dataclass(frozen=True)
class Seen:
    """A lease as it was last seen, and for how long it has not changed."""

    holder: str
    unchanged: timedelta
    duration: timedelta


def decide(me: str, seen: Seen | None) -> Step:
    """Whether the lease may be taken: there is none, it is ours, it was given back, or it is abandoned."""
    if seen is None or seen.holder in {"", me} or seen.unchanged >= seen.duration:
        return Step.TAKE
    return Step.WAIT


@contextmanager
def hold(access: Access, ownership: Ownership, holder: str, *, wait: timedelta) -> Iterator["Lock"]:
    """Hold an environment's lock for as long as the block runs.

    Args:
        access: the cluster.
        ownership: the environment; its namespace is created when it is missing, since the lock lives there.
        holder: who we are, shown by `kubectl get lease`. It need not be unique: every lock adds a mark of its own,
            so that a run that was started again waits for its first process like everybody else.
        wait: how long to wait for another holder.

    Raises:
        EnvironmentBusy: another holder was still at work after `wait`.
        ClusterUnreachable: the API server does not answer.
    """
    lock = Lock(access, ownership, holder, wait)
    with lock:
        yield lock


class Lock:
    """A held lock; `guard` is what every write awaits first."""

    def __init__(self, access: Access, ownership: Ownership, holder: str, wait: timedelta) -> None:
        self._access = access
        self._ownership = ownership
        self.holder = f"{holder}/{uuid.uuid4().hex[:8]}"
        self._wait = wait
        self._valid_until = 0.0
        self._lost: DeliveryError | None = None
        self._trouble = ""
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lock of {ownership.environment}", daemon=True)

    async def guard(self) -> None:
        """Return while we are the writer; wait while nobody can tell.

        Raises:
            LockLost: we no longer are.
            ClusterUnreachable: we could not find out in time; we may still be.
        """
        give_up = _now() + PATIENCE.total_seconds()
        waits = False
        while _now() > self._valid_until or self._lost or self._stop.is_set():
            if self._lost or self._stop.is_set():
                why = self._lost.reason if self._lost else "the lock was given back"
                raise LockLost(
                    f"no longer the writer of {self._ownership.environment}: {why}",
                    hint="nothing more was written by this run; the next release or recovery takes over",
                )
            if _now() > give_up:
                raise ClusterUnreachable(
                    f"the lock of {self._ownership.environment} could not be renewed "
                    f"for {PATIENCE.total_seconds():.0f} s"
                    f"{': ' if self._trouble else ''}{self._trouble}",
                    where=f"{self._ref} in {self._ownership.namespace}",
                    hint="nothing was written meanwhile; does the API server answer? `kubectl get --raw /readyz`",
                )
            if not waits:
                waits = True
                _log.warning("nothing is written to %s until its lock is renewed", self._ownership.environment)
            await asyncio.sleep(_GLANCE_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:  # cancelled while waiting: a thread that goes on would take the lock for nobody
            self._stop.set()
            self._thread.join(timeout=DURATION.total_seconds())
            raise
        if self._lost:
            self._thread.join()
            raise self._lost
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=DURATION.total_seconds())

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except DeliveryError as error:
            self._lost = error
        except BaseException as error:  # noqa: BLE001  the thread never ends silently: its death is the loss of the lock
            _log.exception("the lock's thread ended")
            self._lost = LockLost(f"the lock's thread ended: {error!r}")
        finally:
            self._ready.set()

    async def _keep(self) -> None:
        async with connect(self._access, patience=PATIENCE) as cluster:
            await ensure_namespace(cluster, self._ownership)
            lease = await self._acquire(cluster)
        if lease is None:
            return
        self._ready.set()
        async with connect(self._access, patience=_RENEW_EVERY) as cluster:
            while not await asyncio.to_thread(self._stop.wait, _RENEW_EVERY.total_seconds()):
                lease = await self._renew(cluster, lease)
            await self._give_back(cluster, lease)

    async def _acquire(self, cluster: Cluster) -> Object | None:
        """The lease in our name; None when we are stopped before."""
        give_up = _now() + self._wait.total_seconds()
        version, since, looked = "", _now(), _now()
        while not self._stop.is_set():
            try:
                lease = await cluster.get(self._ref)
                # after an outage its holder, too, needs a moment to come back
                blind = _now() - looked > DURATION.total_seconds() / 2
                looked = _now()
                if lease and (lease["metadata"]["resourceVersion"] != version or blind):
                    version, since = lease["metadata"]["resourceVersion"], looked
                seen = _seen(lease, timedelta(seconds=looked - since))
                step = decide(self.holder, seen)
                if step is Step.TAKE and (taken := await self._write(cluster, lease)):
                    return taken
            except ClusterUnreachable:
                if _now() > give_up:
                    raise
                continue
            if step is Step.WAIT and seen and _now() > give_up:
                raise EnvironmentBusy(
                    f"{self._ownership.environment} is being changed by {seen.holder}",
                    where=f"{self._ref} in {self._ownership.namespace}",
                    hint="wait for that run to end, or cancel it; a dead holder is replaced by itself",
                )
            await asyncio.sleep(_LOOK_EVERY.total_seconds())
        return None

    async def _renew(self, cluster: Cluster, lease: Object) -> Object:
        try:
            renewed = await self._write(cluster, lease)
            if renewed:
                return renewed
            live = await cluster.get(self._ref)
        except (ClusterUnreachable, Forbidden) as error:  # a server that starts forbids what it will allow
            self._trouble = error.reason  # the guard holds writes back until we know
            return lease
        if live is None or live["spec"].get("holderIdentity") != self.holder:
            taker = live["spec"].get("holderIdentity") if live else "nobody"
            raise LockLost(f"the lock is now held by {taker or 'nobody'}")
        return live  # our own write arrived though its answer did not

    async def _give_back(self, cluster: Cluster, lease: Object) -> None:
        self._valid_until = 0.0
        try:
            await cluster.replace({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except (ApiError, ClusterUnreachable):  # it lapses by itself
            return

    async def _write(self, cluster: Cluster, lease: Object | None) -> Object | None:
        """The lease in our name, or None when somebody else was faster (resourceVersion is the judge)."""
        asked = _now()
        item = self._lease(lease)
        try:
            written = await (cluster.replace(item) if lease else cluster.create(item))
        except ApiError as error:
            if error.cause in {"AlreadyExists", "Conflict"} or (lease and error.cause == "NotFound"):
                return None
            raise
        self._valid_until = asked + DURATION.total_seconds() - WRITE_SECONDS
        return written

    @property
    def _ref(self) -> Ref:
        return Ref(
            "coordination.k8s.io/v1", "Lease", self._ownership.namespace, f"prefect-cd.{self._ownership.application}"
        )

    def _lease(self, lease: Object | None) -> Object:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(lease["spec"]) if lease else {"leaseTransitions": 0}
        if spec.get("holderIdentity") != self.holder:
            spec |= {"acquireTime": now, "leaseTransitions": spec.get("leaseTransitions", 0) + 1}
        spec |= {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": int(DURATION.total_seconds()),
            "renewTime": now,
        }
        ref = self._ref
        fresh = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
        }
        item = self._ownership.label(lease or fresh)
        item["metadata"]["labels"][PREFIX + "record"] = "lock"  # ours, and never pruned
        return {**item, "spec": spec}


def _seen(lease: Object | None, unchanged: timedelta) -> Seen | None:
    if lease is None:
        return None
    spec = lease["spec"]
    return Seen(
        holder=spec.get("holderIdentity") or "",
        unchanged=unchanged,
        duration=timedelta(seconds=spec.get("leaseDurationSeconds") or DURATION.total_seconds()),
    )
