"""Texts of others against the terminal of whoever runs a command: escape sequences, and lines that look like ours."""

import asyncio
import logging
import unicodedata
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prefect_cd.deployments import terminal
from prefect_cd.deployments.cli import main
from prefect_cd.deployments.rollout_view import drawn
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Decision, Record, State, new_record
from prefect_cd.environment.records import RecordStore
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.release.model import Commit, Release
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import PodRow, Report, WorkloadRow
from prefect_cd.tasks.stage import log
from prefect_cd.untrusted_text import one_line, visible
from tests.effects.test_watch import deployment, pod
from tests.tasks.examples import HeldLock, image
from tests.unit.fake_api import FakeApi
from tests.unit.test_status_command import kubeconfig_of, pipeline_file

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
CLEAR, TITLE, CSI, OVERRIDE = "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe"
ATTACK = f"x{CLEAR}{TITLE}{CSI}{OVERRIDE}\u2066\r\nproduction: whole"
"""Clears the screen, sets the title, shows a text backwards, and begins a line of its own."""


STEERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Classes of characters that change in which order others are shown."""


def is_inert(printed: str) -> bool:
    """Whether a terminal only shows the text: no controls but newlines, and no line that an attack began."""
    return not set(printed) & {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066"}


def test_a_pods_message_cannot_steer_the_terminal_of_rollout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = FakeApi()
    deployment(api)
    pod(api, ready=False, state={"waiting": {"reason": "InvalidImageName", "message": ATTACK}})
    with api.serving():
        code = main(["rollout", "deployment/shop", "-n", "shop", "--kubeconfig", str(kubeconfig_of(api, tmp_path))])
    printed = capsys.readouterr()
    assert code == 1
    assert r"\x1b[2J\x1b[H\x1b]0;title\x07\x9b2J\u202egnp.exe\u2066" in printed.err
    assert is_inert(printed.out)
    assert is_inert(printed.err)


def test_a_pods_message_cannot_steer_the_table_that_is_kept_up_to_date() -> None:
    shown = PodRow(name=ATTACK, ready=False, state=ATTACK, since=None)
    row = WorkloadRow(workload=ATTACK, phase=Phase.PROGRESSING, summary=ATTACK, ready=0, wanted=1, pods=(shown,))
    out = StringIO()
    Console(file=out, width=400, color_system=None).print(drawn(Report(workloads=(row,), seconds=1), 1))
    assert out.getvalue().count(r"\x1b[2J\x1b[H") == 4
    assert is_inert(out.getvalue())
    assert len(out.getvalue().splitlines()) == 3


def test_a_commit_cannot_steer_the_terminal_of_status_or_recover(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = FakeApi()
    api.put("namespaces", "shop")
    with api.serving():
        asyncio.run(_store(api))
        kubeconfig = kubeconfig_of(api, tmp_path)
        file = str(pipeline_file(tmp_path, kubeconfig, kubeconfig))
        main(["status", file])
        status = capsys.readouterr().out
        main(["recover", file, "production"])
        recovered = capsys.readouterr().out
    for printed, condition in ((status, "frozen"), (recovered, "empty")):
        assert r"x\x1b[2J\x1b[H\x1b]0;title" in printed
        assert is_inert(printed)
        # the words of the commit and its approver begin no line, which would look like the state of an environment
        assert [line for line in printed.splitlines() if line.startswith("prod")] == [f"production: {condition}"]


async def _store(api: FakeApi) -> None:
    """A release of production whose words and reason are an attack."""
    commit = Commit(repository="r", sha="a" * 40, revision="main", subject=ATTACK, author=ATTACK, committed_at=NOW)
    release = Release(application="shop", commit=commit, image=image(), manifests={"production": ()})
    decision = Decision(approved=True, name=ATTACK, comment=ATTACK, decided_at=NOW, content="c")
    async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
        store, lock = RecordStore(cluster, Ownership("shop", "production", "shop")), HeldLock()
        record: Record = new_record(Ownership("shop", "production", "shop"), release, [], NOW, decision=decision)
        started = await store.start(record, guard=lock.guard)
        started = await store.move(started, State.APPLYING, guard=lock.guard)
        await store.move(started, State.ROLLBACK_FAILED, reason=ATTACK, guard=lock.guard)


def test_what_is_logged_without_a_run_is_visible_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    capsys.readouterr()
    assert isinstance(logging.lastResort, terminal.LastResort)
    logging.lastResort.handle(logging.makeLogRecord({"msg": "a warning: %s", "args": (ATTACK,), "levelno": 30}))
    printed = capsys.readouterr().err
    assert r"a warning: x\x1b[2J" in printed
    assert is_inert(printed)


def test_a_commit_cannot_steer_the_terminal_of_serve(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prefect_cd"):
        log().info("%s is %d of %s", ATTACK, 1, ValueError(ATTACK))
    (record,) = caplog.records
    assert r"x\x1b[2J" in record.getMessage()
    assert " is 1 of " in record.getMessage()
    assert is_inert(record.getMessage())


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters()))
def test_a_visible_text_has_nothing_that_steers(text: str) -> None:
    shown = visible(text)
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(letter) for letter in shown} & STEERING
    assert visible(shown) == shown


def test_lines_are_lines_of_ours_only() -> None:
    assert terminal.joined(["a\nb", "c"]) == "a\\nb\nc\n"
    assert one_line("a\n\tb  c") == "a b c"


def test_a_text_that_no_encoding_can_write_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write("half a pair: \ud83d\n")
    assert capsys.readouterr().out == "half a pair: \\ud83d\n"
