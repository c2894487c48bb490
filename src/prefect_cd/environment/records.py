"""Records in the cluster: which release an environment runs, which ones ran before, and which to roll back to.

One Secret per deployed release in the environment's own namespace, as Helm stores releases. It is written before the
first write of a rollout, and again, with the outcome, after the last write. The orchestrator's disk is never needed:
the newest records are enough to know what runs, to roll back, and to recover from a process that was killed.

Before the first release, the baseline is written: what was there before, often nothing. So there is always a known-good
to go back to. A rollback by a user names the record that it restores; the records between the two are withdrawn by
that alone, without a write of their own.
"""

import base64
import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum

from pydantic import Field, ValidationError

from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import DeliveryError, EnvironmentBusy, Errored, Invalid, InvalidManifest, LockLost
from prefect_cd.kube.client import ABSENT, Cluster, Conflict, Guard, unguarded
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.labels import ENVIRONMENT, PREFIX, RECORD
from prefect_cd.release.model import BuiltImage, Commit, Release, Result

KEPT = 10
BASELINE = 0
"""The number of the record of what was there before the first release."""
BEFORE, NOTHING = "before-prefect-cd", "nothing"
"""The release ids of a baseline with objects, and of an empty one."""
_TYPE = PREFIX + "record.v1"
_STATE, _RELEASE, _NUMBER = PREFIX + "state", PREFIX + "release-id", PREFIX + "number"
_EPOCH = PREFIX + "epoch"  # an annotation: of the lock under which the record was written last
_RESTORES = PREFIX + "restores"
_LIMIT = 1_000_000  # bytes of a compressed record; a Secret holds 1 MiB (MaxSecretSize in k8s.io/api/core/v1)
_RESERVE = 50_000  # bytes of it for the outcome, so that a record that could be started can also be finished
_ATTEMPTS = 10  # to write a record; beside us, only people write to it
_MAX_REASON_LENGTH = 20_000
_MAX_DECOMPRESSED = 200_000_000  # bytes; a manipulated Secret must not exhaust our memory
_log = logging.getLogger(__name__)


class State(str, Enum):
    """The outcome of a release in an environment. The values are a stable contract: they are labels of Secrets."""

    STARTED = "started"
    KNOWN_GOOD = "known-good"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    ROLLBACK_FAILED = "rollback-failed"
    WITHDRAWN = "withdrawn"
    """Older versions of prefect-cd wrote it; now `entries` derives it from the records that rollbacks restored."""


_ROLLBACK_TARGETS = frozenset({State.KNOWN_GOOD, State.WITHDRAWN})  # withdrawn ones only by name


class Decision(Result):
    """The decision of an approver about a release for an environment."""

    approved: bool
    name: str
    comment: str
    decided_at: datetime
    content: str = Field(description="digest of what was approved")


class GateResult(Result):
    """The result of a gate, in one line."""

    name: str
    outcome: str
    summary: str


class Record(Result):
    """One release in one environment: enough to apply it again. The names of the fields are a stable contract."""

    number: int
    application: str
    environment: str
    state: State
    release_id: str
    release_hash: str
    commit: Commit | None = Field(description="None for what ran before prefect-cd")
    image: BuiltImage | None
    objects: tuple[Object, ...] = Field(description="the full set, labelled and with namespaces")
    known: tuple[Ref, ...] = Field(default=(), description="objects that may have been here when its rollout started")
    decision: Decision | None = None
    gates: tuple[GateResult, ...] = ()
    started_at: datetime
    settled_at: datetime | None = None
    run: str = Field(default="", description="URL of the flow run")
    reason: str = Field(default="", description="why it is in this state, when that is not obvious")
    restores: int | None = Field(default=None, description="number of the record that a rollback restores")


