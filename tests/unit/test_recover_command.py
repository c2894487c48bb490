"""`prefect-cd recover`: what it does without Prefect's server, what it prints, and its exit code."""

import asyncio
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.deployments import recover_command
from prefect_cd.deployments.cli import main
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, State
from prefect_cd.environment.records import RecordStore
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object
from tests.unit.fake_api import FakeApi
from tests.unit.test_status_command import kubeconfig_of, pipeline_file

SHOP = Ownership("shop", "production", "shop")


def config_map(name: str, **data: str) -> Object:
    metadata = {"name": name, "namespace": "shop"}
    return SHOP.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def record(number: int, state: State, *objects: Object) -> Record:
    return Record(
        number=number,
        application="shop",
        environment="production",
        state=state,
        release_id=f"release-{number}",
        release_hash=str(number) * 64,
        commit=None,
        image=None,
        objects=objects,
        started_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


OLD = (config_map("settings", greeting="old"),)
NEW = (config_map("settings", greeting="new"), config_map("added"))


def put(api: FakeApi, item: Object) -> None:
    metadata = {"labels": item["metadata"]["labels"]}
    api.put("configmaps", item["metadata"]["name"], metadata=metadata, data=item["data"])


async def _store(api: FakeApi, newest: State) -> None:
    async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
        store = RecordStore(cluster, SHOP)
        good = await store.start(record(1, State.VERIFYING, *OLD))
        await store.move(good, State.KNOWN_GOOD)
        started = await store.start(record(2, State.APPLYING, *NEW))
        if newest is not State.APPLYING:
            await store.move(started, newest, reason="its image is gone")


def recover(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    *objects: Object,
    newest: State = State.APPLYING,
    text: bool = False,
    holder: str = "",
) -> tuple[int, Any, FakeApi]:
    """Run the command for production, where these objects are and the newest record has this state."""
    api = FakeApi()
    api.put("namespaces", "shop")
    if holder:
        api.put("leases", "prefect-cd.shop", spec={"holderIdentity": holder, "leaseDurationSeconds": 600})
    for item in objects:
        put(api, item)
    with api.serving():
        asyncio.run(_store(api, newest))
        kubeconfig = kubeconfig_of(api, folder)
        file = str(pipeline_file(folder, kubeconfig, kubeconfig))
        code = main(["recover", file, "production", "-o", "text" if text else "json"])
    printed = capsys.readouterr().out
    return code, printed if text else json.loads(printed)["environments"][0], api


def live(api: FakeApi) -> dict[str, dict[str, str]]:
    return {name: item["data"] for name, item in api.objects["configmaps"].items()}


def test_i4_it_undoes_an_interrupted_rollout_under_the_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer, api = recover(tmp_path, capsys, *NEW)
    assert (code, live(api)) == (0, {"settings": {"greeting": "old"}})
    assert (answer["action"], answer["condition"], answer["defects"]) == ("go back", "whole", [])
    assert api.objects["leases"]["prefect-cd.shop"]["spec"]["holderIdentity"] == ""
    assert answer["newest"]["state"] == "rolled-back"


def test_it_says_in_words_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, printed, _ = recover(tmp_path, capsys, *NEW, text=True)
    first, done, *_ = printed.splitlines()
    assert (first, done) == ("production: whole", "  done    went back from release-2 to release-1")


def test_i6_a_frozen_environment_that_is_not_whole_stays_frozen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer, api = recover(tmp_path, capsys, *NEW, newest=State.ROLLBACK_FAILED)
    assert (code, answer["action"], answer["condition"]) == (1, "stay frozen", "frozen")
    assert [defect["kind"] for defect in answer["defects"]] == ["differs", "surplus"]
    assert "leases" not in api.objects


def test_i6_a_frozen_environment_that_is_whole_is_no_longer_frozen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer, _ = recover(tmp_path, capsys, *OLD, newest=State.ROLLBACK_FAILED)
    assert (code, answer["action"], answer["condition"]) == (0, "unfreeze", "whole")


def test_what_somebody_changed_by_hand_is_named_and_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_hand = config_map("settings", greeting="by hand")
    code, printed, api = recover(tmp_path, capsys, by_hand, newest=State.ROLLED_BACK, text=True)
    assert (code, live(api)["settings"]) == (1, {"greeting": "by hand"})
    assert printed.splitlines()[:2] == ["production: drifted", "  done    nothing: no rollout was interrupted"]
    assert "  defect  configmap/settings: differs" in printed.splitlines()


def test_the_exit_code_is_2_where_a_cluster_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recover", str(pipeline_file(tmp_path, tmp_path / "missing", tmp_path / "missing"))]) == 2
    assert capsys.readouterr().out.count(": unknown\n") == 2


def test_i3_where_another_process_is_at_work_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover_command, "TAKEOVER_WAIT", timedelta())
    code, answer, api = recover(tmp_path, capsys, *NEW, holder="release/1")
    assert (code, live(api)["settings"]) == (2, {"greeting": "new"})
    assert "is being changed by release/1" in answer["error"]


def test_an_environment_that_the_file_does_not_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover", str(pipeline_file(tmp_path)), "nowhere"]) == 1
    assert "choose one of: staging, production" in capsys.readouterr().err
