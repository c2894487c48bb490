"""Records in the cluster: what runs in an environment, what ran, what to go back to.

As Helm does it: one Secret per deployed release in the environment's own namespace, written before the first write
of the rollout and settled after its last. The orchestrator's disk is never needed: the newest records are enough to
know what runs, to roll back, and to finish what a killed process began.
"""

import base64
import gzip
import json
import zlib
from datetime import datetime
from enum import Enum

from pydantic import Field, ValidationError

from prefect_cd.environment.ownership import Ownership
from prefect_cd.errors import EnvironmentBusy, Invalid, InvalidManifest
from prefect_cd.kube.client import Cluster, Guard, unguarded
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.labels import ENVIRONMENT, PREFIX, RECORD
from prefect_cd.release.model import BuiltImage, Commit, Result

KEPT = 10
_TYPE = PREFIX + "record.v1"
_STATE, _RELEASE, _NUMBER = PREFIX + "state", PREFIX + "release-id", PREFIX + "number"
_LIMIT = 1_000_000  # bytes of its content; a Secret holds 1 MiB
_RESERVE = 50_000  # of it, for what is known only when a record is settled
_LONGEST_REASON = 20_000
_LARGEST = 200_000_000  # of a record that is read, unpacked: who may write Secrets may not fill our memory


class State(str, Enum):
    """What became of a release in an environment."""

    STARTED = "started"
    KNOWN_GOOD = "known-good"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    ROLLBACK_FAILED = "rollback-failed"
    WITHDRAWN = "withdrawn"


_GOOD = frozenset({State.KNOWN_GOOD, State.WITHDRAWN})


class Decision(Result):
    """What a person decided about a release for an environment."""

    approved: bool
    name: str
    comment: str
    decided_at: datetime
    content: str = Field(description="digest of what was shown")


class GateResult(Result):
    """What a gate said, in one line."""

    name: str
    outcome: str
    summary: str


class Record(Result):
    """One release in one environment: enough to apply it again."""

    number: int
    application: str
    environment: str
    state: State
    release_id: str
    release_hash: str
    commit: Commit | None = Field(description="None for what was there before us")
    image: BuiltImage | None
    objects: tuple[Object, ...] = Field(description="the full set, labelled and placed")
    decision: Decision | None = None
    gates: tuple[GateResult, ...] = ()
    started_at: datetime
    settled_at: datetime | None = None
    run: str = Field(default="", description="URL of the flow run")
    reason: str = Field(default="", description="why it is in this state, when that is not obvious")
    restores: int | None = Field(default=None, description="number of the record that a rollback brings back")


class Entry(Result):
    """A record without its content, as a list shows it."""

    number: int
    state: State
    release_id: str


