"""What was measured, against what is wanted: counts, times after the proof, the table, the last line. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from measure import Run
from tools import COMPLETE, DOOMED, NAMES, NONE, OURS

MEDIAN_WANTED, MOST_WANTED, PATIENCE_WANTED = 2.0, 5.0, 2.0
"""Seconds: after the proof, median and 95 %; after the patience with what may heal."""
_SIGNS = {COMPLETE: "complete", DOOMED: "doomed", NONE: "-"}


@dataclass(frozen=True)
class Score:
    """How one tool did.

    Args:
        condemned: failing scenarios that it called doomed.
        passed: failing scenarios that it called complete.
        wronged: good scenarios that it called doomed.
        confirmed: good scenarios that it called complete.
        named: condemned ones whose cause it named.
        delays: seconds from the proof to doom, where one fact proves it.
        waits: seconds from the end of the patience to doom, where it may heal.
        seconds: from the apply to doom, for all that it condemned.
    """

    condemned: tuple[str, ...]
    passed: tuple[str, ...]
    wronged: tuple[str, ...]
    confirmed: tuple[str, ...]
    named: tuple[str, ...]
    delays: tuple[float, ...]
    waits: tuple[float, ...]
    seconds: tuple[float, ...]


def score(tool: str, runs: Sequence[Run]) -> Score:
    """Count one tool's answers."""

    def those(verdict: str, *, good: bool) -> list[Run]:
        return [run for run in runs if run.scenario.good == good and run.answers[tool].verdict == verdict]

    doomed = those(DOOMED, good=False)
    return Score(
        condemned=_names(doomed),
        passed=_names(those(COMPLETE, good=False)),
        wronged=_names(those(DOOMED, good=True)),
        confirmed=_names(those(COMPLETE, good=True)),
        named=_names([run for run in doomed if run.answers[tool].named]),
        delays=_after(tool, [run for run in doomed if run.scenario.provable]),
        waits=_after(tool, [run for run in doomed if not run.scenario.provable]),
        seconds=tuple(run.seconds[tool] for run in doomed),
    )


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(run.scenario.name for run in runs)


def after(tool: str, run: Run) -> float | None:
    """Seconds from the proof, or from the end of the patience, to a tool's verdict; the proof is our copy's."""
    if run.proof is None:
        return None
    return run.seconds[tool] - (run.proof - run.applied) - run.scenario.patience


def _after(tool: str, runs: Sequence[Run]) -> tuple[float, ...]:
    return tuple(found for run in runs if (found := after(tool, run)) is not None)


def share(values: Sequence[float]) -> float:
    """The value that 95 % do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * 95 // 100) - 1, 0)] if ordered else 0.0


def verdict(runs: Sequence[Run]) -> tuple[str, bool]:
    """The last line, and whether everything that is wanted was reached."""
    ours = score(OURS, runs)
    failing = sum(not run.scenario.good for run in runs)
    good = len(runs) - failing
    middle = median(ours.delays) if ours.delays else 0.0
    most, late = share(ours.delays), max(ours.waits, default=0.0)
    reached = (
        len(ours.condemned) == failing
        and not ours.wronged
        and len(ours.named) == failing
        and middle <= MEDIAN_WANTED
        and most <= MOST_WANTED
        and late <= PATIENCE_WANTED
    )
    said = (
        f"measured: {len(ours.condemned)} of {failing} failing condemned, cause named in {len(ours.named)}, "
        f"{len(ours.wronged)} of {good} good condemned; after the proof median {middle:.1f} s, 95 % {most:.1f} s; "
        f"after the patience at most {late:.1f} s; "
        f"wanted: all, all, none; {MEDIAN_WANTED:.0f} s, {MOST_WANTED:.0f} s; {PATIENCE_WANTED:.0f} s"
    )
    return said, reached


def summary(runs: Sequence[Run]) -> str:
    """One line for each tool, as Markdown."""
    failing = sum(not run.scenario.good for run in runs)
    good = len(runs) - failing
    columns = (f"condemned, of {failing}", "median, s", "passed", "cause named", f"good condemned, of {good}",
               "good called complete")  # fmt: skip
    lines = [f"| tool | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for tool in NAMES:
        found = score(tool, runs)
        middle = f"{median(found.seconds):.1f}" if found.seconds else "-"
        lines.append(
            f"| {tool} | {len(found.condemned)} | {middle} | {len(found.passed)} | {len(found.named)} "
            f"| {len(found.wronged)} | {len(found.confirmed)} |"
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
        found = after(OURS, run) if run.answers[OURS].verdict == DOOMED else None
        proof = "-" if run.proof is None else f"{run.proof - run.applied:.1f}"
        patience = "" if run.scenario.provable else f"{run.scenario.patience:.0f}"
        cells += [proof, patience, "-" if found is None else f"{found:+.1f}"]
    return f"| {' | '.join([*cells, *(_cell(tool, run) for tool in NAMES)])} |"


def _cell(tool: str, run: Run) -> str:
    answer = run.answers[tool]
    if answer.verdict == NONE:
        return _SIGNS[NONE]
    said = f"{_SIGNS[answer.verdict]} {run.seconds[tool]:.1f}"
    if answer.verdict == DOOMED and answer.named:
        said += f", {answer.category or 'named'}"
    return said if (answer.verdict == COMPLETE) == run.scenario.good else f"**{said}**"
