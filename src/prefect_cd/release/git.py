"""Where commits come from: one revision becomes one commit, and one commit becomes one folder.

Decides what a name means (once, and only when it means one thing), and which commits count: those that a branch
or a tag of the repository contains. Knows nothing of images, pipelines or Prefect; calls git and nothing else.

Why not Prefect's `GitRepository`: it needs 40 digits for a commit, checks no submodules out together with one,
has no log, and puts the credentials on command lines, where every user of the machine can read them.
"""

import difflib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from prefect_cd.errors import DeliveryError, Errored, Forbidden, Invalid, RepositoryUnreachable, UnknownRevision
from prefect_cd.process import Finished, clean_environment, run
from prefect_cd.release.model import Commit

_FULL = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-fA-F]{7,39}")
_NAME = re.compile(r"(?!-)(?!.*(\.\.|@\{))[^\x00-\x20\x7f~^:?*\[\\]+")  # git help check-ref-format
_LOCAL = timedelta(minutes=1)  # for calls that read a checkout and ask no server
_RECORD = re.compile(r"([0-9a-f]{40})\0([^\0]*)\0(\d+)\0(.*)")
_FORMAT = "--format=%H%x00%an%x00%ct%x00%s"


@dataclass(frozen=True)
class Repository:
    """A git repository, and how we may read it.

    Attributes:
        url: https or ssh URL, or an absolute path; credentials in an http(s) URL are moved out of it.
        authenticated_url: the same with credentials; secret, never shown.
        submodules: check submodules out, too.
    """

    url: str
    authenticated_url: str | None = field(default=None, repr=False)
    submodules: bool = False

    def __post_init__(self) -> None:
        plain = _without_userinfo(self.url)
        if plain != self.url:
            object.__setattr__(self, "authenticated_url", self.authenticated_url or self.url)
            object.__setattr__(self, "url", plain)


