"""What the status of an environment says, from its records and its lock."""

import asyncio
from datetime import datetime, timedelta, timezone

import pytest

from prefect_cd.environment import status as status_module
from prefect_cd.environment.eligibility import EnvironmentState
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, State
from prefect_cd.environment.records import RecordStore
from prefect_cd.environment.status import Condition, EnvironmentStatus, Holder, condition_of, holder_of, read_status
from prefect_cd.errors import Forbidden
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from tests.unit.fake_api import FakeApi

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SHOP = Ownership("shop", "staging", "shop")


def record(number: int, state: State) -> Record:
    return Record(
        number=number,
        application="shop",
        environment="staging",
        state=state,
        release_id=f"release-{number}",
        release_hash=str(number) * 64,
        commit=None,
        image=None,
        objects=(),
        started_at=NOW,
        reason="the gate failed" if state is State.ROLLBACK_FAILED else "",
    )


def holder(*, alive: bool) -> Holder:
    return Holder(name="release/1", since=NOW, renewed=NOW, alive=alive)


@pytest.mark.parametrize(
    ("newest", "held", "condition"),
    [
        (None, None, "empty"),
        (State.KNOWN_GOOD, None, "whole"),
        (State.ROLLED_BACK, None, "whole"),
        (State.APPLYING, True, "changing"),
        (State.APPLYING, False, "interrupted"),
        (State.APPLYING, None, "interrupted"),
        (State.FAILED, None, "failed"),
        (State.ROLLBACK_FAILED, True, "frozen"),
    ],
)
def test_the_newest_record_and_the_lock_decide(newest: State | None, held: bool | None, condition: Condition) -> None:  # noqa: FBT001
    good = record(1, State.KNOWN_GOOD) if newest else None
    lock = None if held is None else holder(alive=held)
    assert condition_of(EnvironmentState(newest=newest and record(2, newest), known_good=good), lock) == condition


def test_a_first_release_that_is_under_way_is_not_whole() -> None:
    assert condition_of(EnvironmentState(newest=record(1, State.APPLYING)), None) == "interrupted"


@pytest.mark.parametrize(("age", "alive"), [(19, True), (21, False)])
def test_a_holder_is_alive_while_its_lease_has_not_expired(age: int, alive: bool) -> None:  # noqa: FBT001
    renewed = (NOW - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": "release/1", "renewTime": renewed, "leaseDurationSeconds": 20}
    found = holder_of({"spec": spec}, NOW)
    assert found
    assert (found.name, found.alive) == ("release/1", alive)


@pytest.mark.parametrize("lease", [None, {}, {"spec": {"holderIdentity": ""}}])
def test_a_lock_that_nobody_holds_has_no_holder(lease: dict[str, object] | None) -> None:
    assert holder_of(lease, NOW) is None


def test_a_holder_that_never_renewed_is_not_alive() -> None:
    found = holder_of({"spec": {"holderIdentity": "someone"}}, NOW)
    assert found
    assert not found.alive


async def statuses(api: FakeApi, *records: Record) -> tuple[object, ...]:
    async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
        store = RecordStore(cluster, SHOP)
        for one in records:
            started = await store.start(one.model_copy(update={"state": State.VERIFYING}))
            await store.move(started, one.state, reason=one.reason)
        status = await read_status(cluster, SHOP)
    return status.condition, status.runs and status.runs.release_id, status.newest and status.newest.release_id


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], ("empty", None, None)),
        ([State.KNOWN_GOOD], ("whole", "release-1", None)),
        ([State.KNOWN_GOOD, State.ROLLED_BACK], ("whole", "release-1", "release-2")),
        ([State.KNOWN_GOOD, State.ROLLBACK_FAILED], ("frozen", "release-1", "release-2")),
    ],
)
def test_it_is_read_from_the_cluster(records: list[State], expected: tuple[object, ...]) -> None:
    api = FakeApi()
    api.put("namespaces", "shop")
    with api.serving():
        numbered = [record(number, state) for number, state in enumerate(records, 1)]
        assert asyncio.run(statuses(api, *numbered)) == expected


def test_the_last_releases_are_there_newest_first_with_what_became_of_them() -> None:
    states = [State.KNOWN_GOOD, State.FAILED, State.KNOWN_GOOD, State.ROLLED_BACK, State.KNOWN_GOOD, State.ROLLED_BACK]
    api = FakeApi()
    api.put("namespaces", "shop")

    async def read() -> EnvironmentStatus:
        async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
            store = RecordStore(cluster, SHOP)
            for number, state in enumerate(states, 1):
                started = await store.start(record(number, State.VERIFYING))
                await store.move(started, state)
            assert (await read_status(cluster, SHOP, compare=False, history=False)).releases == ()
            return await read_status(cluster, SHOP, compare=False)

    with api.serving():
        status = asyncio.run(read())
    assert [(one.record, one.state) for one in status.releases] == [
        (number, states[number - 1]) for number in (6, 5, 4, 3, 2, 1)
    ]
    assert status.unchecked == "they were not compared"


async def edited(api: FakeApi, number: int, **metadata: object) -> EnvironmentStatus:
    """The status after two good releases, when somebody has edited the metadata of a record."""
    async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
        store = RecordStore(cluster, SHOP)
        for _ in range(2):
            started = await store.start(record(0, State.VERIFYING))
            await store.move(started, State.KNOWN_GOOD)
        item = api.objects["secrets"][f"prefect-cd.shop.{number}"]
        item["metadata"] |= metadata
        return await read_status(cluster, SHOP)


@pytest.mark.parametrize(("number", "condition", "runs"), [(2, "damaged", 1), (1, "whole", 2)])
def test_a_damaged_record_is_shown_and_matters_where_it_may_decide(number: int, condition: str, runs: int) -> None:
    api = FakeApi()
    api.put("namespaces", "shop")
    with api.serving():
        status = asyncio.run(edited(api, number, annotations={"prefect-cd.dev/head": "{}"}))
    assert (status.condition, status.is_whole) == (condition, condition == "whole")
    assert status.runs
    assert status.runs.record == runs
    assert [damage.where for damage in status.damaged] == [f"secret/prefect-cd.shop.{number}"]


def drifted(api: FakeApi) -> EnvironmentStatus:
    """The status where the known-good has a ConfigMap that is not there."""
    item = SHOP.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}})
    good = record(1, State.KNOWN_GOOD).model_copy(update={"objects": (item,)})

    async def read() -> EnvironmentStatus:
        async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
            store = RecordStore(cluster, SHOP)
            await store.move(await store.start(good.model_copy(update={"state": State.VERIFYING})), State.KNOWN_GOOD)
            return await read_status(cluster, SHOP)

    with api.serving():
        return asyncio.run(read())


def test_what_is_not_as_in_the_known_good_is_named() -> None:
    api = FakeApi()
    api.put("namespaces", "shop")
    status = drifted(api)
    assert (status.condition, status.is_whole, status.unchecked) == ("drifted", False, "")
    assert [str(defect) for defect in status.defects] == ["configmap/settings: missing"]


def test_where_objects_cannot_be_compared_the_status_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forbidden(*_: object, **__: object) -> None:
        raise Forbidden("you may not patch configmaps")

    monkeypatch.setattr(status_module, "look", forbidden)
    api = FakeApi()
    api.put("namespaces", "shop")
    status = drifted(api)
    assert (status.condition, status.is_whole, status.unchecked) == ("whole", True, "you may not patch configmaps")


def test_an_environment_without_a_namespace_is_empty() -> None:

    api = FakeApi()
    with api.serving():
        assert asyncio.run(statuses(api)) == ("empty", None, None)
