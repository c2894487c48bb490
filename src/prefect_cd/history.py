"""Records in the cluster: what runs in an environment, what ran, what to go back to.

As Helm does it: one Secret per deployed release in the environment's own namespace, written before the first write
of the rollout and settled after its last. The orchestrator's disk is never needed: the newest records are enough to
know what runs, to roll back, and to finish what a killed process began.
"""

import base64
import gzip
import json
from datetime import datetime
from enum import Enum

from pydantic import Field

from prefect_cd.apply import Place, parallel
from prefect_cd.cluster import ApiError, Cluster, Guard, Ref, unguarded
from prefect_cd.errors import EnvironmentBusy, Invalid, InvalidManifest
from prefect_cd.manifests import PREFIX
from prefect_cd.release import BuiltImage, Commit, Object, Result

KEPT = 10
_RECORD = PREFIX + "record"
_TYPE = PREFIX + "record.v1"
_STATE, _RELEASE, _NUMBER = PREFIX + "state", PREFIX + "release-id", PREFIX + "number"
_LIMIT = 1_000_000  # bytes; a Secret holds 1 MiB, and its metadata needs some of it


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


class History:
    """The records of one environment."""

    def __init__(self, cluster: Cluster, where: Place) -> None:
        self._cluster = cluster
        self._where = where

    async def entries(self) -> tuple[Entry, ...]:
        """All records without their content, newest first."""
        kind = await self._cluster.kind("v1", "Secret")
        selector = f"{_RECORD}=release,{self._where.selector}"
        found = await self._cluster.list(kind, self._where.namespace, labels=selector, only_metadata=True)
        return tuple(sorted((_entry(item) for item in found), key=lambda entry: -entry.number))

    async def read(self, number: int) -> Record:
        """One record with its content."""
        secret = await self._cluster.get(self._ref(number))
        if secret is None:
            raise Invalid(f"there is no record {number} of {self._where.environment}", where=str(self._ref(number)))
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
                now, or the known-good itself when something was tried after it.

        Raises:
            Invalid: there is none; lists those that there are.
        """
        entries = await self.entries()
        good = [entry for entry in entries if entry.state in _GOOD]
        if release:
            found = [each for each in good if each.release_id.startswith(release) or str(each.number) == release]
        else:
            known = [entry for entry in good if entry.state == State.KNOWN_GOOD]
            found = [entry for entry in known if entry.release_id != known[0].release_id or entry != entries[0]]
        if found:
            return await self.read(found[0].number)
        what = f"release {release!r}" if release else "earlier release"
        listed = ", ".join(f"{entry.release_id} (number {entry.number})" for entry in good)
        raise Invalid(
            f"{self._where.environment} has no good record of a{'n' if not release else ''} {what}",
            hint=f"there are: {listed}" if listed else "nothing was ever good here: release a commit instead",
        )

    async def withdraw(self, after: Record, before: Record, *, guard: Guard = unguarded) -> None:
        """Mark the good records between two numbers as gone back from, so that nobody goes back to them unasked."""
        for entry in await self.entries():
            if after.number < entry.number < before.number and entry.state == State.KNOWN_GOOD:
                withdrawn = (await self.read(entry.number)).model_copy(update={"state": State.WITHDRAWN})
                await self.settle(withdrawn, guard=guard)

    async def begin(self, record: Record, *, guard: Guard = unguarded) -> Record:
        """Write a record; its number is the next one.

        Raises:
            EnvironmentBusy: somebody else wrote this number.
            InvalidManifest: the objects do not fit into a Secret.
        """
        entries = await self.entries()
        numbered = record.model_copy(update={"number": entries[0].number + 1 if entries else 1})
        try:
            await self._cluster.create(self._secret(numbered), guard=guard)
        except ApiError as error:
            if error.cause != "AlreadyExists":
                raise
            raise EnvironmentBusy(f"another process wrote record {numbered.number}", where=error.where) from error
        return numbered

    async def settle(self, record: Record, *, guard: Guard = unguarded) -> None:
        """Write what became of a record, and forget the oldest: the last ten and the known-good stay."""
        await self._cluster.apply(self._secret(record), force=True, guard=guard)
        entries = await self.entries()
        known_good = next((entry.number for entry in entries if entry.state == State.KNOWN_GOOD), 0)
        old = [entry.number for entry in entries[KEPT:] if entry.number != known_good]
        await parallel(self._cluster.delete(self._ref(number), guard=guard) for number in old)

    def _ref(self, number: int) -> Ref:
        return Ref("v1", "Secret", self._where.namespace, f"prefect-cd.{self._where.application}.{number}")

    def _secret(self, record: Record) -> Object:
        ref = self._ref(record.number)
        content = gzip.compress(record.model_dump_json().encode(), mtime=0)
        if len(content) * 4 // 3 > _LIMIT:
            raise InvalidManifest(
                f"the record of this release takes {len(content) * 4 // 3:,} bytes, a Secret holds {_LIMIT:,}",
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
        labelled = self._where.label(item)
        labelled["metadata"]["labels"] |= {
            _RECORD: "release",
            _STATE: record.state.value,
            _RELEASE: record.release_id,
            _NUMBER: str(record.number),
        }
        return labelled


def _entry(secret: Object) -> Entry:
    labels = secret["metadata"]["labels"]
    return Entry(number=int(labels[_NUMBER]), state=State(labels[_STATE]), release_id=labels[_RELEASE])


def _decode(secret: Object) -> Record:
    try:
        content = gzip.decompress(base64.b64decode(secret["data"]["record"]))
        return Record.model_validate(json.loads(content))
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise Invalid(
            f"the record cannot be read: {error}",
            where=str(Ref.of(secret)),
            hint="it was changed by hand or by another version; delete the Secret to forget it",
        ) from error
