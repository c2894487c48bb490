"""Pages in Markdown: no input breaks their tables or fakes their content, and they contain no secret."""

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.environment.change_set import Action, Change, ChangeSet
from prefect_cd.environment.record import Decision, GateResult, Record, State
from prefect_cd.environment.way_back import Obstacle, WayBackFinding
from prefect_cd.gates.evidence import Evidence, Outcome, Picture, TestCase
from prefect_cd.manifests import diff as diff_module
from prefect_cd.manifests.hand_edits import HandEdit
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import PodRow, Problem, Report, WorkloadRow
from prefect_cd.tasks import markdown, markdown_changes
from prefect_cd.tasks.markdown_text import bullets, fenced, inline, table

BERLIN = timezone(timedelta(hours=2))
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)
HOSTILE = "a|b\nc <img src=x> ![p](https://evil) [ok](https://evil)"


def commit(**given: Any) -> Commit:  # noqa: ANN401
    fields = {"repository": "r", "sha": "a" * 40, "revision": "main", "subject": "Sell more", "author": "An author"}
    return Commit(**{**fields, "committed_at": NOW, **given})


def evidence(outcome: Outcome = Outcome.PASSED, **given: Any) -> Evidence:  # noqa: ANN401
    return Evidence(**{"gate": "smoke", "outcome": outcome, "summary": "3 passed in 1.0 s", "seconds": 1.0, **given})


def change(name: str, action: Action, diff: str = "") -> Change:
    return Change(api_version="v1", kind="ConfigMap", namespace="n", name=name, action=action, diff=diff)


def record(**given: Any) -> Record:  # noqa: ANN401
    place = {"number": 7, "application": "shop", "environment": "staging", "state": State.KNOWN_GOOD}
    content = {"release_id": "aaaaaaa-12345678", "release_hash": "h", "image": None, "objects": (), "started_at": NOW}
    return Record(**{**place, **content, "commit": None, **given})


def release() -> Release:
    image = BuiltImage(name="r/shop", digest="sha256:" + "b" * 64, built=True)
    return Release(application="shop", commit=commit(), image=image, manifests={})


def approval(**given: Any) -> str:  # noqa: ANN401
    form: dict[str, Any] = {
        "planned": ChangeSet(changes=(change("a", Action.CHANGED, "@@ -1 +1 @@\n-x\n+y"),)),
        "server": "https://cluster",
        "version": "v1.36.3",
        "namespace": "shop",
        "running": None,
        "commits": [commit()],
        "tested": [evidence()],
        "content": "c" * 64,
        **given,
    }
    return markdown.approval(form.pop("release", release()), "production", form.pop("planned"), **form)


# --- parts -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_a_table_has_one_line_per_row_and_as_many_columns_as_its_head(rows: list[list[str]]) -> None:
    lines = table(["a", "b"], rows).split("\n")
    assert len(lines) == len(rows) + 2
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


def test_i7_a_strangers_text_becomes_neither_html_nor_a_link_nor_a_picture() -> None:
    cell = inline(HOSTILE)
    assert "\n" not in cell
    outside = re.sub(r"\\.|`[^`]*`", "", cell)
    assert not set(outside) & set("<[|")
    assert "https" not in outside


@settings(deadline=None)
@given(st.text(alphabet="`ab\n", max_size=30))
def test_a_code_block_cannot_be_ended_by_its_text(text: str) -> None:
    first, *_, last = fenced(text, "sh").split("\n")
    assert first == f"{last}sh"
    assert set(last) == {"`"}
    assert last not in text


def test_empty_bullets_are_left_out() -> None:
    assert bullets("a", "", "b") == "- a\n- b"


# --- evidence --------------------------------------------------------------------------------------------------------


def test_what_passed_is_a_table_without_output() -> None:
    cases = (TestCase(name="buys", suite="e2e", outcome=Outcome.PASSED, seconds=0.5),)
    page = markdown.evidence(evidence(cases=cases, output="noise"))
    assert page.startswith("# ✔ smoke: 3 passed in 1.0 s")
    assert "| ✔ | e2e: buys | 0.50 s |" in page
    assert "noise" not in page


