"""What is shown of a rollout while it is watched, and that showing it harms nothing."""

import asyncio

import pytest

from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import Report, WorkloadRow
from prefect_cd.tasks import rollout
from prefect_cd.tasks.rollout import Display


def report(ready: int) -> Report:
    row = WorkloadRow(
        workload="deployment/app", phase=Phase.PROGRESSING, summary=f"{ready} of 9", ready=ready, wanted=9, pods=()
    )
    return Report(workloads=(row,), seconds=1)


class Artifact:
    def __init__(self, error: Exception | None = None) -> None:
        self.shown: list[int] = []
        self._error = error

    def show(self, told: Report) -> None:
        self.shown.append(told.workloads[0].ready)
        if self._error:
            raise self._error


def tell(artifact: Artifact, *, pause: float) -> None:
    async def run() -> None:
        display = Display(artifact)
        async with display.kept():
            for ready in range(5):
                display.tell(report(ready))
                await asyncio.sleep(pause)

    asyncio.run(run())


def test_the_artifact_is_spared_and_the_last_state_is_shown() -> None:
    artifact = Artifact()
    tell(artifact, pause=0.01)
    assert artifact.shown == [0, 4]


def test_after_a_pause_the_latest_is_shown_though_nothing_new_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "_UPDATE_SECONDS", 0.05)
    artifact = Artifact()

    async def run() -> None:
        display = Display(artifact)
        async with display.kept():
            display.tell(report(0))
            while not artifact.shown:
                await asyncio.sleep(0)
            display.tell(report(1))
            display.tell(report(2))
            while len(artifact.shown) < 2:
                await asyncio.sleep(0.01)
            assert artifact.shown == [0, 2]

    asyncio.run(run())
    assert artifact.shown == [0, 2]


def test_a_server_that_is_away_for_a_moment_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    artifact = Artifact(RuntimeError("no server"))
    tell(artifact, pause=0.01)
    assert artifact.shown == [0, 4]
    assert "not shown: no server" in caplog.text
