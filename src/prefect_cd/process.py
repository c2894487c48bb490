"""Run another program: its lines as they come, a time limit, and no process left behind.

Decides when a program has ended, which environment variables it gets, and how it is isolated (`launcher` does that).
Knows nothing of what the program is for: git, builders, checks and test suites are all run here, and their modules
interpret the exit code.
"""

import codecs
import ctypes
import errno
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from prefect_cd.errors import Invalid, MissingTool
from prefect_cd.masking import BY_SHAPE, Mask, secrets_in

_LINES_KEPT = 200
_LINE_LENGTH = 8192  # a longer line comes in pieces, so that output without newlines cannot fill the memory
_SEPARATORS = " \t,;"  # where a piece ends if there is one: half of a secret would not be recognized
_MOST_STDOUT = 64 * 2**20  # bytes kept when standard output is asked for in full
_MOST_STDIN = select.PIPE_BUF  # bytes that fit into an empty pipe everywhere, so that writing them never waits
_GRACE = timedelta(seconds=5)
_UMASK = 0o022  # a builder copies the modes of a checkout's files into the image, and pods must be able to read them
_POLL = 0.05  # seconds between two checks of a silent program: it may have ended while a child keeps its output open
_LAST_OUTPUT = 0.5  # seconds for reading the last output of a program that has ended

_PASSED_ON = frozenset(
    """
    HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME
    HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy ftp_proxy all_proxy no_proxy
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE PIP_CERT PIP_CACHE_DIR
    UV_INDEX_URL UV_DEFAULT_INDEX UV_CACHE_DIR NPM_CONFIG_REGISTRY npm_config_registry GOPROXY
    PLAYWRIGHT_BROWSERS_PATH
    """.split()  # noqa: SIM905 - a line of words is easier to read than a column of 40 strings
)


_LAUNCHER = Path(__file__).with_name("launcher.py")
_LAUNCHER_GRACE = timedelta(seconds=3)  # the launcher ends the program's processes itself; we end it after this time
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108  nothing is written there: an isolated program gets empty ones
_CACHES = (".cache", ".npm", ".m2", ".gradle", ".cargo", ".nuget", "go")
"""Below HOME: where package managers keep downloads."""
_SET_DUMPABLE = 4

IsolationLevel = Literal["none", "processes", "network"]


@dataclass(frozen=True)
class Isolation:
    """How a program of a commit is kept apart.

    Attributes:
        level: what is required. `none`: nothing; its processes are ended with it. `processes`: also, it sees no other
            processes, and all files are read-only to it except `writable`, package caches below HOME, and temporary
            folders of its own. `network`: also, it has no network. None: `processes` where the machine allows it, else
            `none`.
        writable: existing folders that it may write, even below a temporary folder or a hidden one.
        read_only: files and folders below writable ones that it must not change.
        hidden: files and folders whose content it must not see.
    """

    level: IsolationLevel | None = None
    writable: tuple[Path, ...] = ()
    read_only: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()


BEST_ISOLATION = Isolation()
"""The best that the machine allows."""


