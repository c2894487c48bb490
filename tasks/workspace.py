"""Files of a run on the worker's disk: the checkout, made when a stage needs it, and the evidence of gates.

A run that resumes on another machine makes its own. Runs on one machine share lock files only. Other users of the
machine can read none of it.
"""

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.runtime import flow_run

from prefect_cd.errors import Invalid
from prefect_cd.pipeline.models import SourceSettings
from prefect_cd.release import git as git_module
from prefect_cd.release.model import Commit

_RUNS_KEPT = 20


def folder() -> Path:
    """The folder of the current flow run (or `no-run`); removes all but the newest twenty."""
    runs = home() / "runs"
    mine = runs / str(flow_run.id or "no-run")
    if not mine.exists():
        _make_private(runs)
        _make_private(mine)
        old = sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)[_RUNS_KEPT:]
        for folder_of_a_run in old:
            shutil.rmtree(folder_of_a_run, ignore_errors=True)
    return mine


def home() -> Path:
    """Where all runs of this user keep their files."""
    return Path(os.environ.get("PREFECT_CD_HOME") or "~/.cache/prefect-cd").expanduser()


def _make_private(path: Path) -> None:
    """Make a folder that only this user can enter, also where it was there for all.

    Raises:
        Invalid: another user has made it, and could change what is in it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise Invalid(f"{path} is a link, or belongs to another user", hint="remove it, or set PREFECT_CD_HOME")
    path.chmod(0o700)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until no other run of this user on this machine is in a block of this name, and keep them out of it.

    The kernel releases the lock of a process that dies.
    """
    path = home() / "locks" / hashlib.sha256(name.encode()).hexdigest()
    _make_private(path.parent)
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_open_at(path, file.fileno()):  # its last holder removed it while we waited
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_open_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def repository(settings: SourceSettings) -> git_module.Repository:
    """The repository with the credentials of its Prefect block.

    Raises:
        Invalid: no such block, or one that holds no git credentials.
    """
    return git_module.Repository(
        settings.repository, _authenticated(settings), settings.submodules, settings.credentials_for
    )


def _authenticated(settings: SourceSettings) -> str | None:
    if settings.credentials is None:
        return None
    try:
        block = Block.load(settings.credentials, _sync=True)  # type: ignore[call-arg]  # its stubs leave it out
    except ValueError as error:
        raise Invalid(
            f"there is no Prefect block {settings.credentials!r}: {error}",
            where="source.credentials",
            hint="create it in the Prefect UI; the name is TYPE/NAME, for example github-credentials/acme",
        ) from error
    if isinstance(block, Secret):
        scheme, separator, rest = settings.repository.partition("://")
        return f"{scheme}{separator}git:{block.get()}@{rest}"
    formatter = getattr(block, "format_git_credentials", None)
    if formatter is None:
        raise Invalid(
            f"the block {settings.credentials!r} holds no git credentials",
            where="source.credentials",
            hint="use GitHubCredentials, GitLabCredentials, BitBucketCredentials or a Secret with a token",
        )
    return str(formatter(settings.repository))


def tree(settings: SourceSettings, commit: Commit, *, clean: bool = False) -> Path:
    """A checkout of exactly this commit.

    Args:
        settings: where the commit is.
        commit: the commit to check out.
        clean: undo what earlier stages changed in it.
    """
    path = folder() / commit.sha[:12]
    if clean or not (path / ".git").exists():
        git_module.checkout(repository(settings), commit.sha, path, timeout=settings.timeout, revision=commit.revision)
    return path


def remove_trees() -> None:
    """Remove the run's checkouts; the evidence of gates stays for a while."""
    for git in folder().glob("*/.git"):
        shutil.rmtree(git.parent, ignore_errors=True)
