"""Which rollouts are called failed, when, and why: ours, kubectl, Helm 4 and kubedog in one run on a real cluster.

Every scenario is rolled out twice in namespaces of its own; an independent witness records when the API server had the
proof. The expected verdicts are in the scenarios; the targets are in `outcome`.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import busy
from api import Api, connect
from measure import Bench, Run
from misbehaving import misbehaving
from outcome import after, summary, table, verdict
from plot import drawn
from record import record
from scenario import load, names
from tools import COMPLETE, FAILED, NAMES, OURS, build, seconds_for
from witness import Witness

HERE = Path(__file__).parent
PREFIX = "vb-"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names(), help="these scenarios; writes no results")
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="scenarios at the same time, default 6")
    parser.add_argument("--keep", action="store_true", help="do not delete the namespaces (they begin with vb-)")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write observations for unit tests")
    return parser.parse_args()


async def measured(options: argparse.Namespace, runs: list[Run], broken: list[str]) -> None:
    """Measure all scenarios, the longest first, a few at the same time; `runs` gets each one as it finishes."""
    chosen = sorted(options.only or names(), key=lambda name: (-seconds_for(load(name)), load(name).good, name))
    run_id = f"{PREFIX}{time.time_ns() // 10**9 % 10**5}-"
    slots = asyncio.Semaphore(options.at_once)
    async with connect() as api, _witness(api, run_id) as witness, misbehaving(api, f"{run_id}registry", chosen):
        with tempfile.TemporaryDirectory(prefix="verdict-") as folder:
            bench = Bench(api, witness, run_id, Path(folder), keep=options.keep)
            started = time.monotonic()

            async def one(name: str) -> None:
                async with slots:
                    try:
                        run = await bench.measure(name)
                    except Exception as error:  # noqa: BLE001  the other scenarios are measured anyway
                        broken.append(name)
                        print(f"{name}: cannot be measured: {type(error).__name__}: {error}", flush=True)
                        return
                if options.record:
                    record(run, options.record)
                runs.append(run)
                print(f"{time.monotonic() - started:5.0f} s  {len(runs):3} of {len(chosen)}  {_line(run)}", flush=True)

            tasks = [asyncio.create_task(one(name)) for name in chosen]
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)  # each deletes its namespaces before the connection is closed
                raise
            for task in tasks:
                task.result()


@contextlib.asynccontextmanager
async def _witness(api: Api, prefix: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    witness = Witness(api, prefix)
    await witness.start()
    try:
        yield witness
    finally:
        await witness.stop()


def _line(run: Run) -> str:
    verdicts = "  ".join(f"{tool}: {run.answers[tool].verdict} {run.seconds[tool]:.1f}" for tool in NAMES)
    wrong = "" if run.answers[OURS].verdict == (COMPLETE if run.scenario.good else FAILED) else "  <-- WRONG"
    delay = None if run.scenario.good else after(OURS, run)
    extra = "" if delay is None else f"  ({delay:+.1f} s, {run.answers[OURS].category})"
    unnamed = "  <-- NOT NAMED" if not run.scenario.good and not wrong and not run.answers[OURS].named else ""
    return f"{run.scenario.name}  {verdicts}{extra}{wrong}{unnamed}"


def main() -> int:
    options = parse_options()
    if missing := [tool for tool in ("kubectl", "go") if not shutil.which(tool)]:
        sys.exit(f"needed on PATH: {', '.join(missing)}")
    runs: list[Run] = []
    broken: list[str] = []
    used = busy.Meter()
    asyncio.run(_until_ended(options, runs, broken))
    line, reached = verdict(runs)
    if broken:
        line, reached = f"{line}; not measured: {', '.join(broken)}", False
    about = f"{len(runs)} scenarios, {options.at_once} at a time, on {os.cpu_count()} cores; {used}"
    if not options.only:
        (HERE / "results.md").write_text(f"# Last measured\n\n{about}\n\n{summary(runs)}\n\n{table(runs)}\n\n{line}\n")
        (HERE / "verdict.svg").write_text(drawn(runs))
    print(f"\n{about}\n\n{summary(runs)}\n\n{line}")
    return 0 if reached else 1


async def _until_ended(options: argparse.Namespace, runs: list[Run], broken: list[str]) -> None:
    """Ctrl-C and SIGTERM end the whole run, which still deletes what it created."""
    await build(HERE / "kubedog")
    task = asyncio.ensure_future(measured(options, runs, broken))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        sys.exit("ended early; everything that was created is deleted")


if __name__ == "__main__":
    sys.exit(main())
