"""How long a developer waits for the embedded cluster, and for a real one in the same run.

Measured are its start (process to ready), four new pods from the apply to ready, and a rolling update of them. The real
cluster is that of $KUBECONFIG and $REGISTRY; without one only the embedded cluster is measured. The pods run a
small HTTP server with a readiness probe; their image is pulled before.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from statistics import median
from typing import Any

from prefect_cd.environment.apply import apply
from prefect_cd.environment.changes import compute_changes
from prefect_cd.environment.namespace import ensure_namespace
from prefect_cd.environment.ownership import Ownership
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess, RolloutSettings
from prefect_cd.rollout.watch.loop import watch

START_WANTED, RATIO_WANTED = 5.0, 1.5  # seconds; times the real cluster's
ROUNDS, PODS = 3, 4
RESULTS = Path(__file__).with_name("results.md")
OWNERSHIP = Ownership("bench", "bench", "bench-embedded")
SETTINGS = RolloutSettings(timeout=timedelta(minutes=2))
READY = "export KUBECONFIG="
STEPS = ("apply to 4 pods ready", "rolling update of 4 pods")


def deployment(image: str, version: str) -> dict[str, Any]:
    """Four pods that answer HTTP; another version is another pod template."""
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": image,
        "command": ["python3", "-m", "http.server", "8000"],
        "env": [{"name": "VERSION", "value": version}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": OWNERSHIP.namespace},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 3, "containers": [container]},
            },
        },
    }


async def rollout(cluster: Cluster, image: str, version: str) -> float:
    """Seconds from before the apply until all pods of the version are ready and the old ones are gone."""
    since = datetime.now(timezone.utc)
    objects = [OWNERSHIP.label(deployment(image, version), version)]
    await apply(cluster, OWNERSHIP, objects, await compute_changes(cluster, OWNERSHIP, objects))
    return (await watch(cluster, objects, SETTINGS, since=since)).seconds


async def measure(environment: Mapping[str, str]) -> list[float]:
    """Medians of the steps on the cluster of an environment."""
    image = environment.get("BASE_IMAGE") or f"{environment['REGISTRY']}/base/python:3.11"
    seconds: list[list[float]] = []
    async with connect(ClusterAccess(kubeconfig=environment["KUBECONFIG"])) as cluster:
        namespace = Ref("v1", "Namespace", "", OWNERSHIP.namespace)
        for number in range(ROUNDS + 1):  # the first round pulls the image and is not counted
            await remove(cluster, namespace)
            await ensure_namespace(cluster, OWNERSHIP)
            seconds.append([await rollout(cluster, image, f"{number}-{step}") for step in STEPS])
        await remove(cluster, namespace)
    return [median(measured[step] for measured in seconds[1:]) for step in range(len(STEPS))]


async def remove(cluster: Cluster, namespace: Ref) -> None:
    """Delete a namespace and wait until it is gone."""
    if await cluster.get(namespace):
        await cluster.delete(namespace)
    while await cluster.get(namespace):  # noqa: ASYNC110  a condition in the API server has no local event
        await asyncio.sleep(0.2)


@contextmanager
def embedded(folder: str) -> Iterator[tuple[float, dict[str, str]]]:
    """Run the embedded cluster in a process of its own; yield the seconds until it was ready, and its environment."""
    command = [sys.executable, "-m", "prefect_cd_local", "--folder", folder]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stdout or () if line.startswith(READY)), "")
            seconds = time.monotonic() - started
            yield seconds, dict(word.split("=", 1) for word in line.split()[1:])
        finally:
            process.terminate()


def main() -> int:
    starts: list[float] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="bench-embedded-") as folder, embedded(folder) as (seconds, _):
            starts.append(seconds)
    with tempfile.TemporaryDirectory(prefix="bench-embedded-") as folder, embedded(folder) as (_, environment):
        ours = asyncio.run(measure(environment))
    real = asyncio.run(measure(os.environ)) if os.environ.get("KUBECONFIG") else [float("nan")] * len(STEPS)
    lines = ["| median of 3 | embedded, s | real cluster, s |", "|---|---:|---:|"]
    lines.append(f"| process to ready | {median(starts):.1f} | |")
    lines += [f"| {step} | {local:.1f} | {remote:.1f} |" for step, local, remote in zip(STEPS, ours, real, strict=True)]
    ratio = max((local / remote for local, remote in zip(ours, real, strict=True)), default=0.0)
    line = (
        f"measured {median(starts):.1f} s to ready and {ratio:.2f} times the real cluster's time, "
        f"wanted at most {START_WANTED:.1f} s and {RATIO_WANTED:.2f} times"
    )
    table = "\n".join(lines)
    RESULTS.write_text(f"# Last measured\n\n{os.cpu_count()} cores\n\n{table}\n\n{line}\n")
    print(f"{table}\n\n{line}")
    return 0 if median(starts) <= START_WANTED and not ratio > RATIO_WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
