"""One writer per environment: a Lease that is renewed while we work, and a guard before every write.

The decision (`may_acquire`) is pure. The holder renews the Lease from a thread of its own, so that renewal goes on
while a stage blocks. The rules are those of client-go's leader election (`tools/leaderelection`), and one for writes:

* A Lease counts as abandoned only when this process *observed* it unchanged for its whole duration. Clocks of two
  machines are never compared, and time in which this process could not reach the API server does not count.
* Where the holder was a process of this machine that has ended, a few seconds are enough: for its last requests. So
  they are where a caller knows that the holder's work is over, and the holder has missed a renewal, too.
* A holder whose renewal is overdue holds back its writes until it has renewed the Lease; when another holder has
  taken the Lease over, it stops.
* A write takes at most WRITE_SECONDS, and none starts in the last WRITE_SECONDS of a Lease: no write outlives it.

All of that counts on this process running: one that is stopped between guard and request writes later. So each holder
has an epoch, higher than that of every holder before it, and a write that the API server refuses is followed by
`confirm`: whether the Lease still has our name and our epoch (see `apply`).
"""

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta, timezone
from types import TracebackType

import anyio
from typing_extensions import Self

from prefect_cd.environment.holder import has_ended, this_process
from prefect_cd.environment.namespace import ensure_namespace
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import RecordStore
from prefect_cd.errors import ClusterUnreachable, DeliveryError, EnvironmentBusy, Forbidden, LockLost
from prefect_cd.kube.client import PATIENCE, WRITE_SECONDS, Cluster, connect
from prefect_cd.kube.kubeconfig import Access
from prefect_cd.kube.objects import Object, dig_mapping
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.labels import PREFIX, RECORD

DURATION = timedelta(seconds=20)
TAKEOVER_WAIT = DURATION + timedelta(seconds=10)
"""The longest wait for the lock of a holder that died: its duration, and time to observe and acquire."""
_LAST_REQUESTS = timedelta(seconds=2)
"""For requests of a holder that has ended: a server may still execute what it has received."""
_PROCESS = PREFIX + "process"  # an annotation: the holder's process
_OPEN = PREFIX + "open"  # an annotation: the number of the record that has no outcome
_ADDED = PREFIX + "added"  # an annotation: the objects that its release may add
_MAX_ADDED = 500  # objects: the Lease is written every few seconds
_RENEW_INTERVAL = timedelta(seconds=3)
_MISSED_RENEWAL = _RENEW_INTERVAL + _LAST_REQUESTS
_IS_OVER_INTERVAL = timedelta(seconds=2)
_IS_OVER_PATIENCE = timedelta(seconds=3)
_ACQUIRE_INTERVAL = timedelta(milliseconds=500)
_GUARD_INTERVAL = timedelta(milliseconds=100)
_MARK_INTERVAL = timedelta(milliseconds=5)
_log = logging.getLogger(__name__)


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps: on waking up, a laptop's Lease has expired."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class ObservedLease:
    """A Lease as this process last observed it.

    Attributes:
        holder: its holder; empty when it was released.
        unchanged: for how long this process has observed no change of it.
        duration: how long it is valid without renewal, as its holder wrote it.
        ended: whether the holder's process has ended for sure.
        over: whether a caller says that the holder's work is over, for which the holder may not know.
    """

    holder: str
    unchanged: timedelta
    duration: timedelta
    ended: bool = False
    over: bool = False


def may_acquire(candidate: str, lease: ObservedLease | None) -> bool:
    """Whether `candidate` may acquire the Lease: there is none, or it is its own, released, or abandoned."""
    if lease is None or lease.holder in {"", candidate}:
        return True
    needed = _LAST_REQUESTS if lease.ended else _MISSED_RENEWAL if lease.over else lease.duration
    return lease.unchanged >= min(needed, lease.duration)


IsOver = Callable[[str], bool]
"""Whether the work of a holder is over, by its name in the Lease; False where nobody knows."""


def nobody_knows(_: str) -> bool:
    """Say of no holder that its work is over."""
    return False


def next_epoch(lease: Object | None, recorded: int) -> int:
    """The epoch of the next holder: higher than any before, also when the Lease was deleted.

    Args:
        lease: the Lease as it is; None when there is none.
        recorded: the highest epoch in the environment's records; 0 when there is none.
    """
    return max(_epoch_of(lease) if lease else 0, recorded) + 1