class RecordStore:
    """The records of one environment."""

    def __init__(self, cluster: Cluster, ownership: Ownership) -> None:
        self._cluster = cluster
        self._ownership = ownership

    async def entries(self) -> tuple[Entry, ...]:
        """All records without their content, newest first."""
        kind = await self._cluster.kind("v1", "Secret")
        selector = f"{RECORD}=release,{self._ownership.selector}"
        found = await self._cluster.list(kind, self._ownership.namespace, labels=selector, only_metadata=True)
        return tuple(sorted((_entry(item) for item in found), key=lambda entry: -entry.number))

    async def read(self, number: int) -> Record:
        """One record with its content."""
        secret = await self._cluster.get(self._ref(number))
        if secret is None:
            raise Invalid(f"there is no record {number} of {self._ownership.environment}", where=str(self._ref(number)))
        return _decode(secret)

    async def newest(self) -> Record | None:
        """The newest record of any state."""
        entries = await self.entries()
        return await self.read(entries[0].number) if entries else None

    async def known_good(self) -> Record | None:
        """What to go back to: the newest release whose gates passed after its rollout."""
        good = [entry for entry in await self.entries() if entry.state == State.KNOWN_GOOD]
        return await self.read(good[0].number) if good else None

    async def find(self, release: str = "") -> Record:
        """What to go back to on purpose.

        Args:
            release: a release id or its first digits, or a record number; empty: the known-good before what runs
                now, or the known-good itself when something failed after it and was not rolled back.

        Raises:
            Invalid: there is none; lists those that there are.
        """
        entries = await self.entries()
        good = [entry for entry in entries if entry.state in _GOOD]
        found = _named(good, release) if release else _before(entries)
        if len({entry.release_id for entry in found}) > 1 and release:
            raise Invalid(
                f"{release!r} begins more than one release of {self._ownership.environment}",
                hint=f"there are: {_listed(found)}",
            )
        if found:
            return await self.read(found[0].number)
        what = f"no good record of a release {release!r}" if release else "no good record of an earlier release"
        raise Invalid(
            f"{self._ownership.environment} has {what}",
            hint=f"there are: {_listed(good)}" if good else "nothing was ever good here: release a commit instead",
        )

    async def withdraw(self, after: Record, before: Record, *, guard: Guard = unguarded) -> None:
        """Mark the good records between two numbers as gone back from, so that nobody goes back to them unasked."""
        for entry in await self.entries():
            if after.number < entry.number < before.number and entry.state == State.KNOWN_GOOD:
                withdrawn = (await self.read(entry.number)).model_copy(update={"state": State.WITHDRAWN})
                await self.settle(withdrawn, guard=guard)

    async def begin(self, record: Record, *, guard: Guard = unguarded) -> Record:
        """Write a record; its number is the next one.

        Asked again by the same run, because an answer was lost, it returns what is there.

        Raises:
            EnvironmentBusy: somebody else wrote this number.
            Invalid: the number is taken by another environment in this namespace.
            InvalidManifest: the objects do not fit into a Secret.
        """
        entries = await self.entries()
        if entries and entries[0].state == State.STARTED and record.run:
            there = await self.read(entries[0].number)
            if (there.run, there.release_hash, there.objects) == (record.run, record.release_hash, record.objects):
                return there
        numbered = record.model_copy(update={"number": entries[0].number + 1 if entries else 1})
        try:
            await self._cluster.create(self._secret(numbered, _LIMIT - _RESERVE), guard=guard)
        except ApiError as error:
            if error.cause != "AlreadyExists":
                raise
            await self._refuse_other_environment(numbered.number)
            raise EnvironmentBusy(f"another process wrote record {numbered.number}", where=error.where) from error
        return numbered

    async def settle(self, record: Record, *, guard: Guard = unguarded) -> None:
        """Write what became of a record, and forget the oldest: the last ten and the known-good stay."""
        told = record.model_copy(update={"reason": record.reason[:_LONGEST_REASON]})
        await self._cluster.apply(self._secret(told, _LIMIT), force=True, guard=guard)
        entries = await self.entries()
        known_good = next((entry.number for entry in entries if entry.state == State.KNOWN_GOOD), 0)
        old = [entry.number for entry in entries[KEPT:] if entry.number != known_good]
        await parallel(self._cluster.delete(self._ref(number), guard=guard) for number in old)

    async def _refuse_other_environment(self, number: int) -> None:
        """An environment that was given another name does not find its own records, and runs into them."""
        there = await self._cluster.get(self._ref(number))
        if there and not self._ownership.owns(there):
            name = (there["metadata"].get("labels") or {}).get(ENVIRONMENT)
            raise Invalid(
                f"namespace {self._ownership.namespace} has records of environment {name!r}, "
                f"and not of {self._ownership.environment!r}",
                where=str(self._ref(number)),
                hint="give the environment its old name back, or delete the old records to begin anew",
            )

    def _ref(self, number: int) -> Ref:
        return Ref("v1", "Secret", self._ownership.namespace, f"prefect-cd.{self._ownership.application}.{number}")

    def _secret(self, record: Record, limit: int) -> Object:
        ref = self._ref(record.number)
        content = gzip.compress(record.model_dump_json().encode(), mtime=0)
        if len(content) > limit:
            raise InvalidManifest(
                f"the record of this release takes {len(content):,} bytes compressed, and has room for {limit:,}",
                where=str(ref),
                hint="move large data out of ConfigMaps, or split the application",
            )
        item = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": _TYPE,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
            "data": {"record": base64.b64encode(content).decode()},
        }
        labelled = self._ownership.label(item)
        labelled["metadata"]["labels"] |= {
            RECORD: "release",
            _STATE: record.state.value,
            _RELEASE: record.release_id,
            _NUMBER: str(record.number),
        }
        return labelled


def _named(good: list[Entry], release: str) -> list[Entry]:
    """The entries that `release` names, newest first: a number is a number before it is the beginning of an id."""
    numbered = [entry for entry in good if str(entry.number) == release]
    return numbered or [entry for entry in good if entry.release_id.startswith(release)]


def _before(entries: tuple[Entry, ...]) -> list[Entry]:
    """The known-good ones before what runs now.

    Something that failed after the known-good may still stand there; what was rolled back does not.
    """
    known = [entry for entry in entries if entry.state == State.KNOWN_GOOD]
    standing = [entry for entry in entries if entry.state != State.ROLLED_BACK]
    if known and known[0] == standing[0]:
        return [entry for entry in known if entry.release_id != known[0].release_id]
    return known


def _listed(entries: list[Entry]) -> str:
    return ", ".join(f"{entry.release_id} (number {entry.number})" for entry in entries)


def _entry(secret: Object) -> Entry:
    labels = secret["metadata"]["labels"]
    try:
        return Entry(number=int(labels[_NUMBER]), state=State(labels[_STATE]), release_id=labels[_RELEASE])
    except (KeyError, ValueError) as error:
        raise _unreadable(secret, f"its labels: {error}") from error


def _decode(secret: Object) -> Record:
    """The record in a Secret; what is wrong with it is told without a word of its content."""
    try:
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        content = unpacker.decompress(base64.b64decode(secret["data"]["record"]), _LARGEST)
        if not unpacker.eof:
            raise _unreadable(secret, "it is cut off, or too large")
        return Record.model_validate(json.loads(content))
    except ValidationError as error:
        where = sorted({".".join(map(str, each["loc"])) for each in error.errors(include_input=False)})
        raise _unreadable(secret, f"unexpected {', '.join(where)}") from None
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise _unreadable(secret, type(error).__name__) from None


def _unreadable(secret: Object, why: str) -> Invalid:
    return Invalid(
        f"the record cannot be read: {why}",
        where=str(Ref.of(secret)),
        hint="it was changed by hand or by another version; delete the Secret to forget it",
    )
