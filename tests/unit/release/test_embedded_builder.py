"""The builder `embedded` as a release uses it: the core and the embedded cluster's registry together."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from prefect_cd.errors import MissingTool
from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.release import registry
from prefect_cd.release.image import choose_builder
from prefect_cd_local import builder
from prefect_cd_local.images import Registry

SHOP = Path(__file__).parents[3] / "examples" / "shop" / "app"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[[Callable[[str], Any]], Any]]:
    """Runs a function beside a registry; it gets the registry's name."""

    def beside(story: Callable[[str], Any]) -> Any:  # noqa: ANN401
        async def run() -> Any:  # noqa: ANN401
            server = Registry(tmp_path / "registry")
            port = await server.start()
            try:
                return await asyncio.to_thread(story, f"localhost:{port}")
            finally:
                await server.stop()

        return asyncio.run(run())

    return beside  # type: ignore[return-value]


def test_a_release_finds_what_was_built_and_pushed(
    host: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def story(name: str) -> None:
        assert registry.find_digest(f"{name}/shop", "1") is None
        words = ["--file", str(SHOP / "Dockerfile"), "--tag", f"{name}/shop:1", "--build-arg", "VERSION=1", str(SHOP)]
        assert builder.main(["build", *words]) == 0
        assert (
            builder.main(["push", "--digestfile", str(tmp_path / "digest"), "--tls-verify=false", f"{name}/shop:1"])
            == 0
        )
        assert registry.find_digest(f"{name}/shop", "1") == (tmp_path / "digest").read_text()
        assert registry.find_digest(f"{name}/shop", "2") is None

    host(story)


@pytest.mark.parametrize(
    ("there", "named", "name", "taken"),
    [
        (["docker"], "embedded", "localhost:5000/shop", "embedded"),
        (["buildah"], None, "localhost:5000/shop", "buildah"),
        ([], None, "localhost:5000/shop", "embedded"),
        ([], None, "registry.example.com/shop", None),  # no other machine runs its images
        (["broken docker"], None, "localhost:5000/shop", None),  # an engine is to be repaired, not replaced
    ],
)
def test_a_release_takes_this_builder_when_named_or_when_there_is_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: list[str],
    named: Literal["embedded"] | None,
    name: str,
    taken: str | None,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for entry in ("prefect-cd-embedded-builder", *there):
        program = tmp_path / entry.removeprefix("broken ")
        program.write_text(f"#!/bin/sh\nexit {int(entry.startswith('broken'))}\n")
        program.chmod(0o755)
    settings = ImageSettings(name=name, builder=named)
    if taken:
        assert choose_builder(settings).name == taken
    else:
        with pytest.raises(MissingTool, match="no image can be built here"):
            choose_builder(settings)
