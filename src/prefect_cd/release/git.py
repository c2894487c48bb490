"""Read a git repository: resolve a revision to one commit, and check one commit out into a folder.

Decides which commit a name stands for (an ambiguous name is refused), and which commits are accepted: those that a
branch or a tag of the repository contains. Knows nothing of images, pipelines or Prefect; runs git and nothing else.

A commit names submodules and servers of Git LFS, and is not trusted: they get neither the credentials nor the ssh key
unless the operator lists them, and are reached by https only, or at the repository's own server.

Why not Prefect's `GitRepository`: it needs 40 digits for a commit, cannot check out submodules together with a commit,
has no log, and puts the credentials on command lines, where every user of the machine can read them.
"""

import difflib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from prefect_cd.errors import (
    DeliveryError,
    Errored,
    Forbidden,
    Invalid,
    MissingTool,
    RepositoryUnreachable,
    UnknownRevision,
)
from prefect_cd.masking import BY_SHAPE
from prefect_cd.process import Finished, clean_environment, run
from prefect_cd.release.model import Commit

_FULL = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-fA-F]{7,39}")
_NAME = re.compile(r"(?!-)(?!.*(\.\.|@\{))[^\x00-\x20\x7f~^:?*\[\\]+")  # git help check-ref-format
_LOCAL_TIMEOUT = timedelta(minutes=1)  # for calls that read a checkout without the network
_SUBMODULE_MODE = "160000 "
_DEEPEST_SUBMODULE = 5
_LOG_FORMAT = "--format=%H%x00%an%x00%ct%x00%s%x00"
_LONGEST_TEXT = 300  # characters of a subject or a name; anybody can write them


@dataclass(frozen=True)
class Repository:
    """A git repository, and how to read it.

    Attributes:
        url: https or ssh URL, or an absolute path; credentials in an http(s) URL are moved out of it.
        authenticated_url: the same with credentials; secret, never shown.
        submodules: check submodules out, too.
        credentials_for: URLs of submodules that are read with the credentials or the ssh key, too.
    """

    url: str
    authenticated_url: str | None = field(default=None, repr=False)
    submodules: bool = False
    credentials_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        plain = _without_userinfo(self.url)
        if plain != self.url:
            object.__setattr__(self, "authenticated_url", self.authenticated_url or self.url)
            object.__setattr__(self, "url", plain)


def resolve(repository: Repository, revision: str, *, timeout: timedelta) -> str:
    """The commit that a branch, a tag or a short SHA stands for now, as 40 hex digits.

    A full SHA is returned unchecked; `checkout` checks that the repository has it. Full names (refs/heads/…,
    refs/tags/…) are accepted and resolve ambiguity.

    Raises:
        UnknownRevision: there is no branch, tag or commit of that name, or more than one.
        RepositoryUnreachable: the repository does not answer within `timeout`.
        Forbidden: the repository denies access.
        Invalid: there is no such repository.
    """
    if not _NAME.fullmatch(revision):
        raise UnknownRevision(
            f"{revision!r} cannot be the name of a branch or tag, nor a commit", hint="give a branch, a tag or a SHA"
        )
    if _FULL.fullmatch(revision.lower()):
        return revision.lower()
    git = _Git(repository, _deadline(timeout))
    refs = _refs(git)
    names = [name for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}") if name in refs]
    candidates = {name: refs[name] for name in names}
    if _SHORT.fullmatch(revision):
        candidates.update({f"commit {sha}": sha for sha in _commits_starting_with(git, revision.lower())})
    if not candidates:
        raise _unknown(repository, revision, refs)
    if len(set(candidates.values())) > 1:
        matches = " and ".join(f"{name} ({sha[:12]})" for name, sha in candidates.items())
        raise UnknownRevision(
            f"{revision!r} is ambiguous: it is {matches}",
            where=repository.url,
            hint="give the full name or the full SHA",
        )
    return next(iter(candidates.values()))


