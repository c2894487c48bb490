"""Another user of the machine reads nothing of a run, and puts nothing into it."""

import os
from pathlib import Path

import pytest

from prefect_cd.errors import Invalid
from prefect_cd.tasks import workspace


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the files of runs that everybody can enter, as the usual umask makes it."""
    monkeypatch.setenv("PREFECT_CD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o755)
    return tmp_path / "home"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_folders_of_runs_and_locks_are_for_one_user() -> None:
    before = os.umask(0)
    try:
        folder = workspace.folder()
        with workspace.alone("x"):
            pass
    finally:
        os.umask(before)
    assert [mode(path) for path in (folder, folder.parent, folder.parent.parent / "locks")] == [0o700] * 3


def test_folders_of_an_earlier_version_are_closed(home: Path) -> None:
    (home / "runs").mkdir(mode=0o755)
    workspace.folder()
    assert mode(home / "runs") == 0o700


def test_a_folder_that_is_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (home / "runs").symlink_to(tmp_path / "evil")
    with pytest.raises(Invalid, match="is a link, or belongs to another user"):
        workspace.folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(home: Path) -> None:
    (home / "runs").mkdir()
    os.chown(home / "runs", 12345, 12345)
    with pytest.raises(Invalid, match="is a link, or belongs to another user"):
        workspace.folder()
