"""Whether a process has ended: one of this machine, one that was replaced, one elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_cd.environment import holder
from prefect_cd.environment.holder import has_ended, this_process

CHILD = "from prefect_cd.environment.holder import this_process; print(this_process(), flush=True); input()"


def test_a_process_has_ended_when_it_is_a_zombie_and_when_it_is_gone() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        process = child.stdout.readline().strip()
        assert str(child.pid) in process
        assert not has_ended(process)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has fetched its exit code
        assert has_ended(process)
    assert has_ended(process)


def test_a_process_with_the_same_number_that_started_at_another_time_is_another_one() -> None:
    place, number, start = this_process().split("/")
    assert not has_ended(f"{place}/{number}/{start}")
    assert has_ended(f"{place}/{number}/{int(start) + 1}")


@pytest.mark.parametrize("elsewhere", ["another-boot:1/1/1", "", "/", "//", "nonsense", "a/b/c"])
def test_what_cannot_be_known_has_not_ended(elsewhere: str) -> None:
    assert not has_ended(elsewhere)


def test_processes_of_another_pid_namespace_cannot_be_known() -> None:
    place, _, rest = this_process().partition("/")
    boot, _, namespace = place.partition(":")
    assert not has_ended(f"{boot}:{int(namespace) + 1}/{rest[:-1]}")


def test_where_the_system_does_not_tell_a_process_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    process = this_process()
    monkeypatch.setattr(holder, "_BOOT_ID", Path("/nonexistent"))
    assert this_process() == ""
    assert not has_ended(process)
