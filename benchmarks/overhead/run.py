"""What a release costs more as a Prefect flow than as a plain script that does the same: seconds, in one run.

Both sides release the sample shop, each from a commit of its own, so that both build the same layers, push, test,
roll out to two namespaces and click through the staging one. They alternate; the first round is a warm-up and does
not count. The flow does more (preflight, dry runs, records, lock, rollback): that is what the seconds buy.
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

from prefect_cd.gates.browser.suite import find_browser

WANTED = 5.0
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
    """The shop as a git repository, its manifests naming this benchmark's image."""
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    for manifest in folder.glob("k8s/*/deployment.yaml"):
        manifest.write_text(manifest.read_text().replace("localhost:5000/shop", IMAGE))
    _git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "the shop opens")
    return folder


def commit(folder: Path, subject: str) -> None:
    """A commit that changes the image's last layers and nothing that anybody tests.

    It is new in every run: old versions of buildah take a layer with another VERSION from the cache otherwise.
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
        environment["rollout"] = {"settle": "0s"}  # the script does not see whether what is up stays up, either
        environment.pop("probe", None)
    return str(yaml.safe_dump(loaded, sort_keys=False))


def run_script(shop: Path) -> Stages:
    """The plain script, start to end; seconds by stage."""
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
        done = subprocess.run(
            [str(HERE / "release.sh")], cwd=folder, env=env, check=False, capture_output=True, text=True
        )
        together = time.time() - started
        if done.returncode:
            sys.exit(f"the script failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return {**_between(stages.read_text()), "together": together}


def _between(said: str) -> Stages:
    """Seconds of each stage from the lines `TIME NAME` that the script wrote at the beginning of each."""
    lines = [(float(when), name) for when, _, name in (line.partition(" ") for line in said.splitlines())]
    return {name: after - when for (when, name), (after, _) in pairwise(lines)}


def measure(shop: Path, side: Side, rounds: int) -> tuple[list[Stages], list[Stages]]:
    """All rounds on both sides, the warm-up left out; (the script's, the flow's)."""
    scripts: list[Stages] = []
    flows: list[Stages] = []
    for number in range(rounds + 1):
        for name in ("script", "flow") if number % 2 else ("flow", "script"):
            commit(shop, f"round {number} of the {name}")
            (flows if name == "flow" else scripts).append(side.release() if name == "flow" else run_script(shop))
        what = f"round {number}" if number else "warm-up"
        print(f"{what}: script {scripts[-1]['together']:.1f} s, flow {flows[-1]['together']:.1f} s", flush=True)
    return scripts[1:], flows[1:]


def table(scripts: list[Stages], flows: list[Stages]) -> str:
    """Medians by stage as Markdown, in the order of a release."""
    names = list(dict.fromkeys([*scripts[0], *(stage for each in flows for stage in each)]))
    names.sort(key=lambda name: name == "together")
    rows = []
    for name in names:
        script, flow = _median(scripts, name), _median(flows, name)
        shown = f"| {name} | {script:.1f} | {flow:.1f} | {flow - script:+.1f} |"
        rows.append(shown.replace(name, f"**{name}**") if name == "together" else shown)
    return "\n".join(["| stage, median | script, s | flow, s | more, s |", "|---|---:|---:|---:|", *rows])


def _median(sides: list[Stages], stage: str) -> float:
    return median(each.get(stage, 0.0) for each in sides)


def remove_namespaces() -> None:
    """Delete what the benchmark made in the cluster, and wait for it."""
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
    said = f"measured {more:+.1f} s, wanted at most {WANTED:+.1f} s"
    shown = f"{rounds} rounds, {os.cpu_count()} cores\n\n{table(scripts, flows)}\n"
    RESULTS.write_text(f"# Last measured\n\n{shown}\n{said}\n")
    print(f"\n{shown}\n{said}")
    return 0 if more <= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
