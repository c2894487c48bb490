"""What people read in the Prefect UI: Markdown from results. Pure.

The UI shows tables, code, links and data-URI pictures; it has no colours for diffs and drops styles. A description
line must be understandable alone, since the page is a click away.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from prefect_cd.environment.change_set import Action, ChangeSet
from prefect_cd.environment.record import Record
from prefect_cd.environment.way_back import WayBackFinding
from prefect_cd.gates.evidence import Evidence, Outcome, Picture
from prefect_cd.gates.traffic.chart import chart_uri
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.manifests.lint import Finding, Rule
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
    """Untrusted text on one line: it cannot add a column, HTML, a link or a picture."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").split())


def _utc(at: datetime) -> datetime:
    return at.astimezone(timezone.utc)


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text, so that the text cannot end it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def evidence(proof: Evidence) -> str:
    """What a check or gate proved: its table of tests, the text of failures, pictures, console and trace."""
    parts = [f"# {_SIGNS[proof.outcome]} {_cell(proof.gate)}: {_cell(proof.summary)}"]
    if proof.cases:
        rows = ((_SIGNS[case.outcome], case.title, f"{case.seconds:.2f} s") for case in proof.cases)
        parts.append(table(["", "test", "time"], rows))
    for case in proof.cases:
        if case.outcome in {Outcome.FAILED, Outcome.ERRORED}:
            parts += [f"## {_SIGNS[case.outcome]} {_cell(case.title)}", fenced(case.message or "(no text)")]
    if proof.outcome != Outcome.PASSED and proof.output:
        parts += ["## Last lines of the output", fenced(proof.output)]
    if proof.console:
        parts += ["## Browser console", fenced("\n".join(proof.console))]
    parts += [f"### {_picture(picture)}" for picture in proof.pictures]
    if proof.trace:
        parts += ["## Trace", fenced(f"playwright show-trace {proof.trace}", "sh")]
    return "\n\n".join(parts)


def _picture(picture: Picture) -> str:
    return f"{_cell(picture.title)}\n\n![{_cell(picture.title)}]({picture.uri})"


def place(server: str, version: str, namespace: str) -> str:
    """Where objects are, in the cluster's own words; the version shows what kind of cluster it is."""
    return f"cluster `{server}` (Kubernetes {_cell(version)}), namespace `{namespace}`"


def changes(change_set: ChangeSet) -> str:
    """The change set as a table, then the diff of each object."""
    changed = [change for change in change_set.changes if change.action != Action.UNCHANGED]
    unchanged = len(change_set.changes) - len(changed)
    rows = ([str(change.ref), change.action.value] for change in changed)
    parts = [table(["object", "action"], rows)] if changed else []
    if unchanged:
        parts.append(f"{unchanged} unchanged.")
    left = _DIFF_LIMIT
    for change in changed:
        if left <= 0:
            parts.append("*The rest of the diff is left out: it is too long.*")
            break
        parts += [f"**{change.action.value} {change.ref}**", fenced(change.diff[:left], "diff")]
        left -= len(change.diff)
    return "\n\n".join(parts)


def rollout(report: Report) -> str:
    """How a rollout stands: replicas, pods and since when."""
    rows = (
        [workload.workload, f"{workload.ready} of {workload.wanted}", workload.summary] for workload in report.workloads
    )
    parts = [table(["workload", "ready", "state"], rows)]
    pods = [pod for workload in report.workloads for pod in workload.pods]
    if pods:
        pod_rows = (
            [pod.name, "yes" if pod.ready else "no", pod.state, f"{_utc(pod.since):%H:%M:%S}" if pod.since else ""]
            for pod in pods
        )
        parts.append(table(["pod", "ready", "state", "since (UTC)"], pod_rows))
    return "\n\n".join(parts)


def problems(report: Report) -> str:
    """Why a rollout failed, for the person on call."""
    parts = [part for problem in report.problems for part in _problem(problem)] or [report.summary]
    return "\n\n".join([*parts, "## All workloads", rollout(report)])


def _problem(problem: Problem) -> Iterable[str]:
    yield f"# ✘ {_cell(problem.summary)}"
    yield f"**What to do:** {problem.hint}"
    yield table(["where", "category"], [[problem.where, problem.category]])
    if problem.evidence:
        yield "## What Kubernetes says\n\n" + fenced(problem.evidence)
    if problem.logs:
        yield "## Last lines of the log\n\n" + fenced(problem.logs)


