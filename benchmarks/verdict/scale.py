"""What it costs to watch many rollouts at once: one process of ours beside one `kubectl rollout status` for each.

Two hundred Deployments in one namespace on a real control plane; a simulated node reports their pods as running. When
all others are up, the image of one pod turns out not to exist. Measured are CPU seconds and memory until each side has
given its verdict, and the time from that proof to the verdict.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import busy
from api import Api, Object, collection_of, connect
from crowd import Crowd, free_memory
from fakenode import TAINT, FakeNode, pulling, running, unpullable
from tools import KUBECTL, OURS, program

CPU_WANTED, VERDICT_WANTED = 1.0, 2.0
"""How many times less CPU than kubectl; seconds from the proof to the verdict."""
VERDICT_TIMEOUT = 30.0
"""Seconds after the proof that a side has for its verdict."""
RESULTS = Path(__file__).with_name("scale.md")
NODE = "vb-scale-node"
_POLL_SECONDS, _QUIET_SECONDS = 0.25, 5.0
_WRITERS = 16
_KUBECTL_MEGABYTES = 60


@dataclass(frozen=True)
class Cost:
    """The cost of one side.

    Args:
        side: its name.
        processes: number of processes at the same time.
        cpu: seconds, user and system.
        memory: the highest value, in megabytes.
        verdict: seconds from the proof; None without a verdict in time.
        seconds: how long the rollouts were watched.
    """

    side: str
    processes: int
    cpu: float
    memory: float
    verdict: float | None
    seconds: float

    def __str__(self) -> str:
        verdict = "none" if self.verdict is None else f"{self.verdict:.1f}"
        return (
            f"| {self.side} | {self.processes} | {self.cpu:.1f} | {self.memory:.0f} | {verdict} | {self.seconds:.0f} |"
        )


def deployment(name: str, namespace: str) -> Object:
    """One replica, for the simulated node."""
    container = {"name": "app", "image": "registry.invalid/app:1",
                 "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}}}  # fmt: skip
    pod = {
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "tolerations": [{"key": TAINT, "operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


async def measured(api: Api, side: str, count: int) -> Cost:
    """Measure one side in a namespace of its own, from the apply to its verdict."""
    namespace, names = f"vb-scale-{side}", [f"app-{number:03}" for number in range(count)]
    failing = names[-1]

    def behave(pod: Object) -> Object:
        return (pulling if pod["metadata"]["labels"]["app"] == failing else running)(pod)

    node = FakeNode(api, NODE, behave=behave)
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    await node.start()
    try:
        await _apply_all(api, [deployment(name, namespace) for name in names])
        crowd, started = Crowd(_commands(side, names, namespace)), time.monotonic()
        await crowd.start()
        try:
            while len(node.reported) < count:  # noqa: ASYNC110  the pods are reported one by one
                await asyncio.sleep(_POLL_SECONDS)
            await asyncio.sleep(_QUIET_SECONDS)
            await _fail(api, namespace, failing)
            verdict = await crowd.wait(VERDICT_TIMEOUT)
        finally:
            cpu = await crowd.stop()
        return Cost(side, len(crowd.commands), cpu, crowd.most_memory, verdict, time.monotonic() - started)
    finally:
        await api.delete(f"{collection_of('v1', 'Namespace')}/{namespace}")
        await _until_empty(api, namespace)
        await node.stop()


def _commands(side: str, names: Sequence[str], namespace: str) -> list[list[str]]:
    if side == OURS:
        workloads = [f"deployment/{name}" for name in names]
        return [[program(), "rollout", *workloads, "-n", namespace, "-o", "json"]]
    return [["kubectl", "rollout", "status", f"deployment/{name}", "-n", namespace] for name in names]


async def _apply_all(api: Api, items: Sequence[Object]) -> None:
    slots = asyncio.Semaphore(_WRITERS)

    async def one(item: Object) -> None:
        async with slots:
            await api.apply(item)

    await asyncio.gather(*map(one, items))


async def _fail(api: Api, namespace: str, name: str) -> None:
    pods = collection_of("v1", "Pod", namespace)
    (pod,) = (await api.get(pods, labelSelector=f"app={name}"))["items"]
    await api.patch(f"{pods}/{pod['metadata']['name']}/status", {"status": unpullable(pod)})


async def _until_empty(api: Api, namespace: str) -> None:
    pods = collection_of("v1", "Pod", namespace)
    while (await api.get(pods, limit="1"))["items"]:  # noqa: ASYNC110  a condition in the API server has no local event
        await asyncio.sleep(_POLL_SECONDS)


async def both(count: int) -> tuple[Cost, Cost]:
    """Ours, then kubectl, each with the machine to itself."""
    async with connect() as api:
        ours = await measured(api, OURS, count)
        print(ours, flush=True)
        theirs = await measured(api, KUBECTL, count)
        print(theirs, flush=True)
    return ours, theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=200, metavar="N", help="number of Deployments, default 200")
    count = parser.parse_args().deployments
    if free_memory() < count * _KUBECTL_MEGABYTES:
        sys.exit(f"{count} kubectl need about {count * _KUBECTL_MEGABYTES} MB, which are not free: fewer --deployments")
    used = busy.Meter()
    ours, theirs = asyncio.run(both(count))
    times = theirs.cpu / ours.cpu
    late = ours.verdict if ours.verdict is not None else VERDICT_TIMEOUT
    line = (
        f"measured: {times:.1f} times less CPU than kubectl, verdict after {late:.1f} s; "
        f"wanted: less than kubectl, {VERDICT_WANTED:.0f} s"
    )
    about = f"{count} Deployments in one namespace, one of which fails when all others are up"
    columns = ("side", "processes", "CPU s", "memory, MB", "verdict, s after the proof", "watched, s")
    head = f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}"
    RESULTS.write_text(
        f"# Last measured\n\n{about}; {os.cpu_count()} cores, {used}\n\n{head}\n{ours}\n{theirs}\n\n{line}\n"
    )
    print(line)
    return 0 if times > CPU_WANTED and late <= VERDICT_WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
