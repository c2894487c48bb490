"""Disturb a run at every one of its writes, recover, and count what is not whole.

It is killed before, in and after each write; or the write is lost, late, sent twice, or overtaken. With `--mutants`,
faults are put into the runs, one by one, and the tests must find each of them.
"""

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.crash.mutants import MUTANTS, VARIABLE  # noqa: E402
from tests.crash.proxy import Event, Fault, Moment  # noqa: E402
from tests.crash.trial import SCENARIOS, Disturbance, Outcome, Scene, is_certain, open_scene  # noqa: E402
from tests.crash.whole_flow import FLOWS, open_stage  # noqa: E402

WANTED_SECONDS = 10.0
MISSED = 0.05  # of the trials, at most: a write that was repeated when nobody disturbed the run need not be repeated
EVENTS: tuple[Event, ...] = (*Moment, *Fault)


@dataclass(frozen=True)
class Row:
    """A scenario that was played.

    Args:
        name: of the scenario.
        boundaries: how many writes it has.
        outcomes: of its trials.
        left: how many trials were left out, because the time was over.
    """

    name: str
    boundaries: int
    outcomes: Sequence[Outcome]
    left: int

    @property
    def half(self) -> int:
        """How many trials left half states."""
        return sum(bool(outcome.problem) for outcome in self.outcomes)

    @property
    def kills(self) -> int:
        """In how many trials the process was killed."""
        return sum(isinstance(outcome.disturbance.event, Moment) for outcome in self.outcomes)

    def __str__(self) -> str:
        seconds = [outcome.seconds for outcome in self.outcomes] or [0.0]
        faults = len(self.outcomes) - self.kills
        return (
            f"| {self.name} | {self.boundaries} | {self.kills} | {faults} | {self.half} | {median(seconds):.1f} "
            f"| {max(seconds):.1f} |"
        )


Trial = Callable[[Disturbance], Outcome]


@dataclass(frozen=True)
class Bench:
    """How much is played.

    Args:
        at_once: trials side by side.
        most: the number of trials of a scenario; a seeded sample where there are more.
        seed: of the sample.
        deadline: by `time.monotonic`; no trial starts later.
    """

    at_once: int
    most: int
    seed: int
    deadline: float

    def play(self, name: str, disturbances: Iterable[Disturbance], trial: Trial) -> Row:
        """Play the trials of one scenario; the writes are those of the disturbances."""
        every = list(disturbances)
        chosen = every if len(every) <= self.most else random.Random(self.seed).sample(every, self.most)  # noqa: S311
        outcomes: list[Outcome] = []

        def in_time(disturbance: Disturbance) -> Outcome | None:
            return trial(disturbance) if time.monotonic() < self.deadline else None

        with ThreadPoolExecutor(self.at_once) as pool:
            for outcome in filter(None, pool.map(in_time, chosen)):
                outcomes.append(outcome)
                _say(f"{name}: {len(outcomes)} of {len(chosen)}, {outcome.seconds:.1f} s, {outcome.disturbance}")
                if outcome.problem:
                    print(f"HALF: {name}, {outcome.disturbance}: {outcome.problem}", flush=True)
        boundaries = len({disturbance.boundary for disturbance in every})
        return Row(name, boundaries, outcomes, len(chosen) - len(outcomes))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def play_all(scene: Scene, bench: Bench, only: str) -> list[Row]:
    """All scenarios whose name contains `only`."""
    rows = []
    for scenario in SCENARIOS:
        if only in scenario.name:
            trace, whole = scene.undisturbed(scenario)
            pairs = itertools.starmap(Disturbance, itertools.product(trace, EVENTS))
            every = [disturbance for disturbance in pairs if is_certain(disturbance, whole[0])]
            rows.append(bench.play(scenario.name, every, partial(scene.trial, scenario, whole)))
    for flow in FLOWS:
        if only in flow.name:
            stage = open_stage(scene)
            trace, whole = stage.undisturbed(flow)
            every = itertools.starmap(Disturbance, itertools.product(trace, flow.events))
            rows.append(bench.play(flow.name, every, partial(stage.trial, flow, whole)))
    return rows