def approval(
    release: Release,
    environment: str,
    changed: ChangeSet,
    *,
    findings: Sequence[Finding] = (),
    way_back_findings: Sequence[WayBackFinding] = (),
    server: str,
    version: str,
    namespace: str,
    running: Record | None,
    commits: Sequence[Commit],
    tested: Sequence[Evidence],
    note: str = "",
    run: str = "",
) -> str:
    """What an approver reads before deciding: the form is narrow, so this has lists where possible."""
    commit = release.commit
    now = running.release_id if running else "nothing that we know of"
    first = "nothing: this is the first release here; what it adds is removed again, except what holds data"
    rollback = running.release_id if running else first
    parts = [
        f"> **{_cell(note)}**" if note else "",
        f"# {release.application} {commit.short} → {environment}",
        f"**{_cell(commit.subject)}**, by {_cell(commit.author)}, {_utc(commit.committed_at):%Y-%m-%d %H:%M} UTC",
        bullets(
            f"runs there now: {now}",
            f"if it fails, we roll back to: {rollback}",
            f"release `{release.id}`, commit `{commit.sha[:12]}`",
            f"image `{release.image.name}` `{release.image.digest[:19]}…`",
            place(server, version, namespace),
            f"[the run with all its reports]({run})" if run else "",
        ),
        "## What was tested",
        bullets(*(f"{_SIGNS[proof.outcome]} **{_cell(proof.gate)}**: {_cell(proof.summary)}" for proof in tested)),
        way_back(way_back_findings),
        may_lose_requests(findings),
        f"## What changes: {changed}",
        bullets(*(f"`{commit.short}` {_cell(commit.subject)} ({_cell(commit.author)})" for commit in commits)),
        changes(changed),
    ]
    pictures = [picture for proof in tested for picture in proof.pictures][:_PICTURES]
    parts += ["## What the browser saw"] if pictures else []
    parts += [_picture(picture) for picture in pictures]
    return "\n\n".join(part for part in parts if part)


def bullets(*lines: str) -> str:
    """A Markdown list; empty lines are left out."""
    return "\n".join(f"- {line}" for line in lines if line)


def outcome(record: Record) -> str:
    """What became of a release in an environment."""
    rows = [
        ["release", record.release_id],
        [
            "commit",
            f"{record.commit.short} {record.commit.subject}" if record.commit else "none: from before the takeover",
        ],
        ["image", record.image.reference if record.image else ""],
        ["state", record.state.value],
        ["approved by", f"{record.decision.name}: {record.decision.comment}" if record.decision else "not required"],
        ["record", f"Secret prefect-cd.{record.application}.{record.number}"],
    ]
    parts = [table(["", ""], rows)]
    if record.gates:
        parts.append(table(["gate", "outcome", "result"], ([g.name, g.outcome, g.summary] for g in record.gates)))
    if record.reason:
        parts.append(fenced(record.reason))
    return "\n\n".join(parts)


def requests(proof: Evidence, traffic: Traffic) -> str:
    """What became of the requests during a rollout: the verdict, a chart, and the numbers."""
    chart = chart_uri(traffic)
    latency, before = traffic.latency, f"{traffic.sent_before}, of which {sum(traffic.failures_before.values())} failed"
    numbers: list[Sequence[object]] = [
        ["URL", traffic.address],
        ["route", traffic.route.value],
        ["before the rollout", before if traffic.sent_before else "none"],
        ["during the rollout", traffic.sent],
        *(["failed", f"{number} ({kind})"] for kind, number in traffic.failures.items()),
        ["slow", traffic.slow],
        ["longest time without a good answer", _gap(traffic)],
        ["half, 95 %, 99 % and all within", " · ".join(f"{s * 1000:.0f} ms" for s in latency.model_dump().values())],
        *([["not sent", f"{traffic.unsent}: this machine was too busy"]] if traffic.unsent else []),
    ]
    parts = [
        f"# {_SIGNS[proof.outcome]} {_cell(proof.gate)}",
        _cell(proof.summary),
        f"**What to do:** {proof.hint}" if proof.hint else "",
        f"![answers per second, by version]({chart})" if chart else "",
    ]
    if proof.cases:
        limits = ([_SIGNS[case.outcome], case.name, case.message] for case in proof.cases)
        parts.append(table(["", "limit", "exceeded by"], limits))
    parts.append(table(["requests", ""], numbers))
    if traffic.versions:
        rows = (
            [version.version, version.answers, f"{version.first:.1f} s", f"{version.last:.1f} s"]
            for version in traffic.versions
        )
        parts.append(table(["version", "answers", "first", "last"], rows))
    return "\n\n".join(part for part in parts if part)


def _gap(traffic: Traffic) -> str:
    return f"{traffic.gap:.2f} s, from second {traffic.gap_at:.1f} on" if traffic.gap else "0 s"


def may_lose_requests(findings: Sequence[Finding]) -> str:
    """What may lose requests, run another image or not be undone in place, with the fix; empty when nothing may.

    A list, since a form is narrow.
    """
    sections = {
        "What may lose requests": [finding for finding in findings if finding.loses_requests],
        "What may run another image": [finding for finding in findings if finding.rule is Rule.MOVING_TAG],
        "What a rollback does not undo in place": [finding for finding in findings if finding.cannot_be_undone],
    }
    return "\n\n".join(f"## {title}\n\n{bullets(*map(_finding, those))}" for title, those in sections.items() if those)


def way_back(findings: Sequence[WayBackFinding]) -> str:
    """What would keep a rollback from working, with the fix; empty when nothing would."""
    return f"## Why a rollback would not work\n\n{bullets(*map(_finding, findings))}" if findings else ""


def _finding(finding: Finding | WayBackFinding) -> str:
    return f"**{_cell(finding.where)}**: {_cell(finding.summary)}. *Fix:* {_cell(finding.fix)}."
