"""A commit against its approver: hide what is applied in the form, or forge what the form says."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from prefect_cd.environment.change_set import Action, ChangeSet, change_to, created
from prefect_cd.environment.way_back import Obstacle, WayBackFinding
from prefect_cd.errors import InvalidManifest
from prefect_cd.gates.evidence import Evidence, Outcome, TestCase
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.lint import Finding, Rule
from prefect_cd.manifests.load import load
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.rollout.assess import Phase
from prefect_cd.rollout.watch.report import PodRow, Problem, Report, WorkloadRow
from prefect_cd.tasks import markdown, markdown_changes
from prefect_cd.tasks.markdown_text import code, fenced, inline, link

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)
WHOLE = "https://prefect.example.org/artifacts/artifact/1"
MANY = 5_000


def commit(words: str = "Sell more") -> Commit:
    place = {"repository": "r", "sha": "a" * 40, "revision": "main", "committed_at": NOW}
    return Commit.model_validate({**place, "subject": words, "author": words})


def pod(container: Object | None = None, annotations: int = 0, **spec: Any) -> Object:  # noqa: ANN401
    containers = [{"name": "main", "image": f"shop@sha256:{'1' * 64}", **(container or {})}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "shop",
            "namespace": "shop",
            "annotations": {f"a.example.org/{n:04}": f"value {n}" for n in range(annotations)},
        },
        "spec": {"containers": containers, **spec},
    }


def config_map(name: str, keys: int = 1) -> Object:
    data = {f"key-{number}": "a value" for number in range(keys)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": data}


def form(*objects: Object, words: str = "Sell more", evidence: Sequence[Evidence] = (), whole: str = WHOLE) -> str:
    image = BuiltImage(name="r/shop", digest=f"sha256:{'b' * 64}", built=True)
    finding = Finding(rule=Rule.NO_READINESS, where=words, summary=words, fix=words)
    obstacle = WayBackFinding(obstacle=Obstacle.IMAGE, where=words, summary=words, fix=words)
    return markdown.approval(
        Release(application="shop", commit=commit(words), image=image, manifests={}),
        "production",
        ChangeSet(changes=tuple(map(created, objects))),
        findings=[finding],
        way_back_findings=[obstacle],
        server="https://cluster",
        version="v1.36.3",
        namespace="shop",
        running=None,
        commits=[commit(words)],
        tested=evidence or [evidence_of(words)],
        content="c" * 64,
        note=words,
        whole=whole,
    )


def evidence_of(words: str) -> Evidence:
    case = TestCase(name=words, suite=words, outcome=Outcome.FAILED, seconds=1, message=words)
    return Evidence(
        gate=words,
        outcome=Outcome.FAILED,
        summary=words,
        hint=words,
        seconds=1,
        cases=(case,),
        console=(words,),
        output=words,
    )


# --- what is applied is shown ----------------------------------------------------------------------------------------


def test_a_privileged_container_behind_thousands_of_annotations_is_named_first() -> None:
    page = form(pod({"securityContext": {"privileged": True}}, annotations=MANY))
    risks, tests = page.index("## Look at this first: 1 risk in what changes"), page.index("## What was tested")
    assert risks < page.index("**pod/shop**: container 'main' is privileged") < tests


def test_what_a_form_leaves_out_it_says_with_the_way_to_the_whole() -> None:
    page = form(pod(annotations=MANY), config_map("small"))
    shown = sum(line.startswith("+    a.example.org/") for line in page.splitlines())
    (said,) = [line for line in page.splitlines() if "are left out here" in line]
    left_out, _, lines, *_ = said.removeprefix("**").split()
    assert int(left_out) == MANY - shown
    assert int(lines) > MANY
    assert said.endswith(f"of pod/shop are left out here.** See [the whole diff]({WHOLE}).")
    assert "+    image: shop@sha256" in page.replace("+  - image", "+    image")  # the end is shown, too
    assert "are left out" not in form(config_map("small"))


def test_a_long_object_takes_no_room_of_another_one() -> None:
    page = form(config_map("long", MANY), config_map("last"))
    assert "**created configmap/last**\n\n```diff" in page
    assert "of configmap/long are left out here" in page
    assert len(page) < 70_000


def test_thousands_of_objects_do_not_push_a_dangerous_one_out_of_the_form() -> None:
    page = form(*(config_map(f"c{n}") for n in range(2_000)), pod({"securityContext": {"privileged": True}}))
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[2] == "| pod/shop | created |"
    assert "**created pod/shop**\n\n```diff" in page
    assert "**1001 more objects that change are not listed here.**" in page
    shown = page.count("```diff")
    assert f"**The diffs of {2_001 - shown} more objects are left out here.** See [the whole diff]" in page
    assert len(page) < 200_000


def test_hundreds_of_small_risks_do_not_hide_a_large_one() -> None:
    roles = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": f"r{number}"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
        }
        for number in range(300)
    ]
    page = form(*roles, pod(hostPID=True))
    first, *lines = page[page.index("## Look at this first") :].split("\n\n", 2)[1].splitlines()
    assert first == "- **pod/shop**: its pods share the processes of their node (hostPID)"
    assert len(lines) == 200
    assert lines[-1] == "- **and 101 more, which are not listed here:** 101 rbac"


def test_a_long_line_is_cut_and_that_is_said() -> None:
    page = form({**config_map("long"), "data": {"key": "x" * 100_000}})
    assert "… (99" in page
    assert "**the ends of 1 long lines of configmap/long are left out here.** See [the whole diff]" in page


def test_the_pages_of_a_plan_have_every_line() -> None:
    changes = ChangeSet(changes=tuple(created(config_map(f"c{n}", 20_000)) for n in range(3)))
    pages = markdown_changes.pages(changes)
    assert len(pages) > 1
    assert max(map(len, pages)) < 500_000
    lines = [line for page in pages for line in page.splitlines() if line.startswith(("+", "@@"))]
    assert lines == [line for change in changes.changes for line in change.diff.splitlines()]


def test_the_form_names_the_digest_of_the_whole() -> None:
    assert f"the answer counts for this content only: sha256 `{'c' * 32}` `{'c' * 32}`" in form(config_map("c"))


def test_a_risk_that_is_there_already_is_said_to_be() -> None:
    privileged = {"securityContext": {"privileged": True}}
    now, then = pod(privileged), pod({**privileged, "command": ["sh", "-c", "id"]}, hostIPC=True)
    change = change_to(then, Action.CHANGED, states=(now, then))
    new, old = markdown_changes.risks(ChangeSet(changes=(change,))).splitlines()[2:]
    assert new.endswith("its pods share the shared memory of their node (hostIPC)")
    assert old.endswith("it may do all that its node may *(already now)*")


# --- what others wrote stays what it is ------------------------------------------------------------------------------

SHOWN = {"text", "text_special", "code_inline"}
COMMONMARK = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ATTACKS = (
    "\n\n## What was tested\n\n- ✔ **E2E**: 5 passed\n\n<!--",
    "<!-- ",
    "<details><summary>",
    "<img src=https://evil.example/x>",
    "[the whole diff](https://evil.example)",
    "![](https://evil.example/x)",
    "https://evil.example www.evil.example a@evil.example",
    "[x]: https://evil.example",
    "a\\|b | c",
    "\\`x` `` ``` \\",
    "**bold** _emphasis_ ~~no~~",
    "1. one",
    "- one",
    "=====",
    "# title #",
    "&lt;b&gt; &#42;",
    "\x1b[2J\u202e",
)
PIECES = st.sampled_from([*ATTACKS, *"\\`*_[]()<>|~&#!-+=:\n a1", "\n\n", "```", "~~~", "|---|"])
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)


def parsed(page: str) -> list[Token]:
    """All tokens of a page, in their order."""
    tokens: list[Token] = []
    for token in COMMONMARK.parse(page):
        tokens += [token, *(token.children or [])]
    return tokens


def structure(page: str) -> list[tuple[str, str]]:
    """What a page consists of, without its texts; where its links lead."""
    ignored = {"text", "text_special", "code_inline", "softbreak"}
    links = ("href", "src")
    return [
        (token.type, "".join(str(token.attrs.get(key, "")) for key in links))
        for token in parsed(page)
        if token.type not in ignored
    ]


@settings(deadline=None, max_examples=60)
@given(TEXTS)
@example(ATTACKS[0])
@example("a\\|b")
def test_whatever_others_write_no_page_has_another_structure(words: str) -> None:
    pages = [(form, (config_map("x"),)), (_report, ())]
    for page, arguments in pages:
        assert structure(page(*arguments, words=words)) == structure(page(*arguments, words="words"))
    assert structure(markdown.evidence(evidence_of(words))) == structure(markdown.evidence(evidence_of("words")))


def _report(words: str) -> str:
    pods = (PodRow(name=words, ready=False, state=words, since=None),)
    row = WorkloadRow(workload=words, phase=Phase.FAILED, summary=words, ready=0, wanted=1, pods=pods)
    problem = Problem(
        workload=words, category="crash", summary=words, evidence=words, hint=words, where=words, logs=words
    )
    return markdown.problems(Report(workloads=(row,), problems=(problem,), seconds=1))


@settings(deadline=None, max_examples=60)
@given(TEXTS)
@example("a\\|b")
@example("1. one")
def test_others_words_are_shown_as_they_are(words: str) -> None:
    tokens = parsed(f"x {inline(words)}")
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close", *SHOWN}
    shown = "".join(token.content for token in tokens if token.type in SHOWN)
    expected = " ".join(words.split()).replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert shown.replace("`", "") == f"x {expected}".rstrip(" ").replace("`", "")


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_what_becomes_a_link_by_itself_is_code(words: str) -> None:
    outside = "".join(token.content for token in parsed(inline(words)) if token.type in {"text", "text_special"})
    assert "http" not in outside
    assert "www." not in outside
    assert "a@evil.example" not in outside


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_code_and_code_blocks_are_ended_by_us_only(words: str) -> None:
    if shown := code(words):
        assert [token.type for token in parsed(f"x {shown} y")][2:5] == ["text", "code_inline", "text"]
    assert [token.type for token in parsed(fenced(words, "diff"))] == ["fence"]


def test_a_long_row_of_backticks_takes_no_time() -> None:
    fence, *_ = fenced("`" * 1_000_000).split("\n")
    assert len(fence) == 1_000_001


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://x y", "https://x)y", "https://x\n\ny", "http:"])
def test_an_address_that_is_not_one_becomes_no_link(url: str) -> None:
    assert link("text", url) == "text"


def test_a_very_long_word_does_not_bury_the_rest() -> None:
    assert inline("x" * 100_000) == f"{'x' * 500}… (99500 characters more)"


# --- names -----------------------------------------------------------------------------------------------------------

ROLE = """\
apiVersion: v1
kind: ConfigMap
metadata: {{name: harmless}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}
metadata:
  name: "{name}"
  namespace: "{namespace}"
