"""How many seconds longer a release takes as a Prefect flow than as a plain script that does the same, in one run.

Both sides release the sample shop, each from a commit of its own, so that both build the same layers, push, test,
roll out to two namespaces and test the staging one in a browser. They alternate; the first round is a warm-up and
is not counted. The flow also does preflight, dry runs, records, lock and rollback.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import yaml
from flow_side import Side, Stages, served

from prefect_cd.gates.browser.executable import find_browser

WANTED = 4.0
HERE = Path(__file__).resolve().parent
SHOP = HERE.parents[1] / "examples" / "shop"
REGISTRY = os.environ.get("REGISTRY", "localhost:5000")
IMAGE = f"{REGISTRY}/bench/shop"
OPTIONS = ["--layers", "--isolation", "chroot", "--network", "host"]
BASE = f"{REGISTRY}/base/python:3.11"
SCRIPTS = ("bench-overhead-script-staging", "bench-overhead-script")
FLOWS = ("bench-overhead-flow-staging", "bench-overhead-flow")
TOOLS = ("git", "buildah", "kubectl", "curl", "bash")
RESULTS = HERE / "results.md"
AUTHOR = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.com")


def repository(folder: Path) -> Path:
    """Create a git repository of the shop, with this benchmark's image in its manifests."""
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    for manifest in folder.glob("k8s/*/deployment.yaml"):
        manifest.write_text(manifest.read_text().replace("localhost:5000/shop", IMAGE))
    _git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "the shop opens")
    return folder


def commit(folder: Path, subject: str) -> None:
    """Make a commit that changes the image's last layers and nothing that a test covers.

    Its content is new in every run: old versions of buildah would otherwise use a cached layer with another VERSION.
    """
    style = folder / "app/shop/static/shop.css"
    style.write_text(f"{style.read_text()}/* {subject}, {time.time_ns()} */\n")
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", subject)


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *AUTHOR, *arguments], cwd=folder, check=True, capture_output=True)


def pipeline(shop: Path) -> str:
    """The shop's own pipeline file, with this benchmark's image and namespaces."""
    loaded = yaml.safe_load((SHOP / "pipeline.yaml").read_text())
    loaded["source"]["repository"] = str(shop)
    loaded["image"] |= {"name": IMAGE, "builder": "buildah", "args": {"BASE": BASE}, "options": OPTIONS}
    for environment, namespace in zip(loaded["environments"], FLOWS, strict=True):
        environment["namespace"] = namespace
        environment["rollout"] = {"settle": "0s"}  # the script does not soak, either
        environment.pop("probe", None)
    return str(yaml.safe_dump(loaded, sort_keys=False))


def run_script(shop: Path) -> Stages:
    """Run the plain script; seconds by stage."""
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as folder:
        stages = Path(folder) / "stages"
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "REPOSITORY": str(shop),
            "IMAGE": IMAGE,
            "STAGING": SCRIPTS[0],
            "PRODUCTION": SCRIPTS[1],
            "BUILD_OPTIONS": " ".join(["--tls-verify=false", *OPTIONS, "--build-arg", f"BASE={BASE}"]),
            "STAGES": str(stages),
            "PREFECT_CD_BROWSER": str(find_browser()),
        }
        started = time.time()
        finished = subprocess.run(
            [str(HERE / "release.sh")], cwd=folder, env=env, check=False, capture_output=True, text=True
        )
        together = time.time() - started
        if finished.returncode:
            sys.exit(f"the script failed:\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}")
        return {**_durations(stages.read_text()), "together": together}


def _durations(log: str) -> Stages:
    """Seconds of each stage from the lines `TIME NAME` that the script writes at the beginning of each."""
    starts = []
    for line in log.splitlines():
        start, _, name = line.partition(" ")
        starts.append((float(start), name))
    return {name: end - start for (start, name), (end, _) in pairwise(starts)}


def measure(shop: Path, side: Side, rounds: int) -> tuple[list[Stages], list[Stages]]:
    """Measure all rounds on both sides; (the script's, the flow's) without the warm-up."""
    scripts: list[Stages] = []
    flows: list[Stages] = []
    for number in range(rounds + 1):
        for name in ("script", "flow") if number % 2 else ("flow", "script"):
            commit(shop, f"round {number} of the {name}")
            if name == "flow":
                flows.append(side.release())
            else:
                scripts.append(run_script(shop))
        title = f"round {number}" if number else "warm-up"
        print(f"{title}: script {scripts[-1]['together']:.1f} s, flow {flows[-1]['together']:.1f} s", flush=True)
    return scripts[1:], flows[1:]


def table(scripts: list[Stages], flows: list[Stages]) -> str:
    """Medians by stage as Markdown, in the order of a release."""
    names = list(dict.fromkeys([*scripts[0], *(stage for stages in flows for stage in stages)]))
    names.sort(key=lambda name: name == "together")
    rows = []
    for name in names:
        script, flow = _median(scripts, name), _median(flows, name)
        row = f"| {name} | {script:.1f} | {flow:.1f} | {flow - script:+.1f} |"
        rows.append(row.replace(name, f"**{name}**") if name == "together" else row)
    return "\n".join(["| stage, median | script, s | flow, s | more, s |", "|---|---:|---:|---:|", *rows])


def _median(sides: list[Stages], stage: str) -> float:
    return median(stages.get(stage, 0.0) for stages in sides)


def remove_namespaces() -> None:
    """Delete the benchmark's namespaces, and wait until they are gone."""
    subprocess.run(["kubectl", "delete", "namespace", "--ignore-not-found", *SCRIPTS, *FLOWS], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds after the warm-up (default: 3)")
    rounds = parser.parse_args().rounds
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        sys.exit(f"needed on PATH: {', '.join(missing)}")
    remove_namespaces()
    try:
        for namespace in SCRIPTS:
            subprocess.run(["kubectl", "create", "namespace", namespace], check=True, stdout=subprocess.DEVNULL)
        with tempfile.TemporaryDirectory(prefix="bench-overhead-") as top:
            folder = Path(top)
            shop = repository(folder / "shop")
            file = folder / "pipeline.yaml"
            file.write_text(pipeline(shop))
            with served(folder, file, "shop") as side:
                scripts, flows = measure(shop, side, rounds)
    finally:
        remove_namespaces()
    more = _median(flows, "together") - _median(scripts, "together")
    line = f"measured {more:+.1f} s, wanted at most {WANTED:+.1f} s"
    body = f"{rounds} rounds, {os.cpu_count()} cores\n\n{table(scripts, flows)}\n"
    RESULTS.write_text(f"# Last measured\n\n{body}\n{line}\n")
    print(f"\n{body}\n{line}")
    return 0 if more <= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
