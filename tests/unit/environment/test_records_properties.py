"""Whatever is moved, killed and deleted by hand, and in whatever order: the records name the state, and name no release
known-good that was not.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_cd.environment.journal import Journal
from prefect_cd.environment.lease import lease_ref, open_record
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import LOST, MOVES, OPEN, Record, State
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.state import read_state
from prefect_cd.errors import Errored
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
SHOP = Ownership("shop", "staging", "shop")


@dataclass(frozen=True)
class Rollout:
    """A process that starts a record, tries these states in order, and ends, with or without releasing its lock."""

    tried: tuple[State, ...]
    restores: int | None = None
    releases: bool = True


@dataclass(frozen=True)
class Recovery:
    """A process that gives the interrupted rollout an outcome."""

    outcome: State


@dataclass(frozen=True)
class Deletion:
    """Somebody deletes a record: the newest, the one before it, …"""

    position: int


_OUTCOMES = (State.ROLLED_BACK, State.ROLLBACK_FAILED, State.FAILED)
_KILLED = (State.APPLYING,)
_GOOD = (State.APPLYING, State.VERIFYING, State.KNOWN_GOOD)
_tried = st.sampled_from([_GOOD, _KILLED, (), (*_KILLED, State.ROLLED_BACK)]) | st.lists(
    st.sampled_from(State), max_size=4
).map(tuple)
_rollouts = st.builds(Rollout, _tried, st.none() | st.integers(1, 4), st.booleans())
_steps = st.lists(
    _rollouts
    | _rollouts
    | st.builds(Recovery, st.sampled_from(_OUTCOMES))
    | st.builds(Deletion, st.sampled_from([0, 0, 1, 2])),
    max_size=10,
)


class Memory:
    """Secrets and the Lease in memory: the part of a cluster that records need, without requests."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {"namespace/shop": {"metadata": {}}}
        self.version = 0

    async def kind(self, api_version: str, kind: str) -> str:
        return f"{api_version} {kind}"

    async def get(self, ref: Ref) -> Object | None:
        return self.objects.get(str(ref))

    async def list(self, *_: object, **__: object) -> list[Object]:
        return [item for name, item in self.objects.items() if name.startswith("secret/")]

    async def create(self, item: Object, **_: object) -> None:
        assert str(Ref.of(item)) not in self.objects
        self.put(item)

    async def apply(self, item: Object, **_: object) -> None:
        self.put(item)

    async def delete(self, ref: Ref, **_: object) -> None:
        self.objects.pop(str(ref))

    def put(self, item: Object) -> None:
        self.version += 1
        metadata = {**item["metadata"], "uid": "u", "resourceVersion": str(self.version)}
        self.objects[str(Ref.of(item))] = {**item, "metadata": metadata}