def checkout(
    repository: Repository, sha: str, into: Path, *, timeout: timedelta, revision: str | None = None
) -> Commit:
    """Check exactly one commit out into a folder, with the history of all commits but the contents of this one only.

    A folder from an earlier call is reused: changed, added and ignored files are removed from it, and the network is
    needed only for objects that it lacks. A new clone appears atomically, by a rename.

    Args:
        repository: where the commit is.
        sha: 40 hex digits; a branch or a tag must contain it. Servers also serve commits of forks and of rejected
            pull requests by SHA, which were never merged into this repository.
        into: the folder: absent, empty, or from an earlier call.
        timeout: for the whole call.
        revision: the revision of the request, for the result only.

    Raises:
        UnknownRevision: no branch or tag contains the commit.
        RepositoryUnreachable: the repository does not answer within `timeout`.
        Forbidden: the repository denies access.
        Invalid: there is no such repository, or the folder holds something else.
        MissingTool: the commit has files in Git LFS, and git-lfs is not installed.
    """
    if not _FULL.fullmatch(sha):
        raise UnknownRevision(f"{sha!r} is not a full commit SHA", hint="resolve the revision first")
    git = _Git(repository, _deadline(timeout))
    try:
        reused = _is_clone(git, into)
        if reused:
            _check_out(git, into, sha)
    except Errored:
        reused = False  # an earlier process was killed and left a lock file or a half-written object
    if not reused:
        _clone(git, into)
        _check_out(git, into, sha)
    (commit,) = _commits(git, into, "-1", sha)
    return commit.model_copy(update={"revision": revision or sha})


def refresh(repository: Repository, tree: Path, *, timeout: timedelta) -> None:
    """Fetch commits that were pushed since the checkout; the folder's files stay as they are.

    Raises:
        RepositoryUnreachable, Forbidden, Invalid: as `checkout`.
    """
    git = _Git(repository, _deadline(timeout))
    everything = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
    git("fetch", "--quiet", "--no-write-fetch-head", "origin", *everything, at=tree)


def log(tree: Path, since: str | None, until: str, limit: int = 50) -> tuple[Commit, ...]:
    """The commits that `until` contains and `since` does not, newest first.

    Args:
        tree: a folder from `checkout`.
        since: full SHA; None, or a commit that the repository no longer has, means: from the beginning.
        until: full SHA.
        limit: maximum number of commits.
    """
    git = _offline_git(tree)
    exclude = (f"^{since}",) if since and _has(git, tree, since) else ()
    return _commits(git, tree, f"-{limit}", until, *exclude)


def is_ancestor(tree: Path, older: str, newer: str) -> bool | None:
    """Whether `newer` contains `older`; None when the folder lacks one of them.

    The folder has a commit that was pushed after the checkout only after `refresh`. A commit that it lacks even then
    is not, or no longer, in the repository.
    """
    git = _offline_git(tree)
    if not (_has(git, tree, older) and _has(git, tree, newer)):
        return None
    finished, _ = git.attempt("merge-base", "--is-ancestor", older, newer, at=tree, online=False)
    if finished.code not in (0, 1):
        raise _git_error(finished, git.repository)
    return finished.code == 0


@dataclass(frozen=True)
class _Git:
    """Runs git so that it never prompts, runs no code from a commit, and shows no secret."""

    repository: Repository
    deadline: float

    def __call__(self, *arguments: str, at: Path, online: bool = True, lfs: bool = True) -> list[str]:
        """Run git and return its lines; raise a typed error when it fails."""
        finished, lines = self.attempt(*arguments, at=at, online=online, lfs=lfs)
        if finished.code or finished.timed_out:
            raise _git_error(finished, self.repository)
        return lines

    def attempt(self, *arguments: str, at: Path, online: bool = True, lfs: bool = True) -> tuple[Finished, list[str]]:
        """Run git and return how it ended, and its lines."""
        finished = run(
            ["git", *arguments],
            cwd=at,
            env=_environment(self.repository, online=online, lfs=lfs),
            timeout=timedelta(seconds=max(self.deadline - time.monotonic(), 0.1)),
            separate_stdout=True,
            # git itself writes no secret, but its helpers quote the messages of servers
            mask=BY_SHAPE.with_values([self.repository.authenticated_url or ""]),
        )
        return finished, finished.stdout.removesuffix("\n").split("\n") if finished.stdout else []


def _deadline(timeout: timedelta) -> float:
    return time.monotonic() + timeout.total_seconds()


def _offline_git(tree: Path) -> _Git:
    """A git that reads a folder from `checkout`."""
    git = _Git(Repository(str(tree)), _deadline(_LOCAL_TIMEOUT))
    (url,) = git("config", "--get", "remote.origin.url", at=tree, online=False)
    return _Git(Repository(url), git.deadline)


