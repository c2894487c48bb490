"""I3: after a takeover, no version that the holder before us knew is good for a write."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.environment.apply import Writer, apply, prune
from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.changes import compute_changes
from prefect_cd.environment.fence import fence
from prefect_cd.environment.lease import hold
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, State, baseline
from prefect_cd.environment.records import RecordStore
from prefect_cd.errors import InvalidManifest, LockLost
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess

pytestmark = pytest.mark.cluster
ACCESS = ClusterAccess()


class StaleWriter:
    """The lock of a process that was stopped between guard and request, and goes on after another took over."""

    epoch = 1

    async def guard(self) -> None:
        """Passed before the process was stopped."""

    async def confirm(self, cluster: Cluster) -> None:
        """As `Lock.confirm` does when the Lease names another holder."""
        raise LockLost(f"another process is the writer, says {cluster.server}")


@pytest.fixture
def ownership(namespace: str) -> Ownership:
    return Ownership("shop", "staging", namespace)


def config_map(ownership: Ownership, name: str, by: str) -> Object:
    metadata = {"name": name, "namespace": ownership.namespace}
    return ownership.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"by": by}})


async def values(cluster: Cluster, ownership: Ownership) -> dict[str, str]:
    items = await cluster.list(await cluster.kind("v1", "ConfigMap"), ownership.namespace, labels=ownership.selector)
    return {item["metadata"]["name"]: item["data"]["by"] for item in items}


@pytest.mark.parametrize("takeover", ["with the fence", "without"])
async def test_i3_a_late_write_is_refused_also_for_what_the_successor_did_not_have_to_write(
    ownership: Ownership, record: Callable[..., Record], takeover: str
) -> None:
    """Without the fence, both writes land: the successor finds nothing to correct, and the versions stay."""
    fenced = takeover == "with the fence"
    old, new = config_map(ownership, "settings", "known good"), config_map(ownership, "settings", "half a release")
    dropped = config_map(ownership, "dropped", "known good")
    async with connect(ACCESS) as cluster:
        await apply(cluster, ownership, [old, dropped], await compute_changes(cluster, ownership, [old, dropped]))
        store = RecordStore(cluster, ownership, epoch=1)
        known = tuple(Ref.of(item) for item in (old, dropped))
        interrupted = await store.start(record(ownership, new, known=known))
        late = await compute_changes(cluster, ownership, [new], force=True, known=known)

        with hold(ACCESS, ownership, "successor", wait=timedelta()) as lock:
            if fenced:
                await fence(cluster, ownership, interrupted, baseline(ownership, (), interrupted.started_at), lock)
            back = await compute_changes(cluster, ownership, [old, dropped], force=True, known=known)
            assert not back.changes_something
        assert await write_late(cluster, ownership, [new], late) == ["LockLost" if fenced else "written"] * 2
        wanted = {"settings": "known good", "dropped": "known good"} if fenced else {"settings": "half a release"}
        assert await values(cluster, ownership) == wanted


async def write_late(cluster: Cluster, ownership: Ownership, items: list[Object], planned: ChangeSet) -> list[str]:
    results = []
    for write in (
        lambda: apply(cluster, ownership, items, planned, force=True, lock=StaleWriter()),
        lambda: prune(cluster, ownership, planned, lock=StaleWriter()),
    ):
        try:
            await write()
        except LockLost:
            results.append("LockLost")
        else:
            results.append("written")
    return results


async def test_i3_the_record_of_an_interrupted_rollout_is_fenced_too(
    ownership: Ownership, record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome that the dead holder was about to write at the version it has read."""
    async with connect(ACCESS) as cluster:
        store = RecordStore(cluster, ownership, epoch=1)
        interrupted = await store.start(record(ownership, state=State.VERIFYING))
        with hold(ACCESS, ownership, "successor", wait=timedelta()) as lock:
            read = Cluster.get

            async def read_then_fenced(self: Cluster, ref: Ref) -> Object | None:
                live = await read(self, ref)
                monkeypatch.setattr(Cluster, "get", read)
                await fence(cluster, ownership, interrupted, baseline(ownership, (), interrupted.started_at), lock)
                return live

            monkeypatch.setattr(Cluster, "get", read_then_fenced)
            attempts: list[int] = []

            async def guard() -> None:
                attempts.append(1)
                if len(attempts) > 1:
                    raise LockLost("the guard knows by now")

            with pytest.raises(LockLost):
                await store.move(interrupted, State.KNOWN_GOOD, guard=guard)
        assert (await store.read(interrupted.number)).state == State.VERIFYING


async def test_i3_objects_of_others_are_not_touched(ownership: Ownership, record: Callable[..., Record]) -> None:
    """An object that an earlier release knew, and that somebody made anew."""
    foreign: dict[str, Any] = config_map(ownership, "theirs", "them")
    del foreign["metadata"]["labels"]
    async with connect(ACCESS) as cluster:
        before = await cluster.create(foreign)
        interrupted = await RecordStore(cluster, ownership, 1).start(record(ownership, known=(Ref.of(foreign),)))
        with hold(ACCESS, ownership, "successor", wait=timedelta()) as lock:
            await fence(cluster, ownership, interrupted, baseline(ownership, (), interrupted.started_at), lock)
        assert await cluster.get(Ref.of(foreign)) == before


# --- the admission policy --------------------------------------------------------------------------------------------

POLICY = Path(__file__).parents[3] / "deployments/kubernetes/fencing/policy.yaml"


@pytest.fixture
def enforced(kubectl: Callable[..., str], namespace: str) -> None:
    """The shipped policy, for the test's namespace only.

    It stays in the cluster: an API server that has seen the binding go reads no Leases for the next one
    (https://github.com/kubernetes/kubernetes/issues/130887).
    """
    if "validatingadmissionpolicies" not in kubectl("api-resources", "--api-group=admissionregistration.k8s.io"):
        pytest.skip("a real cluster has admission policies")
    kubectl("apply", "-f", str(POLICY))
    kubectl("label", "namespace", namespace, "prefect-cd.dev/fencing=enforced")


@pytest.mark.usefixtures("enforced")
async def test_i3_with_the_policy_a_late_request_creates_nothing_either(ownership: Ownership) -> None:
    stale, item = StaleWriter(), config_map(ownership, "settings", "a release")

    async def create(item: Object, lock: Writer) -> None:
        await apply(cluster, ownership, [item], await compute_changes(cluster, ownership, [item]), lock=lock)

    async with connect(ACCESS) as cluster:
        with hold(ACCESS, ownership, "the dead holder", wait=timedelta()) as lock:
            stale.epoch = lock.epoch
        with hold(ACCESS, ownership, "successor", wait=timedelta()) as lock:
            refused = ""
            for attempt in range(100):  # a server learns of a policy and of its Leases within a second or so
                try:
                    await create(config_map(ownership, f"late-{attempt}", "half a release"), stale)
                except InvalidManifest as error:
                    refused = error.reason
                if "the lock of shop is in epoch 2, and this request comes from another one" in refused:
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail(refused or "everything was created")
            await create(item, lock)
            # the annotation is no part of what is compared
            assert not (await compute_changes(cluster, ownership, [item])).changes_something
