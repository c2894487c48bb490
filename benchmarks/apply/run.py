"""How long it takes to bring 1,050 objects into a namespace: ours beside kubectl, on one API server, in one run.

Both sides read the same folders of YAML and plan before they write. They take turns step by step, and the side that was
second in one step is first in the next, so that each gets its share of the cold cache. Wall time and CPU time are
measured; the run also checks that both namespaces end up the same and that our last run writes nothing.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefect_cd.environment import apply, changes
from prefect_cd.environment.change_set import ChangeSet
from prefect_cd.environment.ownership import Ownership
from prefect_cd.kube.client import connect
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests import load
from prefect_cd.pipeline.models import ClusterAccess

WANTED = 10.0
CONFIG_MAPS, DEPLOYMENTS, CHANGED, REMOVED = 1000, 50, 100, 50
OURS, KUBECTLS = "bench-apply-ours", "bench-apply-kubectl"
OWNERSHIP = Ownership("bench", "bench", OURS)
KINDS = (("v1", "ConfigMap"), ("apps/v1", "Deployment"))
ROUNDS = ("new", "changed", "the same again")
RESULTS = Path(__file__).with_name("results.md")
# kubectl prunes objects of server-side apply with an ApplySet only, which is alpha: `--prune -l` refuses.
APPLY_SET = {"KUBECTL_APPLYSET": "true"}


@dataclass(frozen=True)
class Cost:
    """Seconds of one step."""

    wall: float
    cpu: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __str__(self) -> str:
        return f"{self.wall:.1f} | {self.cpu:.1f}"


def write_folders(top: Path) -> dict[str, Path]:
    """Write the manifests of each round: all of them; some changed and some removed; the same again."""
    deployments = [_deployment(number) for number in range(DEPLOYMENTS)]
    first = [_config_map(number, "1") for number in range(CONFIG_MAPS)]
    second = [_config_map(number, "2" if number < CHANGED else "1") for number in range(CONFIG_MAPS - REMOVED)]
    folders = {"new": top / "first", "changed": top / "second", "the same again": top / "second"}
    for folder, config_maps in ((top / "first", first), (top / "second", second)):
        folder.mkdir()
        (folder / "configmaps.yaml").write_text(yaml.safe_dump_all(config_maps))
        (folder / "deployments.yaml").write_text(yaml.safe_dump_all(deployments))
    return folders


def _config_map(number: int, version: str) -> Object:
    data = {f"setting-{key}": f"value {key} of config map {number}" for key in range(9)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"config-{number:04}", "labels": {"app.kubernetes.io/name": "bench"}},
        "data": {**data, "version": version},
    }


def _deployment(number: int) -> Object:
    labels = {"app.kubernetes.io/name": f"worker-{number:02}"}
    container = {
        "name": "worker",
        "image": "localhost:5000/base/busybox:1",
        "command": ["sleep", "infinity"],
        "envFrom": [{"configMapRef": {"name": f"config-{number:04}"}}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"worker-{number:02}", "labels": labels},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


class Ours:
    """The core functions of the tasks `plan`, `apply` and `prune`, without Prefect; each step opens a connection."""

    def __init__(self) -> None:
        self._objects: list[Object] = []
        self._planned = ChangeSet(changes=())

    def plan(self, folder: Path) -> None:
        """Load the manifests, dry-run all of them on the server, and compare."""
        asyncio.run(self._plan(folder))

    async def _plan(self, folder: Path) -> None:
        async with connect(ClusterAccess()) as cluster:
            placed = await changes.prepare_objects(cluster, load.load(folder, folder.parent), OURS, ())
            known = [Ref.of(item) for item in self._objects]  # as the record of the release before says
            self._objects = [OWNERSHIP.label(item, "bench") for item in placed]
            self._planned = await changes.compute_changes(cluster, OWNERSHIP, self._objects, known=known)

    def write(self, _: Path) -> None:
        """Apply the differences, and prune removed objects."""
        asyncio.run(self._write())

    async def _write(self) -> None:
        async with connect(ClusterAccess()) as cluster:
            await apply.apply(cluster, OWNERSHIP, self._objects, self._planned)
            await apply.prune(cluster, OWNERSHIP, self._planned)

    def measure(self, step: Callable[[Path], None], folder: Path) -> Cost:
        """Wall and CPU time of this process, its threads included."""
        wall, cpu = time.perf_counter(), time.process_time()
        step(folder)
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)

    @property
    def planned(self) -> str:
        """The change set of the last plan."""
        return str(self._planned)


class Kubectl:
    """`kubectl diff` and `kubectl apply`, as a user or a script calls them."""

    def plan(self, folder: Path) -> list[str]:
        """The command that dry-runs all objects and shows the difference, without objects to prune."""
        return ["kubectl", "diff", "--server-side", "-n", KUBECTLS, "-f", str(folder)]

    def write(self, folder: Path) -> list[str]:
        """The command that applies and prunes."""
        pruning = ("--prune", "--applyset=bench")
        return ["kubectl", "apply", "--server-side", *pruning, "-n", KUBECTLS, "-f", str(folder)]

    def measure(self, step: Callable[[Path], list[str]], folder: Path) -> Cost:
        """Wall time, and CPU time of kubectl with the programs that it starts (`diff`)."""
        command, started = step(folder), time.perf_counter()
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **APPLY_SET})
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)  # os.wait4 has reaped the process, so Popen must not
            fine = {0, 1} if "diff" in command else {0}  # `kubectl diff` says 1 for: there are differences
            if process.returncode not in fine:
                output.seek(0)
                sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-2000:]}")
        return Cost(wall, used.ru_utime + used.ru_stime)


def run(folders: dict[str, Path]) -> list[tuple[str, Cost, Cost]]:
    """Measure all steps of all rounds on both sides, which take turns; (step, ours, kubectl's)."""
    ours, kubectl = Ours(), Kubectl()
    rows = []
    for name in ROUNDS:
        before = live(OURS)
        rows.append((f"{name}: dry run and diff", *_both(ours, kubectl, "plan", folders[name], ours_first=True)))
        rows.append((f"{name}: apply and prune", *_both(ours, kubectl, "write", folders[name], ours_first=False)))
        for step, mine, theirs in rows[-2:]:
            print(f"{step}: {ours.planned}; ours {mine.wall:.1f} s, kubectl {theirs.wall:.1f} s", flush=True)
        if name == ROUNDS[-1] and before != live(OURS):
            sys.exit("the run that changes nothing wrote something")
        wait_for_controllers()
    return rows


def _both(ours: Ours, kubectl: Kubectl, step: str, folder: Path, *, ours_first: bool) -> tuple[Cost, Cost]:
    if ours_first:
        mine = ours.measure(getattr(ours, step), folder)
        return mine, kubectl.measure(getattr(kubectl, step), folder)
    theirs = kubectl.measure(getattr(kubectl, step), folder)
    return ours.measure(getattr(ours, step), folder), theirs


def live(namespace: str) -> dict[str, str]:
    """The resourceVersion of every object of KINDS, by uid."""
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in _live(namespace)}