def new_record(
    ownership: Ownership,
    version: Release | Record,
    objects: Sequence[Object],
    now: datetime,
    *,
    known: Iterable[Ref] = (),
    decision: Decision | None = None,
    run: str = "",
) -> Record:
    """The record of a rollout that is about to start; `RecordStore.start` numbers it.

    Args:
        ownership: the environment.
        version: a new release, or the record that a rollback restores.
        objects: the full set, labelled and with namespaces.
        now: when the rollout starts.
        known: the objects that earlier releases may have left.
        decision: the approval, where the environment requires one.
        run: URL of the flow run.
    """
    return Record(
        number=0,
        application=ownership.application,
        environment=ownership.environment,
        state=State.STARTED,
        release_id=version.release_id if isinstance(version, Record) else version.id,
        release_hash=version.release_hash if isinstance(version, Record) else version.hash,
        commit=version.commit,
        image=version.image,
        objects=tuple(objects),
        known=tuple(sorted(known)),
        decision=decision,
        started_at=now,
        run=run,
        restores=version.number if isinstance(version, Record) else None,
    )


def finished(record: Record, state: State, reason: str, now: datetime, *, gates: Sequence[GateResult] = ()) -> Record:
    """The record with the outcome of its rollout; without `gates` it keeps those that it has."""
    changes = {"state": state, "reason": reason, "settled_at": now, "gates": tuple(gates) or record.gates}
    return record.model_copy(update=changes)


def baseline(ownership: Ownership, objects: Sequence[Object], now: datetime) -> Record:
    """The record of what an environment contained before its first release: a known-good to go back to.

    Args:
        ownership: the environment.
        objects: the objects that the first release takes over; often none.
        now: when they were read.
    """
    return Record(
        number=BASELINE,
        application=ownership.application,
        environment=ownership.environment,
        state=State.KNOWN_GOOD,
        release_id=BEFORE if objects else NOTHING,
        release_hash="",
        commit=None,
        image=None,
        objects=tuple(ownership.label(item) for item in objects),
        started_at=now,
        settled_at=now,
        reason="what was there before the first release",
    )


def record_ref(ownership: Ownership, number: int) -> Ref:
    """The Secret of a record."""
    return Ref("v1", "Secret", ownership.namespace, f"prefect-cd.{ownership.application}.{number}")


class Entry(Result):
    """The metadata of a record, as a list request returns it."""

    number: int
    state: State
    release_id: str
    restores: int | None = None


