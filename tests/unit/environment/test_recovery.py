"""What recovery decides from the records and the live objects, and how it brings an environment back."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from prefect_cd.environment import recovery
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import LOST, NOTHING, Record, State
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.recovery import ROUNDS, RecoveryAction, decide, go_back, look, make_whole
from prefect_cd.environment.recovery import recover as recover_it
from prefect_cd.environment.state import read_state
from prefect_cd.environment.wholeness import DefectKind
from prefect_cd.errors import ClusterUnreachable, Errored, Invalid, LockLost, RolloutFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.watch.loop import watch
from tests.records import record
from tests.unit.fake_api import FakeApi

SHOP = Ownership("shop", "staging", "shop")
SETTINGS = RolloutSettings(settle=timedelta(), timeout=timedelta(seconds=20))


class Lock:
    """A lock that is held until it is lost."""

    epoch = 3

    def __init__(self) -> None:
        self.lost_after = 1_000_000

    async def guard(self) -> None:
        self.lost_after -= 1
        if self.lost_after < 0:
            raise LockLost("another took over")

    async def confirm(self, _: Cluster) -> None:
        pass

    def mark_settled(self) -> None:
        pass


LOCK: Any = Lock()


def config_map(name: str, **data: str) -> Object:
    metadata = {"name": name, "namespace": "shop"}
    return SHOP.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


OLD = (config_map("settings", greeting="old"), config_map("removed"))
NEW = (config_map("settings", greeting="new"), config_map("added"))
GOOD = record(1, State.KNOWN_GOOD, *OLD)
OPEN = record(2, State.APPLYING, *NEW)
FROZEN = record(2, State.ROLLBACK_FAILED, *NEW, reason="its image is gone")

# --- what to do ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newest", "whole", "action"),
    [
        (None, None, RecoveryAction.NOTHING),
        (GOOD, None, RecoveryAction.NOTHING),
        (record(2, State.ROLLED_BACK), None, RecoveryAction.NOTHING),
        (record(2, State.FAILED), None, RecoveryAction.NOTHING),
        (record(2, State.PREPARED), None, RecoveryAction.ABANDON),
        (OPEN, None, RecoveryAction.GO_BACK),
        (record(2, State.VERIFYING), None, RecoveryAction.GO_BACK),
        (record(2, State.APPLYING, release_id=LOST), None, RecoveryAction.GO_BACK),
        (FROZEN, None, RecoveryAction.STAY_FROZEN),
        (FROZEN, False, RecoveryAction.STAY_FROZEN),
        (FROZEN, True, RecoveryAction.UNFREEZE),
    ],
)
def test_i4_the_newest_record_and_what_runs_decide(
    newest: Record | None,
    whole: bool | None,  # noqa: FBT001  a column of the table
    action: RecoveryAction,
) -> None:
    decision = decide(SHOP, EnvironmentState(newest=newest, known_good=GOOD), whole=whole)
    assert decision.action is action
    assert decision.base == (None if action is RecoveryAction.NOTHING else GOOD)


def test_i4_without_a_known_good_the_way_back_leads_to_nothing() -> None:
    base = decide(SHOP, EnvironmentState(newest=OPEN), whole=None).base
    assert base is not None
    assert (base.release_id, base.objects) == (NOTHING, ())


# --- how -------------------------------------------------------------------------------------------------------------


def put(api: FakeApi, item: Object, **metadata: object) -> None:
    """Store an object as an earlier write of ours left it."""
    labels = {"labels": item["metadata"]["labels"], **metadata}
    api.put("configmaps", item["metadata"]["name"], metadata=labels, data=item["data"])


def interrupted(api: FakeApi) -> None:
    """An environment in which a rollout died in the middle: of two changes one is done, and one object is new."""
    put(api, NEW[0])
    put(api, OLD[1])
    put(api, NEW[1])


def live(api: FakeApi) -> dict[str, dict[str, str]]:
    return {name: item["data"] for name, item in api.objects["configmaps"].items()}


WHOLE = {"settings": {"greeting": "old"}, "removed": {}}


def on_a_server(work: Callable[[FakeApi, Cluster], Awaitable[Any]], *records: Record) -> Any:  # noqa: ANN401
    """Run a coroutine on a server with these records, in the middle of a rollout."""

    async def run() -> Any:  # noqa: ANN401
        api = FakeApi()
        api.put("namespaces", "shop")
        interrupted(api)
        async with api.running(patience=0.3) as cluster:
            store = RecordStore(cluster, SHOP, 2)
            for one in records or (GOOD, OPEN):
                is_new = one.state in {State.PREPARED, State.APPLYING}
                started = await store.start(one if is_new else one.model_copy(update={"state": State.VERIFYING}))
                if not is_new:
                    await store.move(started, one.state, reason=one.reason)
            return await work(api, cluster)

    return asyncio.run(run())


def back(cluster: Cluster, lock: Any = LOCK, settings: RolloutSettings = SETTINGS) -> Awaitable[recovery.WentBack]:  # noqa: ANN401
    return go_back(cluster, SHOP, OPEN, GOOD, lock, settings, reason="its process ended")


def test_i4_an_interrupted_rollout_is_undone_and_its_record_says_so() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        done = await back(cluster)
        assert live(api) == WHOLE
        state = await read_state(cluster, SHOP)
        assert state.newest == done.record
        assert (done.record.state, done.record.reason, done.problem) == (State.ROLLED_BACK, "its process ended", None)
        assert await look(cluster, SHOP, GOOD, state) == ()

    on_a_server(work)


def test_i4_going_back_twice_writes_no_object_twice() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        await back(cluster)
        before = [write for write in api.writes if "configmaps" in write]
        await back(cluster)
        assert [write for write in api.writes if "configmaps" in write] == before

    on_a_server(work)


def test_i4_what_somebody_changes_meanwhile_is_written_again_before_the_record_is_settled() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        def disturb(write: str) -> None:
            if write == "DELETE configmaps/added":  # the last write to an object of the first round
                api.before_write = None
                put(api, config_map("settings", greeting="a stranger's"))
                api.remove("configmaps", "removed")

        api.before_write = disturb
        assert (await back(cluster)).problem is None
        assert live(api) == WHOLE

    on_a_server(work)


def test_i4_an_environment_that_somebody_else_keeps_changing_is_not_recorded_as_whole() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        writes = 0

        async def undo(*arguments: object, **options: object) -> Any:  # noqa: ANN401
            nonlocal writes
            writes += 1
            put(api, config_map("settings", greeting="a controller's"))
            return await watch(*arguments, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recovery, "watch", undo)
            with pytest.raises(Errored, match="written 3 times more: configmap/settings: differs"):
                await back(cluster)
        assert writes == ROUNDS + 1
        state = await read_state(cluster, SHOP)
        assert state.interrupted
        assert {defect.kind for defect in await look(cluster, SHOP, GOOD, state)} == {
            DefectKind.DIFFERS,
            DefectKind.OPEN_RECORD,
        }

    on_a_server(work)


def test_i6_an_object_that_the_server_refuses_keeps_no_other_one_from_going_back() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        api.refused = {"settings"}
        done = await back(cluster)
        assert live(api) == {"settings": {"greeting": "new"}, "removed": {}}
        assert done.record.state is State.ROLLBACK_FAILED
        assert "it went back, except configmap/settings" in done.record.reason
        assert (await read_state(cluster, SHOP)).frozen == done.record

    on_a_server(work)


def test_i6_a_known_good_that_does_not_start_any_more_freezes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RolloutFailed("its image is gone")

    async def work(api: FakeApi, cluster: Cluster) -> None:
        done = await back(cluster)
        assert done.record.state is State.ROLLBACK_FAILED
        assert "its image is gone" in done.record.reason
        assert "added" in live(api)  # old pods may still need it

    monkeypatch.setattr(recovery, "watch", fail)
    on_a_server(work)


def test_i4_the_way_back_waits_for_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_RETRY_SECONDS", 0.01)

    async def work(api: FakeApi, cluster: Cluster) -> None:
        await cluster.kind("v1", "ConfigMap")
        await api.stop()
        going = asyncio.ensure_future(back(cluster))
        await asyncio.sleep(0.5)  # longer than the patience of a request
        assert not going.done()
        await api.start()
        assert (await going).problem is None
        assert live(api) == WHOLE

    on_a_server(work)


def test_i4_the_way_back_has_a_deadline_and_leaves_the_record_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_RETRY_SECONDS", 0.01)
    soon = SETTINGS.model_copy(update={"timeout": timedelta(seconds=0.5)})

    async def work(api: FakeApi, cluster: Cluster) -> None:
        await api.stop()
        with pytest.raises(ClusterUnreachable):
            await back(cluster, settings=soon)
        await api.start()
        assert (await read_state(cluster, SHOP)).interrupted

    on_a_server(work)


@pytest.mark.parametrize("writes", range(3))
def test_i3_a_way_back_that_loses_its_lock_stops_before_its_next_write(writes: int) -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        lock = Lock()
        lock.lost_after = writes
        before = len(api.writes)
        with pytest.raises(LockLost):
            await back(cluster, lock)
        assert len(api.writes) == before + writes
        assert (await read_state(cluster, SHOP)).interrupted

    on_a_server(work)


def test_i2_a_release_is_looked_at_and_repaired_before_it_is_known_good() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        await make_whole(cluster, SHOP, OPEN, GOOD, LOCK, SETTINGS)
        assert live(api) == {"settings": {"greeting": "new"}, "added": {}}
        done = len(api.writes)
        await make_whole(cluster, SHOP, OPEN, GOOD, LOCK, SETTINGS)
        assert len(api.writes) == done

    on_a_server(work)


# --- both ------------------------------------------------------------------------------------------------------------


def test_i4_recovery_does_what_was_decided_and_then_nothing_more() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        done = await recover_it(cluster, SHOP, LOCK, SETTINGS)
        assert (done.decision.action, live(api)) == (RecoveryAction.GO_BACK, WHOLE)
        again = await recover_it(cluster, SHOP, LOCK, SETTINGS)
        assert (again.decision.action, again.went_back) == (RecoveryAction.NOTHING, None)

    on_a_server(work)


def test_an_interrupted_release_stays_where_nothing_is_ever_rolled_back() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        done = await recover_it(cluster, SHOP, LOCK, SETTINGS, never_back=True)
        assert done.kept is not None
        assert done.kept.state is State.FAILED
        assert (await read_state(cluster, SHOP)).newest == done.kept
        assert "added" in live(api)

    on_a_server(work)


def test_i6_a_frozen_environment_is_whole_when_somebody_has_repaired_it() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        assert (await recover_it(cluster, SHOP, LOCK, SETTINGS)).decision.action is RecoveryAction.STAY_FROZEN
        assert (await read_state(cluster, SHOP)).frozen
        put(api, OLD[0])
        api.remove("configmaps", "added")
        assert (await recover_it(cluster, SHOP, LOCK, SETTINGS)).decision.action is RecoveryAction.UNFREEZE
        newest = (await read_state(cluster, SHOP)).newest
        assert newest is not None
        assert newest.state is State.ROLLED_BACK
        assert "its image is gone" in newest.reason

    on_a_server(work, GOOD, FROZEN)


def test_i6_a_frozen_environment_whose_workloads_do_not_run_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RolloutFailed("its image is gone")

    async def work(api: FakeApi, cluster: Cluster) -> None:
        put(api, OLD[0])
        api.remove("configmaps", "added")
        monkeypatch.setattr(recovery, "watch", fail)
        assert (await recover_it(cluster, SHOP, LOCK, SETTINGS)).decision.action is RecoveryAction.STAY_FROZEN

    on_a_server(work, GOOD, FROZEN)


def test_i4_a_release_that_wrote_nothing_but_its_record_is_given_up() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        before = [write for write in api.writes if "configmaps" in write]
        assert (await recover_it(cluster, SHOP, LOCK, SETTINGS)).decision.action is RecoveryAction.ABANDON
        assert [write for write in api.writes if "configmaps" in write] == before
        assert (await read_state(cluster, SHOP)).newest == (await read_state(cluster, SHOP)).known_good
        entries = await RecordStore(cluster, SHOP).entries()
        assert [entry.state for entry in entries] == [State.SUPERSEDED, State.KNOWN_GOOD]

    on_a_server(work, GOOD, record(2, State.PREPARED, *NEW))


def test_i4_behind_a_record_that_is_given_up_the_interrupted_one_is_undone() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        recovered = await recover_it(cluster, SHOP, LOCK, SETTINGS)
        assert recovered.decision.action is RecoveryAction.GO_BACK
        assert live(api) == WHOLE
        entries = await RecordStore(cluster, SHOP).entries()
        assert [entry.state for entry in entries] == [State.SUPERSEDED, State.ROLLED_BACK, State.KNOWN_GOOD]

    on_a_server(work, GOOD, OPEN, record(3, State.PREPARED, *NEW))


def test_i4_where_the_open_record_was_deleted_what_we_applied_goes_and_copies_stay() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        ours = [{"manager": "prefect-cd", "operation": "Apply"}]
        for item in NEW:
            put(api, item, managedFields=ours)
        put(api, config_map("copy"), managedFields=[{"manager": "kubectl", "operation": "Update"}])
        api.remove("secrets", "prefect-cd.shop.2")
        api.put("leases", "prefect-cd.shop", metadata={"annotations": {"prefect-cd.dev/open": "2"}}, spec={})
        done = await recover_it(cluster, SHOP, LOCK, SETTINGS)
        assert done.went_back is not None
        assert done.went_back.record.state is State.ROLLED_BACK
        assert live(api) == {**WHOLE, "copy": {}}
        entries = await RecordStore(cluster, SHOP).entries()
        assert [(entry.number, entry.release_id) for entry in entries] == [(2, LOST), (1, "release-1")]

    on_a_server(work)


def test_i4_originals_of_others_that_were_taken_over_are_given_back() -> None:
    theirs = {**config_map("settings", greeting="theirs"), "metadata": {"name": "settings", "namespace": "shop"}}
    taken = record(2, State.APPLYING, *NEW, replaced=(theirs,))
    nothing = record(1, State.KNOWN_GOOD, OLD[1])

    async def work(api: FakeApi, cluster: Cluster) -> None:
        done = await go_back(cluster, SHOP, taken, nothing, LOCK, SETTINGS, reason="its process ended")
        assert done.problem is None
        assert live(api) == {"settings": {"greeting": "theirs"}, "removed": {}}
        assert not SHOP.owns(api.objects["configmaps"]["settings"])
        assert await look(cluster, SHOP, nothing, await read_state(cluster, SHOP)) == ()

    on_a_server(work, nothing, taken)


def test_a_damaged_record_that_may_decide_ends_a_recovery_before_it_writes() -> None:
    async def work(api: FakeApi, cluster: Cluster) -> None:
        api.objects["secrets"]["prefect-cd.shop.2"]["data"] = {"record": "bm90aGluZw=="}
        before = len(api.writes)
        with pytest.raises(Invalid, match=r"."):
            await recover_it(cluster, SHOP, LOCK, SETTINGS)
        assert len(api.writes) == before

    on_a_server(work)
