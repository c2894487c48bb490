"""Fixtures for tests of crashes."""

from collections.abc import Iterator

import pytest

from tests.crash.trial import Scene, open_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("crash")) as opened:
        yield opened
