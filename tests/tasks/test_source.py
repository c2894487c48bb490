"""From a revision to one commit, and whether its pipeline file is the served one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.errors import UnknownRevision
from prefect_cd.release.model import Commit
from prefect_cd.tasks.source import compare_pipeline_file, resolve
from tests.tasks.conftest import Run
from tests.tasks.examples import GitRepository, pipeline

SERVED = "application: shop\n"


def test_a_branch_becomes_the_commit_that_it_names_now_with_a_checkout(repository: GitRepository, home: Path) -> None:
    repository.commit({"app": "1"}, "first")
    newest = repository.commit({"app": "2"}, "second")
    commit = resolve.fn(pipeline(repository=repository.path), "main")
    assert (commit.sha, commit.revision, commit.subject) == (newest.sha, "main", "second")
    assert (home / newest.sha[:12] / "app").read_text() == "2"


def test_a_revision_that_nothing_has_is_refused(repository: GitRepository) -> None:
    repository.commit({"app": "1"})
    with pytest.raises(UnknownRevision, match="release/9"):
        resolve.fn(pipeline(repository=repository.path), "release/9")


def compare(repository: GitRepository, commit: Commit, served: Path) -> bool:
    return compare_pipeline_file.fn(pipeline(repository=repository.path), commit, served)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    file = tmp_path / "shop.yaml"
    file.write_text(SERVED)
    return file


def test_the_same_file_in_the_commit_does_not_differ(repository: GitRepository, served: Path) -> None:
    assert not compare(repository, repository.commit({"shop.yaml": SERVED}), served)


def test_a_commit_without_a_pipeline_file_does_not_differ(repository: GitRepository, served: Path) -> None:
    assert not compare(repository, repository.commit({"app": "1"}), served)


def test_i10_a_symbolic_link_of_the_commit_is_not_followed(repository: GitRepository, served: Path) -> None:
    (repository.path / "shop.yaml").symlink_to("/etc/passwd")
    assert not compare(repository, repository.commit({}), served)


def test_i10_a_commits_own_pipeline_file_is_shown_and_not_used(
    repository: GitRepository, served: Path, run: Callable[[Callable[[], Any]], Run]
) -> None:
    commit = repository.commit({"shop.yaml": "application: mine\n"})
    played = run(lambda: compare(repository, commit, served))
    assert played.result is True
    assert served.read_text() == SERVED
    (page,) = played.artifacts
    assert page.key == "shop-pipeline-file"
    assert page.description == "shop.yaml in the commit differs from the served one, which the run uses"
    assert "-application: shop\n+application: mine" in page.data


def test_i10_a_commits_pipeline_file_without_end_fills_no_memory(
    repository: GitRepository, served: Path, run: Callable[[Callable[[], Any]], Run]
) -> None:
    commit = repository.commit({"shop.yaml": "# more\n" * 1_000_000})
    played = run(lambda: compare(repository, commit, served))
    assert played.result is True
    assert played.artifacts == []