# Variables that git gets from the operator's environment: how to reach servers. Variables that redirect git itself to
# another repository or work tree (GIT_DIR, GIT_WORK_TREE and so on) are left out.
_OPERATOR_VARIABLES = frozenset(
    {
        "SSH_AUTH_SOCK",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_SSH_VARIANT",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
        "XDG_CONFIG_HOME",
    }
)
# Settings that override those of the operator: no code of a commit or of a template runs, no URL is a command
# (protocol.ext), and the files are exactly those of the commit.
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "protocol.ext.allow": "never",
    "safe.bareRepository": "explicit",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",  # it would continue in the background after the call
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "log.showSignature": "false",
    "i18n.logOutputEncoding": "UTF-8",
    "color.ui": "false",
    "core.quotePath": "true",
}
# As `git lfs install` sets them; without git-lfs, a setting of the operator's would only fail.
_LFS_SETTINGS = {
    "filter.lfs.clean": "git-lfs clean -- %f",
    "filter.lfs.smudge": "git-lfs smudge -- %f",
    "filter.lfs.process": "git-lfs filter-process",
    "filter.lfs.required": "true",
    "lfs.fetchinclude": "",  # over the .lfsconfig of the commit, which could leave files out
    "lfs.fetchexclude": "",
    "lfs.skipdownloaderrors": "false",
}
_NO_LFS_SETTINGS = {**dict.fromkeys(("filter.lfs.smudge", "filter.lfs.process"), ""), "filter.lfs.required": "false"}
_LFS_POINTER = "version https://git-lfs.github.com/spec/"
_LFS_FILES = ":(attr:filter=lfs)"
# A credential helper that prints variables of its environment. A URL with credentials would be an argument of git's own
# helper programs (git-remote-https), and so be visible in the process list. git runs this helper only for the
# repositories that its setting names: a submodule could be any other one of the same server.
_CREDENTIAL_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
    '"$PREFECT_CD_GIT_USERNAME" "$PREFECT_CD_GIT_PASSWORD"; }; f'
)


def _environment(repository: Repository, *, online: bool, lfs: bool = True) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _OPERATOR_VARIABLES or name.startswith("GIT_CONFIG_")
    }
    variables = {**inherited, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""}
    lfs_settings = _LFS_SETTINGS if lfs and shutil.which("git-lfs") else _NO_LFS_SETTINGS
    settings = [*_SETTINGS.items(), *lfs_settings.items()]
    if repository.authenticated_url:
        settings += _credential_settings(repository, repository.authenticated_url)
        variables.update(_credential_variables(repository.authenticated_url))
    if not online:
        # In a partial clone, git would fetch a missing object when a command only asks whether it is there.
        variables.update({"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"})
    elif "GIT_SSH" not in inherited:
        variables["GIT_SSH_COMMAND"] = f"{inherited.get('GIT_SSH_COMMAND', 'ssh')} -o BatchMode=yes"
    first = int(inherited.get("GIT_CONFIG_COUNT", "0"))
    for number, (key, value) in enumerate(settings, first):
        variables[f"GIT_CONFIG_KEY_{number}"] = key
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    variables["GIT_CONFIG_COUNT"] = str(first + len(settings))
    return clean_environment(variables)


def _credential_settings(repository: Repository, authenticated: str) -> list[tuple[str, str]]:
    """Git settings for reading the repository by way of `authenticated`, without the secret in it."""
    plain = _without_userinfo(authenticated)
    settings = [(f"url.{plain}.insteadOf", repository.url)] if plain != repository.url else []
    if plain != authenticated:
        settings += [("credential.helper", ""), ("credential.useHttpPath", "true")]
        same_server = [url for url in repository.credentials_for if _server(url) == _server(plain)]
        for url in (plain, *same_server):
            # with .git, too: that is where the server of Git LFS is
            settings += [
                (f"credential.{name}.helper", _CREDENTIAL_HELPER) for name in (_bare(url), f"{_bare(url)}.git")
            ]
    return settings


def _server(url: str) -> tuple[str, str]:
    parts = urlsplit(_without_userinfo(url))
    return parts.scheme, parts.netloc.lower()


def _bare(url: str) -> str:
    """A URL without its ending, which servers do not need."""
    return url.rstrip("/").removesuffix(".git")


