"""Programs pass on their lines, end in time, and leave no process behind: tested with real processes."""

import os
import signal
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefect_cd import process as process_module
from prefect_cd.errors import Invalid, MissingTool
from prefect_cd.process import Finished, Isolation, IsolationLevel, clean_environment, run
from tests.isolation import LEVELS

LONG = timedelta(seconds=60)


class Interrupted(BaseException):
    """As Prefect's TerminationSignal: not an Exception."""


def sh(
    script: str,
    cwd: Path,
    timeout: timedelta = LONG,
    on_line: Callable[[str], None] = process_module.ignore,
    isolation: Isolation | None = None,
) -> Finished:
    command = ["/bin/sh", "-c", script]
    return run(command, cwd=cwd, env=clean_environment(), timeout=timeout, on_line=on_line, isolation=isolation)


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.01)


class Listener:
    """Gets a program's lines, and records when the first came."""

    at = 0.0

    def __call__(self, _line: str) -> None:
        self.at = self.at or time.monotonic()


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """The time limit (`LONG`) is over as soon as the program has written a line, however long it took until then."""
    listener = Listener()

    def monotonic() -> float:
        return time.monotonic() + (LONG.total_seconds() if listener.at else 0)

    monkeypatch.setattr(process_module, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    return listener


def test_output_exit_code_and_time_are_kept_with_both_streams_in_order(tmp_path: Path) -> None:
    started = time.monotonic()
    finished = sh("echo one; echo two >&2; echo three; exit 3", tmp_path)
    assert (finished.code, finished.output, finished.timed_out) == (3, "one\ntwo\nthree", False)
    assert finished.stdout == ""  # both streams are in `output`
    assert 0 < finished.seconds <= time.monotonic() - started


def test_i7_no_secret_of_ours_is_in_the_lines_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "correcthorse")
    lines: list[str] = []
    script = "echo correcthorse postgres://a:b@c; printf '%s\\n' '-----BEGIN PRIVATE KEY-----' MIIE 'AAAA=' end."
    finished = sh(script, tmp_path, on_line=lines.append)
    assert lines == ["*** postgres://a:***@c", "***", "***", "***", "end."]
    assert finished.output.splitlines() == lines
    assert "correcthorse" not in sh("echo correcthorse >&2", tmp_path).output


def test_i7_a_long_line_is_not_cut_within_a_secret(tmp_path: Path) -> None:
    program = "print('x' * 8170 + ' ' + 'postgres://shop:hunter2@db ' + 'y' * 9000, end='')"
    finished = run([sys.executable, "-c", program], cwd=tmp_path, env=clean_environment(), timeout=LONG)
    assert "postgres://shop:***@db" in finished.output
    assert {len(line) for line in finished.output.splitlines()} > {8171}


def test_lines_come_while_the_program_runs(tmp_path: Path) -> None:
    def go_on(line: str) -> None:
        if line == "ready":
            (tmp_path / "go").touch()

    finished = sh("echo ready; while [ ! -e go ]; do sleep 0.01; done; echo went on", tmp_path, on_line=go_on)
    assert finished.output == "ready\nwent on"