@contextmanager
def hold(
    access: Access, ownership: Ownership, holder: str, *, wait: timedelta, is_over: IsOver = nobody_knows
) -> Iterator["Lock"]:
    """Hold an environment's lock for as long as the block runs.

    Args:
        access: the cluster.
        ownership: the environment; its namespace is created when it is missing, since the Lease lives there.
        holder: who we are, shown by `kubectl get lease`. It need not be unique: every lock adds a suffix of its own,
            so that a run that was started again waits for its first process like for any other holder.
        wait: how long to wait for another holder.
        is_over: asked, in a thread, about another holder that does not renew the Lease.

    Raises:
        EnvironmentBusy: another holder was still renewing the Lease after `wait`.
        ClusterUnreachable: the API server does not answer.
    """
    lock = Lock(access, ownership, holder, wait, is_over)
    with lock:
        yield lock


def lease_ref(ownership: Ownership) -> Ref:
    """The Lease of an environment."""
    return Ref("coordination.k8s.io/v1", "Lease", ownership.namespace, f"prefect-cd.{ownership.application}")


def open_record(lease: Object | None) -> int | None:
    """The number of the record that has no outcome yet, by the Lease; None where there is none. Pure."""
    number = str(dig_mapping(lease, "metadata", "annotations").get(_OPEN, ""))
    return int(number) if number.isdecimal() else None


def added_objects(lease: Object | None) -> tuple[Ref, ...]:
    """The objects that the open record's release may have added, by the Lease: for a record that is lost. Pure."""
    try:
        listed = json.loads(str(dig_mapping(lease, "metadata", "annotations").get(_ADDED, "[]")))
        return tuple(Ref(*map(str, parts)) for parts in listed)
    except (ValueError, TypeError):  # edited by hand
        return ()