"""


@pytest.mark.parametrize("field", ["kind", "name", "namespace"])
@pytest.mark.parametrize("control", [r"\n\n## What was tested", r"\e[2J", r"\x9b2J", r"\u202e", r"\r"])
def test_names_with_control_characters_are_refused_with_file_and_line(tmp_path: Path, field: str, control: str) -> None:
    names = {"kind": "Role", "name": "reader", "namespace": "shop"}
    names[field] = f'"x{control}"' if field == "kind" else f"x{control}"
    (tmp_path / "role.yaml").write_text(ROLE.format(**names))
    with pytest.raises(InvalidManifest, match="has control characters") as caught:
        load(tmp_path, tmp_path)
    assert caught.value.where == "role.yaml:5"
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(str(caught.value))


@pytest.mark.parametrize("name", ["system:node <!--", "[x](https:evil.example)", "a|b", "**x** `y`"])
def test_other_odd_names_are_allowed_and_change_nothing_in_the_form(tmp_path: Path, name: str) -> None:
    (tmp_path / "role.yaml").write_text(ROLE.format(kind="Role", name=name, namespace="shop"))
    item = load(tmp_path, tmp_path)[1].item
    plain = {**item, "metadata": {**item["metadata"], "name": "reader"}}
    assert structure(form(item)) == structure(form(plain))