def content(namespace: str) -> dict[str, Any]:
    """The content of the objects, without metadata that differs by writer."""
    return {
        item["metadata"]["name"]: item.get("data") or item["spec"]["template"]
        for item in _live(namespace)
        if item["metadata"]["name"] != "kube-root-ca.crt"
    }


def _live(namespace: str) -> list[Object]:
    async def listed() -> list[Object]:
        async with connect(ClusterAccess()) as cluster:
            return [item for kind in KINDS for item in await cluster.list(await cluster.kind(*kind), namespace)]

    return asyncio.run(listed())


def wait_for_controllers() -> None:
    """Wait until the Deployment controller has processed all: its writes would be mistaken for ours."""
    while any(
        item["status"].get("observedGeneration") != item["metadata"]["generation"]
        for namespace in (OURS, KUBECTLS)
        for item in _live(namespace)
        if item["kind"] == "Deployment"
    ):
        time.sleep(0.2)


def namespaces(verb: str) -> None:
    """Create or delete both namespaces, and wait until it is done."""
    for namespace in (OURS, KUBECTLS):
        extra = ("--ignore-not-found",) if verb == "delete" else ()
        subprocess.run(["kubectl", verb, "namespace", namespace, *extra], check=True, stdout=subprocess.DEVNULL)


def table(rows: list[tuple[str, Cost, Cost]]) -> str:
    """The rows and their sum as Markdown."""
    total = ("**together**", _sum([ours for _, ours, _ in rows]), _sum([theirs for _, _, theirs in rows]))
    lines = [
        "| step | ours, s | CPU s | kubectl, s | CPU s | times |",
        "|---|---:|---:|---:|---:|---:|",
        *(f"| {step} | {ours} | {theirs} | {theirs.wall / ours.wall:.1f} |" for step, ours, theirs in [*rows, total]),
    ]
    return "\n".join(lines)


def _sum(costs: list[Cost]) -> Cost:
    return sum(costs, Cost(0, 0))


async def versions() -> str:
    """The versions of cluster and kubectl, and the number of cores."""
    async with connect(ClusterAccess()) as cluster:
        return f"Kubernetes {await cluster.version()}, {_kubectl_version()}, {os.cpu_count()} cores"


def _kubectl_version() -> str:
    output = subprocess.run(["kubectl", "version", "--client"], check=True, capture_output=True, text=True).stdout
    return f"kubectl {output.split('Client Version: ')[-1].split()[0]}"


def main() -> int:
    if not shutil.which("kubectl"):
        sys.exit("kubectl is needed on PATH for the comparison")
    namespaces("delete")
    namespaces("create")
    try:
        with tempfile.TemporaryDirectory(prefix="bench-apply-") as top:
            rows = run(write_folders(Path(top)))
        same = content(OURS) == content(KUBECTLS)
    finally:
        namespaces("delete")
    if not same:
        sys.exit("the two namespaces differ: the comparison is invalid")
    body = f"{asyncio.run(versions())}; {CONFIG_MAPS:,} ConfigMaps and {DEPLOYMENTS} Deployments\n\n{table(rows)}\n"
    times = _sum([theirs for _, _, theirs in rows]).wall / _sum([ours for _, ours, _ in rows]).wall
    line = f"measured {times:.1f} times faster, wanted {WANTED}"
    RESULTS.write_text(f"# Last measured\n\n{body}\n{line}\n")
    print(f"\n{body}\n{line}")
    return 0 if times >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
