"""What people read in the Prefect UI: Markdown from results. Pure.

The UI shows tables, code, links and data-URI pictures; it colours no diffs and drops styles. A description line must
say the point by itself, since the page is a click away.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from prefect_cd.environment.apply import Action, ChangeSet
from prefect_cd.environment.records import Record
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.traffic.chart import picture
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.manifests.lint import Finding
from prefect_cd.release.model import Commit, Release
from prefect_cd.rollout.watch.report import Problem, Report

_DIFF_LIMIT = 60_000  # characters; a form or an artifact stays readable and far below what the server accepts
_PICTURES = 4
# from the font of every browser, unlike emoji
_SIGNS = {Outcome.PASSED: "✔", Outcome.FAILED: "✘", Outcome.ERRORED: "?", Outcome.SKIPPED: "-"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are kept on one line."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """One line of a stranger's text: neither a column, nor HTML, nor a link or picture."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").split())


def _utc(at: datetime) -> datetime:
    return at.astimezone(timezone.utc)


def fenced(text: str, language: str = "") -> str:
    """A code block that the text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def evidence(proved: Evidence) -> str:
    """What a check or gate proved: the table, the failures' text, pictures, console and trace."""
    parts = [f"# {_SIGNS[proved.outcome]} {_cell(proved.gate)}: {_cell(proved.summary)}"]
    if proved.cases:
        rows = ((_SIGNS[case.outcome], case.title, f"{case.seconds:.2f} s") for case in proved.cases)
        parts.append(table(["", "test", "time"], rows))
    for case in proved.cases:
        if case.outcome in {Outcome.FAILED, Outcome.ERRORED}:
            parts += [f"## {_SIGNS[case.outcome]} {_cell(case.title)}", fenced(case.message or "(no text)")]
    if proved.outcome != Outcome.PASSED and proved.output:
        parts += ["## The last lines of its output", fenced(proved.output)]
    if proved.console:
        parts += ["## What the browser's console said", fenced("\n".join(proved.console))]
    parts += [f"### {_cell(each.title)}\n\n![{_cell(each.title)}]({each.uri})" for each in proved.pictures]
    if proved.trace:
        parts += ["## Trace", fenced(f"playwright show-trace {proved.trace}", "sh")]
    return "\n\n".join(parts)


def place(server: str, version: str, namespace: str) -> str:
    """Where something is, or will be, as the cluster itself says it: its version tells what kind of cluster it is."""
    return f"cluster `{server}` (Kubernetes {_cell(version)}), namespace `{namespace}`"


def changes(planned: ChangeSet) -> str:
    """The change set as a table, then each object's diff."""
    moved = [change for change in planned.changes if change.action != Action.UNCHANGED]
    unchanged = len(planned.changes) - len(moved)
    parts = [table(["object", "action"], ([str(change.ref), change.action.value] for change in moved))] if moved else []
    if unchanged:
        parts.append(f"{unchanged} unchanged.")
    left = _DIFF_LIMIT
    for change in moved:
        if left <= 0:
            parts.append("*The rest of the diff is left out here: it is too long.*")
            break
        parts += [f"**{change.action.value} {change.ref}**", fenced(change.diff[:left], "diff")]
        left -= len(change.diff)
    return "\n\n".join(parts)


def rollout(report: Report) -> str:
    """How a rollout stands: replicas, pods and since when."""
    parts = [
        table(
            ["workload", "ready", "state"],
            ([each.workload, f"{each.ready} of {each.wanted}", each.summary] for each in report.workloads),
        )
    ]
    pods = [pod for each in report.workloads for pod in each.pods]
    if pods:
        rows = (
            [pod.name, "yes" if pod.ready else "no", pod.state, f"{_utc(pod.since):%H:%M:%S}" if pod.since else ""]
            for pod in pods
        )
        parts.append(table(["pod", "ready", "state", "since (UTC)"], rows))
    return "\n\n".join(parts)


def troubles(report: Report) -> str:
    """Why a rollout failed, for somebody who was woken up by it."""
    parts = [part for trouble in report.troubles for part in _trouble(trouble)] or [report.summary]
    return "\n\n".join([*parts, "## All workloads", rollout(report)])


def _trouble(trouble: Problem) -> Iterable[str]:
    yield f"# ✘ {_cell(trouble.summary)}"
    yield f"**What to do:** {trouble.hint}"
    yield table(["where", "category"], [[trouble.where, trouble.category]])
    if trouble.evidence:
        yield "## What Kubernetes says\n\n" + fenced(trouble.evidence)
    if trouble.logs:
        yield "## The last lines of its log\n\n" + fenced(trouble.logs)


