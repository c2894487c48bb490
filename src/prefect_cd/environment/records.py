"""Records in the cluster: which release an environment runs, which ones ran before, and which to roll back to.

One record per deployed release in the environment's own namespace, as Helm stores releases: a Secret, and further ones
where one is too small (`record_format`). It is written before the first write of a rollout, and again whenever the
rollout has come further, the last time with its outcome. The orchestrator's disk is never needed: the newest records
are enough to know what runs, to roll back, and to recover from a process that was killed.

Before the first release, the baseline is written: what was there before, often nothing. So there is always a known-good
to go back to. A rollback by a user names the record that it restores; the records between the two are withdrawn by
that alone, without a write of their own.

What a record says is used only where it is a record of this environment: `record_format` decides whether its Secret is
what prefect-cd wrote, and `scope` whether what it contains may be written here.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timezone

from prefect_cd.environment.journal import Damage, Entry, Journal, rollback_target, with_withdrawn
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import (
    OPEN,
    GateResult,
    Record,
    State,
    added_by,
    moved,
    refuse_move,
)
from prefect_cd.environment.record_format import (
    RECORD_SELECTOR,
    decode,
    encode,
    epoch_of,
    is_named_as_ours,
    is_part,
    number_of,
    out_of_scope,
    part_names,
    read_entry,
    read_head,
    record_ref,
    state_of,
)
from prefect_cd.environment.record_key import RecordKey, load_record_key
from prefect_cd.environment.scope import scope_problem
from prefect_cd.errors import DeliveryError, EnvironmentBusy, Errored, Invalid, LockLost
from prefect_cd.kube.client import ABSENT, Cluster, Conflict, Guard, unguarded
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.labels import ENVIRONMENT, RECORD

KEPT = 10
_ATTEMPTS = 10  # to write a record; beside us, only people write to it
_log = logging.getLogger(__name__)

Mark = Callable[[int, Sequence[Ref]], Awaitable[None]]
"""Says in another place that a record is about to be open, and what its release may add; see `Lock.mark_open`."""


async def unmarked(_: int, __: Sequence[Ref]) -> None:
    """Say it nowhere."""


class RecordStore:
    """The records of one environment.

    Args:
        cluster: the environment's cluster.
        ownership: the environment.
        epoch: that of the lock under which records are written; 0 where there is none.

    Raises:
        Invalid: the key of the environment's records cannot be read.
    """

    def __init__(self, cluster: Cluster, ownership: Ownership, epoch: int = 0) -> None:
        self._cluster = cluster
        self._ownership = ownership
        self._epoch = epoch
        self._key = load_record_key(ownership.record_key)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def journal(self) -> Journal:
        """All records by their metadata, with a single list request; damaged ones raise nothing here."""
        return await self._journal(await self._secrets())

    async def entries(self) -> tuple[Entry, ...]:
        """The metadata of all records that can be read, newest first."""
        return (await self.journal()).entries

    async def read(self, number: int) -> Record:
        """One record with its content.

        Raises:
            Invalid: there is no such record, or it is damaged; the message says how.
        """
        record = await self.examine(number)
        if isinstance(record, Damage):
            raise record.error()
        return record

    async def examine(self, number: int) -> Record | Damage:
        """One record with its content, or what is wrong with it.

        Raises:
            Invalid: there is no such record.
        """
        secret = await self._cluster.get(self._ref(number))
        if secret is None:
            raise Invalid(f"{self._ownership.environment} has no record {number}", where=str(self._ref(number)))
        record = await self._decoded(secret, self._key)
        if isinstance(record, Damage):  # it may decide: the journal, which does not see types, has an entry of it
            return record.model_copy(update={"hides": True})
        return record

    async def _decoded(self, secret: Object, key: RecordKey | None) -> Record | Damage:
        """The record in a Secret with all that belongs to it, or what is wrong with it; signed, if there is a key."""
        parts = await parallel(self._cluster.get(self._part_ref(name)) for name in part_names(secret))
        record = decode(self._ownership, secret, parts, key)
        if isinstance(record, Damage):
            return record
        problem = await scope_problem(self._cluster, self._ownership, record)
        return out_of_scope(secret, problem.reason) if problem else record

    async def find_rollback_target(self, release: str = "") -> Record:
        """The record to roll back to when a user asks for a rollback; see `journal.rollback_target`."""
        entry = rollback_target(self._ownership.environment, await self.journal(), release)
        return await self.read(entry.number)

    async def since(self, number: int) -> tuple[Record, ...]:
        """The records after `number`, oldest first."""
        numbers = sorted(entry.number for entry in await self.entries() if entry.number > number)
        return tuple(await parallel(self.read(later) for later in numbers))

    async def good_record_of_run(self, run_id: str, release_id: str) -> Record | None:
        """The record of a release that a flow run brought in and that was good; its state may be withdrawn by now.

        Args:
            run_id: the flow run's id, a part of the URL in its records.
            release_id: of the release.
        """
        for entry in await self.entries():
            if entry.release_id == release_id and entry.was_good:
                record = await self.read(entry.number)
                if run_id in record.run:
                    return record.model_copy(update={"state": entry.state})
        return None

    # --- writing -----------------------------------------------------------------------------------------------------

    async def start_baseline(self, record: Record, *, guard: Guard = unguarded) -> Record:
        """Write the baseline, unless there is one: then that is returned, which is older and therefore the right one.

        Raises:
            Invalid: its name is taken by another environment in this namespace.
            InvalidManifest: the objects are too large for a record.
        """
        try:
            await self._create(record, guard)
        except Conflict as error:
            if error.cause != "AlreadyExists":
                raise
            await self._refuse_other_environment(record.number)
            return await self.read(record.number)
        return record

    async def start(self, record: Record, *, above: int = 0, guard: Guard = unguarded, mark: Mark = unmarked) -> Record:
        """Write the record of a rollout before its first write, under the next number.

        A run that starts the same rollout again, because the response was lost, gets the record that it wrote.

        Args:
            record: with its objects; it gets its number here.
            above: a number that is taken although no record has it.
            guard: awaited before each write.
            mark: awaited before the record exists, with its number and the objects that its release may add.

        Raises:
            EnvironmentBusy: another process wrote this number.
            Invalid: the number is taken by another environment in this namespace, or a record is damaged.
            InvalidManifest: the objects are too large for a record.
        """
        journal = await self.journal()
        journal.refuse_hidden(journal.known_good.number if journal.known_good else None)
        if journal.entries and journal.entries[0].state == State.PREPARED and record.run:
            newest = await self.read(journal.entries[0].number)
            if (newest.run, newest.release_hash, newest.objects) == (record.run, record.release_hash, record.objects):
                return newest
        numbered = record.model_copy(update={"number": journal.next_number(above)})
        await mark(numbered.number, added_by(record))
        try:
            await self._create(numbered, guard)
        except Conflict as error:
            if error.cause != "AlreadyExists":
                raise
            await self._refuse_other_environment(numbered.number)
            raise EnvironmentBusy(f"another process wrote record {numbered.number}", where=error.where) from error
        return numbered

    async def move(
        self,
        record: Record,
        to: State,
        *,
        reason: str = "",
        gates: Sequence[GateResult] = (),
        now: datetime | None = None,
        guard: Guard = unguarded,
    ) -> Record:
        """Write a later state of a record; with an outcome, delete all but the newest ten and those that decide.

        Old records that cannot be deleted now are deleted after the next rollout: they change no outcome.

        Args:
            record: as it was read or written last.
            to: its new state.
            reason: why, where that is not obvious.
            gates: what the gates said; without them, the record keeps those that it has.
            now: the time of the outcome.
            guard: awaited before each write.

        Returns:
            The record as it is now.

        Raises:
            LockLost: a later holder of the lock has written the record.
            Errored: the record cannot get this state, or changes faster than it can be written.
            Invalid: a newer version of prefect-cd has written it.
        """
        later = moved(record, to, now or datetime.now(timezone.utc), reason=reason, gates=gates)
        await self._overwrite(later, guard)
        if to not in OPEN:
            try:
                await self._delete_old(guard)
            except DeliveryError as error:
                _log.warning("old records of %s are kept: %s", self._ownership.environment, error.reason)
        return later

    async def sign_unsigned(self, *, guard: Guard = unguarded) -> tuple[Record, ...]:
        """Sign the records that have no signature, for an operator who knows that they are genuine.

        Args:
            guard: awaited before each write.

        Returns:
            Those that are signed now. One that is damaged in another way, or has another signature, is left.
        """
        numbers = [damage.number for damage in (await self.journal()).damaged if damage.unsigned]
        signed: list[Record] = []
        for number in sorted(number for number in numbers if number is not None):
            secret = await self._cluster.get(self._ref(number))
            record = await self._decoded(secret, None) if secret else None
            if isinstance(record, Record):
                await self._overwrite(record, guard)
                signed.append(record)
        return tuple(signed)

    async def _create(self, record: Record, guard: Guard) -> None:
        head, parts = encode(self._ownership, record, self._epoch, key=self._key)
        await self._write_parts(parts, guard)
        await self._cluster.create(head, guard=guard)

    async def _write_parts(self, parts: Sequence[Object], guard: Guard) -> None:
        """Write the parts of a record. Their names are their digest: one that exists is the same."""

        async def write(part: Object) -> None:
            try:
                await self._cluster.create(part, guard=guard)
            except Conflict as error:
                if error.cause != "AlreadyExists":
                    raise

        await parallel(write(part) for part in parts)

    async def _overwrite(self, record: Record, guard: Guard) -> None:
        """Write a record over the version that we read: what a later holder of the lock has made of it stays."""
        ref = self._ref(record.number)
        for _ in range(_ATTEMPTS):
            live = await self._cluster.get(ref)
            if live:
                self._refuse_overwrite(live, record)
            head, parts = encode(self._ownership, record, self._epoch, live, self._key)
            await self._write_parts(parts, guard)
            uid, version = (live["metadata"][key] if live else "" for key in ("uid", "resourceVersion"))
            try:
                await self._cluster.apply(head, force=True, uid=uid, version=version or ABSENT, guard=guard)
            except Conflict:  # somebody wrote it meanwhile, or we did, and the answer was lost
                continue
            return
        raise Errored(f"it changed before each of {_ATTEMPTS} attempts to write it", where=str(ref))

    def _refuse_overwrite(self, live: Object, record: Record) -> None:
        """Refuse to write over a later holder's record, a newer format, or a state that cannot become the new one.

        And over a Secret that prefect-cd did not write.
        """
        if self._epoch and epoch_of(live) > self._epoch:
            raise LockLost(
                f"no longer the writer of {self._ownership.environment}: a later holder of the lock has written it",
                where=str(Ref.of(live)),
                hint="this run wrote nothing more; the next release or recovery takes over",
            )
        head = read_head(live)
        if isinstance(head, Damage) and (head.newer or head.foreign):
            raise head.error()
        if state := state_of(live):
            refuse_move(record.number, state, record.state)

    async def _delete_old(self, guard: Guard) -> None:
        """Delete the records that nobody needs, each before its parts, and parts that no record needs."""
        secrets = await self._secrets()
        journal = await self._journal(secrets)
        deciding = {entry.number for entry in (journal.newest, journal.known_good) if entry}
        old = {entry.number for entry in journal.entries[KEPT:] if entry.number not in deciding}
        ours = [item for item in secrets if is_named_as_ours(self._ownership, item)]
        heads = [item for item in ours if not is_part(item) and number_of(item) in old]
        needed = {part for item in ours if number_of(item) not in old for part in part_names(item)}
        damaged = {damage.number for damage in journal.damaged}
        parts = [
            item
            for item in ours
            if is_part(item) and item["metadata"]["name"] not in needed and number_of(item) not in damaged
        ]
        for items in (heads, parts):
            await parallel(
                self._cluster.delete(Ref.of(item), uid=item["metadata"]["uid"], guard=guard) for item in items
            )

    # --- Secrets -----------------------------------------------------------------------------------------------------

    async def _secrets(self) -> list[Object]:
        """The Secrets of all records, without their content."""
        kind = await self._cluster.kind("v1", "Secret")
        selector = f"{RECORD_SELECTOR},{self._ownership.selector}"
        return await self._cluster.list(kind, self._ownership.namespace, labels=selector, only_metadata=True)

    async def _journal(self, secrets: Sequence[Object]) -> Journal:
        parts = {item["metadata"]["name"] for item in secrets if is_part(item)}
        heads = [item for item in secrets if not is_part(item)]
        read = [read_entry(self._ownership, item, parts, self._key) for item in heads]
        entries = sorted((entry for entry, _ in read if entry), key=lambda entry: -entry.number)
        damaged = await parallel(self._looked_at(damage, parts) for _, damage in read if damage)
        return Journal(
            entries=with_withdrawn(entries),
            damaged=tuple(damaged),
            epoch=max(map(epoch_of, heads), default=0),
        )

    async def _looked_at(self, damage: Damage, parts: Collection[str]) -> Damage:
        """The damage of a record; or that its Secret never was one, as its type says, which a list does not have."""
        if not damage.hides or damage.number is None:
            return damage
        secret = await self._cluster.get(self._ref(damage.number))
        _, now = read_entry(self._ownership, secret, parts, self._key) if secret else (None, None)
        return now if now and now.foreign else damage

    async def _refuse_other_environment(self, number: int) -> None:
        """An environment that was renamed does not find its records by label, but their names are taken."""
        ref = self._ref(number)
        existing = await self._cluster.get(ref)
        if existing is None:
            return
        labels = existing["metadata"].get("labels") or {}
        if not self._ownership.owns(existing):
            raise Invalid(
                f"namespace {self._ownership.namespace} has records of environment {labels.get(ENVIRONMENT)!r}, "
                f"not of {self._ownership.environment!r}",
                where=str(ref),
                hint="rename the environment back, or delete the old records to start without a history",
            )
        if RECORD not in labels:
            raise Invalid(
                f"record {number} is not found: its label {RECORD} was removed",
                where=str(ref),
                hint=f"`kubectl -n {ref.namespace} label secret {ref.name} {RECORD}=release`",
            )

    def _ref(self, number: int) -> Ref:
        return record_ref(self._ownership, number)

    def _part_ref(self, name: str) -> Ref:
        return Ref("v1", "Secret", self._ownership.namespace, name)


__all__ = ["KEPT", "Mark", "RecordStore", "unmarked"]