def _credential_variables(authenticated: str) -> dict[str, str]:
    parts = urlsplit(authenticated)
    return {
        "PREFECT_CD_GIT_USERNAME": unquote(parts.username or ""),
        "PREFECT_CD_GIT_PASSWORD": unquote(parts.password or ""),
    }


def _without_userinfo(url: str) -> str:
    """An http(s) URL without user and password; ssh URLs need their user and have no password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _refs(git: _Git) -> dict[str, str]:
    """Branches and tags with their commits: refs/heads/main -> SHA; annotated tags are peeled."""
    lines = git("ls-remote", "--quiet", "--heads", "--tags", "--", git.repository.url, at=Path("/"))
    columns = [line.partition("\t") for line in lines]
    refs = {name: sha for sha, tab, name in columns if tab and _FULL.fullmatch(sha)}
    # An annotated tag is listed twice; the line that ends with ^{} has the commit.
    return {name: refs.get(f"{name}^{{}}", sha) for name, sha in refs.items() if not name.endswith("^{}")}


def _commits_starting_with(git: _Git, prefix: str) -> list[str]:
    """All commits of the repository whose SHA starts with the prefix.

    It needs a clone, which has commits only where the server supports partial clones.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        bare, parent = f"{folder}/commits", Path(folder)
        arguments = ("--quiet", "--bare", "--no-local", "--filter=tree:0", "--template=")
        git("clone", *arguments, "--", git.repository.url, bare, at=parent)
        git_dir = f"--git-dir={bare}"
        objects = git(git_dir, "rev-parse", f"--disambiguate={prefix}", at=parent, online=False)
        kinds = {sha: git(git_dir, "cat-file", "-t", sha, at=parent, online=False) for sha in objects}
    return [sha for sha, kind in kinds.items() if kind == ["commit"]]


def _is_clone(git: _Git, into: Path) -> bool:
    """Whether the folder is a clone of this repository; raises Invalid when it holds anything else."""
    if not into.exists() or not any(into.iterdir()):
        return False
    if (into / ".git").is_dir():
        url = git("config", "--get", "remote.origin.url", at=into, online=False)
        if url == [git.repository.url]:
            return True
    raise Invalid(f"the folder {into} is not a clone of {git.repository.url}", hint="remove it, or give another folder")


def _clone(git: _Git, into: Path) -> None:
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as folder:
        fresh = Path(folder) / "tree"
        # --no-local: git reads a path as it reads a server, without objects that no branch or tag contains.
        arguments = ("--quiet", "--no-checkout", "--no-local", "--filter=blob:none", "--template=")
        git("clone", *arguments, "--", git.repository.url, str(fresh), at=into.parent)
        if into.exists():
            shutil.rmtree(into)
        fresh.rename(into)


def _check_out(git: _Git, tree: Path, sha: str) -> None:
    """Make the files of the folder exactly those of the commit."""
    if not _has(git, tree, sha):
        refresh(git.repository, tree, timeout=timedelta(seconds=git.deadline - time.monotonic()))
    if not _has(git, tree, sha):
        raise _unknown(git.repository, sha, _refs(git))
    _write_files(git, tree, sha)
    git("clean", "--quiet", "-xdff", at=tree)
    if git.repository.submodules:
        _check_out_submodules(git, tree)
    _refuse_pointers(git, tree)


def _write_files(git: _Git, tree: Path, sha: str) -> None:
    _refuse_lfs_server(git, tree, sha)
    # Without its index git compares every file, also those that update-index told it to skip.
    git("read-tree", "--empty", at=tree)
    git("checkout", "--quiet", "--force", "--detach", sha, at=tree)


