"""The commit's image: built once, by the builder that preflight chose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.errors import BuildFailed
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.release import image as builders
from prefect_cd.release.image import Builder
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.tasks.image import build
from prefect_cd.tasks.preconditions import Preflight
from tests.tasks.examples import GitRepository, commit, image, pipeline


def preflight(*, existing: BuiltImage | None = None, builder: str | None = None) -> Preflight:
    return Preflight(image=existing, builder=builder, digest="")


class Building:
    """Stands for the program that builds."""

    def __init__(self, error: Exception | None = None) -> None:
        self.builders: list[str] = []
        self.files: list[list[str]] = []
        self._error = error

    def __call__(
        self, settings: ImageSettings, of: Commit, tree: Path, builder: Builder, *, on_line: Callable[[str], None]
    ) -> BuiltImage:
        self.builders.append(builder.name)
        self.files.append(sorted(path.name for path in tree.iterdir() if path.name != ".git"))
        on_line(f"STEP 1/1: {settings.dockerfile} of {of.short}")
        if self._error:
            raise self._error
        return image()


def test_an_image_that_preflight_found_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    building = Building()
    monkeypatch.setattr(builders, "build", building)
    existing = image(built=False)
    assert build.fn(pipeline(), commit(), preflight(existing=existing)) == existing
    assert building.builders == []


def test_the_builder_of_preflight_builds_from_a_clean_checkout_and_its_lines_are_logged(
    repository: GitRepository, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    building = Building()
    monkeypatch.setattr(builders, "build", building)
    candidate = repository.commit({"Dockerfile": "FROM scratch\n"})
    settings = pipeline(repository=repository.path)
    tree = home / candidate.sha[:12]
    with caplog.at_level("INFO", "prefect_cd"):
        assert build.fn(settings, candidate, preflight(builder="buildah")) == image()
        (tree / "report.xml").write_text("left by a check")
        build.fn(settings, candidate, preflight(builder="buildah"))
    assert building.builders == ["buildah"] * 2
    assert building.files == [["Dockerfile"]] * 2
    assert f"STEP 1/1: Dockerfile of {candidate.short}" in caplog.text


def test_an_image_that_does_not_build_has_failed(repository: GitRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "build", Building(BuildFailed("COPY failed: no such file")))
    candidate = repository.commit({"Dockerfile": "COPY nothing /\n"})
    with pytest.raises(BuildFailed, match="COPY failed"):
        build.fn(pipeline(repository=repository.path), candidate, preflight(builder="docker"))


def test_a_preflight_without_image_and_builder_is_a_bug(
    repository: GitRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    building: Any = Building()
    monkeypatch.setattr(builders, "build", building)
    with pytest.raises(KeyError):
        build.fn(pipeline(repository=repository.path), commit(), preflight())
    assert building.builders == []
