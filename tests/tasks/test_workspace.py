"""Files of a run: its folder, its checkouts, and the credentials that they are fetched with."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.filesystems import LocalFileSystem

from prefect_cd.errors import Invalid
from prefect_cd.pipeline.models import SourceSettings
from prefect_cd.tasks import workspace
from tests.tasks.examples import GitRepository

URL = "https://git.example.org/acme/shop.git"


def settings(repository: GitRepository) -> SourceSettings:
    return SourceSettings(repository=str(repository.path))


def test_a_run_has_a_folder_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.folder() == home
    assert home.is_dir()
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "0123")
    assert workspace.folder() == home.parent / "0123"


def test_a_new_run_removes_the_folders_of_all_but_the_newest_twenty(home: Path) -> None:
    for age in range(25):
        old = home.parent / f"run-{age}"
        old.mkdir(parents=True)
        os.utime(old, (1_000_000 - age, 1_000_000 - age))
    workspace.folder()
    assert {path.name for path in home.parent.iterdir()} == {"no-run", *(f"run-{age}" for age in range(19))}


def test_a_tree_is_a_checkout_of_exactly_one_commit_and_is_reused(repository: GitRepository) -> None:
    first = repository.commit({"app": "1"})
    repository.commit({"app": "2"})
    tree = workspace.tree(settings(repository), first)
    assert (tree.name, (tree / "app").read_text()) == (first.sha[:12], "1")
    (tree / "built").write_text("by an earlier stage")
    assert workspace.tree(settings(repository), first) == tree
    assert (tree / "built").exists()


def test_a_clean_tree_has_nothing_of_earlier_stages(repository: GitRepository) -> None:
    commit = repository.commit({"app": "1", ".gitignore": "built"})
    tree = workspace.tree(settings(repository), commit)
    (tree / "built").write_text("by an earlier stage")
    (tree / "app").write_text("changed by an earlier stage")
    workspace.tree(settings(repository), commit, clean=True)
    assert not (tree / "built").exists()
    assert (tree / "app").read_text() == "1"


def test_blocks_of_one_name_wait_for_each_other_and_leave_no_file(home: Path) -> None:
    inside, most = 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most
        with workspace.alone("build shop:1"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(enter, range(24)))
    assert most == 1
    assert list((home.parents[1] / "locks").iterdir()) == []


def test_blocks_of_other_names_do_not_wait_and_an_error_ends_the_block(home: Path) -> None:
    with (
        workspace.alone("build shop:1"),
        workspace.alone("build shop:2"),
        pytest.raises(ZeroDivisionError),
        workspace.alone("build shop:3"),
    ):
        raise ZeroDivisionError
    with workspace.alone("build shop:3"):
        assert len(list((home.parents[1] / "locks").iterdir())) == 1


def test_checkouts_are_removed_and_evidence_stays(repository: GitRepository) -> None:
    tree = workspace.tree(settings(repository), repository.commit({"app": "1"}))
    evidence = workspace.folder() / "evidence"
    evidence.mkdir()
    workspace.remove_trees()
    assert not tree.exists()
    assert evidence.exists()


def test_a_public_repository_needs_no_credentials() -> None:
    opened = workspace.repository(SourceSettings(repository=URL, submodules=True))
    assert (opened.url, opened.authenticated_url, opened.submodules) == (URL, None, True)


def private(block: str) -> SourceSettings:
    return SourceSettings(repository=URL, credentials=block)


@pytest.mark.usefixtures("prefect_server")
def test_i7_the_token_of_a_secret_goes_into_the_url_that_is_never_shown() -> None:
    Secret(value="hunter2").save("token-of-the-shop", overwrite=True, _sync=True)
    opened = workspace.repository(private("secret/token-of-the-shop"))
    assert opened.authenticated_url == "https://git:hunter2@git.example.org/acme/shop.git"
    assert "hunter2" not in repr(opened)


@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_does_not_exist_is_refused_with_what_to_do() -> None:
    with pytest.raises(Invalid, match="no Prefect block 'secret/missing'") as caught:
        workspace.repository(private("secret/missing"))
    assert caught.value.where == "source.credentials"
    assert "github-credentials/acme" in caught.value.hint


@pytest.mark.usefixtures("prefect_server")
def test_a_block_of_another_kind_is_refused() -> None:
    LocalFileSystem(basepath="/").save("a-disk", overwrite=True, _sync=True)
    with pytest.raises(Invalid, match="'local-file-system/a-disk' holds no git credentials"):
        workspace.repository(private("local-file-system/a-disk"))