def ignore(_line: str) -> None:
    """Discard a line."""


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: its exit code; negative when a signal ended it, as in `subprocess`.
        output: the last 200 lines of its standard output and standard error, in the order they came, without secrets.
        seconds: how long it took.
        timed_out: True when it was ended because its time limit was over.
        stdout: the whole standard output, with its secrets, when it was separated from standard error, which alone is
            then in `output`; empty otherwise.
    """

    code: int
    output: str
    seconds: float
    timed_out: bool
    stdout: str = ""

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
    stdin: str = "",
    separate_stdout: bool = False,
    isolation: Isolation | None = None,
    mask: Mask = BY_SHAPE,
) -> Finished:
    """Run a program to its end and pass on its lines as they come, without secrets.

    There is no shell, standard input ends after `stdin`, and the program gets a session of its own, so that it
    cannot ask questions on a terminal. Files that it makes have the usual modes, whatever our own umask is. The
    whole process group gets SIGTERM and, five seconds later, SIGKILL when the time limit is over, when the program
    has ended but its children have not, and when any exception interrupts the caller (Prefect cancels with a
    BaseException). Only a child that created a session of its own escapes, and none of an isolated program.

    Args:
        command: program and arguments.
        cwd: working directory.
        env: its whole environment, usually from `clean_environment`.
        timeout: the program is ended after this time.
        on_line: called in the caller's thread with each line, without its end; bytes that are not UTF-8 are replaced.
        stdin: what the program reads, at most 4096 bytes (512 on some systems).
        separate_stdout: keep standard output apart, in full; `on_line` and `Finished.output` then have only standard
            error.
        isolation: for a program that comes from a commit, or that executes what a commit contains. `on_line` then gets
            a first line that says how it is isolated, unless the level is `none`.
        mask: knows what is secret in its lines; so are the secrets among the variables of this process.

    Raises:
        MissingTool: the program does not exist or cannot be executed, or the machine does not allow the isolation.
        Invalid: the folder to start in does not exist, or separated standard output is larger than 64 MiB.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        if isolation is None:
            process, grace = _start(command, cwd, env, stdin, separate_stdout=separate_stdout), _GRACE
        else:
            process = stack.enter_context(
                _isolated(command, cwd, env, stdin, isolation, on_line, separate_stdout=separate_stdout)
            )
            grace = _GRACE + _LAUNCHER_GRACE
        output = _Output(command[0], process, on_line, mask.with_values(secrets_in({**os.environ, **env})))
        ended = False
        try:
            ended = _follow(process, output, started + timeout.total_seconds())
        except BaseException:
            output.on_line = ignore
            raise
        finally:
            _end(process, output, grace)
    return Finished(
        code=process.returncode,
        output="\n".join(output.kept),
        seconds=time.monotonic() - started,
        timed_out=not ended,
        stdout=output.stdout.decode(errors="replace"),
    )


def protect_this_process() -> None:
    """Close `/proc/PID` and the memory of this process to other processes of the same user, where this is Linux.

    They hold our environment variables. Forks inherit it, other programs that are started do not.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def clean_environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment for a program that comes from a commit, or that does not need our secrets.

    The rule: a variable is passed on when it is on the list, not when it is harmless. The list has what every program
    needs to find its tools, use the right language and reach the network: PATH (with the folder of the running Python
    first, so that `python` and `pytest` are the ones of this environment), HOME, USER, LANG, LC_*, TZ, TMPDIR, proxies,
    certificates and package indexes. Everything else is left out: KUBECONFIG, PREFECT_*, AWS_*, tokens. The rule covers
    variables only: the program still runs as the same user, who may read the files below HOME.

    Args:
        extra: further variables for this program; they override.
    """
    passed = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("LC_")}
    return {**passed, "PATH": _path(), **extra}


def _path() -> str:
    python_folder = str(Path(sys.executable).parent)
    others = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([python_folder, *(folder for folder in others if folder and folder != python_folder)])


class _Output:
    """What a program writes: lines are passed on as they come, and the last ones are kept, all without secrets.

    Standard output that is separated from standard error is kept whole, and as it is.
    """

    def __init__(
        self, program: str, process: subprocess.Popen[bytes], on_line: Callable[[str], None], mask: Mask
    ) -> None:
        if process.stdout is None:
            raise ValueError("the program's output is not a pipe")
        self.on_line = on_line
        self.kept: deque[str] = deque(maxlen=_LINES_KEPT)
        self.stdout = bytearray()
        self._program = program
        self._lines = process.stderr or process.stdout
        self._pipes = {pipe.fileno(): pipe for pipe in (process.stdout, process.stderr) if pipe}
        self._open = set(self._pipes)
        self._poll = select.poll()
        for descriptor in self._pipes:
            self._poll.register(descriptor, select.POLLIN)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._unfinished = ""
        self._masked = mask.line_by_line()

    @property
    def open(self) -> bool:
        """Whether a process may still write."""
        return bool(self._open)

    def close(self) -> None:
        """Close our ends of the pipes."""
        for pipe in self._pipes.values():
            pipe.close()

    def read(self, seconds: float) -> bool:
        """Read the output of the next `seconds`; False when there was none. `open` turns False at the end."""
        ready = self._poll.poll(seconds * 1000)
        for descriptor, _event in ready:
            chunk = os.read(descriptor, 65536)
            if not chunk:
                self._open.discard(descriptor)
                self._poll.unregister(descriptor)
            if self._pipes[descriptor] is self._lines:
                self._take(chunk)
            else:
                self._keep_stdout(chunk)
        return bool(ready)

    def finish(self) -> None:
        """Read the rest after the program has ended; do not wait for other processes that keep its output open."""
        deadline = time.monotonic() + _LAST_OUTPUT
        while self.open and time.monotonic() < deadline:
            self.read(_POLL)
        if self._lines.fileno() in self._open:
            self._take(b"")

    def _keep_stdout(self, chunk: bytes) -> None:
        if len(self.stdout) + len(chunk) > _MOST_STDOUT:
            raise Invalid(f"{self._program!r} wrote more than {_MOST_STDOUT // 2**20} MiB to its standard output")
        self.stdout += chunk

    def _take(self, chunk: bytes) -> None:
        text = self._unfinished + self._decoder.decode(chunk, final=not chunk)
        *lines, rest = text.split("\n")
        pieces = [piece for line in lines for piece in _cut(line)]
        *more, self._unfinished = _cut(rest)
        if not chunk and self._unfinished:
            more.append(self._unfinished)
            self._unfinished = ""
        for line in map(self._masked, pieces + more):
            self.kept.append(line)
            self.on_line(line)


