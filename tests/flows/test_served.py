"""Which pipeline file a run uses."""

import os
from pathlib import Path

import pytest

from prefect_cd.errors import InvalidPipeline
from prefect_cd.flows import served

APPLICATIONS = ("shop", "blog")


@pytest.fixture
def files(tmp_path: Path, pipeline_file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two served files; the running deployment is the blog's."""
    blog = tmp_path / "blog.yaml"
    blog.write_text(pipeline_file.read_text().replace("shop", "blog"))
    monkeypatch.setenv(served.PIPELINES, os.pathsep.join([str(pipeline_file), str(blog)]))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "blog")
    return {"shop": pipeline_file, "blog": blog}


def test_a_run_uses_the_file_of_its_deployments_application(files: dict[str, Path]) -> None:
    own = served.pipeline()
    assert (own.pipeline.application, own.file) == ("blog", files["blog"])


def test_another_applications_broken_file_does_not_stop_a_run(files: dict[str, Path]) -> None:
    files["shop"].write_text("application: [")
    assert served.pipeline().pipeline.application == "blog"


def test_a_file_that_has_become_invalid_stops_its_own_runs(files: dict[str, Path]) -> None:
    files["blog"].write_text(files["blog"].read_text() + "enviroments: []\n")
    with pytest.raises(InvalidPipeline, match=r"1 mistake in .*blog\.yaml") as caught:
        served.pipeline()
    assert "enviroments" in caught.value.detail


def test_a_file_that_was_removed_stops_its_own_runs(files: dict[str, Path]) -> None:
    files["blog"].unlink()
    with pytest.raises(InvalidPipeline):
        served.pipeline()


def test_without_a_deployment_the_only_file_counts(pipeline_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(served.PIPELINES, str(pipeline_file))
    assert served.pipeline().pipeline.application == "shop"


def test_a_run_of_an_application_that_is_not_served_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "forum")
    with pytest.raises(InvalidPipeline, match="no pipeline file for forum") as caught:
        served.pipeline()
    assert "prefect-cd serve" in caught.value.hint


def test_a_run_without_served_pipeline_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(served.PIPELINES, raising=False)
    with pytest.raises(InvalidPipeline, match="no pipeline file for a run without a deployment"):
        served.pipeline()
