"""Kill a run at every one of its writes, at three moments each, recover, and count what is not whole."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.crash.proxy import Moment  # noqa: E402
from tests.crash.trial import SCENARIOS, Kill, Outcome, Scenario, Scene, open_scene  # noqa: E402

WANTED_SECONDS = 10.0
RESULTS = HERE / "results.md"


def measure(scene: Scene, scenario: Scenario, at_once: int) -> tuple[int, list[Outcome]]:
    """Play every kill of a scenario; the number of its writes, and the outcomes."""
    trace, whole = scene.undisturbed(scenario)
    kills = [Kill(boundary, moment) for boundary in trace for moment in Moment]
    started = time.monotonic()
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(at_once) as pool:
        for outcome in pool.map(lambda kill: scene.trial(scenario, whole, kill), kills):
            outcomes.append(outcome)
            if outcome.problem:
                print(f"HALF: {scenario.name}, {outcome.kill}: {outcome.problem}", flush=True)
    print(f"{scenario.name}: {len(kills)} kills in {time.monotonic() - started:.0f} s", flush=True)
    return len(trace), outcomes


def table(rows: Sequence[tuple[Scenario, int, Sequence[Outcome]]]) -> str:
    """One line for each scenario, as Markdown."""
    lines = [
        "| killed | writes | kills | half states | recovery, median s | slowest, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for scenario, writes, outcomes in rows:
        seconds = [outcome.seconds for outcome in outcomes]
        half = sum(bool(outcome.problem) for outcome in outcomes)
        lines.append(
            f"| {scenario.name} | {writes} | {len(outcomes)} | {half} | {median(seconds):.1f} | {max(seconds):.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=4, help="trials side by side (default: 4)")
    arguments = parser.parse_args()
    if not shutil.which("kubectl"):
        sys.exit("needed on PATH: kubectl")
    with tempfile.TemporaryDirectory(prefix="bench-crash-") as folder, open_scene(Path(folder)) as scene:
        rows = [(scenario, *measure(scene, scenario, arguments.at_once)) for scenario in SCENARIOS]
    outcomes = [outcome for _, _, of_scenario in rows for outcome in of_scenario]
    half = sum(bool(outcome.problem) for outcome in outcomes)
    typical = median(outcome.seconds for outcome in outcomes)
    body = f"{len(outcomes)} kills, {arguments.at_once} side by side, {os.cpu_count()} cores\n\n{table(rows)}\n"
    line = (
        f"measured {half} half states and {typical:.1f} s to whole (median), "
        f"wanted 0 and at most {WANTED_SECONDS:.0f} s"
    )
    RESULTS.write_text(f"# Last measured\n\n{body}\n{line}\n")
    print(f"\n{body}\n{line}")
    return 0 if half == 0 and typical <= WANTED_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
