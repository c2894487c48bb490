"""Running another program: live lines, a deadline, and nothing left behind.

Decides when a program has ended and what it may see of our environment. Knows nothing of what the program
is for: git, builders, checks and test suites all come through here, and its exit code is theirs to read.
"""

import codecs
import errno
import io
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_cd.errors import Invalid, MissingTool

_LINES_KEPT = 200
_LINE_LENGTH = 8192  # a longer line comes in pieces, so that output without newlines cannot fill the memory
_GRACE = timedelta(seconds=5)
_GLANCE = 0.05  # seconds between two looks at a silent program: it may have ended while a child holds its output
_FAREWELL = 0.5  # seconds for the last output of a program that was killed

_SEEN = frozenset(
    """
    HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME
    HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy ftp_proxy all_proxy no_proxy
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE PIP_CERT PIP_CACHE_DIR
    UV_INDEX_URL UV_DEFAULT_INDEX UV_CACHE_DIR NPM_CONFIG_REGISTRY npm_config_registry GOPROXY
    PLAYWRIGHT_BROWSERS_PATH
    """.split()  # noqa: SIM905 - words are read better than a column of 40 strings
)


def ignore(_line: str) -> None:
    """Listen to nothing."""


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: its exit code; negative when a signal ended it, as in `subprocess`.
        output: the last 200 lines of its standard output and standard error, in the order they came.
        seconds: how long it took.
        timed_out: True when we ended it because its time was over.
    """

    code: int
    output: str
    seconds: float
    timed_out: bool

    def last(self, lines: int) -> str:
        """The last `lines` lines of the output."""
        return "\n".join(self.output.splitlines()[-lines:])


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: timedelta,
    on_line: Callable[[str], None] = ignore,
) -> Finished:
    """Run a program to its end and hand over its lines as they come.

    There is no shell, standard input is empty, and the program gets a session of its own: no terminal to ask
    questions on. When its time is over, when it has ended but children of its process group have not, and
    when the caller is interrupted by any exception (Prefect cancels with a BaseException), the whole group gets
    SIGTERM and, as far as it is still there five seconds later, SIGKILL. Only a child that made itself a
    session of its own escapes.

    Args:
        command: program and arguments.
        cwd: where it starts.
        env: its whole environment, usually from `clean_environment`.
        timeout: after this it is ended.
        on_line: called in the caller's thread with each line, without its end; bytes that are not UTF-8 are replaced.

    Raises:
        MissingTool: the program does not exist or cannot be executed.
        Invalid: the folder to start in does not exist.
    """
    started = time.monotonic()
    process = _start(command, cwd, env)
    output = _Output(process, on_line)
    ended = False
    try:
        ended = _follow(process, output, started + timeout.total_seconds())
    except BaseException:
        output.on_line = ignore
        raise
    finally:
        _end(process, output)
    return Finished(
        code=process.returncode,
        output="\n".join(output.kept),
        seconds=time.monotonic() - started,
        timed_out=not ended,
    )


def clean_environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment for a program that comes from a commit, or that has no business with our secrets.

    The rule: a variable is passed on when it is on the list, not when it is harmless. On the list is what every
    program needs to find its tools, speak its language and reach the network: PATH (with the folder of our own
    Python first, so that `python` and `pytest` are the ones of this environment), HOME, USER, LANG, LC_*, TZ,
    TMPDIR, proxies, certificates and package indexes. Everything else stays here: KUBECONFIG, PREFECT_*, AWS_*,
    tokens. The rule is about variables only; a file below HOME can be read by whoever runs as the same user.

    Args:
        extra: variables that this program needs besides; they win.
    """
    passed = {name: value for name, value in os.environ.items() if name in _SEEN or name.startswith("LC_")}
    return {**passed, "PATH": _path(), **extra}


def _path() -> str:
    ours = str(Path(sys.executable).parent)
    others = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([ours, *(folder for folder in others if folder and folder != ours)])


class _Output:
    """What a program writes: lines to the listener as they come, the last ones kept."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
        if process.stdout is None:
            raise ValueError("the program's output is not a pipe")
        self.on_line = on_line
        self.kept: deque[str] = deque(maxlen=_LINES_KEPT)
        self.open = True
        self.close = process.stdout.close
        self._descriptor = process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._unfinished = ""

    def read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False when nothing came. `open` turns False at the end."""
        if not self._poll.poll(seconds * 1000):
            return False
        chunk = os.read(self._descriptor, 65536)
        self.open = bool(chunk)
        self._take(chunk)
        return True

    def finish(self) -> None:
        """Take the rest of a program that is gone; whoever still holds its output is not waited for."""
        deadline = time.monotonic() + _FAREWELL
        while self.open and time.monotonic() < deadline:
            self.read(_GLANCE)
        if self.open:
            self._take(b"")

    def _take(self, chunk: bytes) -> None:
        text = self._unfinished + self._decoder.decode(chunk, final=not chunk)
        *lines, rest = text.split("\n")
        pieces = [piece for line in lines for piece in _cut(line)]
        *more, self._unfinished = _cut(rest)
        if not chunk and self._unfinished:
            more.append(self._unfinished)
            self._unfinished = ""
        for line in pieces + more:
            self.kept.append(line)
            self.on_line(line)


def _cut(line: str) -> list[str]:
    return [line[at : at + _LINE_LENGTH] for at in range(0, len(line), _LINE_LENGTH)] or [""]


def _start(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    if not cwd.is_dir():
        raise Invalid(f"there is no folder {cwd} to run {command[0]!r} in", hint="correct the directory")
    try:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
            raise
        raise MissingTool(
            f"{command[0]!r} cannot be run: {os.strerror(error.errno)}",
            hint=f"install {command[0]}, put its folder on PATH, or make it executable with a #! line",
        ) from error


def _follow(process: subprocess.Popen[bytes], output: _Output, deadline: float) -> bool:
    """Read until the program has ended (True) or its time is over (False)."""
    while (left := deadline - time.monotonic()) > 0:
        if output.open:
            output.read(min(left, _GLANCE))
        else:
            time.sleep(min(left, _GLANCE / 10))
        if _has_ended(process):
            return True
    return False


def _end(process: subprocess.Popen[bytes], output: _Output) -> None:
    """Leave nobody of the group behind, read what is still to be read, and reap."""
    try:
        _signal(process, signal.SIGTERM)
        # Children that write where the program wrote keep the output open: its end is theirs, too.
        deadline = time.monotonic() + _GRACE.total_seconds()
        while (left := deadline - time.monotonic()) > 0 and (output.open or not _has_ended(process)):
            if output.open:
                output.read(min(left, _GLANCE))
            else:
                time.sleep(min(left, _GLANCE / 10))
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()
        try:
            output.finish()
        finally:
            output.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The program is not reaped before the last signal, so its id cannot belong to a stranger yet.
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # someone else in this process reaps all children


__all__ = ["Finished", "clean_environment", "ignore", "run"]