def resolve(repository: Repository, revision: str, *, timeout: timedelta) -> str:
    """The commit that a branch, a tag or a short SHA means now, as 40 hex digits.

    A full SHA is its own answer and is proved by `checkout`. Full names (refs/heads/…, refs/tags/…) are
    understood and settle what is ambiguous.

    Raises:
        UnknownRevision: nothing has that name, or several things have.
        RepositoryUnreachable: the repository does not answer within `timeout`.
        Forbidden: it refuses us.
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
    meanings = {name: refs[name] for name in names}
    if _SHORT.fullmatch(revision):
        meanings.update({f"commit {sha}": sha for sha in _commits_starting_with(git, revision.lower())})
    if not meanings:
        raise _unknown(repository, revision, refs)
    if len(set(meanings.values())) > 1:
        raise UnknownRevision(
            f"{revision!r} is ambiguous: it is {' and '.join(f'{name} ({meanings[name][:12]})' for name in meanings)}",
            where=repository.url,
            hint="give the full name or the full SHA",
        )
    return next(iter(meanings.values()))


def checkout(
    repository: Repository, sha: str, into: Path, *, timeout: timedelta, revision: str | None = None
) -> Commit:
    """Put exactly one commit into a folder, with the history of all commits but the contents of this one only.

    A folder that we filled before is used again: what was changed, added or ignored there is gone afterwards,
    and the network is needed only for what is missing. A clone appears at once or not at all.

    Args:
        repository: where the commit is.
        sha: 40 hex digits; a branch or a tag must contain it. Servers also hand out commits of forks and of
            rejected pull requests by number; nobody of the repository has accepted those.
        into: the folder: absent, empty, or from an earlier call.
        timeout: for everything together.
        revision: what a person asked for; for the result only.

    Raises:
        UnknownRevision: no branch or tag contains the commit.
        RepositoryUnreachable: the repository does not answer within `timeout`.
        Forbidden: it refuses us.
        Invalid: there is no such repository, or the folder holds something else.
    """
    if not _FULL.fullmatch(sha):
        raise UnknownRevision(f"{sha!r} is not a full commit SHA", hint="resolve the revision first")
    git = _Git(repository, _deadline(timeout))
    try:
        reused = _is_ours(git, into)
        if reused:
            _fill(git, into, sha)
    except Errored:
        reused = False  # a lock, a half-written object: what an earlier process left when it was killed
    if not reused:
        _clone(git, into)
        _fill(git, into, sha)
    (commit,) = _commits(git, into, "-1", sha)
    return commit.model_copy(update={"revision": revision or sha})


def refresh(repository: Repository, tree: Path, *, timeout: timedelta) -> None:
    """Learn what was pushed since the checkout; the folder's files stay as they are.

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
        limit: so many at most.
    """
    git = _reading(tree)
    bound = (f"^{since}",) if since and _has(git, tree, since) else ()
    return _commits(git, tree, f"-{limit}", until, *bound)


def is_ancestor(tree: Path, older: str, newer: str) -> bool | None:
    """Whether `newer` contains `older`; None when the folder does not know one of them.

    None means: not known here. A commit that was pushed after the checkout is known after `refresh`; one that is
    then still unknown is not in the repository (any longer).
    """
    git = _reading(tree)
    if not (_has(git, tree, older) and _has(git, tree, newer)):
        return None
    ended, _ = git.attempt("merge-base", "--is-ancestor", older, newer, at=tree, online=False)
    if ended.code not in (0, 1):
        raise _explain(ended, git.repository)
    return ended.code == 0


@dataclass(frozen=True)
class _Git:
    """A git that is called so that it asks nobody, runs nothing that a commit brought along, and shows no secret."""

    repository: Repository
    deadline: float

    def __call__(self, *arguments: str, at: Path, online: bool = True) -> list[str]:
        """The lines git writes; a typed error when it fails."""
        ended, lines = self.attempt(*arguments, at=at, online=online)
        if ended.code or ended.timed_out:
            raise _explain(ended, self.repository)
        return lines

    def attempt(self, *arguments: str, at: Path, online: bool = True) -> tuple[Finished, list[str]]:
        lines: list[str] = []
        ended = run(
            ["git", *arguments],
            cwd=at,
            env=_environment(self.repository, online=online),
            timeout=timedelta(seconds=max(self.deadline - time.monotonic(), 0.1)),
            on_line=lines.append,
        )
        return ended, lines


def _deadline(timeout: timedelta) -> float:
    return time.monotonic() + timeout.total_seconds()


def _reading(tree: Path) -> _Git:
    """Call git for a folder of ours, without the network."""
    git = _Git(Repository(str(tree)), _deadline(_LOCAL))
    (url,) = git("config", "--get", "remote.origin.url", at=tree, online=False)
    return _Git(Repository(url), git.deadline)


# What git may take over from our own environment: how the operator reaches servers, nothing that redirects git itself.
_OPERATORS = frozenset(
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
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "protocol.ext.allow": "never",
    "safe.bareRepository": "explicit",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",  # it would go on in the background after us
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "log.showSignature": "false",
    "i18n.logOutputEncoding": "UTF-8",
    "color.ui": "false",
}
# The words of the secret stay in variables: a URL with credentials would be an argument of git's own helper programs
# (git-remote-https), and so in the process list. git asks this line only for the host that it is scoped to.
_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
    '"$PREFECT_CD_GIT_USERNAME" "$PREFECT_CD_GIT_PASSWORD"; }; f'
)


def _environment(repository: Repository, *, online: bool) -> dict[str, str]:
    operators = {
        name: value for name, value in os.environ.items() if name in _OPERATORS or name.startswith("GIT_CONFIG_")
    }
    variables = {**operators, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""}
    settings = list(_SETTINGS.items())
    if repository.authenticated_url:
        settings += _access(repository.url, repository.authenticated_url)
        variables.update(_secret(repository.authenticated_url))
    if not online:
        # A partial clone would fetch a missing object in the middle of a question about it.
        variables.update({"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"})
    elif "GIT_SSH" not in operators:
        variables["GIT_SSH_COMMAND"] = f"{operators.get('GIT_SSH_COMMAND', 'ssh')} -o BatchMode=yes"
    first = int(operators.get("GIT_CONFIG_COUNT", "0"))
    for number, (key, value) in enumerate(settings, first):
        variables[f"GIT_CONFIG_KEY_{number}"] = key
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    variables["GIT_CONFIG_COUNT"] = str(first + len(settings))
    return clean_environment(variables)


def _access(url: str, authenticated: str) -> list[tuple[str, str]]:
    """Settings of git for reading `url` the way `authenticated` says, without its secret."""
    plain = _without_userinfo(authenticated)
    settings = [(f"url.{plain}.insteadOf", url)] if plain != url else []
    if plain != authenticated:
        parts = urlsplit(plain)
        host = f"{parts.scheme}://{parts.netloc}"
        settings += [("credential.helper", ""), (f"credential.{host}.helper", _HELPER)]
    return settings


def _secret(authenticated: str) -> dict[str, str]:
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
    """Branches and tags with the commits they mean: refs/heads/main -> SHA; annotated tags are peeled."""
    lines = git("ls-remote", "--quiet", "--heads", "--tags", "--", git.repository.url, at=Path("/"))
    found = [line.partition("\t") for line in lines]
    refs = {name: sha for sha, tab, name in found if tab and _FULL.fullmatch(sha)}
    return {name: refs.get(f"{name}^{{}}", sha) for name, sha in refs.items() if not name.endswith("^{}")}


def _commits_starting_with(git: _Git, prefix: str) -> list[str]:
    """All commits of the repository whose SHA starts so; needs a clone, of commits only where the server can."""
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        bare, here = f"{folder}/commits", Path(folder)
        arguments = ("--quiet", "--bare", "--no-local", "--filter=tree:0", "--template=")
        git("clone", *arguments, "--", git.repository.url, bare, at=here)
        inside = (f"--git-dir={bare}",)
        objects = git(*inside, "rev-parse", f"--disambiguate={prefix}", at=here, online=False)
        kinds = {sha: git(*inside, "cat-file", "-t", sha, at=here, online=False) for sha in objects}
    return [sha for sha, kind in kinds.items() if kind == ["commit"]]


def _is_ours(git: _Git, into: Path) -> bool:
    """Whether the folder is a clone of this repository; raises when it is anything else but empty."""
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
        # no-local: a path is read as a server would be, without the objects that no branch or tag contains.
        arguments = ("--quiet", "--no-checkout", "--no-local", "--filter=blob:none", "--template=")
        git("clone", *arguments, "--", git.repository.url, str(fresh), at=into.parent)
        if into.exists():
            shutil.rmtree(into)
        fresh.rename(into)


def _fill(git: _Git, tree: Path, sha: str) -> None:
    """Make the files of the folder those of the commit, whatever was done to them."""
    if not _has(git, tree, sha):
        refresh(git.repository, tree, timeout=timedelta(seconds=git.deadline - time.monotonic()))
    if not _has(git, tree, sha):
        raise _unknown(git.repository, sha, _refs(git))
    # Without its index git believes no file to be unchanged.
    (tree / ".git" / "index").unlink(missing_ok=True)
    git("checkout", "--quiet", "--force", "--detach", sha, at=tree)
    git("clean", "--quiet", "-xdff", at=tree)
    if git.repository.submodules:
        git("submodule", "--quiet", "deinit", "--all", "--force", at=tree)
        git("submodule", "--quiet", "update", "--init", "--recursive", "--force", at=tree)


def _has(git: _Git, tree: Path, sha: str) -> bool:
    ended, lines = git.attempt("rev-parse", "--verify", "--quiet", f"{sha}^{{commit}}", at=tree, online=False)
    return ended.code == 0 and any(line.startswith(sha) for line in lines)


def _commits(git: _Git, tree: Path, *arguments: str) -> tuple[Commit, ...]:
    lines = git("log", _FORMAT, *arguments, "--", at=tree, online=False)
    return tuple(
        Commit(
            repository=git.repository.url,
            sha=match[1],
            revision=match[1],
            author=match[2],
            committed_at=datetime.fromtimestamp(int(match[3]), tz=timezone.utc),
            subject=match[4],
        )
        for match in map(_RECORD.fullmatch, lines)
        if match
    )


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


_REFUSED = "give credentials that may read it (source.credentials), or an ssh key that the server knows"
_EXPLANATIONS: tuple[tuple[str, type[DeliveryError], str, str], ...] = (
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
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        Forbidden,
        "the server's ssh host key is not known, or not the known one",
        "compare the key with the one its owner publishes, then add it to ~/.ssh/known_hosts (ssh-keyscan prints it)",
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
        "there is no such repository, or none that we may see",
        "check source.repository; a private repository also needs source.credentials",
    ),
    (
        r"Authentication failed|could not read (Username|Password)|error: 40[13]|Permission denied|HTTP 40[13]",
        Forbidden,
        "the repository refuses us",
        _REFUSED,
    ),
)


def _explain(ended: Finished, repository: Repository) -> DeliveryError:
    """What git's failure means; what we do not recognise may heal, so it is errored, not wrong."""
    said = _scrubbed(ended.last(20), repository)
    if ended.timed_out:
        return RepositoryUnreachable(
            f"git did not finish within {ended.seconds:.0f} s",
            where=repository.url,
            detail=said,
            hint="try again, or raise source.timeout",
        )
    for pattern, kind, reason, hint in _EXPLANATIONS:
        if found := re.search(pattern, said):
            return kind(reason, where=repository.url, detail=said, hint=hint.format(**found.groupdict()))
    return RepositoryUnreachable(
        "git cannot read the repository",
        where=repository.url,
        detail=said,
        hint=f"try again; from this machine: git ls-remote {repository.url}",
    )


def _scrubbed(text: str, repository: Repository) -> str:
    """The text without anything secret; git is careful, but its helpers quote what servers say."""
    userinfo = urlsplit(repository.authenticated_url or "").netloc.rpartition("@")[0]
    secrets = {userinfo, *userinfo.split(":", 1)[-1:]}
    for secret in secrets | {unquote(secret) for secret in secrets}:
        text = text.replace(secret, "***") if secret else text
    return re.sub(r"(https?://)[^/@\s']+@", r"\1", text)


__all__ = ["Repository", "checkout", "is_ancestor", "log", "refresh", "resolve"]
