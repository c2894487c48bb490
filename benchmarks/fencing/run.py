"""Stop the holder of a lock at a random moment of its rollout, let another take over, and look for stale writes."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.crash.fencing import Passed, Stop, course, stop_at_random, trial  # noqa: E402
from tests.crash.trial import Scene, open_scene  # noqa: E402

_ATTEMPTS = 2  # to play a trial


def play(scene: Scene, arguments: argparse.Namespace) -> list[Passed]:
    """All trials; those that would begin after the deadline, or could not be played twice, are left out."""
    usual, chance = course(scene), random.Random(arguments.seed)  # noqa: S311  no secret
    stops = [stop_at_random(chance, usual) for _ in range(arguments.trials)]
    deadline, outcomes = time.monotonic() + 60 * arguments.minutes, list[Passed]()
    mutant = "no-preconditions" if arguments.without_fencing else ""

    def in_time(stop: Stop) -> Passed | None:
        for _ in range(_ATTEMPTS):
            if time.monotonic() < deadline:
                try:
                    return trial(scene, usual, stop, mutant=mutant)
                except AssertionError as error:  # such as a Prefect server that was too busy to start a run
                    print(f"not played, {stop}: {error}", file=sys.stderr, flush=True)
        return None

    with ThreadPoolExecutor(arguments.at_once) as pool:
        for outcome in filter(None, pool.map(in_time, stops)):
            outcomes.append(outcome)
            found = f"STALE {', '.join(outcome.stale)}" if outcome.stale else f"{len(outcome.late)} late writes refused"
            print(f"{len(outcomes)} of {len(stops)}: {outcome.stop}: {found}", file=sys.stderr, flush=True)
            if outcome.problem and not arguments.without_fencing:
                print(f"CHANGED: {outcome.stop}: {outcome.problem}", flush=True)
    return outcomes


def table(outcomes: list[Passed]) -> str:
    """The late writes by name: how many were carried out, how many refused."""
    late = Counter(write for outcome in outcomes for write in outcome.late)
    stale = Counter(write for outcome in outcomes for write in outcome.stale)
    lines = ["| write after the other had finished | arrived | carried out |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {write} | {count} | {stale[write]} |" for write, count in sorted(late.items()))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", default="real", help="how it is called in the results: embedded or real")
    parser.add_argument("--trials", type=int, default=500, help="default: 500")
    parser.add_argument("--at-once", type=int, default=8, help="trials side by side (default: 8)")
    parser.add_argument("--minutes", type=float, default=30, help="no trial starts later (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--without-fencing", action="store_true", help="the holder's writes have no preconditions")
    arguments = parser.parse_args()
    if not shutil.which("kubectl"):
        sys.exit("needed on PATH: kubectl")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-fencing-") as folder, open_scene(Path(folder)) as scene:
        outcomes = play(scene, arguments)
    stale = sum(len(outcome.stale) for outcome in outcomes)
    changed = sum(bool(outcome.problem) for outcome in outcomes)
    stopped = sum(outcome.stopped for outcome in outcomes)
    fencing = "without" if arguments.without_fencing else "with"
    body = (
        f"{len(outcomes)} trials {fencing} fencing in {time.monotonic() - started:.0f} s, in {stopped} of which the "
        f"holder was stopped before it had finished; {arguments.at_once} side by side, {os.cpu_count()} cores, "
        f"cluster: {arguments.cluster}\n\n{table(outcomes)}\n"
    )
    wanted = "more than 0 of both" if arguments.without_fencing else "0 of both"
    line = (
        f"measured {stale} stale writes and {changed} changed environments in {len(outcomes)} trials, wanted {wanted}"
    )
    name = f"results-{arguments.cluster}{'-without-fencing' if arguments.without_fencing else ''}.md"
    if outcomes and len(outcomes) == arguments.trials:
        (HERE / name).write_text(f"# Last measured\n\n{body}\n{line}\n")
    print(f"\n{body}\n{line}")
    if len(outcomes) < arguments.trials:
        print(
            f"{arguments.trials - len(outcomes)} trials were left out: the time was over, or they could not be played"
        )
        return 1
    return int(not (stale and changed) if arguments.without_fencing else bool(stale or changed))


if __name__ == "__main__":
    sys.exit(main())