@dataclass
class World:
    """What really happened, without a look at a Secret."""

    memory: Memory
    epoch: int = 0
    states: dict[int, State] = field(default_factory=dict)
    restores: dict[int, int] = field(default_factory=dict)
    open: int | None = None  # the rollout without an outcome, whatever became of its record
    settled: int | None = None  # the record that has an outcome while the Lease still calls it open

    def known(self) -> dict[int, State]:
        """The records as they are to be read: what a good rollback went back behind is withdrawn."""
        was_good = {State.KNOWN_GOOD, State.WITHDRAWN}
        skips = [(to, by) for by, to in self.restores.items() if self.states.get(by) in was_good]
        return {
            number: State.WITHDRAWN
            if state == State.KNOWN_GOOD and any(first < number < last for first, last in skips)
            else state
            for number, state in self.states.items()
        }

    @property
    def cluster(self) -> Any:  # noqa: ANN401
        return self.memory

    async def acquire(self) -> RecordStore:
        """A new holder of the lock, which keeps the mark of an open record and removes one that is outdated."""
        self.epoch += 1
        store = RecordStore(self.cluster, SHOP, self.epoch)
        marked = open_record(await self.cluster.get(lease_ref(SHOP)))
        await self.mark(None if (await store.journal()).is_settled(marked) else marked)
        self.settled = None
        return store

    async def mark_open(self, number: int, _: object) -> None:
        await self.mark(number)

    async def mark(self, number: int | None) -> None:
        annotations = {} if number is None else {"prefect-cd.dev/open": str(number)}
        ref = lease_ref(SHOP)
        metadata = {"name": ref.name, "namespace": ref.namespace, "annotations": annotations}
        self.memory.put({"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata})

    async def move(self, store: RecordStore, record: Record, to: State) -> None:
        """Try a move; one that is not in the table changes nothing."""
        state = self.states.get(record.number, record.state)
        if to != state and to not in MOVES[state]:
            with pytest.raises(Errored):
                await store.move(record, to)
            return
        await store.move(record, to, now=NOW)
        self.states[record.number] = to
        if to not in OPEN and self.open == record.number:
            self.open, self.settled = None, record.number

    async def roll_out(self, step: Rollout) -> None:
        store = await self.acquire()
        before = await read_state(self.cluster, SHOP)
        restores = step.restores if step.restores in self.states else None
        record = Record(
            number=0,
            application="shop",
            environment="staging",
            state=State.PREPARED,
            release_id=f"r-{self.epoch}",
            release_hash="h",
            commit=None,
            image=None,
            objects=(),
            started_at=NOW,
            restores=restores,
        )
        record = await store.start(record, above=before.newest.number if before.newest else 0, mark=self.mark_open)
        self.states[record.number], self.open = record.state, record.number
        self.restores.pop(record.number, None)
        if restores is not None:
            self.restores[record.number] = restores
        if before.interrupted:
            await store.move(before.interrupted, State.FAILED, now=NOW)
            self.states[before.interrupted.number] = State.FAILED
        for to in step.tried:
            await self.move(store, record, to)
        if step.releases:
            await self.release()

    async def release(self) -> None:
        """Release the lock, and with it the mark of a record that has its outcome."""
        if self.settled is not None:
            await self.mark(None)
            self.settled = None

    async def recover(self, step: Recovery) -> None:
        store = await self.acquire()
        state = await read_state(self.cluster, SHOP)
        if state.interrupted:
            await self.move(store, state.interrupted, step.outcome)
        await self.release()

    def delete(self, step: Deletion) -> None:
        numbers = sorted(self.states, reverse=True)
        if step.position < len(numbers):
            del self.memory.objects[f"secret/prefect-cd.shop.{numbers[step.position]}"]
            del self.states[numbers[step.position]]
        if self.settled is not None and self.settled > max(self.states, default=0):
            # nobody knows that it was settled: the Lease says open, and the record is gone
            self.open, self.settled = self.settled, None

    async def check(self) -> None:
        state = await read_state(self.cluster, SHOP)
        journal: Journal = await RecordStore(self.cluster, SHOP).journal()
        assert state.damaged == journal.damaged == ()
        known = self.known()
        good = max((number for number, known_state in known.items() if known_state == State.KNOWN_GOOD), default=None)
        assert (state.known_good.number if state.known_good else None) == good
        assert {entry.number: entry.state for entry in journal.entries} == known
        assert (state.interrupted.number if state.interrupted else None) == self.open
        if self.open is not None and self.open not in self.states:
            assert state.lost
            assert state.lost.release_id == LOST


async def play(steps: list[Rollout | Recovery | Deletion]) -> None:
    world = World(Memory())
    for step in steps:
        match step:
            case Rollout():
                await world.roll_out(step)
            case Recovery():
                await world.recover(step)
            case Deletion():
                world.delete(step)
        await world.check()


GOOD, KILLED, DELETED = Rollout(_GOOD), Rollout(_KILLED), Deletion(0)


@pytest.mark.timeout(60)
@settings(deadline=None, max_examples=200)
@example([GOOD, KILLED, DELETED, Recovery(State.ROLLED_BACK)])
@example([GOOD, KILLED, DELETED, GOOD, DELETED])
@example([GOOD, KILLED, Recovery(State.ROLLED_BACK), DELETED, DELETED])
@example([GOOD, GOOD, Rollout(_GOOD, 1), DELETED])
@example([GOOD, GOOD, Rollout(_KILLED, 1), Recovery(State.ROLLED_BACK)])
@example([KILLED, KILLED, DELETED, DELETED])
@example([GOOD, Rollout(_GOOD, releases=False), DELETED])
@example([GOOD, Rollout(_GOOD, releases=False), Recovery(State.ROLLED_BACK), DELETED])
@given(_steps)
def test_i4_no_sequence_of_moves_kills_and_deletions_leads_to_a_wrong_known_good(
    steps: list[Rollout | Recovery | Deletion],
) -> None:
    asyncio.run(play(steps))