class Lock:
    """A held lock; every write awaits its `guard` first.

    Attributes:
        holder: our name in the Lease, which no other lock has.
        epoch: our number among the holders; 0 until the lock is held.
    """

    def __init__(
        self,
        access: Access,
        ownership: Ownership,
        holder: str,
        wait: timedelta,
        is_over: IsOver = nobody_knows,
    ) -> None:
        self._access = access
        self._ownership = ownership
        self.holder = f"{holder}/{uuid.uuid4().hex[:8]}"
        self.epoch = 0
        self._wait = wait
        self._is_over = is_over
        self._valid_until = 0.0  # by `_now`; no write starts later
        self._lost: DeliveryError | None = None
        self._renewal_error = ""
        self._other = ""  # who holds it while we wait
        self._ready = threading.Event()  # acquired, or failed to acquire
        self._open: int | None = None  # the record without an outcome, for the Lease
        self._added: tuple[Ref, ...] = ()  # what its release may add
        self._written_open: int | None = None  # the open record as the Lease has it
        self._woken = threading.Event()  # by `mark_open` and at the end: the thread has to write the Lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lock of {ownership.environment}", daemon=True)

    async def guard(self) -> None:
        """Return while we are the writer; wait while a renewal is overdue.

        Raises:
            LockLost: we no longer are.
            ClusterUnreachable: we could not find out in time; we may still be.
        """
        give_up = _now() + PATIENCE.total_seconds()
        logged = False
        while True:
            self._raise_if_lost()
            if _now() <= self._valid_until:
                return
            if _now() > give_up:
                raise self._not_renewed()
            if not logged:
                logged = True
                _log.warning("writes to %s wait until its lock is renewed", self._ownership.environment)
            await asyncio.sleep(_GUARD_INTERVAL.total_seconds())

    async def confirm(self, cluster: Cluster) -> None:
        """Return when the Lease in the cluster says that we are the writer.

        The guard relies on what this process knows. A write that the server has refused asks for more.

        Args:
            cluster: a connection to the cluster of the Lease.

        Raises:
            LockLost: the Lease is gone, or names another holder or another epoch.
        """
        self._raise_if_lost()
        lease = await cluster.get(self._ref)
        if reason := self._reason_lost(lease):
            raise self._no_longer(reason)

    async def mark_open(self, number: int, added: Sequence[Ref] = ()) -> None:
        """Return when the Lease says that this record is open: it outlives a record that is deleted by hand.

        Args:
            number: of the record.
            added: the objects that its release may add.

        Raises:
            LockLost: we are no longer the writer.
            ClusterUnreachable: the Lease could not be written in time.
        """
        give_up = _now() + PATIENCE.total_seconds()
        self._open, self._added = number, tuple(added[:_MAX_ADDED])
        self._woken.set()
        while self._written_open != number:
            self._raise_if_lost()
            if _now() > give_up:
                raise self._not_renewed()
            await asyncio.sleep(_MARK_INTERVAL.total_seconds())

    def mark_settled(self) -> None:
        """Say that the open record has its outcome. This sends no request: the next write of the Lease contains it."""
        self._open = None

    def _raise_if_lost(self) -> None:
        if self._lost or self._stop.is_set():
            raise self._no_longer(self._lost.reason if self._lost else "the lock was released")

    def _no_longer(self, reason: str) -> LockLost:
        return LockLost(
            f"no longer the writer of {self._ownership.environment}: {reason}",
            hint="this run wrote nothing more; the next release or recovery takes over",
        )

    def _reason_lost(self, lease: Object | None) -> str:
        """Why we are not the writer, by a Lease; empty when we are."""
        if lease is None:
            return "the lock was deleted"
        holder = lease["spec"].get("holderIdentity")
        if holder != self.holder:
            return f"the lock is now held by {holder}" if holder else "the lock was released by another process"
        if (epoch := _epoch_of(lease)) != self.epoch:
            return f"the lock is in epoch {epoch}, and ours was {self.epoch}"
        return ""

    def _not_renewed(self) -> ClusterUnreachable:
        cause = f": {self._renewal_error}" if self._renewal_error else ""
        return ClusterUnreachable(
            f"the lock of {self._ownership.environment} could not be renewed "
            f"for {PATIENCE.total_seconds():.0f} s{cause}",
            where=self._location,
            hint="nothing was written in this time; does the API server answer? `kubectl get --raw /readyz`",
        )

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait_until_ready()
        except BaseException:  # cancelled while waiting: without this, the thread would acquire the lock later
            self._stop.set()
            self._woken.set()
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
        self._woken.set()
        self._thread.join(timeout=DURATION.total_seconds())

    def _wait_until_ready(self) -> None:
        """Wait for the thread, and log who else holds the lock: from here, a log line belongs to the caller's run."""
        logged = ""
        while not self._ready.wait(_ACQUIRE_INTERVAL.total_seconds()):
            if self._other and self._other != logged:
                logged = self._other
                _log.warning("%s is being changed by %s; waiting", self._ownership.environment, logged)

    # --- in the thread of the lock -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._acquire_and_renew())
        except DeliveryError as error:
            self._lost = error
        except BaseException as error:  # noqa: BLE001  without its thread the lock is lost, whatever ended the thread
            _log.exception("the lock's thread ended")
            self._lost = LockLost(f"the lock's thread ended: {error!r}")
        finally:
            self._ready.set()

    async def _acquire_and_renew(self) -> None:
        async with connect(self._access, patience=PATIENCE) as cluster:
            await ensure_namespace(cluster, self._ownership)
            lease = await self._acquire(cluster)
        if lease is None:
            return
        self._ready.set()
        async with connect(self._access, patience=_RENEW_INTERVAL) as cluster:
            while not await asyncio.to_thread(self._wait_until_due):
                lease = await self._renew(cluster, lease)
            await self._release(cluster, lease)

    def _wait_until_due(self) -> bool:
        """Wait until the Lease has to be written. Returns whether that is for the last time."""
        self._woken.wait(_RENEW_INTERVAL.total_seconds())
        self._woken.clear()
        return self._stop.is_set()

    async def _acquire(self, cluster: Cluster) -> Object | None:
        """The Lease in our name; None when we are stopped before we have it."""
        give_up = _now() + self._wait.total_seconds()
        version, unchanged_since, last_look = "", _now(), _now()
        asked, over = _now(), False
        while not self._stop.is_set():
            try:
                lease = await cluster.get(self._ref)
                # After an outage the holder, too, gets a whole duration to renew.
                was_blind = _now() - last_look > DURATION.total_seconds() / 2
                last_look = _now()
                if lease and (lease["metadata"]["resourceVersion"] != version or was_blind):
                    version, unchanged_since = lease["metadata"]["resourceVersion"], last_look
                observed = _observe(lease, timedelta(seconds=last_look - unchanged_since))
                if observed and self._is_silent(observed) and last_look - asked >= _IS_OVER_INTERVAL.total_seconds():
                    asked, over = last_look, await self._ask_whether_over(observed.holder)
                observed = observed and replace(observed, over=over)
                allowed = may_acquire(self.holder, observed)
                if allowed:
                    journal = await RecordStore(cluster, self._ownership).journal()
                    self.epoch = next_epoch(lease, journal.epoch)
                    marked = open_record(lease)
                    self._open = None if journal.is_settled(marked) else marked
                    self._added = added_objects(lease)
                acquired = await self._write(cluster, lease) if allowed else None
            except ClusterUnreachable:
                if _now() > give_up:
                    raise
                continue
            if acquired:
                return acquired
            self._other = observed.holder if observed and not allowed else ""
            if observed and not allowed and _now() > give_up:
                raise EnvironmentBusy(
                    f"{self._ownership.environment} is being changed by {observed.holder}",
                    where=self._location,
                    hint="wait for that run to end, or cancel it; the lock of a process that died expires by itself",
                )
            await asyncio.sleep(_ACQUIRE_INTERVAL.total_seconds())
        return None

    def _is_silent(self, observed: ObservedLease) -> bool:
        """Whether another holder has missed a renewal, so that it is worth to ask about it."""
        return bool(observed.holder) and observed.unchanged >= _MISSED_RENEWAL

    async def _ask_whether_over(self, holder: str) -> bool:
        try:
            asking = asyncio.to_thread(self._is_over, holder)
            with anyio.fail_after(_IS_OVER_PATIENCE.total_seconds()):
                return await asking
        except Exception as error:  # noqa: BLE001  whoever is asked may be away; the Lease expires anyway
            _log.info("nobody says whether %s is over: %r", holder, error)
            return False

    async def _renew(self, cluster: Cluster, lease: Object) -> Object:
        try:
            renewed = await self._write(cluster, lease)
            if renewed:
                return renewed
            live = await cluster.get(self._ref)
        except (ClusterUnreachable, Forbidden) as error:  # an API server that starts may forbid what it allows later
            self._renewal_error = error.reason  # the guard holds writes back until a renewal succeeds
            return lease
        if live is None or self._reason_lost(live):
            raise LockLost(self._reason_lost(live))
        self._written_open = open_record(live)
        if self._written_open != self._open:
            self._woken.set()  # once more at once: somebody waits for it
        return live  # either our own write, whose answer was lost, or another client's change of metadata

    async def _release(self, cluster: Cluster, lease: Object) -> None:
        self._valid_until = 0.0
        try:
            released = self._lease(lease)
            await cluster.replace({**released, "spec": {**released["spec"], "holderIdentity": ""}})
        except (ApiError, ClusterUnreachable):  # it expires by itself
            return

    async def _write(self, cluster: Cluster, lease: Object | None) -> Object | None:
        """The Lease in our name, or None when another process wrote it first (resourceVersion decides)."""
        started = _now()  # from before the request, so that we never count on the Lease for longer than others do
        item = self._lease(lease)
        try:
            written = await (cluster.replace(item) if lease else cluster.create(item))
        except ApiError as error:
            if error.cause in {"AlreadyExists", "Conflict"} or (lease and error.cause == "NotFound"):
                return None
            raise
        self._valid_until = started + DURATION.total_seconds() - WRITE_SECONDS
        self._written_open = open_record(written)
        return written

    @property
    def _ref(self) -> Ref:
        return lease_ref(self._ownership)

    @property
    def _location(self) -> str:
        return f"{self._ref} in {self._ownership.namespace}"

    def _lease(self, lease: Object | None) -> Object:
        """The Lease to write: `lease` renewed in our name, or a new one."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(lease["spec"]) if lease else {}
        if spec.get("holderIdentity") != self.holder:
            spec |= {"acquireTime": now}
        spec |= {
            "holderIdentity": self.holder,
            "leaseTransitions": self.epoch,
            "leaseDurationSeconds": int(DURATION.total_seconds()),
            "renewTime": now,
        }
        ref = self._ref
        fresh = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
        }
        # with its uid: a server would create a Lease that was deleted again, and so hide that the lock was lost
        item = self._ownership.label(lease or fresh)
        item["metadata"]["labels"][RECORD] = "lock"  # so that it is never pruned
        annotations = dig_mapping(item, "metadata", "annotations")
        others = {key: value for key, value in annotations.items() if key not in {_OPEN, _ADDED}}
        item["metadata"]["annotations"] = {**others, **self._mark(), _PROCESS: this_process()}
        return {**item, "spec": spec}

    def _mark(self) -> dict[str, str]:
        """The annotations of the open record."""
        if self._open is None:
            return {}
        return {_OPEN: str(self._open), _ADDED: json.dumps([astuple(ref) for ref in self._added])}


def _epoch_of(lease: Object) -> int:
    return int(lease["spec"].get("leaseTransitions") or 0)


def _observe(lease: Object | None, unchanged: timedelta) -> ObservedLease | None:
    if lease is None:
        return None
    spec = lease["spec"]
    return ObservedLease(
        holder=spec.get("holderIdentity") or "",
        unchanged=unchanged,
        duration=timedelta(seconds=spec.get("leaseDurationSeconds") or DURATION.total_seconds()),
        ended=has_ended((lease["metadata"].get("annotations") or {}).get(_PROCESS, "")),
    )