def test_lines_come_in_the_thread_of_the_caller(tmp_path: Path) -> None:
    threads = []
    sh("echo one", tmp_path, on_line=lambda _line: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_only_the_last_200_lines_are_kept_but_all_are_passed_on(tmp_path: Path) -> None:
    lines: list[str] = []
    finished = sh("seq 1000", tmp_path, on_line=lines.append)
    assert lines == [str(n) for n in range(1, 1001)]
    assert finished.output.splitlines() == lines[-200:]
    assert finished.last(2) == "999\n1000"


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    assert sh(r"printf 'a\377b \303\244\n'", tmp_path).output == "a\ufffdb ä"


def test_carriage_returns_of_progress_bars_end_lines(tmp_path: Path) -> None:
    assert sh(r"printf '10%%\r20%%\r\ndone'", tmp_path).output == "10%\n20%\ndone"


def test_a_line_without_end_comes_in_pieces(tmp_path: Path) -> None:
    lines: list[str] = []
    sh("head -c 100000 /dev/zero | tr '\\0' x", tmp_path, on_line=lines.append)
    assert max(map(len, lines)) == process_module._LINE_LENGTH
    assert "".join(lines) == "x" * 100_000


def test_standard_input_is_empty_and_there_is_no_terminal(tmp_path: Path) -> None:
    original = os.dup(0)
    (tmp_path / "typed").write_text("typed for us\n")
    with (tmp_path / "typed").open() as typed:
        os.dup2(typed.fileno(), 0)
        try:
            finished = sh("cat; (: < /dev/tty) 2>/dev/null || echo no terminal", tmp_path)
        finally:
            os.dup2(original, 0)
            os.close(original)
    assert finished.output == "no terminal"


def test_standard_input_is_what_the_caller_gives_and_then_ends(tmp_path: Path) -> None:
    finished = run(["/bin/cat"], cwd=tmp_path, env={}, timeout=LONG, stdin="first ä\nsecond")
    assert finished.output == "first ä\nsecond"


def test_standard_input_need_not_be_read(tmp_path: Path) -> None:
    finished = run(["/bin/true"], cwd=tmp_path, env={}, timeout=LONG, stdin="x" * process_module._MOST_STDIN)
    assert (finished.code, finished.output) == (0, "")


def test_standard_input_that_a_pipe_might_not_hold_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most"):
        run(["/bin/cat"], cwd=tmp_path, env={}, timeout=LONG, stdin="x" * (process_module._MOST_STDIN + 1))


def test_split_standard_output_is_kept_in_full_and_apart_from_standard_error(tmp_path: Path) -> None:
    lines: list[str] = []
    finished = run(
        ["/bin/sh", "-c", "echo warning >&2; seq 100000; printf '\\r\\377 no newline'; echo end >&2; exit 3"],
        cwd=tmp_path,
        env=clean_environment(),
        timeout=LONG,
        on_line=lines.append,
        separate_stdout=True,
    )
    assert finished.stdout == "".join(f"{n}\n" for n in range(1, 100_001)) + "\r\ufffd no newline"
    assert (finished.code, finished.output, finished.timed_out) == (3, "warning\nend", False)
    assert lines == ["warning", "end"]


@pytest.mark.parametrize("closed", ["exec 1>&-; echo late >&2", "exec 2>&-; echo late"])
def test_a_program_that_closes_one_stream_is_read_on_the_other(tmp_path: Path, closed: str) -> None:
    finished = run(["/bin/sh", "-c", closed], cwd=tmp_path, env=clean_environment(), timeout=LONG, separate_stdout=True)
    assert finished.stdout + finished.output == ("late" if ">&2" in closed else "late\n")


def test_standard_output_is_empty_unless_it_is_split(tmp_path: Path) -> None:
    assert sh("echo one", tmp_path).stdout == ""


def test_split_standard_output_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_MOST_STDOUT", 2**20)
    command = ["/bin/sh", "-c", "echo $$ > pid; exec cat /dev/zero"]
    with pytest.raises(Invalid, match="more than 1 MiB"):
        run(command, cwd=tmp_path, env=clean_environment(), timeout=LONG, separate_stdout=True)
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_the_environment_is_exactly_the_given_one(tmp_path: Path) -> None:
    finished = run(["/usr/bin/env"], cwd=tmp_path, env={"ONLY": "this"}, timeout=LONG)
    assert finished.output == "ONLY=this"


def test_files_of_a_program_have_the_usual_modes_whatever_our_own_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        sh("touch file", tmp_path)
    finally:
        os.umask(before)
    assert stat.filemode((tmp_path / "file").stat().st_mode) == "-rw-r--r--"


def test_the_program_is_looked_for_on_the_given_path(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert run(["mine"], cwd=Path("/"), env={"PATH": str(tmp_path)}, timeout=LONG).output == "found"


@pytest.mark.parametrize(
    "content", [None, "not executable", "#!/no/such/interpreter\n"], ids=["absent", "not executable", "no interpreter"]
)
def test_a_program_that_cannot_be_run_is_a_missing_tool(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "tool").write_text(content)
        (tmp_path / "tool").chmod(0o755 if content.startswith("#!") else 0o644)
    with pytest.raises(MissingTool, match=r"'\./tool' cannot be run") as caught:
        run(["./tool"], cwd=tmp_path, env=clean_environment(), timeout=LONG)
    assert "install ./tool" in caught.value.hint


def test_a_missing_folder_is_not_mistaken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no folder"):
        sh("true", tmp_path / "absent")


def test_a_program_over_its_time_limit_gets_sigterm_and_its_last_lines_are_kept(tmp_path: Path, over: Listener) -> None:
    finished = sh(
        "trap 'echo cleaned up; exit 7' TERM; echo started; while :; do sleep 0.01; done",
        tmp_path,
        on_line=over,
    )
    assert finished.timed_out
    assert finished.code == 7
    assert finished.output.startswith("started")
    assert finished.output.endswith("cleaned up")


def test_children_get_time_to_clean_up_after_the_program_has_ended(tmp_path: Path, over: Listener) -> None:
    child = "trap 'sleep 0.2; echo closed the browser; exit' TERM; echo open; while :; do sleep 0.01; done"
    finished = sh(f"({child}) & while :; do sleep 0.01; done", tmp_path, on_line=over)
    assert finished.code == -signal.SIGTERM
    assert finished.output.splitlines()[-1] == "closed the browser"


def test_a_program_that_ignores_sigterm_is_killed(
    tmp_path: Path, over: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = process_module._GRACE
    monkeypatch.setattr(process_module, "_GRACE", timedelta(seconds=0.2))
    finished = sh(r"trap '' TERM; printf 'ready\nstubborn'; while :; do sleep 0.01; done", tmp_path, on_line=over)
    took = time.monotonic() - over.at
    assert finished.timed_out
    assert finished.code == -signal.SIGKILL
    assert finished.output == "ready\nstubborn"
    assert took < usual.total_seconds()


def test_children_of_a_program_over_its_time_limit_end_with_it(tmp_path: Path, over: Listener) -> None:
    finished = sh("sleep 1000 & echo $!; wait", tmp_path, on_line=over)
    assert finished.timed_out
    wait_for(lambda: not is_alive(int(finished.output)))


def test_a_child_left_in_the_background_is_ended_when_the_program_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child ends at SIGTERM, so the grace period is not waited for.
    monkeypatch.setattr(process_module, "_GRACE", timedelta(minutes=10))
    finished = sh("sleep 1000 & echo $!", tmp_path)
    assert (finished.code, finished.timed_out) == (0, False)
    assert finished.seconds < 30
    wait_for(lambda: not is_alive(int(finished.output)))


def test_a_daemon_that_closed_its_output_and_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    finished = sh(
        "(trap '' TERM; touch deaf; exec sleep 1000) >/dev/null 2>&1 & "
        "echo $!; while [ ! -e deaf ]; do sleep 0.01; done",
        tmp_path,
    )
    assert finished.code == 0
    wait_for(lambda: not is_alive(int(finished.output)))


def test_a_child_in_a_session_of_its_own_that_keeps_the_output_open_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, listener = process_module._GRACE, Listener()
    monkeypatch.setattr(process_module, "_GRACE", timedelta(seconds=0.2))
    os.mkfifo(tmp_path / "gone")
    finished = sh("setsid sh -c 'echo $$; : > gone; exec sleep 1000' & : < gone", tmp_path, on_line=listener)
    took = time.monotonic() - listener.at
    os.kill(int(finished.output), signal.SIGKILL)
    assert took < usual.total_seconds()


def test_an_interrupted_caller_leaves_no_process_behind(tmp_path: Path) -> None:
    pids = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        sh("sleep 1000 & echo $!; echo $$; wait", tmp_path, on_line=interrupt)
    assert len(pids) == 2
    wait_for(lambda: not any(map(is_alive, pids)))


def test_an_interrupted_caller_gets_no_more_lines(tmp_path: Path) -> None:
    lines = []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise Interrupted

    with pytest.raises(Interrupted):
        sh("trap 'echo cleaned up; exit' TERM; echo one; while :; do sleep 0.01; done", tmp_path, on_line=interrupt)
    assert lines == ["one"]


def test_a_signal_handler_that_raises_ends_a_silent_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following, finished = threading.Event(), threading.Event()
    follow, pid = process_module._follow, tmp_path / "pid"

    def recording_follow(process: subprocess.Popen[bytes], output: process_module._Output, deadline: float) -> bool:
        following.set()
        return follow(process, output, deadline)

    def handler(_number: int, _frame: object) -> None:
        raise Interrupted

    def send() -> None:
        wait_for(lambda: finished.is_set() or (following.is_set() and pid.exists() and pid.read_text().endswith("\n")))
        if not finished.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    monkeypatch.setattr(process_module, "_follow", recording_follow)
    before = signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted):
            sh("echo $$ > pid; exec sleep 1000", tmp_path)
    finally:
        finished.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    wait_for(lambda: not is_alive(int(pid.read_text())))


# ---------------------------------------------------------------------------------------------- isolated programs

both = pytest.mark.parametrize("level", LEVELS)


def isolation(level: IsolationLevel, cwd: Path) -> Isolation:
    return Isolation(level, writable=(cwd,))


@both
def test_an_isolated_program_ends_with_its_own_exit_code_and_output(tmp_path: Path, level: IsolationLevel) -> None:
    finished = sh("pwd; echo two >&2; exit 3", tmp_path, isolation=isolation(level, tmp_path))
    assert (finished.code, finished.output, finished.timed_out) == (3, f"{tmp_path}\ntwo", False)


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGPIPE])
def test_an_isolated_program_that_a_signal_ended_is_known_by_the_signal(
    tmp_path: Path, level: IsolationLevel, number: signal.Signals
) -> None:
    assert sh(f"kill -{int(number)} $$", tmp_path, isolation=isolation(level, tmp_path)).code == -number