class RecordStore:
    """The records of one environment.

    Args:
        cluster: the environment's cluster.
        ownership: the environment.
        epoch: that of the lock under which records are written; 0 where there is none.
    """

    def __init__(self, cluster: Cluster, ownership: Ownership, epoch: int = 0) -> None:
        self._cluster = cluster
        self._ownership = ownership
        self._epoch = epoch

    async def entries(self) -> tuple[Entry, ...]:
        """The metadata of all records, newest first; those that a rollback has withdrawn have this state."""
        entries = (_entry(secret) for secret in await self._secrets())
        return _with_withdrawn(sorted(entries, key=lambda entry: -entry.number))

    async def last_epoch(self) -> int:
        """The highest epoch in which a record was written, also where a record cannot be read; 0 without records."""
        return max((_epoch_of(secret) for secret in await self._secrets()), default=0)

    async def _secrets(self) -> list[Object]:
        """The Secrets of all records, without their content."""
        kind = await self._cluster.kind("v1", "Secret")
        selector = f"{RECORD} in (release,baseline),{self._ownership.selector}"
        return await self._cluster.list(kind, self._ownership.namespace, labels=selector, only_metadata=True)

    async def read(self, number: int) -> Record:
        """One record with its content.

        Raises:
            Invalid: there is no such record, or it cannot be read.
        """
        secret = await self._cluster.get(self._ref(number))
        if secret is None:
            raise Invalid(f"{self._ownership.environment} has no record {number}", where=str(self._ref(number)))
        return _decode(secret)

    async def latest(self) -> tuple[Record | None, Record | None]:
        """The newest record of any state, and the known-good, with a single list request."""
        entries = await self.entries()
        newest = await self.read(entries[0].number) if entries else None
        good = next((entry for entry in entries if entry.state == State.KNOWN_GOOD), None)
        if good is None or (newest and newest.number == good.number):
            return newest, newest if good else None
        return newest, await self.read(good.number)

    async def newest(self) -> Record | None:
        """The newest record of any state."""
        entries = await self.entries()
        return await self.read(entries[0].number) if entries else None

    async def known_good(self) -> Record | None:
        """What to roll back to: the newest release whose gates passed after its rollout."""
        good = [entry for entry in await self.entries() if entry.state == State.KNOWN_GOOD]
        return await self.read(good[0].number) if good else None

    async def find_rollback_target(self, release: str = "") -> Record:
        """The record to roll back to when a user asks for a rollback.

        Args:
            release: a release id or its first digits, or a record number; empty: the known-good before what runs
                now, or the known-good itself when something failed after it and was not rolled back.

        Raises:
            Invalid: there is none, or more than one; the message lists the available ones.
        """
        environment = self._ownership.environment
        entries = await self.entries()
        targets = [entry for entry in entries if entry.state in _ROLLBACK_TARGETS]
        candidates = _matching(targets, release) if release else _before_running(entries)
        if release and len({entry.release_id for entry in candidates}) > 1:
            raise Invalid(
                f"{release!r} matches more than one release of {environment}",
                hint=f"write more digits, or the number: {_listed(candidates)}",
            )
        if candidates:
            return await self.read(candidates[0].number)
        missing = f"release {release!r}" if release else "an earlier release"
        hint = (
            f"choose one of: {_listed(targets)}"
            if targets
            else "no release has passed its gates here: release a commit"
        )
        raise Invalid(f"{environment} has no known-good record of {missing}", hint=hint)

    async def good_record_of_run(self, run_id: str, release_id: str) -> Record | None:
        """The record of a release that a flow run brought in and that was good; its state may be withdrawn by now.

        Args:
            run_id: the flow run's id, a part of the URL in its records.
            release_id: of the release.
        """
        for entry in await self.entries():
            if entry.release_id == release_id and entry.state in _ROLLBACK_TARGETS:
                record = await self.read(entry.number)
                if run_id in record.run:
                    return record.model_copy(update={"state": entry.state})
        return None

    async def start_baseline(self, record: Record, *, guard: Guard = unguarded) -> Record:
        """Write the baseline, unless there is one: then that is returned, which is older and therefore the right one.

        Raises:
            Invalid: its name is taken by another environment in this namespace.
            InvalidManifest: the objects do not fit into a Secret.
        """
        try:
            await self._cluster.create(self._secret(record, _LIMIT - _RESERVE), guard=guard)
        except ApiError as error:
            if error.cause != "AlreadyExists":
                raise
            await self._refuse_other_environment(record.number)
            return await self.read(record.number)
        return record

    async def start(self, record: Record, *, guard: Guard = unguarded) -> Record:
        """Write the record of a rollout before its first write, under the next number.

        A run that starts the same rollout again, because the response was lost, gets the record that it wrote.

        Raises:
            EnvironmentBusy: another process wrote this number.
            Invalid: the number is taken by another environment in this namespace.
            InvalidManifest: the objects do not fit into a Secret.
        """
        entries = await self.entries()
        if entries and entries[0].state == State.STARTED and record.run:
            newest = await self.read(entries[0].number)
            if (newest.run, newest.release_hash, newest.objects) == (record.run, record.release_hash, record.objects):
                return newest
        numbered = record.model_copy(update={"number": entries[0].number + 1 if entries else 1})
        try:
            await self._cluster.create(self._secret(numbered, _LIMIT - _RESERVE), guard=guard)
        except ApiError as error:
            if error.cause != "AlreadyExists":
                raise
            await self._refuse_other_environment(numbered.number)
            raise EnvironmentBusy(f"another process wrote record {numbered.number}", where=error.where) from error
        return numbered

    async def finish(self, record: Record, *, guard: Guard = unguarded) -> None:
        """Write the outcome of a record, and delete all records except the newest ten and the known-good.

        Old records that cannot be deleted now are deleted after the next rollout: they change no outcome.

        Raises:
            LockLost: a later holder of the lock has written the record.
            Errored: it changes faster than it can be written.
        """
        shortened = record.model_copy(update={"reason": record.reason[:_MAX_REASON_LENGTH]})
        await self._overwrite(self._secret(shortened, _LIMIT), guard)
        try:
            await self._delete_old(guard)
        except DeliveryError as error:
            _log.warning("old records of %s are kept: %s", self._ownership.environment, error.reason)

    async def _overwrite(self, secret: Object, guard: Guard) -> None:
        """Write a record over the version that we read: what a later holder of the lock has made of it stays."""
        ref = Ref.of(secret)
        for _ in range(_ATTEMPTS):
            live = await self._cluster.get(ref)
            if live and self._epoch and _epoch_of(live) > self._epoch:
                raise LockLost(
                    f"no longer the writer of {self._ownership.environment}: a later holder of the lock has written it",
                    where=str(ref),
                    hint="this run wrote nothing more; the next release or recovery takes over",
                )
            uid, version = (live["metadata"][key] if live else "" for key in ("uid", "resourceVersion"))
            try:
                await self._cluster.apply(secret, force=True, uid=uid, version=version or ABSENT, guard=guard)
            except Conflict:  # somebody wrote it meanwhile, or we did, and the answer was lost
                continue
            return
        raise Errored(f"it changed before each of {_ATTEMPTS} attempts to write it", where=str(ref))

    async def _delete_old(self, guard: Guard) -> None:
        entries = await self.entries()
        known_good = next((entry.number for entry in entries if entry.state == State.KNOWN_GOOD), 0)
        old = [entry.number for entry in entries[KEPT:] if entry.number != known_good]
        await parallel(self._cluster.delete(self._ref(number), guard=guard) for number in old)

    async def _refuse_other_environment(self, number: int) -> None:
        """An environment that was renamed does not find its records by label, but their names are taken."""
        existing = await self._cluster.get(self._ref(number))
        if existing and not self._ownership.owns(existing):
            name = (existing["metadata"].get("labels") or {}).get(ENVIRONMENT)
            raise Invalid(
                f"namespace {self._ownership.namespace} has records of environment {name!r}, "
                f"not of {self._ownership.environment!r}",
                where=str(self._ref(number)),
                hint="rename the environment back, or delete the old records to start without a history",
            )

    def _ref(self, number: int) -> Ref:
        return record_ref(self._ownership, number)

    def _secret(self, record: Record, limit: int) -> Object:
        ref = self._ref(record.number)
        # mtime=0: equal records have equal bytes
        content = gzip.compress(record.model_dump_json().encode(), mtime=0)
        if len(content) > limit:
            raise InvalidManifest(
                f"the record of this release takes {len(content):,} bytes compressed; the limit is {limit:,}",
                where=str(ref),
                hint="move large data out of ConfigMaps, or split the application in two",
            )
        item = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": _TYPE,
            "metadata": {"name": ref.name, "namespace": ref.namespace, "annotations": {_EPOCH: str(self._epoch)}},
            "data": {"record": base64.b64encode(content).decode()},
        }
        labelled = self._ownership.label(item)
        labelled["metadata"]["labels"] |= {RECORD: "baseline" if record.number == BASELINE else "release"}
        labelled["metadata"]["labels"] |= _labels(record)
        return labelled