def measure(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    bench = Bench(arguments.at_once, arguments.most, arguments.seed, started + 60 * arguments.minutes)
    with tempfile.TemporaryDirectory(prefix="bench-crash-") as folder, open_scene(Path(folder)) as scene:
        rows = play_all(scene, bench, arguments.only)
    seconds = [outcome.seconds for row in rows for outcome in row.outcomes]
    half, left = sum(row.half for row in rows), sum(row.left for row in rows)
    missed = sum(not outcome.reached for row in rows for outcome in row.outcomes)
    typical, longest = median(seconds), max(seconds)
    done = (
        f"{len(seconds)} trials in {time.monotonic() - started:.0f} s, {arguments.at_once} side by side, "
        f"{os.cpu_count()} cores, cluster: {arguments.cluster}"
    )
    line = (
        f"measured {half} half states in {len(seconds)} trials, and {typical:.1f} s to whole (median; longest "
        f"{longest:.1f} s), wanted 0 and at most {WANTED_SECONDS:.0f} s"
    )
    lines = [
        done,
        "",
        "| disturbed | boundaries | kills | faults | half states | to whole, median s | longest, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *map(str, rows),
        "",
        *([f"in {missed} trials the run did not come to the write"] if missed else []),
        *([f"{left} trials were left out: the time was over"] if left else []),
        line,
    ]
    text = "\n".join(lines)
    if not arguments.only:
        (HERE / f"results-{arguments.cluster}.md").write_text(f"# Last measured\n\n{text}\n")
    print(f"\n{text}")
    is_whole = half == 0 and not left and missed <= MISSED * len(seconds)
    return 0 if is_whole and typical <= WANTED_SECONDS else 1


def mutate(names: Sequence[str]) -> int:
    """Run the tests with each fault; returns 0 when they fail with each of them, and pass without."""
    lines = ["| fault | tests |", "|---|---|"]
    unnoticed = []
    for name in ["", *names]:
        check = [sys.executable, "-c", f"from tests.crash.mutants import mutate; mutate({name!r})"]
        subprocess.run(check, cwd=HERE.parents[1], check=True)  # else the tests would fail for another reason
        command = [
            Path(sys.executable).with_name("pytest"),
            "-q",
            "--maxfail=1",
            "-p",
            "no:cacheprovider",
            "tests/crash",
        ]
        environment = {**os.environ, VARIABLE: name}
        done = subprocess.run(
            command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False
        )
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        tests = failed[0].partition("::")[2].partition(" - ")[0] if failed else "all pass"
        _say(f"{name or 'none'}: {tests}")
        lines.append(f"| {name or 'none'} | {'red: ' if failed else ''}{tests} |")
        if bool(failed) != bool(name):
            unnoticed.append(name or "none")
    lines += ["", f"measured {len(names) - len(unnoticed)} of {len(names)} faults that turn the tests red, wanted all"]
    text = "\n".join(lines)
    (HERE / "mutants.md").write_text(f"# Last measured\n\n{text}\n")
    print(text)
    return 1 if unnoticed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", default="real", help="how it is called in the table: embedded or real")
    parser.add_argument("--at-once", type=int, default=4, help="trials side by side (default: 4)")
    parser.add_argument("--most", type=int, default=200, help="trials of one scenario (default: 200)")
    parser.add_argument("--minutes", type=float, default=90, help="no trial starts later (default: 90)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample, where there are more than --most")
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help=f"faults: {', '.join(MUTANTS)} (default: all)")
    arguments = parser.parse_args()
    if not shutil.which("kubectl"):
        sys.exit("needed on PATH: kubectl")
    if arguments.mutants is not None:
        return mutate(arguments.mutants or list(MUTANTS))
    return measure(arguments)


if __name__ == "__main__":
    sys.exit(main())