def _cut(line: str) -> list[str]:
    pieces: list[str] = []
    while len(line) > _LINE_LENGTH:
        separator = max(line.rfind(character, _LINE_LENGTH // 2, _LINE_LENGTH) for character in _SEPARATORS)
        end = separator + 1 or _LINE_LENGTH
        pieces.append(line[:end])
        line = line[end:]
    return [*pieces, line]


def _start(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    stdin: str,
    *,
    separate_stdout: bool,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    if not cwd.is_dir():
        raise Invalid(f"there is no folder {cwd} to run {command[0]!r} in", hint="correct the directory")
    reader = _filled_pipe(stdin.encode()) if stdin else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=reader,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if separate_stdout else subprocess.STDOUT,
            start_new_session=True,
            umask=_UMASK,
            bufsize=0,
            pass_fds=descriptors,
        )
    except OSError as error:
        raise _cannot_run(command[0], error) from error
    finally:
        if reader != subprocess.DEVNULL:
            os.close(reader)


def _cannot_run(program: str, error: OSError) -> Exception:
    if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
        return error
    return MissingTool(
        f"{program!r} cannot be run: {os.strerror(error.errno)}",
        hint=f"install {program}, put its folder on PATH, or make it executable with a #! line",
    )


@contextmanager
def _isolated(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    stdin: str,
    isolation: Isolation,
    on_line: Callable[[str], None],
    *,
    separate_stdout: bool,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program by the launcher, with the best isolation that is allowed here; its temporary folders end with it.

    A program whose isolation fails has not been started.
    """
    if not cwd.is_dir():
        raise Invalid(f"there is no folder {cwd} to run {command[0]!r} in", hint="correct the directory")
    protect_this_process()
    scratch = Path(tempfile.mkdtemp(prefix="prefect-cd-")).resolve()
    refused = "" if sys.platform == "linux" else "not Linux"
    try:
        for level in (isolation.level,) if isolation.level else ("processes", "none"):
            if refused and level != "none":
                continue
            options = _launcher_options(command, cwd, env, isolation, level, scratch)
            process, report = _launch(options, cwd, env, stdin, separate_stdout=separate_stdout)
            if "refused" in report:
                refused = str(report["refused"])
                continue
            if "errno" in report:
                raise _cannot_run(command[0], OSError(report["errno"], os.strerror(report["errno"])))
            if isolation.level != "none":
                on_line(f"isolation: {level}{f' ({refused})' if refused else ''}")
            yield process
            return
        raise MissingTool(
            f"{command[0]!r} cannot be isolated as required: {refused}",
            where=f"security.isolation: {isolation.level}",
            hint="allow user namespaces on this machine (in a container, they need its runtime's permission), or "
            "require less in the pipeline file",
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _launch(
    options: dict[str, Any], cwd: Path, env: Mapping[str, str], stdin: str, *, separate_stdout: bool
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start the launcher; returns when it has started the program, or could not, with its report."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as reports:
        try:
            command = [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps({**options, "report": writer})]
            process = _start(command, cwd, env, stdin, separate_stdout=separate_stdout, descriptors=[writer])
        finally:
            os.close(writer)
        report: dict[str, Any] = {}
        for line in reports:  # until the program is executed, which closes its end of the pipe
            report |= json.loads(line)
    if not report:
        report["refused"] = "the launcher of programs does not run"
    if report.keys() & {"refused", "errno"}:
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
        process.wait()
    return process, report


def _launcher_options(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    isolation: Isolation,
    level: IsolationLevel,
    scratch: Path,
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "command": list(command),
        "cwd": str(cwd.resolve()),
        "variables": list(env),
        "isolation": level,
        "grace": _GRACE.total_seconds(),
        "parent": os.getpid(),
    }
    if level == "none":
        return options
    home = Path(env.get("HOME") or Path.home())
    caches = [home / name for name in _CACHES] + [
        Path(value) for name, value in env.items() if name.upper().endswith("_CACHE_DIR") or name == "XDG_CACHE_HOME"
    ]
    temporary = {path: scratch / str(number) for number, path in enumerate(_temporary_folders(env, isolation))}
    for folder in temporary.values():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
    return options | {
        "writable": _existing(isolation.writable),
        "read_only": _existing(isolation.read_only),
        "hidden": _existing(isolation.hidden),
        "visible": _existing(_python_folders()),
        "caches": _existing(caches),
        "temporary": {str(path): str(folder) for path, folder in temporary.items()},
    }


def _temporary_folders(env: Mapping[str, str], isolation: Isolation) -> list[Path]:
    own = [Path(env["TMPDIR"])] if env.get("TMPDIR") else []
    folders = [Path(path).resolve() for path in (*map(Path, _TEMPORARY), *own)]
    writable = {path.resolve() for path in isolation.writable}
    return [path for path in dict.fromkeys(folders) if path.is_dir() and path not in writable]


def _python_folders() -> list[Path]:
    """The folders of the running Python and of its packages, which may be below a temporary folder."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == __package__]
    files = [module.__file__ for module in modules if getattr(module, "__file__", None)]
    ours = {Path(file).resolve().parent for file in files if file}
    return [Path(sys.prefix), Path(sys.base_prefix), *map(Path, filter(None, sys.path)), *ours]


def _existing(paths: Iterable[Path]) -> list[str]:
    """The existing ones, without symbolic links, outer folders first."""
    return sorted({str(path.resolve()) for path in paths if path.exists()})


def _filled_pipe(content: bytes) -> int:
    """The end to read from of a pipe that holds `content` and then ends."""
    if len(content) > _MOST_STDIN:
        raise ValueError(f"standard input of {len(content)} bytes; at most {_MOST_STDIN}")
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


def _follow(process: subprocess.Popen[bytes], output: _Output, deadline: float) -> bool:
    """Read until the program has ended (True) or its time is over (False)."""
    while (left := deadline - time.monotonic()) > 0:
        if output.open:
            output.read(min(left, _POLL))
        else:
            time.sleep(min(left, _POLL / 10))
        if _has_ended(process):
            return True
    return False


def _end(process: subprocess.Popen[bytes], output: _Output, grace: timedelta) -> None:
    """End the whole process group, read the rest of the output, and reap the program."""
    try:
        _signal(process, signal.SIGTERM)
        # Children that inherited the output keep it open: it is at its end when they have ended, too.
        deadline = time.monotonic() + grace.total_seconds()
        while (left := deadline - time.monotonic()) > 0 and (output.open or not _has_ended(process)):
            if output.open:
                output.read(min(left, _POLL))
            else:
                time.sleep(min(left, _POLL / 10))
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()
        try:
            output.finish()
        finally:
            output.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The program is reaped only after the last signal, so its process id cannot belong to another process yet.
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # other code in this process reaps all children (a SIGCHLD handler, for example)


__all__ = [
    "BEST_ISOLATION",
    "Finished",
    "Isolation",
    "IsolationLevel",
    "clean_environment",
    "ignore",
    "protect_this_process",
    "run",
]
