"""What people read in the Prefect UI: Markdown from results. Pure.

The UI shows tables, code, links and data-URI pictures; it has no colours for diffs and drops styles. A description
line must be understandable alone, since the page is a click away.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.record import Record
from prefect_cd.environment.way_back import WayBackFinding
from prefect_cd.gates.evidence import Evidence, Outcome, Picture
from prefect_cd.gates.traffic.chart import chart_uri
from prefect_cd.gates.traffic.metrics import Traffic
from prefect_cd.manifests.lint import Finding, Rule
from prefect_cd.release.model import BuiltImage, Commit, Release
from prefect_cd.rollout.watch.report import Problem, Report
from prefect_cd.tasks import markdown_changes
from prefect_cd.tasks.markdown_text import bold, bullets, code, fenced, image, inline, link, table

_PICTURES = 4
# from the font of every browser, unlike emoji
_SIGNS = {Outcome.PASSED: "✔", Outcome.FAILED: "✘", Outcome.ERRORED: "?", Outcome.SKIPPED: "-"}


def _utc(at: datetime) -> datetime:
    return at.astimezone(timezone.utc)


def evidence(proof: Evidence) -> str:
    """What a check or gate proved: its table of tests, pictures, the text of failures, console and trace."""
    parts = [f"# {_SIGNS[proof.outcome]} {inline(proof.gate)}: {inline(proof.summary)}"]
    if proof.cases:
        rows = ((_SIGNS[case.outcome], case.title, f"{case.seconds:.2f} s") for case in proof.cases)
        parts.append(table(["", "test", "time"], rows))
    parts += [f"### {_picture(picture)}" for picture in proof.pictures]
    for case in proof.cases:
        if case.outcome in {Outcome.FAILED, Outcome.ERRORED}:
            parts += [f"## {_SIGNS[case.outcome]} {inline(case.title)}", fenced(case.message or "(no text)")]
    if proof.outcome != Outcome.PASSED and proof.output:
        parts += ["## Last lines of the output", fenced(proof.output)]
    if proof.console:
        parts += ["## Browser console", fenced("\n".join(proof.console))]
    if proof.trace:
        parts += ["## Trace", fenced(f"playwright show-trace {proof.trace}", "sh")]
    return "\n\n".join(parts)


def _picture(shown: Picture) -> str:
    return f"{inline(shown.title)}\n\n{image(shown.title, shown.uri)}"


def place(server: str, version: str, namespace: str) -> str:
    """Where objects are, in the cluster's own words; the version shows what kind of cluster it is."""
    return f"cluster {code(server)} (Kubernetes {inline(version)}), namespace {code(namespace)}"


def plan(diff: str, others: Sequence[str], *parts: str, content: str) -> str:
    """The first page of a plan.

    Args:
        diff: its part of the diff, in Markdown.
        others: the addresses of the other pages, which have the rest of the diff.
        parts: what comes before the diff, in Markdown.
        content: the digest that an approval names.
    """
    numbered = ", ".join(link(f"page {number}", url) for number, url in enumerate(others, start=2))
    rest = f"The diff goes on: {numbered}" if others else ""
    return "\n\n".join(filter(None, [*parts, f"content {code(f'sha256:{content}')}", rest, diff, rest]))


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
    parts = [part for problem in report.problems for part in _problem(problem)] or [inline(report.summary)]
    return "\n\n".join([*parts, "## All workloads", rollout(report)])


def _problem(problem: Problem) -> Iterable[str]:
    yield f"# ✘ {inline(problem.summary)}"
    yield f"**What to do:** {inline(problem.hint)}"
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
    content: str,
    note: str = "",
    run: str = "",
    whole: str = "",
) -> str:
    """What an approver reads before deciding: the form is narrow, so this has lists where possible.

    Args:
        release: the candidate.
        environment: where it would go.
        changed: what it would change there.
        findings: warnings about its manifests.
        way_back_findings: what would keep a rollback from working.
        server: the cluster's address.
        version: the cluster's version.
        namespace: the environment's.
        running: what runs there now.
        commits: those that the release adds.
        tested: what the gates before have proved.
        content: the digest of what the approval covers.
        note: why it is asked again.
        run: the address of the run.
        whole: the address of the whole diff.
    """
    commit = release.commit
    now = _running_text(running) if running else "nothing that we know of"
    first = "nothing: this is the first release here; what it adds is removed again, except what holds data"
    rollback = running.release_id if running else first
    pictures = [picture for proof in tested for picture in proof.pictures][:_PICTURES]
    parts = [
        f"> {bold(note)}" if note else "",
        f"# {inline(release.application)} {commit.short} → {inline(environment)}",
        f"{bold(commit.subject)}, by {inline(commit.author)}, {_utc(commit.committed_at):%Y-%m-%d %H:%M} UTC",
        bullets(
            f"runs there now: {inline(now)}",
            f"if it fails, we roll back to: {inline(rollback)}",
            f"release {code(release.id)}, commit {code(commit.sha[:12])}",
            f"image {code(release.image.name)} {code(f'{release.image.digest[:19]}…')}, {_origin(release.image)}",
            place(server, version, namespace),
            f"the answer counts for this content only: {_in_halves(content)}",
            link("the whole diff", whole) if whole else "",
            link("the run with all its reports", run) if run else "",
        ),
        markdown_changes.risks(changed),
        markdown_changes.hand_edits(changed),
        "## What was tested",
        bullets(*(f"{_SIGNS[proof.outcome]} {bold(proof.gate)}: {inline(proof.summary)}" for proof in tested)),
        *([] if not pictures else ["## What the browser saw", *map(_picture, pictures)]),
        way_back(way_back_findings),
        may_lose_requests(findings),
        f"## What changes: {changed}",
        bullets(*(f"`{commit.short}` {inline(commit.subject)} ({inline(commit.author)})" for commit in commits)),
        markdown_changes.shortened(changed, whole),
    ]
    return "\n\n".join(part for part in parts if part)


def _running_text(running: Record) -> str:
    """What runs now, for people: its commit and subject, and since when."""
    version = f"{running.commit.short} {running.commit.subject}" if running.commit else running.release_id
    return f"{version}, since {_utc(running.started_at):%Y-%m-%d %H:%M} UTC"


def _in_halves(digest: str) -> str:
    """A digest of 64 digits in a form, which is too narrow for it in one piece."""
    half = len(digest) // 2
    return f"sha256 {code(digest[:half])} {code(digest[half:])}"


def _origin(image: BuiltImage) -> str:
    """Who built the image, as far as we know."""
    if image.built:
        return "**built** by this run"
    says = "its label says that it is of this commit" if image.revision else "nothing in it says of which commit it is"
    return f"**found** in the registry and not built by this run: {says}"


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
        ["approved by", _approver(record)],
        ["record", f"Secret prefect-cd.{record.application}.{record.number}"],
    ]
    parts = [table(["", ""], rows)]
    if record.gates:
        parts.append(table(["gate", "outcome", "result"], ([g.name, g.outcome, g.summary] for g in record.gates)))
    if record.reason:
        parts.append(fenced(record.reason))
    return "\n\n".join(parts)


def _approver(record: Record) -> str:
    if record.decision is None:
        return "not required"
    return ": ".join(filter(None, [record.decision.name, record.decision.comment]))


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
        f"# {_SIGNS[proof.outcome]} {inline(proof.gate)}",
        inline(proof.summary),
        f"**What to do:** {inline(proof.hint)}" if proof.hint else "",
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
    return f"{bold(finding.where)}: {inline(finding.summary)}. *Fix:* {inline(finding.fix)}."
