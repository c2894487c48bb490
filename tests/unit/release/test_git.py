"""Commits from real git repositories: on a path, and over HTTP from git's own server program."""

import base64
import http.server
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from prefect_cd import process
from prefect_cd.errors import (
    DeliveryError,
    Forbidden,
    Invalid,
    MissingTool,
    RepositoryUnreachable,
    UnknownRevision,
)
from prefect_cd.release import git as git_module
from prefect_cd.release.git import Repository, checkout, is_ancestor, log, refresh, resolve
from tests.git_server import SECRET, git_over_http, serving

TIME = timedelta(seconds=50)
QUOTED = "s3cret%2Fwith%40signs"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: the git settings of the user who runs the tests do not apply."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".gitconfig").write_text(
        "[user]\n name = Ada\n email = ada@example.org\n[init]\n defaultBranch = main\n"
        '[protocol "file"]\n allow = always\n[core]\n autocrlf = true\n'
    )
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a git hook
    return folder


def git(at: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_DIR": str(at / ".git"), "GIT_WORK_TREE": str(at)}
    return subprocess.run(
        ["git", "-c", "core.autocrlf=false", *arguments],
        cwd=at, env=environment, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def commit(at: Path, subject: str, **files: str) -> str:
    """A commit of these files (name=content), a second after the one before."""
    for name, content in files.items():
        (at / name).write_text(content)
    git(at, "add", "--all")
    count = int(git(at, "rev-list", "--all", "--count")) if (at / ".git" / "index").exists() else 0
    stamp = f"{1_700_000_000 + count} +0100"
    os.environ["GIT_COMMITTER_DATE"] = stamp
    try:
        git(at, "commit", "--quiet", "--allow-empty", "--message", subject, "--date", stamp)
    finally:
        del os.environ["GIT_COMMITTER_DATE"]
    return git(at, "rev-parse", "HEAD")


def new_repository(at: Path) -> Path:
    at.mkdir(parents=True)
    git(at, "init", "--quiet")
    return at


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    at = new_repository(tmp_path / "origin")
    commit(at, "first", app="1")
    commit(at, "second", app="2\n", more="2")
    return at


@pytest.fixture
def repository(origin: Path) -> Repository:
    return Repository(str(origin))


def test_a_branch_resolves_to_its_commit(origin: Path, repository: Repository) -> None:
    git(origin, "branch", "feature/pay", "HEAD~1")
    assert resolve(repository, "main", timeout=TIME) == git(origin, "rev-parse", "main")
    assert resolve(repository, "feature/pay", timeout=TIME) == git(origin, "rev-parse", "main~1")
    assert resolve(repository, "refs/heads/main", timeout=TIME) == git(origin, "rev-parse", "main")


def test_annotated_and_lightweight_tags_resolve_to_their_commit(origin: Path, repository: Repository) -> None:
    git(origin, "tag", "light", "HEAD~1")
    git(origin, "tag", "--annotate", "v1", "--message", "one", "HEAD~1")
    expected = git(origin, "rev-parse", "main~1")
    assert resolve(repository, "light", timeout=TIME) == expected
    assert resolve(repository, "v1", timeout=TIME) == expected


def test_full_and_short_shas_resolve_in_upper_and_lower_case(origin: Path, repository: Repository) -> None:
    sha = git(origin, "rev-parse", "main~1")
    assert resolve(repository, sha.upper(), timeout=TIME) == sha
    assert resolve(repository, sha[:7], timeout=TIME) == sha
    assert resolve(repository, sha[:12].upper(), timeout=TIME) == sha


def test_the_short_sha_of_a_file_is_no_commit(origin: Path, repository: Repository) -> None:
    blob = git(origin, "rev-parse", "main:app")
    with pytest.raises(UnknownRevision, match="no branch, no tag and no commit"):
        resolve(repository, blob[:9], timeout=TIME)


def test_a_name_of_two_commits_is_refused_and_its_full_names_are_not(origin: Path, repository: Repository) -> None:
    git(origin, "branch", "v1", "HEAD")
    git(origin, "tag", "v1", "HEAD~1")
    with pytest.raises(UnknownRevision, match=r"ambiguous: it is refs/heads/v1 \(.*\) and refs/tags/v1 \("):
        resolve(repository, "v1", timeout=TIME)
    assert resolve(repository, "refs/tags/v1", timeout=TIME) == git(origin, "rev-parse", "main~1")


def test_a_branch_and_a_tag_of_one_name_and_commit_are_not_ambiguous(origin: Path, repository: Repository) -> None:
    git(origin, "branch", "v1")
    git(origin, "tag", "--annotate", "v1", "--message", "one")
    assert resolve(repository, "v1", timeout=TIME) == git(origin, "rev-parse", "main")


def test_a_branch_that_looks_like_the_short_sha_of_another_commit_is_ambiguous(
    origin: Path, repository: Repository
) -> None:
    short = git(origin, "rev-parse", "main~1")[:7]
    git(origin, "branch", short, "main")
    with pytest.raises(UnknownRevision, match="ambiguous"):
        resolve(repository, short, timeout=TIME)


@pytest.mark.parametrize("revision", ["", "-x", "--upload-pack=touch pwned", "a b", "main~1", "main^", "a..b", "@{1}"])
def test_a_revision_that_is_not_a_plain_name_is_refused_before_git_runs(
    repository: Repository, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_module, "run", lambda *_a, **_k: pytest.fail("git was called"))
    with pytest.raises(UnknownRevision, match="cannot be the name"):
        resolve(repository, revision, timeout=TIME)


def test_an_unknown_revision_is_answered_with_similar_names(origin: Path, repository: Repository) -> None:
    git(origin, "branch", "production")
    with pytest.raises(UnknownRevision) as caught:
        resolve(repository, "prodution", timeout=TIME)
    assert caught.value.hint == "did you mean production?"
    with pytest.raises(UnknownRevision) as caught:
        resolve(repository, "zzz", timeout=TIME)
    assert caught.value.hint == "branches: main, production"


def test_a_checkout_has_the_files_of_its_commit_and_describes_it(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    sha = git(origin, "rev-parse", "main~1")
    checked_out = checkout(repository, sha, tmp_path / "deep" / "tree", timeout=TIME, revision="v1")
    assert (tmp_path / "deep" / "tree" / "app").read_text() == "1"
    assert not (tmp_path / "deep" / "tree" / "more").exists()
    assert (checked_out.sha, checked_out.revision, checked_out.subject, checked_out.author) == (
        sha,
        "v1",
        "first",
        "Ada",
    )
    assert checked_out.repository == str(origin)
    assert checked_out.committed_at == datetime.fromtimestamp(1_700_000_000, tz=timezone.utc)


def test_the_operators_line_endings_do_not_change_the_commit(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    checkout(repository, git(origin, "rev-parse", "main"), tmp_path / "tree", timeout=TIME)
    assert (tmp_path / "tree" / "app").read_bytes() == b"2\n"


def test_a_reused_folder_is_cleaned_of_every_change(origin: Path, repository: Repository, tmp_path: Path) -> None:
    sha, tree = commit(origin, "third", app="3", gone="3", hidden="3", **{".gitignore": "ignored"}), tmp_path / "tree"
    checkout(repository, sha, tree, timeout=TIME)
    git(tree, "checkout", "--quiet", "-b", "elsewhere", "HEAD~1")
    git(tree, "checkout", "--quiet", sha, "--", "hidden")
    (tree / "app").write_text("4")
    (tree / "more").unlink()
    (tree / "hidden").write_text("4")
    (tree / "untracked").touch()
    (tree / "ignored").touch()
    (tree / "staged").touch()
    git(tree, "add", "staged")
    git(new_repository(tree / "nested"), "init")
    checkout(repository, sha, tree, timeout=TIME)
    assert {path.name for path in tree.iterdir()} == {".git", ".gitignore", "app", "more", "gone", "hidden"}
    assert {(tree / name).read_text() for name in ("app", "gone", "hidden")} == {"3"}
    assert git(tree, "rev-parse", "HEAD") == sha


def test_a_change_in_a_file_marked_skip_worktree_is_undone(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    sha, tree = git(origin, "rev-parse", "main"), tmp_path / "tree"
    checkout(repository, sha, tree, timeout=TIME)
    git(tree, "update-index", "--skip-worktree", "app")
    (tree / "app").write_text("changed behind git's back")
    checkout(repository, sha, tree, timeout=TIME)
    assert (tree / "app").read_text() == "2\n"


def test_a_reused_folder_needs_no_network(origin: Path, repository: Repository, tmp_path: Path) -> None:
    sha, tree = git(origin, "rev-parse", "main"), tmp_path / "tree"
    checkout(repository, sha, tree, timeout=TIME)
    origin.rename(tmp_path / "moved")
    (tree / "app").unlink()
    assert checkout(repository, sha, tree, timeout=TIME).sha == sha
    assert (tree / "app").read_text() == "2\n"


def test_a_reused_folder_fetches_a_commit_that_was_pushed_later(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    checkout(repository, git(origin, "rev-parse", "main"), tree, timeout=TIME)
    later = commit(origin, "later", app="later")
    assert checkout(repository, later, tree, timeout=TIME).subject == "later"
    assert (tree / "app").read_text() == "later"


def test_a_folder_in_which_a_killed_process_left_its_lock_is_cloned_again(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    sha, tree = git(origin, "rev-parse", "main"), tmp_path / "tree"
    checkout(repository, sha, tree, timeout=TIME)
    (tree / ".git" / "index.lock").touch()
    assert checkout(repository, sha, tree, timeout=TIME).sha == sha
    assert not (tree / ".git" / "index.lock").exists()


@pytest.mark.parametrize("content", ["a file", "another clone"])
def test_a_folder_with_other_content_is_left_unchanged(
    repository: Repository, origin: Path, tmp_path: Path, content: str
) -> None:
    tree = tmp_path / "tree"
    if content == "another clone":
        git(new_repository(tree), "remote", "add", "origin", "https://example.org/other.git")
    tree.mkdir(exist_ok=True)
    (tree / "precious").touch()
    with pytest.raises(Invalid, match="is not a clone of"):
        checkout(repository, git(origin, "rev-parse", "main"), tree, timeout=TIME)
    assert (tree / "precious").exists()


@pytest.mark.parametrize("server", ["plain", "partial clones"])
def test_a_commit_that_no_branch_contains_is_refused_even_when_the_server_serves_it(
    origin: Path, repository: Repository, tmp_path: Path, server: str
) -> None:
    if server == "partial clones":
        git(origin, "config", "uploadpack.allowFilter", "true")
        git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(origin, "checkout", "--quiet", "-b", "fork")
    imposter = commit(origin, "imposter", app="evil")
    git(origin, "checkout", "--quiet", "main")
    git(origin, "branch", "--quiet", "-D", "fork")
    with pytest.raises(UnknownRevision, match="no branch and no tag contains the commit") as caught:
        checkout(repository, imposter, tmp_path / "tree", timeout=TIME)
    assert caught.value.hint == "push it to a branch first"
    assert not (tmp_path / "tree" / "app").exists()


def test_only_the_contents_of_the_commit_are_fetched_where_the_server_supports_it(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    tree = tmp_path / "tree"
    checkout(repository, git(origin, "rev-parse", "main"), tree, timeout=TIME)
    missing = git(tree, "rev-list", "--objects", "--all", "--missing=print").splitlines()
    assert [line for line in missing if line.startswith("?")] == [f"?{git(origin, 'rev-parse', 'main~1:app')}"]
    assert [entry.subject for entry in log(tree, None, git(origin, "rev-parse", "main"))] == ["second", "first"]


def test_submodules_are_checked_out_when_asked_for(origin: Path, tmp_path: Path) -> None:
    library = new_repository(tmp_path / "library")
    commit(library, "library", code="1")
    git(origin, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib")
    sha, tree = commit(origin, "with library"), tmp_path / "tree"
    checkout(Repository(str(origin)), sha, tree, timeout=TIME)
    assert not list((tree / "lib").iterdir())
    checkout(Repository(str(origin), submodules=True), sha, tree, timeout=TIME)
    (tree / "lib" / "code").write_text("changed")
    (tree / "lib" / "untracked").touch()
    checkout(Repository(str(origin), submodules=True), sha, tree, timeout=TIME)
    assert {path.name: path.read_text() for path in (tree / "lib").iterdir() if path.name != ".git"} == {"code": "1"}


def test_a_submodule_on_a_path_is_refused_unless_the_operator_allows_it(
    origin: Path, tmp_path: Path, home: Path
) -> None:
    git(origin, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(origin), "lib")
    sha = commit(origin, "with library")
    (home / ".gitconfig").write_text("")
    with pytest.raises(Invalid, match="refuses this kind of URL"):
        checkout(Repository(str(origin), submodules=True), sha, tmp_path / "tree", timeout=TIME)


# --- Git LFS ---------------------------------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 9\n".format("a" * 64)
ATTRIBUTES = {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"}


@pytest.fixture
def without_git_lfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs of PATH but git-lfs."""
    if shutil.which("git-lfs"):
        (tmp_path / "bin").mkdir()
        for program in (program for folder in os.get_exec_path() for program in Path(folder).glob("*")):
            if program.name != "git-lfs" and not (tmp_path / "bin" / program.name).exists():
                (tmp_path / "bin" / program.name).symlink_to(program)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.usefixtures("without_git_lfs")
def test_a_commit_with_lfs_pointers_is_refused_where_git_lfs_is_not_installed(
    origin: Path, repository: Repository, tmp_path: Path, home: Path
) -> None:
    with (home / ".gitconfig").open("a") as config:  # git-lfs was removed, and its settings were not
        config.write('[filter "lfs"]\n process = git-lfs filter-process\n required = true\n')
    pointers = {"ä.bin": POINTER, "more.bin": POINTER}
    git(origin, "config", "filter.lfs.process", "")
    git(origin, "config", "filter.lfs.required", "false")
    sha = commit(origin, "large files", **ATTRIBUTES, **pointers, **{"no-pointer.bin": "1"})
    with pytest.raises(MissingTool) as caught:
        checkout(repository, sha, tmp_path / "tree", timeout=TIME)
    assert caught.value.reason.startswith("more.bin and 1 more: the commit has a Git LFS pointer")
    assert "apt-get install git-lfs" in caught.value.hint
    assert str(caught.value).encode()
    with pytest.raises(MissingTool):  # nor is the folder good the second time
        checkout(repository, sha, tmp_path / "tree", timeout=TIME)
    checkout(repository, git(origin, "rev-parse", "main~1"), tmp_path / "tree", timeout=TIME)


@pytest.mark.usefixtures("without_git_lfs")
def test_a_pointer_in_a_submodule_is_refused_too(origin: Path, tmp_path: Path) -> None:
    library = new_repository(tmp_path / "library")
    commit(library, "library", **ATTRIBUTES, **{"large.bin": POINTER})
    git(origin, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib")
    sha = commit(origin, "with library")
    with pytest.raises(MissingTool, match=r"large\.bin"):
        checkout(Repository(str(origin), submodules=True), sha, tmp_path / "tree", timeout=TIME)


@pytest.mark.usefixtures("without_git_lfs")
def test_a_text_that_looks_like_a_pointer_is_none_where_the_attributes_do_not_say_so(
    origin: Path, repository: Repository, tmp_path: Path
) -> None:
    sha = commit(origin, "a test of git-lfs", **ATTRIBUTES, **{"pointer.txt": POINTER})
    checkout(repository, sha, tmp_path / "tree", timeout=TIME)
    assert (tmp_path / "tree" / "pointer.txt").read_text() == POINTER


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="git-lfs is not installed")
def test_git_lfs_replaces_pointers_by_contents(origin: Path, repository: Repository, tmp_path: Path) -> None:
    git(origin, "lfs", "install", "--local")
    ignored = {".lfsconfig": "[lfs]\n fetchexclude = *\n"}
    sha = commit(origin, "large files", **ATTRIBUTES, **ignored, **{"large.bin": "the content"})
    assert git(origin, "show", f"{sha}:large.bin").startswith("version https://git-lfs.github.com/spec/v1")
    for _ in range(2):
        checkout(repository, sha, tmp_path / "tree", timeout=TIME)
        assert (tmp_path / "tree" / "large.bin").read_text() == "the content"
        (tmp_path / "tree" / "large.bin").write_text("changed")


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="git-lfs is not installed")
def test_git_lfs_replaces_pointers_in_submodules(origin: Path, tmp_path: Path) -> None:
    library = new_repository(tmp_path / "library")
    git(library, "lfs", "install", "--local")
    commit(library, "library", **ATTRIBUTES, **{"large.bin": "the content"})
    git(origin, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib")
    sha = commit(origin, "with library")
    checkout(Repository(str(origin), submodules=True), sha, tmp_path / "tree", timeout=TIME)
    assert (tmp_path / "tree" / "lib" / "large.bin").read_text() == "the content"


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="git-lfs is not installed")
def test_a_content_that_the_server_lacks_is_an_error(origin: Path, repository: Repository, tmp_path: Path) -> None:
    git(origin, "config", "filter.lfs.process", "")
    git(origin, "config", "filter.lfs.required", "false")
    sha = commit(origin, "never pushed", **ATTRIBUTES, **{"large.bin": POINTER})
    with pytest.raises(Invalid, match="the server lacks the content of a file in Git LFS"):
        checkout(repository, sha, tmp_path / "tree", timeout=TIME)


def test_hooks_are_not_run(origin: Path, repository: Repository, tmp_path: Path, home: Path) -> None:
    hooks = home / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    (hooks / "post-checkout").chmod(0o755)
    git(home, "config", "--file", str(home / ".gitconfig"), "core.hooksPath", str(hooks))
    checkout(repository, git(origin, "rev-parse", "main"), tmp_path / "tree", timeout=TIME)
    assert not (tmp_path / "hooked").exists()


def test_a_url_that_is_a_command_is_not_run(tmp_path: Path, home: Path) -> None:
    git(home, "config", "--file", str(home / ".gitconfig"), "protocol.ext.allow", "always")
    with pytest.raises(Invalid, match="refuses this kind of URL"):
        resolve(Repository(f"ext::touch {tmp_path}/pwned"), "main", timeout=TIME)
    assert not (tmp_path / "pwned").exists()


def test_the_log_has_the_new_commits_newest_first(origin: Path, repository: Repository, tmp_path: Path) -> None:
    deployed, tree = git(origin, "rev-parse", "main"), tmp_path / "tree"
    commit(origin, 'third: it\'s "odd" | ä')
    git(origin, "checkout", "--quiet", "-b", "side", deployed)
    commit(origin, "on the side", side="1")
    git(origin, "checkout", "--quiet", "main")
    git(origin, "merge", "--quiet", "--no-edit", "side")
    newest = git(origin, "rev-parse", "main")
    checkout(repository, newest, tree, timeout=TIME)
    subjects = [entry.subject for entry in log(tree, deployed, newest)]
    assert subjects == ["Merge branch 'side'", "on the side", 'third: it\'s "odd" | ä']
    assert log(tree, newest, newest) == ()
    assert len(log(tree, None, newest)) == 5
    assert len(log(tree, None, newest, limit=2)) == 2
    assert {entry.repository for entry in log(tree, None, newest)} == {str(origin)}
    assert len(log(tree, "0" * 40, newest)) == 5


def test_ancestry_is_true_false_or_unknown(origin: Path, repository: Repository, tmp_path: Path) -> None:
    older, newer, tree = git(origin, "rev-parse", "main~1"), git(origin, "rev-parse", "main"), tmp_path / "tree"
    checkout(repository, newer, tree, timeout=TIME)
    later = commit(origin, "later")
    assert is_ancestor(tree, older, newer) is True
    assert is_ancestor(tree, newer, newer) is True
    assert is_ancestor(tree, newer, older) is False
    assert is_ancestor(tree, later, newer) is None
    refresh(repository, tree, timeout=TIME)
    assert is_ancestor(tree, later, newer) is False
    assert is_ancestor(tree, newer, later) is True


def test_a_refresh_fetches_a_moved_tag(origin: Path, repository: Repository, tmp_path: Path) -> None:
    git(origin, "tag", "current", "HEAD~1")
    tree = tmp_path / "tree"
    checkout(repository, git(origin, "rev-parse", "main"), tree, timeout=TIME)
    git(origin, "tag", "--force", "current", "HEAD")
    refresh(repository, tree, timeout=TIME)
    assert git(tree, "rev-parse", "current") == git(origin, "rev-parse", "main")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a repository to another user")
def test_a_repository_of_another_user_is_refused_with_the_command_that_allows_it(
    origin: Path, repository: Repository
) -> None:
    for path in [origin, *origin.rglob("*")]:
        os.chown(path, 12345, 12345)
    with pytest.raises(Invalid, match="another user owns it") as caught:
        resolve(repository, "main", timeout=TIME)
    assert f"safe.directory {origin}" in caught.value.hint


@pytest.fixture
def seen() -> list[str | None]:
    return []


@pytest.fixture
def served(origin: Path, seen: list[str | None]) -> Iterator[str]:
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    with serving(git_over_http(origin.parent, seen)) as url:
        yield f"{url}/origin/.git"


def with_credentials(url: str, userinfo: str) -> str:
    return url.replace("://", f"://{userinfo}@")


def test_credentials_reach_the_server_and_are_stored_nowhere(
    served: str, origin: Path, tmp_path: Path, home: Path
) -> None:
    """git's own trace lists every program that it starts, with its arguments."""
    trace = tmp_path / "trace"
    git(home, "config", "--file", str(home / ".gitconfig"), "trace2.normalTarget", str(trace))
    repository = Repository(served, authenticated_url=with_credentials(served, f"bob:{QUOTED}"))
    sha, tree = git(origin, "rev-parse", "main~1"), tmp_path / "tree"
    assert resolve(repository, sha[:8], timeout=TIME) == sha
    checked_out = checkout(repository, sha, tree, timeout=TIME)
    commit(origin, "later")
    refresh(repository, tree, timeout=TIME)
    assert (tree / "app").read_text() == "1"
    assert checked_out.repository == served
    assert log(tree, None, sha)[0].repository == served
    assert "git remote-http" in trace.read_text()
    everything = [trace, *(path for path in (tree / ".git").rglob("*") if path.is_file())]
    for secret in (SECRET, QUOTED):
        assert not [path for path in everything if secret.encode() in path.read_bytes()]
        assert secret not in repr(repository)


def test_credentials_in_the_url_itself_are_moved_out_of_it(served: str, origin: Path, tmp_path: Path) -> None:
    repository = Repository(with_credentials(served, f"bob:{QUOTED}"))
    assert repository.url == served
    assert QUOTED not in repr(repository)
    assert checkout(repository, git(origin, "rev-parse", "main"), tmp_path / "tree", timeout=TIME).repository == served


@pytest.mark.parametrize("userinfo", [None, "bob:wr0ng-word", "just-a-t0ken"])
def test_refused_credentials_are_forbidden_and_not_shown(served: str, userinfo: str | None) -> None:
    repository = Repository(served, with_credentials(served, userinfo) if userinfo else None)
    with pytest.raises(Forbidden, match="the repository denies access") as caught:
        resolve(repository, "main", timeout=TIME)
    assert "source.credentials" in caught.value.hint
    shown = f"{caught.value} {vars(caught.value)} {caught.value.__cause__}"
    assert "wr0ng" not in shown
    assert "t0ken" not in shown


def test_a_token_alone_is_a_user_without_password(served: str, seen: list[str | None]) -> None:
    with pytest.raises(Forbidden):
        resolve(Repository(served, with_credentials(served, "t0ken")), "main", timeout=TIME)
    assert "Basic " + base64.b64encode(b"t0ken:").decode() in seen


def test_the_operators_own_credential_helper_is_not_used_when_we_have_credentials(
    served: str, origin: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "Ada")
    helper = f"!touch {tmp_path}/asked; echo username=x; echo password=y; :"
    git(home, "config", "--file", str(home / ".gitconfig"), "credential.helper", helper)
    repository = Repository(served, with_credentials(served, f"bob:{QUOTED}"))
    assert resolve(repository, "main", timeout=TIME) == git(origin, "rev-parse", "main")
    assert not (tmp_path / "asked").exists()


def test_a_redirect_to_another_host_does_not_get_the_credentials(served: str, seen: list[str | None]) -> None:
    target = served.replace("127.0.0.1", "localhost")

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", target + self.path)
            self.end_headers()

    with serving(Handler) as url, pytest.raises(Forbidden):
        resolve(Repository(url, with_credentials(url, f"bob:{QUOTED}")), "main", timeout=TIME)
    assert set(seen) == {None}


def test_the_url_with_credentials_may_differ_from_the_url(served: str, origin: Path, tmp_path: Path) -> None:
    """For example ssh in the pipeline file, and a token for https."""
    repository = Repository("git@example.org:acme/shop.git", with_credentials(served, f"bob:{QUOTED}"))
    sha = git(origin, "rev-parse", "main")
    assert resolve(repository, "main", timeout=TIME) == sha
    assert checkout(repository, sha, tmp_path / "tree", timeout=TIME).repository == "git@example.org:acme/shop.git"


def test_a_missing_repository_is_invalid(served: str, tmp_path: Path) -> None:
    url = served.replace("/origin/", "/absent/")
    for repository in (Repository(str(tmp_path / "absent")), Repository(url, with_credentials(url, f"bob:{QUOTED}"))):
        with pytest.raises(Invalid, match="no such repository") as caught:
            resolve(repository, "main", timeout=TIME)
        assert "source.repository" in caught.value.hint
        with pytest.raises(Invalid, match="no such repository"):
            checkout(repository, "0" * 40, tmp_path / "tree", timeout=TIME)


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that is unavailable."""

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(503)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "ssh://git@127.0.0.1:1/x", "https://absent.invalid/x"])
def test_a_server_that_does_not_answer_is_unreachable(url: str) -> None:
    with pytest.raises(RepositoryUnreachable, match="cannot read") as caught:
        resolve(Repository(url), "main", timeout=TIME)
    assert f"git ls-remote {url}" in caught.value.hint


def test_a_server_that_is_unavailable_is_unreachable() -> None:
    with serving(Refusing) as url, pytest.raises(RepositoryUnreachable, match="cannot read"):
        resolve(Repository(url), "main", timeout=TIME)


def test_a_server_that_never_answers_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(RepositoryUnreachable, match="did not finish within"):
            resolve(Repository(url), "main", timeout=timedelta(seconds=0.5))


def test_an_interrupted_clone_leaves_no_folder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(RepositoryUnreachable):
            checkout(Repository(url), "0" * 40, tmp_path / "work" / "tree", timeout=timedelta(seconds=0.5))
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("git@github.com: Permission denied (publickey).\nfatal: Could not read from remote repository.", Forbidden),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", Forbidden),
        ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", Invalid),
        ("fatal: unable to access 'https://x/': SSL certificate problem: self-signed certificate", Invalid),
        ("ssh: Could not resolve hostname x: Name or service not known", RepositoryUnreachable),
        ("ssh: connect to host x port 22: Connection timed out", RepositoryUnreachable),
        ("fatal: the remote end hung up unexpectedly", RepositoryUnreachable),
        ("error: unable to write file: No space left on device", RepositoryUnreachable),
    ],
)
def test_messages_of_servers_become_the_right_error(message: str, kind: type[DeliveryError]) -> None:
    finished = process.Finished(code=128, output=message, seconds=1, timed_out=False)
    assert type(git_module._git_error(finished, Repository("https://x/"))) is kind


@pytest.mark.parametrize("userinfo", [f"bob:{QUOTED}", QUOTED])
def test_i7_secrets_are_masked_in_what_git_writes(userinfo: str, tmp_path: Path) -> None:
    git = git_module._Git(Repository("https://x/", f"https://{userinfo}@x/"), time.monotonic() + 60)
    with pytest.raises(RepositoryUnreachable) as caught:
        git(f"say-{SECRET}-{QUOTED}-https://bob:other@y/z", at=tmp_path)  # git quotes a command that it does not know
    assert "'say-***-***-https://***@y/z' is not a git command" in caught.value.detail


def test_settings_that_the_operator_gives_by_environment_stay(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{origin}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://example.org/shop")
    assert resolve(Repository("https://example.org/shop"), "main", timeout=TIME) == git(origin, "rev-parse", "main")
