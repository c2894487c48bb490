"""Records in the cluster: written before the first write, complete enough to restore, and limited in number."""

# ruff: noqa: ANN401  a fixture that is a function is of no type that can be imported
import asyncio
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_cd.environment.eligibility import EnvironmentState, damage_problem
from prefect_cd.environment.lease import hold, lease_ref
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import LOST, Record, State, baseline
from prefect_cd.environment.records import KEPT, RecordStore
from prefect_cd.environment.state import read_state
from prefect_cd.errors import EnvironmentBusy, Forbidden, Invalid, InvalidManifest, LockLost
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
ACCESS = ClusterAccess()
WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)
Kubectl = Callable[..., str]


@pytest.fixture
def ownership(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


async def add(store: RecordStore, record: Record, state: State) -> Record:
    """Start a record and give it an outcome."""
    started = await store.start(record)
    if state == State.KNOWN_GOOD:
        started = await verifying(store, started)
    return await store.move(started, state, now=WHEN)


async def seen(cluster: Cluster, ownership: Ownership) -> tuple[Record | None, Record | None]:
    """The newest record and the known-good, where no record is damaged."""
    state = await read_state(cluster, ownership)
    assert state.damaged == ()
    return state.newest, state.known_good


async def verifying(store: RecordStore, started: Record) -> Record:
    """The record when its objects are applied."""
    return await store.move(await store.move(started, State.APPLYING), State.VERIFYING)


async def test_i2_a_record_is_read_as_it_was_started_and_as_it_was_finished(
    ownership: Ownership, record: Any, objects: Any
) -> None:
    item = objects.config_map(ownership.namespace, a="ü" * 1000)
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        assert await store.entries() == ()
        assert await seen(cluster, ownership) == (None, None)
        started = await store.start(record(ownership, item))
        assert (started.number, started.state) == (1, State.PREPARED)
        assert await seen(cluster, ownership) == (started, None)
        for state in (State.APPLYING, State.VERIFYING):
            later = await store.move(started, state)
            assert later == started.model_copy(update={"state": state})
            assert await seen(cluster, ownership) == (later, None)
        good = await store.move(started, State.KNOWN_GOOD, reason="gates passed", now=WHEN)
        assert good == started.model_copy(
            update={"state": State.KNOWN_GOOD, "reason": "gates passed", "settled_at": WHEN}
        )
        assert await store.read(1) == good
        assert await seen(cluster, ownership) == (good, good)
        assert [(entry.number, entry.state, entry.release_id) for entry in await store.entries()] == [
            (1, State.KNOWN_GOOD, "aaaaaaa-11111111")
        ]


async def test_i3_an_outcome_that_comes_too_late_does_not_replace_that_of_a_later_holder_of_the_lock(
    ownership: Ownership, record: Any
) -> None:
    """A holder that is stopped between guard and request, and goes on when its successor has taken the release back."""
    async with connect(ACCESS) as cluster:
        stale, later = (RecordStore(cluster, ownership, epoch) for epoch in (3, 4))
        started = await stale.start(record(ownership))
        guarded = 0

        async def stopped() -> None:  # the last thing before the request
            nonlocal guarded
            guarded += 1
            await later.move(started, State.ROLLED_BACK, now=WHEN)

        started = await verifying(stale, started)
        with pytest.raises(LockLost, match="a later holder of the lock has written it"):
            await stale.move(started, State.KNOWN_GOOD, guard=stopped)
        assert guarded == 1
        with pytest.raises(LockLost):
            await stale.move(started, State.KNOWN_GOOD)
        assert (await later.read(1)).state == State.ROLLED_BACK
        assert (await later.journal()).epoch == 4


async def test_an_outcome_is_written_though_somebody_edits_the_record(
    ownership: Ownership, record: Any, kubectl: Kubectl
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership, 1)
        started = await verifying(store, await store.start(record(ownership)))
        edits = iter(("annotate", "delete"))

        async def edit() -> None:
            what = next(edits, "")
            if what == "annotate":
                kubectl("-n", ownership.namespace, "annotate", "secret", "prefect-cd.shop.1", "note=beside")
            elif what == "delete":
                kubectl("-n", ownership.namespace, "delete", "secret", "prefect-cd.shop.1")

        good = await store.move(started, State.KNOWN_GOOD, guard=edit)
        assert await seen(cluster, ownership) == (good, good)


async def test_a_new_record_gets_the_number_after_the_newest(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        assert [(await store.start(record(ownership))).number for _ in range(12)] == list(range(1, 13))
        assert [entry.number for entry in await store.entries()] == list(range(12, 0, -1))


async def test_i2_a_run_that_starts_again_because_a_response_was_lost_has_one_record(
    ownership: Ownership, record: Any
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        started = await store.start(record(ownership, run="http://ui/runs/1"))
        assert await store.start(record(ownership, run="http://ui/runs/1")) == started
        assert (await store.start(record(ownership, run="http://ui/runs/2"))).number == 2


async def test_the_known_good_is_the_newest_one_whatever_failed_after_it(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        for state in (State.KNOWN_GOOD, State.KNOWN_GOOD, State.FAILED, State.ROLLED_BACK):
            await add(store, record(ownership), state)
        state = await read_state(cluster, ownership)
        assert state.known_good
        assert state.newest
        assert (state.known_good.number, state.newest.number) == (2, 4)


@pytest.mark.timeout(120)
async def test_the_last_ten_and_the_known_good_are_kept(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        await add(store, record(ownership), State.FAILED)
        good = await add(store, record(ownership), State.KNOWN_GOOD)
        for _ in range(KEPT + 2):
            await add(store, record(ownership), State.FAILED)
        numbers = [entry.number for entry in await store.entries()]
        assert numbers == [*range(KEPT + 4, 4, -1), 2]
        assert (await read_state(cluster, ownership)).known_good == good
        await add(store, record(ownership), State.KNOWN_GOOD)
        assert [entry.number for entry in await store.entries()] == list(range(KEPT + 5, 5, -1))


async def test_a_release_is_found_by_number_and_by_the_start_of_its_id(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        for name in ("abc1111-1", "abd2222-2", "2bd3333-3"):
            await add(store, record(ownership, release_id=name), State.KNOWN_GOOD)
        await add(store, record(ownership, release_id="fff4444-4"), State.FAILED)
        assert (await store.find_rollback_target("abc")).number == 1
        assert (await store.find_rollback_target("2")).number == 2
        assert (await store.find_rollback_target("2b")).number == 3
        assert (await store.find_rollback_target()).number == 3
        with pytest.raises(Invalid, match="'ab' matches more than one release of staging") as caught:
            await store.find_rollback_target("ab")
        assert "abd2222-2 (number 2), abc1111-1 (number 1)" in caught.value.hint
        with pytest.raises(Invalid, match="staging has no known-good record of release 'fff'") as caught:
            await store.find_rollback_target("fff")
        assert "2bd3333-3 (number 3)" in caught.value.hint


async def test_without_a_known_good_there_is_no_rollback_target(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        await add(store, record(ownership), State.FAILED)
        with pytest.raises(Invalid, match="no known-good record of an earlier release") as caught:
            await store.find_rollback_target()
        assert "no release has passed its gates here: release a commit" in caught.value.hint
        with pytest.raises(Invalid, match="staging has no record 7"):
            await store.read(7)


async def test_a_release_that_was_rolled_back_from_is_withdrawn_and_found_only_by_name(
    ownership: Ownership, record: Any
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        one = await add(store, record(ownership, release_id="one"), State.KNOWN_GOOD)
        await add(store, record(ownership, release_id="two"), State.KNOWN_GOOD)
        await add(store, record(ownership, release_id="three"), State.FAILED)
        await add(store, record(ownership, release_id="one", restores=one.number), State.KNOWN_GOOD)
        assert [entry.state for entry in await store.entries()] == [
            State.KNOWN_GOOD,
            State.FAILED,
            State.WITHDRAWN,
            State.KNOWN_GOOD,
        ]
        with pytest.raises(Invalid):
            await store.find_rollback_target()
        assert (await store.find_rollback_target("two")).number == 2


async def test_i2_the_baseline_is_written_once_and_is_the_known_good_until_a_release_is(
    ownership: Ownership, record: Any, objects: Any
) -> None:
    before = baseline(ownership, [objects.config_map(ownership.namespace, a="before us")], WHEN)
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        assert await store.start_baseline(before) == before
        # a retry after a lost response, which reads the objects when they are ours already
        assert await store.start_baseline(baseline(ownership, [], WHEN)) == before
        assert [(entry.number, entry.release_id) for entry in await store.entries()] == [(0, "before-prefect-cd")]
        assert await seen(cluster, ownership) == (before, before)
        first = await add(store, record(ownership), State.KNOWN_GOOD)
        assert first.number == 1
        assert (await read_state(cluster, ownership)).known_good == first
        assert await store.find_rollback_target() == before
        renamed = Ownership(ownership.application, "pre-production", ownership.namespace)
        with pytest.raises(Invalid, match="has records of environment 'staging', not of 'pre-production'"):
            await RecordStore(cluster, renamed).start_baseline(baseline(renamed, [], WHEN))


async def test_nothing_but_its_name_leads_back_to_an_empty_environment(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        nothing = await store.start_baseline(baseline(ownership, [], WHEN))
        await add(store, record(ownership), State.KNOWN_GOOD)
        for name in ("", "0", "no"):
            with pytest.raises(Invalid, match="no known-good record of") as caught:
                await store.find_rollback_target(name)
            assert "nothing (number 0)" in caught.value.hint
        assert await store.find_rollback_target("nothing") == nothing


async def test_i8_the_release_of_a_run_is_found_by_the_runs_id_and_says_whether_it_is_withdrawn(
    ownership: Ownership, record: Any
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        one = await add(store, record(ownership, release_id="one", run="http://ui/runs/1"), State.KNOWN_GOOD)
        two = await add(store, record(ownership, release_id="two", run="http://ui/runs/2"), State.KNOWN_GOOD)
        await add(store, record(ownership, release_id="three", run="http://ui/runs/3"), State.FAILED)
        assert await store.good_record_of_run("runs/2", "two") == two
        assert await store.good_record_of_run("runs/2", "one") is None
        assert await store.good_record_of_run("runs/3", "three") is None
        await add(store, record(ownership, release_id="one", restores=one.number), State.KNOWN_GOOD)
        withdrawn = await store.good_record_of_run("runs/2", "two")
        assert withdrawn is not None
        assert withdrawn.state == State.WITHDRAWN


# --- what does not fit -----------------------------------------------------------------------------------------------


def filled(objects: Any, ownership: Ownership, size: int, name: str = "shop") -> Any:
    """A ConfigMap that takes about `size` bytes compressed: random hexadecimal digits shrink to about a half."""
    return objects.config_map(ownership.namespace, name, a=secrets.token_hex(size * 7 // 8))


def secret_names(kubectl: Kubectl, ownership: Ownership) -> list[str]:
    names = kubectl("-n", ownership.namespace, "get", "secrets", "-l", "prefect-cd.dev/record", "-o", "name")
    return sorted(name.removeprefix("secret/") for name in names.split())


async def test_a_record_as_large_as_a_secret_is_kept_and_can_be_finished(
    ownership: Ownership, record: Any, objects: Any
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        started = await store.start(record(ownership, filled(objects, ownership, 900_000)))
        await store.move(started, State.FAILED, reason=secrets.token_hex(200_000))
        read = await store.read(1)
        assert read.objects == started.objects
        assert len(read.reason) == 20_000


async def test_a_record_larger_than_a_secret_is_split_into_parts_that_exist_before_it_and_go_after_it(
    ownership: Ownership, record: Any, objects: Any, kubectl: Kubectl
) -> None:
    large = [filled(objects, ownership, 900_000, f"shop-{index}") for index in range(3)]
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership, 1)
        writes: list[int] = []

        async def count() -> None:
            writes.append(len(await cluster.list(await cluster.kind("v1", "Secret"), ownership.namespace)))

        started = await store.start(record(ownership, *large), guard=count)
        assert writes[0] == 0
        assert await store.read(1) == started
        parts = [name for name in secret_names(kubectl, ownership) if name.startswith("prefect-cd.shop.1.")]
        assert len(parts) == len(writes) - 1 >= 3
        good = await store.move(await verifying(store, started), State.KNOWN_GOOD, now=WHEN)
        assert await seen(cluster, ownership) == (good, good)
        assert good.objects == tuple(large)
        immutable = kubectl("-n", ownership.namespace, "get", "secret", parts[0], "-o", "jsonpath={.immutable}")
        assert immutable == "true"

        kubectl("-n", ownership.namespace, "delete", "secret", parts[1])
        state = await read_state(cluster, ownership)
        (damage,) = state.damaged
        assert (damage.where, state.known_good) == ("secret/prefect-cd.shop.1", None)
        assert f"1 of its {len(parts)} parts are missing: {parts[1]}" in damage.problem
        with pytest.raises(Invalid, match="parts are missing"):
            await store.start(record(ownership))


@pytest.mark.timeout(120)
async def test_the_parts_of_old_records_and_of_those_that_were_never_written_are_deleted(
    ownership: Ownership, record: Any, objects: Any, kubectl: Kubectl
) -> None:
    large = record(ownership, *(filled(objects, ownership, 900_000, f"shop-{index}") for index in range(2)))

    async def killed() -> None:
        if len(secret_names(kubectl, ownership)) >= 2:  # parts alone: the next write is the record's
            raise LockLost("killed")

    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership, 1)
        with pytest.raises(LockLost):
            await store.start(large, guard=killed)
        assert await store.entries() == ()
        orphans = secret_names(kubectl, ownership)
        assert orphans
        await add(store, record(ownership), State.FAILED)
        assert secret_names(kubectl, ownership) == ["prefect-cd.shop.1"]
        await add(store, large, State.FAILED)
        assert len(secret_names(kubectl, ownership)) > 3
        for _ in range(KEPT):
            await add(store, record(ownership), State.FAILED)
        assert len(secret_names(kubectl, ownership)) == KEPT


async def test_a_record_that_does_not_fit_is_refused_before_anything_is_written(
    ownership: Ownership, record: Any, objects: Any, kubectl: Kubectl
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        with pytest.raises(InvalidManifest, match="bytes compressed; the limit is 15,200,000") as caught:
            await store.start(record(ownership, filled(objects, ownership, 16_000_000)))
        assert "ConfigMaps" in caught.value.hint
        assert secret_names(kubectl, ownership) == []


# --- races and damage ------------------------------------------------------------------------------------------------


async def test_i3_processes_that_start_at_once_do_not_write_the_same_number(ownership: Ownership, record: Any) -> None:
    async def start(cluster: Cluster) -> Record | EnvironmentBusy:
        try:
            return await RecordStore(cluster, ownership).start(record(ownership))
        except EnvironmentBusy as busy:
            return busy

    async with connect(ACCESS) as cluster:
        results = await parallel(start(cluster) for _ in range(8))
        written = [result for result in results if isinstance(result, Record)]
        assert len({record.number for record in written}) == len(written) >= 1
        assert len(await RecordStore(cluster, ownership).entries()) == len(written)
        refused = any("another process wrote record" in str(result) for result in results)
        assert len(written) == len(results) or refused


async def test_i3_no_record_is_written_without_the_lock(ownership: Ownership, record: Any) -> None:
    async def lost() -> None:
        raise LockLost("no longer the writer")

    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        with pytest.raises(LockLost):
            await store.start(record(ownership), guard=lost)
        started = await store.start(record(ownership))
        with pytest.raises(LockLost):
            await store.move(started, State.FAILED, guard=lost)
        with pytest.raises(LockLost):
            await store.start_baseline(baseline(ownership, [], WHEN), guard=lost)
        assert (await read_state(cluster, ownership)).newest == started


async def test_a_renamed_environment_is_refused_with_the_name_that_its_records_have(
    ownership: Ownership, record: Any
) -> None:
    async with connect(ACCESS) as cluster:
        await RecordStore(cluster, ownership).start(record(ownership))
        renamed = Ownership(ownership.application, "pre-production", ownership.namespace)
        with pytest.raises(Invalid, match="has records of environment 'staging', not of 'pre-production'"):
            await RecordStore(cluster, renamed).start(record(renamed))


async def test_records_of_other_applications_and_environments_are_not_ours(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        await RecordStore(cluster, ownership).start(record(ownership))
        for other in (
            Ownership("blog", "staging", ownership.namespace),
            Ownership("shop", "production", ownership.namespace),
        ):
            assert await RecordStore(cluster, other).entries() == ()


async def test_a_damaged_record_is_named_and_nothing_is_guessed(
    ownership: Ownership, record: Any, kubectl: Kubectl
) -> None:
    n = ownership.namespace
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        good = await add(store, record(ownership), State.KNOWN_GOOD)
        await add(store, record(ownership), State.KNOWN_GOOD)
        kubectl("-n", n, "patch", "secret", "prefect-cd.shop.2", "-p", '{"data": {"record": "aGk="}}')
        state = await read_state(cluster, ownership)
        assert [(damage.where, damage.number) for damage in state.damaged] == [("secret/prefect-cd.shop.2", 2)]
        assert "its content was changed" in state.damaged[0].problem
        assert damage_problem(state)
        kubectl("-n", n, "annotate", "secret", "prefect-cd.shop.2", "prefect-cd.dev/head={}", "--overwrite")
        state = await read_state(cluster, ownership)
        assert (state.newest, state.known_good) == (good, good)
        assert damage_problem(state)
        with pytest.raises(Invalid, match=r"its annotation prefect-cd\.dev/head was removed, or is not"):
            await store.start(record(ownership))
        with pytest.raises(Invalid, match="annotation"):
            await store.find_rollback_target()
        await cluster.delete(Ref("v1", "Secret", n, "prefect-cd.shop.2"))
        assert await seen(cluster, ownership) == (good, good)


async def test_a_label_that_was_edited_changes_nothing_and_is_named(
    ownership: Ownership, record: Any, kubectl: Kubectl
) -> None:
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership)
        started = await store.start(record(ownership))
        edit = ["label", "secret", "prefect-cd.shop.1", "prefect-cd.dev/state=known-good", "--overwrite"]
        kubectl("-n", ownership.namespace, *edit)
        state = await read_state(cluster, ownership)
        assert (state.newest, state.interrupted, state.known_good) == (started, started, None)
        (damage,) = state.damaged
        assert damage.problem.startswith("a label of record 1 was edited")
        assert not damage_problem(state)
        kubectl("-n", ownership.namespace, *damage.hint.strip("`").removeprefix("kubectl -n").split()[1:])
        assert (await read_state(cluster, ownership)).damaged == ()


def test_i4_a_rollout_whose_record_was_deleted_by_hand_counts_as_interrupted(
    ownership: Ownership, record: Any, kubectl: Kubectl
) -> None:
    async def run(work: Any) -> Any:
        async with connect(ACCESS) as cluster:
            return await work(cluster)

    async def release(cluster: Cluster) -> None:
        await add(RecordStore(cluster, ownership, lock.epoch), record(ownership), State.KNOWN_GOOD)
        store = RecordStore(cluster, ownership, lock.epoch)
        await store.start(record(ownership), guard=lock.guard, mark=lock.mark_open)

    async def state(cluster: Cluster) -> EnvironmentState:
        return await read_state(cluster, ownership)

    async def settle(cluster: Cluster) -> None:
        found = await read_state(cluster, ownership)
        assert found.interrupted
        store = RecordStore(cluster, ownership, lock.epoch)
        await store.move(found.interrupted, State.ROLLED_BACK, reason="went back", guard=lock.guard)
        lock.mark_settled()

    with hold(ACCESS, ownership, "release", wait=timedelta(seconds=1)) as lock:
        asyncio.run(run(release))
    kubectl("-n", ownership.namespace, "delete", "secret", "prefect-cd.shop.2")
    lost = asyncio.run(run(state))
    assert lost.lost == lost.interrupted == lost.newest
    assert (lost.newest.number, lost.newest.release_id, lost.known_good.number) == (2, LOST, 1)
    with hold(ACCESS, ownership, "recover", wait=timedelta(seconds=1)) as lock:
        asyncio.run(run(settle))
    after = asyncio.run(run(state))
    assert (after.newest.number, after.newest.state, after.interrupted) == (2, State.ROLLED_BACK, None)
    lease = kubectl("-n", ownership.namespace, "get", str(lease_ref(ownership)), "-o", "jsonpath={.metadata}")
    assert "prefect-cd.dev/open" not in lease


async def test_i7_a_list_of_records_does_not_contain_their_contents(ownership: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        await RecordStore(cluster, ownership).start(record(ownership, reason="hunter2"))
        kind = await cluster.kind("v1", "Secret")
        secrets = await cluster.list(
            kind, ownership.namespace, labels="prefect-cd.dev/record=release", only_metadata=True
        )
        assert [set(item) for item in secrets] == [{"apiVersion", "kind", "metadata"}]
    assert issubclass(Forbidden, Invalid)
