"""The deployments that `serve` registers, and what the command `prefect-cd` prints."""

import json
import os
import stat
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from prefect_cd.deployments import serve as module
from prefect_cd.deployments.cli import main
from prefect_cd.deployments.serve import deployments_of, serve
from prefect_cd.errors import Invalid, InvalidPipeline
from prefect_cd.pipeline.load import load

SCHEMA = Path(__file__).parents[2] / "deployments" / "pipeline.schema.json"


def test_a_pipeline_has_three_deployments_with_the_name_of_its_application(pipeline_file: Path) -> None:
    release, rollback, recover = deployments_of(load(pipeline_file))
    assert {deployment.name for deployment in (release, rollback, recover)} == {"shop"}
    assert [deployment.entrypoint for deployment in (release, rollback, recover)] == [
        "prefect_cd.flows.release.release",
        "prefect_cd.flows.rollback.rollback",
        "prefect_cd.flows.recover.recover",
    ]
    assert release.parameters == {"revision": "main"}
    assert rollback.parameters == {"environment": "production", "to": "the known-good before what runs"}
    assert not rollback.enforce_parameter_schema  # the choices of its form may be outdated
    assert all("application:shop" in deployment.tags for deployment in (release, rollback, recover))


def test_every_description_leads_to_what_runs_where(pipeline_file: Path) -> None:
    with temporary_settings({PREFECT_UI_URL: "http://prefect.example"}):
        deployments = deployments_of(load(pipeline_file))
    link = "[What runs where](http://prefect.example/artifacts/key/shop-environments)"
    assert [link in str(deployment.description) for deployment in deployments] == [True] * 3


def test_the_description_of_release_shows_the_plan(pipeline_file: Path) -> None:
    description = deployments_of(load(pipeline_file))[0].description or ""
    assert "staging" in description
    assert "production" in description


def test_only_recovery_has_a_schedule(pipeline_file: Path) -> None:
    release, rollback, recover = deployments_of(load(pipeline_file))
    assert not release.schedules
    assert not rollback.schedules
    assert recover.schedules
    assert recover.schedules[0].schedule.interval == timedelta(minutes=10)  # type: ignore[union-attr]


def test_two_files_for_one_application_are_refused(pipeline_file: Path) -> None:
    with pytest.raises(InvalidPipeline, match="several files describe shop"):
        serve([pipeline_file, pipeline_file])


def test_serving_without_a_server_says_how_to_start_one(pipeline_file: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(Invalid, match="no Prefect server is configured") as caught,
    ):
        serve([pipeline_file])
    assert "prefect server start" in caught.value.hint


def test_i7_what_the_runs_of_a_served_pipeline_write_is_for_their_user_only(
    pipeline_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serving(*_: object, **__: object) -> None:
        (tmp_path / "result").touch()

    monkeypatch.setattr(module, "prefect_serve", serving)
    monkeypatch.setattr(module, "BackgroundJobs", lambda _: nullcontext())
    monkeypatch.setattr(module.run_starter, "install", lambda: True)
    monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", "")
    monkeypatch.setenv("PREFECT_CD_PIPELINES", "")
    usual = os.umask(0o022)
    try:
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
            serve([pipeline_file])
    finally:
        os.umask(usual)
    assert stat.filemode((tmp_path / "result").stat().st_mode) == "-rw-------"


def test_check_prints_the_plan_and_exits_with_0(pipeline_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(pipeline_file)]) == 0
    assert "production" in capsys.readouterr().out


def test_check_prints_the_mistakes_and_exits_with_1(pipeline_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline_file.write_text(pipeline_file.read_text().replace("image:", "imagge:"))
    assert main(["check", str(pipeline_file)]) == 1
    printed = capsys.readouterr()
    assert "shop.yaml:3" in printed.err
    assert not printed.out


def test_serve_reports_a_missing_file_before_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nowhere.yaml")]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["deploy"], ["check"], ["serve"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: prefect-cd" in capsys.readouterr().err


def test_the_schema_for_editors_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(SCHEMA.read_text()) == printed, "run: prefect-cd schema > deployments/pipeline.schema.json"