def _check_out_submodules(git: _Git, tree: Path, depth: int = 1) -> None:
    """Check the submodules of a checkout out, and theirs; not by `--recursive`, which reads them before we look."""
    git("submodule", "--quiet", "deinit", "--all", "--force", at=tree)
    git("submodule", "--quiet", "init", at=tree)
    for name, url in _config(git, tree, "--get-regexp", r"^submodule\..*\.url$"):
        _refuse_url(git.repository, url, f"the submodule {name.split('.', 1)[1].removesuffix('.url')!r}")
    no_redirects = ("-c", "http.followRedirects=false")  # they may lead to a server that we have just refused
    git(*no_redirects, "submodule", "--quiet", "update", "--force", at=tree, lfs=False)
    entries = "\n".join(git("ls-files", "-z", "--stage", at=tree, online=False)).split("\0")
    for entry in entries:
        mode_and_sha, _, path = entry.partition("\t")
        if not mode_and_sha.startswith(_SUBMODULE_MODE) or not (tree / path / ".git").exists():
            continue
        if depth >= _DEEPEST_SUBMODULE:
            raise Invalid(
                f"the commit has submodules in submodules, deeper than {_DEEPEST_SUBMODULE}", where=git.repository.url
            )
        _write_files(git, tree / path, mode_and_sha.split(" ")[1])
        _check_out_submodules(git, tree / path, depth + 1)


def _config(git: _Git, tree: Path, *arguments: str) -> list[tuple[str, str]]:
    """Keys and values of git's settings; none where no key matches."""
    finished, lines = git.attempt("config", "--null", *arguments, at=tree, online="--blob" in arguments)
    if finished.code not in (0, 1):
        raise _git_error(finished, git.repository)
    pairs = (entry.partition("\n") for entry in "\n".join(lines).split("\0") if entry)
    return [(key, value) for key, _, value in pairs]


def _refuse_lfs_server(git: _Git, tree: Path, sha: str) -> None:
    """Refuse a commit that names a server of Git LFS which we would not read a submodule from."""
    if not git("ls-tree", sha, "--", ".lfsconfig", at=tree, online=False):
        return
    for key, url in _config(git, tree, "--blob", f"{sha}:.lfsconfig", "--list"):
        if key.lower().endswith(("lfs.url", "lfs.pushurl", ".lfsurl", ".lfspushurl")):
            _refuse_url(git.repository, url, f"{key} in .lfsconfig")


def _refuse_url(repository: Repository, url: str, what: str) -> None:
    """Refuse a URL of a commit that reaches other servers than by https, or would be read with the ssh key.

    git itself refuses what is neither of these: paths, and commands (`ext::`).
    """
    if _bare(url) in map(_bare, repository.credentials_for):
        return
    scheme = url.partition("://")[0].lower() if "://" in url else "ssh" if re.match(r"[^/]+:", url) else "file"
    if scheme in ("https", "file") or (scheme == "http" and _server(url) == _server(repository.url)):
        return
    raise Invalid(
        f"{what} is at {_without_userinfo(url)[:200]!r}; a commit may choose https servers only, without credentials",
        where=repository.url,
        hint="if it belongs to the application, list it in source.credentials_for",
    )


def _refuse_pointers(git: _Git, tree: Path) -> None:
    """Refuse a checkout in which Git LFS pointers stand for contents; with git-lfs, git has replaced them."""
    if shutil.which("git-lfs"):
        return
    arguments = ("grep", "--files-with-matches", "--fixed-strings", "-e", _LFS_POINTER, "--", _LFS_FILES)
    commands: list[tuple[str, ...]] = [arguments]
    if git.repository.submodules:
        script = f"git {shlex.join(arguments)} || test $? = 1"
        commands.append(("submodule", "--quiet", "foreach", "--recursive", script))
    pointers: list[str] = []
    for command in commands:
        finished, files = git.attempt(*command, at=tree, online=False)
        if finished.code not in (0, 1):
            raise _git_error(finished, git.repository)
        pointers += files
    if pointers:
        more = f" and {len(pointers) - 1} more" if len(pointers) > 1 else ""
        raise MissingTool(
            f"{pointers[0]}{more}: the commit has a Git LFS pointer instead of the content, and git-lfs is not on PATH",
            where=git.repository.url,
            hint="install git-lfs where the release runs, for example: apt-get install git-lfs",
        )


def _has(git: _Git, tree: Path, sha: str) -> bool:
    finished, lines = git.attempt("rev-parse", "--verify", "--quiet", f"{sha}^{{commit}}", at=tree, online=False)
    return finished.code == 0 and any(line.startswith(sha) for line in lines)


