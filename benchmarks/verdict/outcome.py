"""Compare the measurement with the targets: counts, times after the proof, the table, the last line. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from measure import Run
from tools import COMPLETE, FAILED, NAMES, NONE, OURS

MEDIAN_WANTED, MOST_WANTED, PATIENCE_WANTED = 2.0, 5.0, 2.0
"""Seconds: after the proof, median and 95 %; after the patience with a problem that may be temporary."""
_SIGNS = {COMPLETE: "complete", FAILED: "failed", NONE: "-"}


@dataclass(frozen=True)
class Score:
    """The result of one tool.

    Args:
        detected: failing scenarios that it called failed.
        missed: failing scenarios that it called complete.
        false_alarms: good scenarios that it called failed.
        confirmed: good scenarios that it called complete.
        named: detected scenarios whose cause it named.
        delays: seconds from the proof to the verdict, where one fact proves the failure.
        waits: seconds from the end of the patience to the verdict, where the problem may be temporary.
        seconds: from the apply to the verdict, for all detected scenarios.
    """

    detected: tuple[str, ...]
    missed: tuple[str, ...]
    false_alarms: tuple[str, ...]
    confirmed: tuple[str, ...]
    named: tuple[str, ...]
    delays: tuple[float, ...]
    waits: tuple[float, ...]
    seconds: tuple[float, ...]


def score(tool: str, runs: Sequence[Run]) -> Score:
    """Count one tool's answers."""

    def select(verdict: str, *, good: bool) -> list[Run]:
        return [run for run in runs if run.scenario.good == good and run.answers[tool].verdict == verdict]

    detected = select(FAILED, good=False)
    return Score(
        detected=_names(detected),
        missed=_names(select(COMPLETE, good=False)),
        false_alarms=_names(select(FAILED, good=True)),
        confirmed=_names(select(COMPLETE, good=True)),
        named=_names([run for run in detected if run.answers[tool].named]),
        delays=_after(tool, [run for run in detected if run.scenario.provable]),
        waits=_after(tool, [run for run in detected if not run.scenario.provable]),
        seconds=tuple(run.seconds[tool] for run in detected),
    )


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(run.scenario.name for run in runs)


def after(tool: str, run: Run) -> float | None:
    """Seconds from the proof, or from the end of the patience, to a tool's verdict; the first copy has the proof."""
    if run.proof is None:
        return None
    return run.seconds[tool] - (run.proof - run.applied) - run.scenario.patience


def _after(tool: str, runs: Sequence[Run]) -> tuple[float, ...]:
    delays = (after(tool, run) for run in runs)
    return tuple(delay for delay in delays if delay is not None)


def share(values: Sequence[float]) -> float:
    """The value that 95 % do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * 95 // 100) - 1, 0)] if ordered else 0.0


def verdict(runs: Sequence[Run]) -> tuple[str, bool]:
    """The last line, and whether every target was reached."""
    ours = score(OURS, runs)
    failing = sum(not run.scenario.good for run in runs)
    good = len(runs) - failing
    middle = median(ours.delays) if ours.delays else 0.0
    most, late = share(ours.delays), max(ours.waits, default=0.0)
    reached = (
        len(ours.detected) == failing
        and not ours.false_alarms
        and len(ours.named) == failing
        and middle <= MEDIAN_WANTED
        and most <= MOST_WANTED
        and late <= PATIENCE_WANTED
    )
    line = (
        f"measured: {len(ours.detected)} of {failing} failing called failed, cause named in {len(ours.named)}, "
        f"{len(ours.false_alarms)} of {good} good called failed; "
        f"after the proof median {middle:.1f} s, 95 % {most:.1f} s; after the patience at most {late:.1f} s; "
        f"wanted: all, all, none; {MEDIAN_WANTED:.0f} s, {MOST_WANTED:.0f} s; {PATIENCE_WANTED:.0f} s"
    )
    return line, reached


def summary(runs: Sequence[Run]) -> str:
    """One line for each tool, as Markdown."""
    failing = sum(not run.scenario.good for run in runs)
    good = len(runs) - failing
    columns = (f"called failed, of {failing}", "median, s", "called complete", "cause named",
               f"good called failed, of {good}", "good called complete")  # fmt: skip
    lines = [f"| tool | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for tool in NAMES:
        result = score(tool, runs)
        middle = f"{median(result.seconds):.1f}" if result.seconds else "-"
        lines.append(
            f"| {tool} | {len(result.detected)} | {middle} | {len(result.missed)} | {len(result.named)} "
            f"| {len(result.false_alarms)} | {len(result.confirmed)} |"
        )
    return "\n".join(lines)


def table(runs: Sequence[Run]) -> str:
    """One line for each scenario, as Markdown: seconds are since the apply, wrong verdicts in bold."""
    lines = []
    for good, title in ((False, "Failing"), (True, "Good")):
        chosen = sorted((run for run in runs if run.scenario.good == good), key=lambda run: run.scenario.name)
        head = "proof | patience | after it, ours | " if not good else ""
        lines += ["", f"## {title}: {len(chosen)}", "", f"| scenario | {head}{' | '.join(NAMES)} |"]
        lines += ["|---|" + "---:|" * (0 if good else 3) + "---|" * len(NAMES)]
        lines += [_row(run) for run in chosen]
    return "\n".join(lines[1:])


def _row(run: Run) -> str:
    cells = [run.scenario.name]
    if not run.scenario.good:
        delay = after(OURS, run) if run.answers[OURS].verdict == FAILED else None
        proof = "-" if run.proof is None else f"{run.proof - run.applied:.1f}"
        patience = "" if run.scenario.provable else f"{run.scenario.patience:.0f}"
        cells += [proof, patience, "-" if delay is None else f"{delay:+.1f}"]
    return f"| {' | '.join([*cells, *(_cell(tool, run) for tool in NAMES)])} |"


def _cell(tool: str, run: Run) -> str:
    answer = run.answers[tool]
    if answer.verdict == NONE:
        return _SIGNS[NONE]
    text = f"{_SIGNS[answer.verdict]} {run.seconds[tool]:.1f}"
    if answer.verdict == FAILED and answer.named:
        text += f", {answer.category or 'named'}"
    right = (answer.verdict == COMPLETE) == run.scenario.good
    return text if right else f"**{text}**"
