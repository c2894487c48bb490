"""A commit, or the server of its repository, means harm to whoever checks it out."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.errors import DeliveryError, Invalid
from prefect_cd.release.git import Repository, checkout, resolve
from tests.git_server import SECRET, git_over_http, serving
from tests.security.servers import answer, for_ever, hostile, sends

pytestmark = pytest.mark.timeout(60)
TIME = timedelta(seconds=50)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings of the user who runs the tests."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Eve")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "eve@example.org")
    return tmp_path / "home"


def git(at: Path, *arguments: str, stdin: str = "") -> str:
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=at, check=True, capture_output=True, text=True, input=stdin).stdout.strip()


def new_repository(at: Path) -> Path:
    at.mkdir(parents=True)
    git(at, "init", "--quiet", "--initial-branch=main")
    git(at, "commit", "--quiet", "--allow-empty", "--message=first")
    return at


def commit(at: Path, *submodules: str, files: dict[str, str] | None = None) -> str:
    """A commit with files, and submodules at these URLs; each is the first commit of its repository."""
    for name, content in (files or {}).items():
        (at / name).write_text(content)
    modules = ""
    for number, url in enumerate(submodules):
        modules += f'[submodule "m{number}"]\n\tpath = m{number}\n\turl = {url}\n'
        git(
            at,
            "update-index",
            "--add",
            "--cacheinfo",
            f"160000,{git(at, 'rev-list', '--max-parents=0', 'HEAD')},m{number}",
        )
    if modules:
        (at / ".gitmodules").write_text(modules)
        git(at, "add", ".gitmodules")
    git(at, "add", "--all", ":!m*")
    git(at, "commit", "--quiet", "--allow-empty", "--message=evil")
    return git(at, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return new_repository(tmp_path / "repositories" / "shop")


def refused(origin: Path, sha: str, into: Path, match: str) -> str:
    with pytest.raises(Invalid, match=match) as caught:
        checkout(Repository(str(origin), submodules=True), sha, into, timeout=TIME)
    return str(caught.value)


# --- submodules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://{inside}/acme/secret.git",
        "HTTP://{inside}/",
        "ssh://git@127.0.0.1:1/acme/secret.git",
        "git@127.0.0.1:acme/secret.git",
        "ssh://-oProxyCommand=touch%20{file}/x",
        "git://{inside}/acme/secret.git",
        "ext::sh -c 'touch {file}'",
        "file://{repositories}/secret",
        "{repositories}/secret",
        "--upload-pack=touch {file}",
    ],
)
def test_a_submodule_reaches_no_other_server_and_runs_nothing(origin: Path, tmp_path: Path, url: str) -> None:
    new_repository(tmp_path / "repositories" / "secret")
    with hostile(sends(answer(b"", status="404 Not Found"))) as inside:
        text = url.format(inside=inside.host, file=tmp_path / "evil", repositories=tmp_path / "repositories")
        sha = commit(origin, text)
        try:
            checkout(Repository(str(origin), submodules=True), sha, tmp_path / "tree", timeout=TIME)
        except Invalid as error:
            refusals = ("source.credentials_for", "git refuses this kind of URL", "that git accepts")
            assert any(text in str(error) for text in refusals)  # noqa: PT017
        assert inside.requests == []
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "tree" / "m0" / ".git").exists()


def commit_itself_as_submodule(origin: Path, home: Path, name: str = "m") -> None:
    """Commit the repository's own last commit as its submodule in the folder m; files may be read as repositories."""
    (home / ".gitconfig").write_text('[protocol "file"]\n allow = always\n')
    first = git(origin, "rev-parse", "HEAD")
    (origin / ".gitmodules").write_text(f'[submodule "{name}"]\n\tpath = m\n\turl = {origin}\n')
    git(origin, "update-index", "--add", "--cacheinfo", f"160000,{first},m")
    git(origin, "add", ".gitmodules")
    git(origin, "commit", "--quiet", "--message=itself")


def test_a_repository_that_contains_itself_ends(origin: Path, tmp_path: Path, home: Path) -> None:
    commit_itself_as_submodule(origin, home)
    inner = git(origin, "rev-parse", "HEAD")
    for _ in range(6):
        git(origin, "update-index", "--cacheinfo", f"160000,{inner},m")
        git(origin, "commit", "--quiet", "--message=itself")
        inner = git(origin, "rev-parse", "HEAD")
    refused(origin, inner, tmp_path / "tree", "submodules in submodules, deeper than")


@pytest.mark.parametrize("name", ["../../evil", ".git"])
def test_a_submodule_is_no_way_out_of_the_checkout(origin: Path, tmp_path: Path, home: Path, name: str) -> None:
    commit_itself_as_submodule(origin, home, name)
    before = {path.name for path in tmp_path.iterdir()}
    try:
        checkout(
            Repository(str(origin), submodules=True),
            git(origin, "rev-parse", "HEAD"),
            tmp_path / "a/b/tree",
            timeout=TIME,
        )
    except DeliveryError as error:
        assert error.reason  # noqa: PT017
    assert {path.name for path in tmp_path.iterdir()} == {*before, "a"}
    assert [path.name for path in (tmp_path / "a").rglob("*evil*")] == []


# --- the token -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server with private repositories, and what it was asked."""

    url: str
    seen: list[str | None]
    paths: list[str]

    def repository(self, name: str, **more: object) -> Repository:
        url = f"{self.url}/{name}"
        authenticated = url.replace("://", f"://bob:{quote(SECRET, safe='')}@")
        return Repository(url, authenticated_url=authenticated, submodules=True, **more)  # type: ignore[arg-type]

    def authorized(self) -> set[str]:
        """The repositories for which the credentials were given."""
        return {path.split("/")[1] for path, header in zip(self.paths, self.seen, strict=True) if header}