def test_what_failed_has_its_text_its_output_its_console_its_pictures_and_its_trace() -> None:
    cases = (
        TestCase(name="a", suite="", outcome=Outcome.FAILED, seconds=0, message="```assert 1 == 2"),
        TestCase(name="b", suite="", outcome=Outcome.ERRORED, seconds=0),
        TestCase(name="c", suite="", outcome=Outcome.SKIPPED, seconds=0),
    )
    page = markdown.evidence(
        evidence(
            Outcome.FAILED,
            cases=cases,
            output="last line",
            console=("TypeError: x",),
            pictures=(Picture(title=HOSTILE, jpeg="aGk="),),
            trace="/runs/trace.zip",
        )
    )
    assert "## ✘ a\n\n````\n```assert 1 == 2\n````" in page
    assert "## ? b\n\n```\n(no text)\n```" in page
    assert "## - c" not in page
    assert "last line" in page
    assert "TypeError: x" in page
    assert page.index("(data:image/jpeg;base64,aGk=)") < page.index("assert 1 == 2")  # seen before it is read
    assert "playwright show-trace /runs/trace.zip" in page
    assert "[ok](" not in page.replace("\\[ok](", "")


# --- changes ---------------------------------------------------------------------------------------------------------


def test_changed_objects_are_a_table_and_diffs_and_unchanged_ones_are_counted() -> None:
    (page,) = markdown_changes.pages(
        ChangeSet(
            changes=(change("a", Action.CREATED, "+x"), change("b", Action.UNCHANGED), change("c", Action.UNCHANGED))
        )
    )
    assert "| configmap/a | created |" in page
    assert "2 unchanged." in page
    assert "**created configmap/a**\n\n```diff\n+x\n```" in page
    assert "configmap/b" not in page


def test_unchanged_objects_are_counted() -> None:
    unchanged = ChangeSet(changes=(change("b", Action.UNCHANGED),))
    assert markdown_changes.pages(unchanged) == [markdown_changes.shortened(unchanged, "")] == ["1 unchanged."]
    assert markdown_changes.pages(ChangeSet(changes=())) == [""]


def test_i7_no_page_shows_a_secrets_value() -> None:
    before = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k"}, "data": {"a": "hunter1"}}
    after = {**before, "data": {"a": "hunter2", "b": "hunter3"}}
    moved = [diff_module.diff(before, after), diff_module.diff(None, after), diff_module.diff(before, None)]
    planned = ChangeSet(changes=tuple(change(str(n), Action.CHANGED, diff) for n, diff in enumerate(moved)))
    kept = record(objects=(after,))
    (diffs,) = markdown_changes.pages(planned)
    assert diff_module.HIDDEN_CHANGED in diffs
    for page in (diffs, approval(planned=planned, running=kept), markdown.outcome(kept)):
        assert "hunter" not in page


# --- rollout ---------------------------------------------------------------------------------------------------------


def report(*problems: Problem) -> Report:
    pods = (
        PodRow(name="shop-1", ready=True, state="Running", since=NOW.astimezone(BERLIN)),
        PodRow(name="shop-2", ready=False, state="CrashLoopBackOff", since=None),
    )
    watched = WorkloadRow(
        workload="deployment/shop", phase=Phase.FAILED, summary="1 of 2 ready", ready=1, wanted=2, pods=pods
    )
    return Report(workloads=(watched,), problems=problems, seconds=3)


def test_a_rollout_shows_workloads_and_pods_with_times_in_utc() -> None:
    page = markdown.rollout(report())
    assert "| deployment/shop | 1 of 2 | 1 of 2 ready |" in page
    assert "| shop-1 | yes | Running | 12:00:00 |" in page
    assert "| shop-2 | no | CrashLoopBackOff |  |" in page


def test_a_rollout_without_pods_has_no_table_of_pods() -> None:
    assert "| pod |" not in markdown.rollout(Report(workloads=(), seconds=0))


def test_problems_begin_with_the_fact_and_what_to_do() -> None:
    problem = Problem(
        workload="deployment/shop",
        category="crash",
        summary="shop crashes",
        evidence="exit 1",
        hint="read the log",
        where="pod/shop-2 in shop",
        logs="Traceback",
    )
    page = markdown.problems(report(problem))
    assert page.startswith("# ✘ shop crashes\n\n**What to do:** read the log")
    for part in ("| pod/shop-2 in shop | crash |", "```\nexit 1\n```", "```\nTraceback\n```", "## All workloads"):
        assert part in page


def test_a_rollout_that_failed_without_a_known_problem_shows_its_state() -> None:
    assert markdown.problems(report()).startswith("deployment/shop: 1 of 2 ready")


# --- approval and outcome --------------------------------------------------------------------------------------------


