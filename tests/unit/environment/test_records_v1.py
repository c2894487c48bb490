"""Records of format 1, as prefect-cd wrote them before format 2: environments have them, and they stay readable.

The files are whole Secrets, written by the code of that time. They are never edited or written anew.
"""

import asyncio
import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Decision, GateResult, Record, State
from prefect_cd.environment.records import RecordStore
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from tests.unit.fake_api import FakeApi

FILES = Path(__file__).with_name("records") / "v1"
SHOP = Ownership("shop", "staging", "shop")
NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
LATER = datetime(2026, 1, 1, 12, 5, 30, 250000, tzinfo=timezone.utc)


def secret(name: str) -> Object:
    content: Object = json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))
    return content


def put(api: FakeApi, *names: str) -> FakeApi:
    """The records of these files as objects of the server."""
    api.put("namespaces", "shop")
    for name in names:
        item = secret(name)
        api.put("secrets", item["metadata"]["name"], metadata=item["metadata"], type=item["type"], data=item["data"])
    return api


def read(name: str) -> Record:
    async def run() -> Record:
        async with put(FakeApi(), name).running() as cluster:
            return await RecordStore(cluster, SHOP).read(int(secret(name)["metadata"]["name"].rpartition(".")[2]))

    return asyncio.run(run())


def config_map(name: str, **data: str) -> Object:
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": data}
    return SHOP.label(item)


STATES = [
    ("started", State.APPLYING, 1),
    ("known-good", State.KNOWN_GOOD, 2),
    ("failed", State.FAILED, 3),
    ("rolled-back", State.ROLLED_BACK, 4),
    ("rollback-failed", State.ROLLBACK_FAILED, 5),
    ("withdrawn", State.WITHDRAWN, 6),
]


@pytest.mark.parametrize(("name", "state", "number"), STATES, ids=[name for name, _, _ in STATES])
def test_every_state_is_read(name: str, state: State, number: int) -> None:
    record = read(name)
    assert (record.number, record.state, record.release_id) == (number, state, "aaaaaaa-de46758b")
    assert (record.application, record.environment, record.restores) == ("shop", "staging", None)
    assert record.objects == (config_map("shop", greeting=name),)
    assert record.run == f"https://prefect.example.org/runs/{name}"
    assert record.started_at == NOW
    assert record.settled_at == (None if name == "started" else LATER)
    assert record.reason == ("" if name in {"started", "known-good"} else f"why it is {name}")
    assert record.commit is not None
    assert (record.commit.sha, record.commit.subject) == ("a" * 40, "Sell more – für alle")  # noqa: RUF001
    assert record.image is not None
    assert record.image.reference == f"registry.example.org/shop@sha256:{'a' * 64}"


def test_a_record_with_everything_in_it_is_read() -> None:
    record = read("full")
    assert (record.number, record.state, record.restores) == (7, State.KNOWN_GOOD, 2)
    assert record.objects == (config_map("shop", greeting="full"), config_map("more", a="ü" * 500))
    assert record.known == (Ref("apps/v1", "Deployment", "shop", "old"), Ref("v1", "Service", "shop", "left"))
    assert record.decision == Decision(
        approved=True, name="approver one", comment="looks good", decided_at=NOW, content="c" * 64
    )
    assert record.gates == (
        GateResult(name="smoke", outcome="passed", summary="3 passed"),
        GateResult(name="E2E", outcome="errored", summary="no report"),
    )


def test_a_baseline_is_read() -> None:
    before, nothing = read("baseline"), read("baseline-nothing")
    assert (before.number, before.state, before.release_id) == (0, State.KNOWN_GOOD, "before-prefect-cd")
    assert before.objects == (config_map("shop", greeting="before us"),)
    assert (nothing.number, nothing.release_id, nothing.objects) == (0, "nothing", ())
    assert nothing.commit is nothing.image is None


def test_their_list_has_their_states_and_epoch() -> None:
    names = ["baseline", *(name for name, _, _ in STATES), "full"]

    async def run() -> tuple[list[tuple[int, State]], int]:
        async with put(FakeApi(), *names).running() as cluster:
            store = RecordStore(cluster, SHOP)
            entries = [(entry.number, entry.state) for entry in await store.entries()]
            return entries, (await store.journal()).epoch

    entries, epoch = asyncio.run(run())
    by_number = {number: state for _, state, number in STATES}
    assert entries == [(7, State.KNOWN_GOOD), *sorted(by_number.items(), reverse=True), (0, State.KNOWN_GOOD)]
    assert epoch == 7