@pytest.fixture
def server(origin: Path) -> Iterator[Server]:
    seen: list[str | None] = []
    paths: list[str] = []
    with serving(git_over_http(origin.parent, seen, paths=paths)) as url:
        yield Server(url, seen, paths)


@pytest.mark.parametrize("path", ["secret", "shop/../secret", "shop/%2e%2e/secret", "shopping"])
def test_the_token_is_for_the_repository_and_no_other_one_of_its_server(
    origin: Path, server: Server, tmp_path: Path, path: str
) -> None:
    for name in ("secret", "shopping"):
        new_repository(origin.parent / name)
    sha = commit(origin, f"{server.url}/{path}/.git")
    with pytest.raises(DeliveryError):
        checkout(server.repository("shop/.git"), sha, tmp_path / "tree", timeout=TIME)
    assert server.authorized() == {"shop"}
    assert not (tmp_path / "tree" / "m0" / ".git").exists()


def test_the_operator_lists_the_submodules_that_the_token_is_for(origin: Path, server: Server, tmp_path: Path) -> None:
    shutil.copytree(origin, origin.parent / "library")  # so that it has the submodule's commit
    sha = commit(origin, "../../library/.git")
    repository = server.repository("shop/.git", credentials_for=(f"{server.url}/library/.git",))
    checkout(repository, sha, tmp_path / "tree", timeout=TIME)
    assert server.authorized() == {"shop", "library"}
    assert (tmp_path / "tree" / "m0" / ".git").exists()


# --- Git LFS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["lfs.url", "remote.origin.lfsurl", "LFS.URL"])
def test_a_server_of_git_lfs_is_no_host_of_our_network(origin: Path, tmp_path: Path, key: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n"
    files = {".gitattributes": "*.bin filter=lfs\n", "x.bin": pointer}
    with hostile(sends(answer(b"{}"))) as inside:
        git(origin, "config", "--file", ".lfsconfig", key, f"http://{inside.host}/lfs")
        sha = commit(origin, files=files)
        refused(origin, sha, tmp_path / "tree", "in .lfsconfig is at")
        assert inside.requests == []


# --- what a commit says of itself ------------------------------------------------------------------------------------


def raw_commit(origin: Path, header: bytes) -> str:
    """A commit with this author, as no git client would write it."""
    tree = git(origin, "rev-parse", "HEAD^{tree}")
    content = f"tree {tree}\n".encode() + header
    command = ["git", "hash-object", "-t", "commit", "-w", "--stdin", "--literally"]
    sha = subprocess.run(command, cwd=origin, input=content, check=True, capture_output=True).stdout.decode().strip()
    (origin / ".git/refs/heads/evil").write_text(f"{sha}\n")
    return sha


def described(author: bytes = b"Eve <e>", time: bytes = b"1 +0000", subject: bytes = b"x") -> bytes:
    return b"author %s %s\ncommitter %s %s\n\n%s\n" % (author, time, author, time, subject)


@pytest.mark.parametrize(
    "header",
    [
        described(author=b"a\rb <e>"),
        described(author=b"x" * 100_000 + b" <e>"),
        described(author=b"\x1b]0;evil\x07 <e>"),
        described(author=b"\xff\xfe <e>"),
        described(author=b" <e>"),
        described(time=b"999999999999999999 +0000"),
        described(time=b"-1 +0000"),
        described(time=b"evil"),
        described(subject=b"\x1b[2J\x1b[1;1Hevil\r\x00\xe2\x80\xae"),
        described(subject=b"x" * 1_000_000),
        described(subject=b""),
        b"author\ncommitter\n\nx\n",
    ],
    ids=lambda header: hashlib.sha256(header).hexdigest()[:6],
)
def test_no_commit_is_an_exception(origin: Path, tmp_path: Path, header: bytes) -> None:
    sha = raw_commit(origin, header)
    try:
        described = checkout(Repository(str(origin)), sha, tmp_path / "tree", timeout=TIME)
    except DeliveryError as error:
        assert error.code != "errored"  # noqa: PT017
        return
    assert described.sha == sha
    for text in (described.author, described.subject):
        assert len(text) <= 301
        assert text.isprintable()


# --- a server that lies ----------------------------------------------------------------------------------------------


def test_a_server_that_never_stops_is_given_up(tmp_path: Path) -> None:
    del tmp_path
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n"
    start = b"001e# service=git-upload-pack\n0000"
    line = b"003d" + b"a" * 40 + b" refs/heads/0123456\n"
    with hostile(for_ever(head + start, line * 1000)) as server, pytest.raises(DeliveryError):
        resolve(Repository(f"{server.url}/acme/shop"), "main", timeout=timedelta(seconds=2))


@given(st.binary(max_size=200), st.sampled_from([b"", b"001e# service=git-upload-pack\n0000"]))
@settings(max_examples=8, deadline=None)
def test_no_answer_of_a_server_is_an_exception(noise: bytes, start: bytes) -> None:
    kind = "Content-Type: application/x-git-upload-pack-advertisement"
    with hostile(sends(answer(start + noise, kind))) as server:
        try:
            resolve(Repository(f"{server.url}/acme/shop"), "main", timeout=timedelta(seconds=10))
        except DeliveryError as error:
            assert error.hint  # noqa: PT017