@both
def test_an_isolated_program_gets_exactly_the_given_environment_and_input(
    tmp_path: Path, level: IsolationLevel
) -> None:
    finished = run(
        ["/bin/sh", "-c", "/usr/bin/env; cat"],
        cwd=tmp_path,
        env={"ONLY": "this"},
        timeout=LONG,
        stdin="typed",
        separate_stdout=True,
        isolation=isolation(level, tmp_path),
    )
    assert set(finished.stdout.splitlines()) - {f"PWD={tmp_path}"} == {"ONLY=this", "typed"}


@both
def test_an_isolated_program_that_does_not_exist_is_a_missing_tool(tmp_path: Path, level: IsolationLevel) -> None:
    with pytest.raises(MissingTool, match=r"'\./tool' cannot be run"):
        run(["./tool"], cwd=tmp_path, env={}, timeout=LONG, isolation=isolation(level, tmp_path))


@both
def test_an_isolated_program_over_its_time_limit_cleans_up_and_all_its_sessions_end(
    tmp_path: Path, over: Listener, level: IsolationLevel
) -> None:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "started":
            over(line)

    program = "trap 'echo cleaned up; exit 7' TERM; setsid sleep 1000 & echo started; while :; do sleep 0.01; done"
    finished = sh(program, tmp_path, on_line=on_line, isolation=isolation(level, tmp_path))
    assert (finished.timed_out, finished.code) == (True, 7)
    announced = [] if level == "none" else [f"isolation: {level}"]
    assert (lines[: len(announced) + 1], lines[-1]) == ([*announced, "started"], "cleaned up")