def test_the_form_says_what_changes_where_and_what_is_rolled_back_to() -> None:
    page = approval(running=record(), run="https://ui/run", whole="https://ui/plan", note="asked again")
    for part in (
        "> **asked again**",
        "# shop aaaaaaa → production",
        "runs there now: aaaaaaa-12345678",
        "if it fails, we roll back to: aaaaaaa-12345678",
        "cluster `https://cluster` (Kubernetes v1.36.3), namespace `shop`",
        "[the run with all its reports](https://ui/run)",
        "✔ **smoke**: 3 passed in 1.0 s",
        "## What changes: 1 changed",
        "```diff\n@@ -1 +1 @@\n-x\n+y\n```",
        f"the answer counts for this content only: sha256 `{'c' * 32}` `{'c' * 32}`",
        "[the whole diff](https://ui/plan)",
    ):
        assert part in page


def test_the_form_says_what_runs_there_now_by_its_subject_and_since_when() -> None:
    page = approval(running=record(commit=commit()))
    assert f"runs there now: {commit().short} {commit().subject}, since {NOW:%Y-%m-%d %H:%M} UTC" in page


def test_the_form_says_what_somebody_changed_by_hand_before_the_diff() -> None:
    edit = HandEdit(manager="kubectl-patch", at=NOW, fields=("spec.template.spec.containers[web].image",))
    changed = change("a", Action.CHANGED, "@@ -1 +1 @@\n-x\n+y").model_copy(update={"hand_edits": (edit,)})
    page = approval(planned=ChangeSet(changes=(changed,)))
    assert page.index("## Changed by hand") < page.index("## What changes")
    assert "kubectl-patch changed spec.template.spec.containers" in page
    assert "Changed by hand" not in approval()


def test_an_approver_without_a_comment_is_shown_by_name_alone() -> None:
    decision = Decision(approved=True, name="Ada", comment="", decided_at=NOW, content="c")
    assert "| approved by | Ada |" in markdown.outcome(record(decision=decision))


def test_the_form_says_whether_the_image_was_built_or_found() -> None:
    candidate = release()
    image = candidate.image.model_copy(update={"built": False})
    assert f"`{image.digest[:19]}…`, **built** by this run" in approval(release=candidate)
    page = approval(release=candidate.model_copy(update={"image": image}))
    assert f"`{image.digest[:19]}…`, **found** in the registry and not built by this run: nothing in it says" in page
    labelled = image.model_copy(update={"revision": candidate.commit.sha})
    assert "its label says that it is of this commit" in approval(
        release=candidate.model_copy(update={"image": labelled})
    )


def test_the_form_says_why_a_rollback_would_not_work() -> None:
    finding = WayBackFinding(obstacle=Obstacle.IMAGE, where="shop@sha256:1", summary="it is gone", fix="push it")
    page = approval(running=record(), way_back_findings=[finding])
    assert "## Why a rollback would not work\n\n- **shop@sha256:1**: it is gone. *Fix:* push it." in page
    assert "would not work" not in approval(running=record())


def test_a_first_release_says_that_there_is_nothing_to_roll_back_to() -> None:
    page = approval()
    assert "runs there now: nothing that we know of" in page
    assert "roll back to: nothing: this is the first release here; what it adds is removed again" in page
    assert "the run with all its reports" not in page


def test_a_commits_time_is_shown_in_utc() -> None:
    candidate = release().model_copy(update={"commit": commit(committed_at=datetime(2026, 1, 1, 1, 30, tzinfo=BERLIN))})
    assert "2025-12-31 23:30 UTC" in approval(release=candidate)


def test_the_form_shows_at_most_four_pictures() -> None:
    pictures = tuple(Picture(title=f"p{n}", jpeg="aGk=") for n in range(6))
    page = approval(tested=[evidence(pictures=pictures)])
    assert page.count("data:image/jpeg") == 4
    assert page.index("## What was tested") < page.index("data:image/jpeg") < page.index("## What changes")


@pytest.mark.parametrize("name", ["An author", HOSTILE])
def test_the_outcome_shows_who_approved_and_the_results_of_gates(name: str) -> None:
    decision = Decision(approved=True, name=name, comment="looks good", decided_at=NOW, content="c")
    gates = (GateResult(name="smoke", outcome="passed", summary="3 passed"),)
    page = markdown.outcome(record(commit=commit(), decision=decision, gates=gates, reason="```why"))
    for part in (
        f"| approved by | {inline(f'{name}: looks good')} |",
        "| commit | aaaaaaa Sell more |",
        "| smoke | passed | 3 passed |",
        "Secret prefect-cd.shop.7",
        "````\n```why\n````",
    ):
        assert part in page


def test_the_outcome_of_a_takeover_has_no_commit_and_no_approval() -> None:
    page = markdown.outcome(record())
    assert "| commit | none: from before the takeover |" in page
    assert "| approved by | not required |" in page