def approval(
    release: Release,
    environment: str,
    planned: ChangeSet,
    *,
    weak: Sequence[Finding] = (),
    server: str,
    version: str,
    namespace: str,
    running: Record | None,
    commits: Sequence[Commit],
    tested: Sequence[Evidence],
    note: str = "",
    run: str = "",
) -> str:
    """What a person sees before deciding: a narrow form, so lists rather than tables."""
    commit = release.commit
    now = running.release_id if running else "nothing that we know of"
    back = running.release_id if running else "nothing: it is the first release here, and a failure is left as it is"
    parts = [
        f"> **{_cell(note)}**" if note else "",
        f"# {release.application} {commit.short} → {environment}",
        f"**{_cell(commit.subject)}**, by {_cell(commit.author)}, {_utc(commit.committed_at):%Y-%m-%d %H:%M} UTC",
        bullets(
            f"runs there now: {now}",
            f"if it fails, we go back to: {back}",
            f"release `{release.id}`, commit `{commit.sha[:12]}`",
            f"image `{release.image.name}` `{release.image.digest[:19]}…`",
            place(server, version, namespace),
            f"[the run with all its reports]({run})" if run else "",
        ),
        "## What was tested",
        bullets(*(f"{_SIGNS[each.outcome]} **{_cell(each.gate)}**: {_cell(each.summary)}" for each in tested)),
        weaknesses(weak),
        f"## What changes: {planned}",
        bullets(*(f"`{each.short}` {_cell(each.subject)} ({_cell(each.author)})" for each in commits)),
        changes(planned),
    ]
    pictures = [picture for each in tested for picture in each.pictures][:_PICTURES]
    parts += ["## What the browser saw"] if pictures else []
    parts += [f"{_cell(each.title)}\n\n![{_cell(each.title)}]({each.uri})" for each in pictures]
    return "\n\n".join(part for part in parts if part)


def bullets(*lines: str) -> str:
    """A Markdown list; empty lines are left out."""
    return "\n".join(f"- {line}" for line in lines if line)


def outcome(record: Record) -> str:
    """What became of a release in an environment."""
    rows = [
        ["release", record.release_id],
        ["commit", f"{record.commit.short} {record.commit.subject}" if record.commit else "what was there before us"],
        ["image", record.image.reference if record.image else ""],
        ["state", record.state.value],
        ["approved by", f"{record.decision.name}: {record.decision.comment}" if record.decision else "nobody had to"],
        ["record", f"Secret prefect-cd.{record.application}.{record.number}"],
    ]
    parts = [table(["", ""], rows)]
    if record.gates:
        parts.append(table(["gate", "outcome", "result"], ([g.name, g.outcome, g.summary] for g in record.gates)))
    if record.reason:
        parts.append(fenced(record.reason))
    return "\n\n".join(parts)


def requests(proved: Evidence, seen: Traffic) -> str:
    """What users saw of a rollout: the verdict, a picture of it, and the numbers."""
    chart = picture(seen)
    took, before = seen.latency, f"{seen.sent_before}, of which {sum(seen.before.values())} failed"
    numbers: list[Sequence[object]] = [
        ["asked for", seen.address],
        ["by way of", seen.way.value],
        ["before the rollout", before if seen.sent_before else "none"],
        ["during the rollout", seen.sent],
        *(["failed", f"{number} ({kind})"] for kind, number in seen.failures.items()),
        ["slow", seen.slow],
        ["longest time without a good answer", _gap(seen)],
        ["half, 95 %, 99 % and all within", " · ".join(f"{s * 1000:.0f} ms" for s in took.model_dump().values())],
        *([["not sent", f"{seen.unsent}: this machine was too busy"]] if seen.unsent else []),
    ]
    parts = [
        f"# {_SIGNS[proved.outcome]} {_cell(proved.gate)}",
        _cell(proved.summary),
        f"**What to do:** {proved.hint}" if proved.hint else "",
        f"![answers per second, by version]({chart})" if chart else "",
    ]
    if proved.cases:
        limits = ([_SIGNS[case.outcome], case.name, case.message] for case in proved.cases)
        parts.append(table(["", "limit", "exceeded by"], limits))
    parts.append(table(["requests", ""], numbers))
    if seen.versions:
        rows = ([each.version, each.answers, f"{each.first:.1f} s", f"{each.last:.1f} s"] for each in seen.versions)
        parts.append(table(["version", "answers", "first", "last"], rows))
    return "\n\n".join(part for part in parts if part)


def _gap(seen: Traffic) -> str:
    return f"{seen.gap:.2f} s, from second {seen.gap_at:.1f} on" if seen.gap else "0 s"


def weaknesses(found: Sequence[Finding]) -> str:
    """What will lose requests, with the fix; empty when nothing will. Lists, since a form is narrow."""
    lines = (f"**{_cell(each.where)}**: {_cell(each.summary)}. *Fix:* {_cell(each.fix)}." for each in found)
    return f"## What may lose requests\n\n{bullets(*lines)}" if found else ""
