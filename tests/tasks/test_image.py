"""The commit's image: built once, by the builder that preflight chose."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    """Stands for the program that builds, and for the registry that has what it built."""

    def __init__(self, error: Exception | None = None, *, seconds: float = 0) -> None:
        self.builders: list[str] = []
        self.files: list[list[str]] = []
        self.built: set[str] = set()
        """The commits that the registry has an image of."""
        self._error = error
        self._seconds = seconds

    def find(self, _: ImageSettings, of: Commit) -> BuiltImage | None:
        return image(built=False) if of.sha in self.built else None

    def __call__(
        self, settings: ImageSettings, of: Commit, tree: Path, builder: Builder, *, on_line: Callable[[str], None]
    ) -> BuiltImage:
        self.builders.append(builder.name)
        self.files.append(sorted(path.name for path in tree.iterdir() if path.name != ".git"))
        on_line(f"STEP 1/1: {settings.dockerfile} of {of.short}")
        if self._error:
            raise self._error
        time.sleep(self._seconds)  # a second build would begin in this time
        self.built.add(of.sha)
        return image()


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Building]:
    """Replaces builder and registry."""

    def replace(error: Exception | None = None, *, seconds: float = 0) -> Building:
        made = Building(error, seconds=seconds)
        monkeypatch.setattr(builders, "build", made)
        monkeypatch.setattr(builders, "find_image", made.find)
        return made

    return replace


def test_an_image_that_preflight_found_is_not_built(building: Callable[..., Building]) -> None:
    program = building()
    existing = image(built=False)
    assert build.fn(pipeline(), commit(), preflight(existing=existing)) == existing
    assert program.builders == []


def test_the_builder_of_preflight_builds_from_a_clean_checkout_and_its_lines_are_logged(
    repository: GitRepository, home: Path, building: Callable[..., Building], caplog: pytest.LogCaptureFixture
) -> None:
    program = building()
    candidate = repository.commit({"Dockerfile": "FROM scratch\n"})
    settings = pipeline(repository=repository.path)
    tree = home / candidate.sha[:12]
    with caplog.at_level("INFO", "prefect_cd"):
        assert build.fn(settings, candidate, preflight(builder="buildah")) == image()
        (tree / "report.xml").write_text("left by a check")
        program.built.clear()
        build.fn(settings, candidate, preflight(builder="buildah"))
    assert program.builders == ["buildah"] * 2
    assert program.files == [["Dockerfile"]] * 2
    assert f"STEP 1/1: Dockerfile of {candidate.short}" in caplog.text


def test_i8_runs_of_one_commit_at_once_build_one_image(
    repository: GitRepository, building: Callable[..., Building]
) -> None:
    program = building(seconds=0.3)
    candidate = repository.commit({"Dockerfile": "FROM scratch\n"})
    settings = pipeline(repository=repository.path)
    with ThreadPoolExecutor() as runs:
        made = [runs.submit(build.fn, settings, candidate, preflight(builder="buildah")) for _ in range(3)]
    assert len(program.builders) == 1
    assert sorted(run.result().built for run in made) == [False, False, True]
    assert {run.result().digest for run in made} == {image().digest}


def test_after_a_build_that_failed_the_next_run_builds(
    repository: GitRepository, building: Callable[..., Building]
) -> None:
    candidate = repository.commit({"Dockerfile": "COPY nothing /\n"})
    settings = pipeline(repository=repository.path)
    building(BuildFailed("COPY failed: no such file"))
    with pytest.raises(BuildFailed):
        build.fn(settings, candidate, preflight(builder="buildah"))
    building()
    assert build.fn(settings, candidate, preflight(builder="buildah")) == image()


def test_an_image_that_does_not_build_has_failed(repository: GitRepository, building: Callable[..., Building]) -> None:
    building(BuildFailed("COPY failed: no such file"))
    candidate = repository.commit({"Dockerfile": "COPY nothing /\n"})
    with pytest.raises(BuildFailed, match="COPY failed"):
        build.fn(pipeline(repository=repository.path), candidate, preflight(builder="docker"))


def test_a_preflight_without_image_and_builder_is_a_bug(
    repository: GitRepository, building: Callable[..., Building]
) -> None:
    program = building()
    with pytest.raises(KeyError):
        build.fn(pipeline(repository=repository.path), commit(), preflight())
    assert program.builders == []