def _labels(record: Record) -> dict[str, str]:
    """What a list request returns of a record."""
    restores = {} if record.restores is None else {_RESTORES: str(record.restores)}
    return {_STATE: record.state.value, _RELEASE: record.release_id, _NUMBER: str(record.number), **restores}


def _matching(entries: list[Entry], release: str) -> list[Entry]:
    """The entries that `release` names, newest first; digits are a record's number first, then the start of an id.

    The baseline has to be named in full: going back to it may remove everything.
    """
    numbered = [entry for entry in entries if str(entry.number) == release and entry.number != BASELINE]
    named = [entry for entry in entries if entry.release_id == release]
    releases = [entry for entry in entries if entry.release_id not in {BEFORE, NOTHING}]
    begun = [entry for entry in releases if entry.release_id.startswith(release)]
    return numbered or named or begun


def _before_running(entries: tuple[Entry, ...]) -> list[Entry]:
    """The known-good entries before what runs now, newest first.

    A release that failed after the known-good may still run; one that was rolled back does not, and neither does one
    without an outcome over which another was started. From a good release, nothing but its name leads back to an empty
    environment.
    """
    known_good = [entry for entry in entries if entry.state == State.KNOWN_GOOD]
    replaced = [entry for entry in entries[1:] if entry.state == State.STARTED]
    may_run = [entry for entry in entries if entry.state != State.ROLLED_BACK and entry not in replaced]
    if known_good and known_good[0] == may_run[0]:
        return [entry for entry in known_good if entry.release_id not in {known_good[0].release_id, NOTHING}]
    return known_good