@both
def test_an_interrupted_caller_leaves_no_session_of_an_isolated_program_behind(
    tmp_path: Path, level: IsolationLevel
) -> None:
    def interrupt(line: str) -> None:
        if line == "ready":
            raise Interrupted

    mark = f"PREFECT_CD_TEST={tmp_path}"
    with pytest.raises(Interrupted):
        sh(
            f"export {mark}; setsid sh -c 'echo ready; exec sleep 1000'",
            tmp_path,
            LONG,
            interrupt,
            isolation(level, tmp_path),
        )
    environments = [path for path in Path("/proc").glob("[0-9]*/environ") if os.access(path, os.R_OK)]
    wait_for(lambda: not any(mark.encode() in content(path) for path in environments))


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_where_namespaces_are_not_allowed_the_program_runs_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "launcher.py"
    original = process_module._LAUNCHER.read_text()
    launcher.write_text(
        original.replace("    _require_recursive_read_only()\n", '    raise OSError("not allowed")\n', 1)
    )
    monkeypatch.setattr(process_module, "_LAUNCHER", launcher)
    lines: list[str] = []
    assert sh("echo done", tmp_path, on_line=lines.append, isolation=Isolation()).code == 0
    assert lines == ["isolation: none (not allowed)", "done"]


def test_a_clean_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("KUBECONFIG", "PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "VIRTUAL_ENV", "PYTHONPATH")
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    for name in ("HOME", "LC_TIME", "HTTPS_PROXY", "SSL_CERT_FILE", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, "wanted")
    environment = clean_environment()
    assert not set(secrets) & set(environment)
    assert "secret" not in environment.values()
    assert list(environment.values()).count("wanted") == 5


def test_the_running_python_comes_first_on_the_path_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    python_folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"/usr/bin:{python_folder}:/bin")
    assert clean_environment()["PATH"] == f"{python_folder}:/usr/bin:/bin"


def test_extra_variables_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    environment = clean_environment({"HOME": "/here", "BASE_URL": "http://shop"})
    assert (environment["HOME"], environment["BASE_URL"]) == ("/here", "http://shop")


def test_a_fast_program_costs_milliseconds(tmp_path: Path) -> None:
    def cost() -> float:
        started = time.monotonic()
        sh("exit 0", tmp_path)
        return time.monotonic() - started

    assert statistics.median(cost() for _ in range(10)) < 0.2