def _commits(git: _Git, tree: Path, *arguments: str) -> tuple[Commit, ...]:
    text = "\n".join(git("log", _LOG_FORMAT, *arguments, "--", at=tree, online=False))
    fields = [field.removeprefix("\n") for field in text.split("\0")]
    return tuple(
        Commit(
            repository=git.repository.url,
            sha=sha,
            revision=sha,
            author=_one_line(author),
            committed_at=_time(seconds),
            subject=_one_line(subject),
        )
        for sha, author, seconds, subject in zip(fields[::4], fields[1::4], fields[2::4], fields[3::4], strict=False)
    )


def _one_line(text: str) -> str:
    """A text of a commit in one line, without control characters."""
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return printable if len(printable) <= _LONGEST_TEXT else f"{printable[:_LONGEST_TEXT]}…"


def _time(seconds: str) -> datetime:
    """The time of a commit; that of one with an impossible time is 1970."""
    try:
        return datetime.fromtimestamp(int(seconds), tz=timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, tz=timezone.utc)


def _unknown(repository: Repository, revision: str, refs: Iterable[str]) -> UnknownRevision:
    names = [ref.split("/", 2)[2] for ref in refs]
    branches = [ref.split("/", 2)[2] for ref in refs if ref.startswith("refs/heads/")]
    near = difflib.get_close_matches(revision, names, n=5)
    if _FULL.fullmatch(revision):
        reason, hint = f"no branch and no tag contains the commit {revision}", "push it to a branch first"
    else:
        reason = f"{revision!r} is no branch, no tag and no commit"
        hint = f"did you mean {' or '.join(near)}?" if near else f"branches: {', '.join(branches[:10]) or 'none'}"
    return UnknownRevision(reason, where=repository.url, hint=hint)


_ACCESS_HINT = "give credentials that may read it (source.credentials), or an ssh key that the server knows"
_KNOWN_FAILURES: tuple[tuple[str, type[DeliveryError], str, str], ...] = (
    (
        r"Object does not exist on the server|remote missing object",
        Invalid,
        "the server lacks the content of a file in Git LFS, or denies access to it",
        "from a clone that has it: git lfs push --all origin",
    ),
    (
        r"dubious ownership in repository at '(?P<path>[^']+)'",
        Invalid,
        "git does not read the repository because another user owns it",
        "git config --global --add safe.directory {path}",
    ),
    (
        r"transport '(?P<path>\w+)' not allowed",
        Invalid,
        "git refuses this kind of URL, here or in a submodule",
        "use https or ssh; a submodule cannot be a path",
    ),
    (
        r"No url found for submodule path|may be interpreted as a command-line option|invalid submodule name",
        Invalid,
        "a submodule has no name, path or URL that git accepts",
        "correct .gitmodules in the commit, or set source.submodules: false",
    ),
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        Forbidden,
        "the server's ssh host key is unknown, or differs from the known one",
        "compare the key with the published one, then add it to ~/.ssh/known_hosts (ssh-keyscan prints it)",
    ),
    (
        r"(?i)certificate (verification|verify|problem)|self.signed certificate",
        Invalid,
        "the server's certificate is not trusted",
        "set SSL_CERT_FILE or GIT_SSL_CAINFO to the authority that signed it",
    ),
    (
        r"(?i)repository.*not found|error: 404|does not appear to be a git repository|does not exist|project you were",
        Invalid,
        "there is no such repository, or access to it is denied",
        "check source.repository; a private repository also needs source.credentials",
    ),
    (
        r"Authentication failed|could not read (Username|Password)|error: 40[13]|Permission denied|HTTP 40[13]",
        Forbidden,
        "the repository denies access",
        _ACCESS_HINT,
    ),
)


def _git_error(finished: Finished, repository: Repository) -> DeliveryError:
    """The error for a failure of git; an unknown failure may be temporary, so it is Errored and not Invalid."""
    message = finished.last(20)
    if finished.timed_out:
        return RepositoryUnreachable(
            f"git did not finish within {finished.seconds:.0f} s",
            where=repository.url,
            detail=message,
            hint="try again, or raise source.timeout",
        )
    for pattern, kind, reason, hint in _KNOWN_FAILURES:
        if match := re.search(pattern, message):
            return kind(reason, where=repository.url, detail=message, hint=hint.format(**match.groupdict()))
    return RepositoryUnreachable(
        "git cannot read the repository",
        where=repository.url,
        detail=message,
        hint=f"try again; from this machine: git ls-remote {repository.url}",
    )


__all__ = ["Repository", "checkout", "is_ancestor", "log", "refresh", "resolve"]