def _with_withdrawn(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries, newest first, with the known-good ones that a good rollback went back behind as withdrawn."""
    skips = [
        (entry.restores, entry.number)
        for entry in entries
        if entry.restores is not None and entry.state in _ROLLBACK_TARGETS
    ]
    return tuple(
        entry.model_copy(update={"state": State.WITHDRAWN})
        if entry.state == State.KNOWN_GOOD and any(first < entry.number < last for first, last in skips)
        else entry
        for entry in entries
    )


def _listed(entries: list[Entry]) -> str:
    return ", ".join(f"{entry.release_id} (number {entry.number})" for entry in entries)


def _epoch_of(secret: Object) -> int:
    epoch = (secret["metadata"].get("annotations") or {}).get(_EPOCH, "")
    return int(epoch) if epoch.isdecimal() else 0


def _entry(secret: Object) -> Entry:
    labels = secret["metadata"]["labels"]
    try:
        return Entry(
            number=int(labels[_NUMBER]),
            state=State(labels[_STATE]),
            release_id=labels[_RELEASE],
            restores=int(labels[_RESTORES]) if _RESTORES in labels else None,
        )
    except (KeyError, ValueError) as error:
        raise _unreadable(secret, f"its labels: {error}") from error


def _decode(secret: Object) -> Record:
    """The record in a Secret. Errors do not quote its content: it contains the objects, and so their Secrets."""
    try:
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        content = unpacker.decompress(base64.b64decode(secret["data"]["record"]), _MAX_DECOMPRESSED)
        if not unpacker.eof:
            raise _unreadable(secret, "it is truncated, or too large")
        record = Record.model_validate(json.loads(content))
    except ValidationError as error:
        fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)})
        raise _unreadable(secret, f"unexpected {', '.join(fields)}") from None
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise _unreadable(secret, type(error).__name__) from None
    _refuse_edited(secret, record)
    return record


def _refuse_edited(secret: Object, record: Record) -> None:
    """Refuse a record whose labels do not say what its content says: a label could make a good one of an open one."""
    labels = secret["metadata"].get("labels") or {}
    wrong = {key: value for key, value in _labels(record).items() if key in labels and labels[key] != value}
    if wrong:
        ref = Ref.of(secret)
        correct = " ".join(f"{key}={value}" for key, value in sorted(wrong.items()))
        raise Invalid(
            f"a label of record {record.number} was edited: its content says {correct}",
            where=str(ref),
            hint=f"`kubectl -n {ref.namespace} label secret {ref.name} {correct} --overwrite`",
        )


def _unreadable(secret: Object, reason: str) -> Invalid:
    return Invalid(
        f"the record cannot be read: {reason}",
        where=str(Ref.of(secret)),
        hint="it was changed by hand or by another version of prefect-cd; delete the Secret to drop the record",
    )
