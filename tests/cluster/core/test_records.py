"""Records in the cluster: written before the first write, enough to restore, and never too many."""

# ruff: noqa: ANN401  a fixture that is a function is of no type that can be imported
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import KEPT, Record, RecordStore, State
from prefect_cd.errors import EnvironmentBusy, Forbidden, Invalid, InvalidManifest, LockLost
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.concurrency import parallel
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
ACCESS = ClusterAccess()
Kubectl = Callable[..., str]


@pytest.fixture
def place(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


async def settled(history: RecordStore, record: Record, state: State) -> Record:
    begun = (await history.begin(record)).model_copy(update={"state": state})
    await history.settle(begun)
    return begun


async def test_i2_a_record_is_read_as_it_was_begun_and_as_it_was_settled(
    place: Ownership, record: Any, objects: Any
) -> None:
    item = objects.config_map(place.namespace, a="ü" * 1000)
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        assert await history.entries() == ()
        assert await history.newest() is None
        assert await history.known_good() is None
        begun = await history.begin(record(place, item))
        assert begun.number == 1
        assert await RecordStore(cluster, place).newest() == begun
        assert await history.known_good() is None
        good = begun.model_copy(update={"state": State.KNOWN_GOOD, "reason": "gates passed"})
        await history.settle(good)
        assert await history.newest() == await history.known_good() == await history.read(1) == good
        assert [(each.number, each.state, each.release_id) for each in await history.entries()] == [
            (1, State.KNOWN_GOOD, "aaaaaaa-11111111")
        ]


async def test_numbers_go_on_after_the_newest(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        assert [(await history.begin(record(place))).number for _ in range(12)] == list(range(1, 13))
        assert [entry.number for entry in await history.entries()] == list(range(12, 0, -1))


async def test_i2_a_run_that_begins_again_because_an_answer_was_lost_has_one_record(
    place: Ownership, record: Any
) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        begun = await history.begin(record(place, run="http://ui/runs/1"))
        assert await history.begin(record(place, run="http://ui/runs/1")) == begun
        assert (await history.begin(record(place, run="http://ui/runs/2"))).number == 2


async def test_the_newest_known_good_counts_and_not_what_was_tried_after_it(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        for state in (State.KNOWN_GOOD, State.KNOWN_GOOD, State.FAILED, State.ROLLED_BACK):
            await settled(history, record(place), state)
        good, newest = await history.known_good(), await history.newest()
        assert good is not None
        assert newest is not None
        assert (good.number, newest.number) == (2, 4)


@pytest.mark.timeout(120)
async def test_the_last_ten_and_the_known_good_are_kept(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        await settled(history, record(place), State.FAILED)
        good = await settled(history, record(place), State.KNOWN_GOOD)
        for _ in range(KEPT + 2):
            await settled(history, record(place), State.FAILED)
        numbers = [entry.number for entry in await history.entries()]
        assert numbers == [*range(KEPT + 4, 4, -1), 2]
        assert await history.known_good() == good
        await settled(history, record(place), State.KNOWN_GOOD)
        assert [entry.number for entry in await history.entries()] == list(range(KEPT + 5, 5, -1))


async def test_a_release_is_found_by_number_and_by_the_beginning_of_its_id(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        for name in ("abc1111-1", "abd2222-2", "2bd3333-3"):
            await settled(history, record(place, release_id=name), State.KNOWN_GOOD)
        await settled(history, record(place, release_id="fff4444-4"), State.FAILED)
        assert (await history.find("abc")).number == 1
        assert (await history.find("2")).number == 2
        assert (await history.find("2b")).number == 3
        assert (await history.find()).number == 3
        with pytest.raises(Invalid, match="'ab' begins more than one release of staging") as caught:
            await history.find("ab")
        assert "abd2222-2 (number 2), abc1111-1 (number 1)" in caught.value.hint
        with pytest.raises(Invalid, match="staging has no good record of a release 'fff'") as caught:
            await history.find("fff")
        assert "2bd3333-3 (number 3)" in caught.value.hint


async def test_where_nothing_was_ever_good_there_is_nothing_to_find(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        await settled(history, record(place), State.FAILED)
        with pytest.raises(Invalid, match="no good record of an earlier release") as caught:
            await history.find()
        assert "release a commit instead" in caught.value.hint
        with pytest.raises(Invalid, match="there is no record 7"):
            await history.read(7)


async def test_what_was_gone_back_from_is_withdrawn_and_found_only_by_name(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        one = await settled(history, record(place, release_id="one"), State.KNOWN_GOOD)
        await settled(history, record(place, release_id="two"), State.KNOWN_GOOD)
        await settled(history, record(place, release_id="three"), State.FAILED)
        back = await settled(history, record(place, release_id="one"), State.KNOWN_GOOD)
        await history.withdraw(one, back)
        assert [entry.state for entry in await history.entries()] == [
            State.KNOWN_GOOD,
            State.FAILED,
            State.WITHDRAWN,
            State.KNOWN_GOOD,
        ]
        with pytest.raises(Invalid):
            await history.find()
        assert (await history.find("two")).number == 2


# --- what does not fit -----------------------------------------------------------------------------------------------


def filled(objects: Any, place: Ownership, size: int) -> Any:
    """A ConfigMap that takes about `size` bytes compressed: random hexadecimal digits shrink to about a half."""
    return objects.config_map(place.namespace, a=secrets.token_hex(size * 7 // 8))


async def test_a_record_as_large_as_a_secret_holds_is_kept_and_settled(
    place: Ownership, record: Any, objects: Any
) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        begun = await history.begin(record(place, filled(objects, place, 900_000)))
        await history.settle(begun.model_copy(update={"state": State.FAILED, "reason": secrets.token_hex(200_000)}))
        newest = await history.newest()
        assert newest is not None
        assert newest.objects == begun.objects
        assert len(newest.reason) == 20_000


async def test_a_record_that_does_not_fit_is_refused_before_anything_is_written(
    place: Ownership, record: Any, objects: Any
) -> None:
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        with pytest.raises(InvalidManifest, match="bytes compressed, and has room for 950,000") as caught:
            await history.begin(record(place, filled(objects, place, 1_200_000)))
        assert "ConfigMaps" in caught.value.hint
        assert await history.entries() == ()


# --- races and damage ------------------------------------------------------------------------------------------------


async def test_i3_two_that_begin_at_once_do_not_write_the_same_number(place: Ownership, record: Any) -> None:
    async def begin(cluster: Cluster) -> Record | EnvironmentBusy:
        try:
            return await RecordStore(cluster, place).begin(record(place))
        except EnvironmentBusy as busy:
            return busy

    async with connect(ACCESS) as cluster:
        answers = await parallel(begin(cluster) for _ in range(8))
        written = [each for each in answers if isinstance(each, Record)]
        assert len({each.number for each in written}) == len(written) >= 1
        assert len(await RecordStore(cluster, place).entries()) == len(written)
        assert len(written) == len(answers) or any("another process wrote record" in str(each) for each in answers)


async def test_i3_no_record_is_written_without_the_lock(place: Ownership, record: Any) -> None:
    async def lost() -> None:
        raise LockLost("no longer the writer")

    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        with pytest.raises(LockLost):
            await history.begin(record(place), guard=lost)
        begun = await history.begin(record(place))
        for write in (
            history.settle(begun.model_copy(update={"state": State.KNOWN_GOOD}), guard=lost),
            history.withdraw(
                begun.model_copy(update={"number": 0}), begun.model_copy(update={"number": 2}), guard=lost
            ),
        ):
            if write.__name__ == "settle":
                with pytest.raises(LockLost):
                    await write
            else:
                await write  # nothing good between the two, so nothing to write
        assert await history.newest() == begun


async def test_an_environment_with_another_name_is_told_whose_records_there_are(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        await RecordStore(cluster, place).begin(record(place))
        renamed = Ownership(place.application, "pre-production", place.namespace)
        with pytest.raises(Invalid, match="has records of environment 'staging', and not of 'pre-production'"):
            await RecordStore(cluster, renamed).begin(record(renamed))


async def test_records_of_other_applications_and_environments_are_not_ours(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        await RecordStore(cluster, place).begin(record(place))
        for other in (Ownership("blog", "staging", place.namespace), Ownership("shop", "production", place.namespace)):
            assert await RecordStore(cluster, other).entries() == ()


async def test_a_broken_record_is_named(place: Ownership, record: Any, kubectl: Kubectl) -> None:
    n = place.namespace
    async with connect(ACCESS) as cluster:
        history = RecordStore(cluster, place)
        await history.begin(record(place))
        kubectl("-n", n, "patch", "secret", "prefect-cd.shop.1", "-p", '{"data": {"record": "aGk="}}')
        with pytest.raises(Invalid, match="the record cannot be read") as caught:
            await history.newest()
        assert caught.value.where == "secret/prefect-cd.shop.1"
        kubectl("-n", n, "label", "secret", "prefect-cd.shop.1", "prefect-cd.dev/state=odd", "--overwrite")
        with pytest.raises(Invalid, match="its labels"):
            await history.entries()
        await cluster.delete(Ref("v1", "Secret", n, "prefect-cd.shop.1"))
        assert await history.newest() is None


async def test_i7_a_list_of_records_does_not_carry_their_contents(place: Ownership, record: Any) -> None:
    async with connect(ACCESS) as cluster:
        await RecordStore(cluster, place).begin(record(place, reason="hunter2"))
        kind = await cluster.kind("v1", "Secret")
        found = await cluster.list(kind, place.namespace, labels="prefect-cd.dev/record=release", only_metadata=True)
        assert [set(item) for item in found] == [{"apiVersion", "kind", "metadata"}]
    assert issubclass(Forbidden, Invalid)
