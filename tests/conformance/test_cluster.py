"""The embedded cluster as one thing: how it starts, what it refuses, and that nothing of it outlives it."""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_cd.local.client import NODES, PODS, Client
from prefect_cd.local.cluster import NotStarted, running
from tests.conformance.clusters import sleepers, wait_for

LOCAL = [sys.executable, "-m", "prefect_cd.local"]
MARK = "86753"  # seconds that the pods of this module sleep, by which they are found


@pytest.mark.timeout(60)
def test_a_cluster_is_there_within_the_block_and_leaves_no_kubeconfig(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as cluster:
            assert stat.S_IMODE(cluster.kubeconfig.stat().st_mode) == 0o600
            assert cluster.environment["REGISTRY"] == cluster.registry
            async with Client.from_kubeconfig(cluster.kubeconfig) as client:
                (node,) = (await client.list(NODES)).items
                version = await client.request("GET", "/version")
        assert node["status"]["nodeInfo"]["kubeletVersion"].endswith("+embedded")
        assert version["gitVersion"].endswith("+embedded")
        assert any("not enforced" in each for each in cluster.banner)
        assert not cluster.kubeconfig.exists()

    asyncio.run(story())


def refusal(folder: Path, **given: object) -> str:
    async def start() -> None:
        async with running(folder, **given):  # type: ignore[arg-type]
            pytest.fail("it started")

    with pytest.raises(NotStarted) as caught:
        asyncio.run(start())
    return str(caught.value)


def test_taken_ports_are_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"the API server cannot listen: port {port}" in refusal(tmp_path, port=port)
        assert f"the registry cannot listen: port {port}" in refusal(tmp_path, registry_port=port)


def test_somebody_elses_kubeconfig_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("clusters: [{name: production}]\n")
    assert "not of an embedded cluster" in refusal(tmp_path / "cluster", kubeconfig=file)
    assert file.read_text() == "clusters: [{name: production}]\n"


@pytest.mark.timeout(60)
def test_a_folder_has_one_cluster_and_a_killed_one_makes_room(tmp_path: Path) -> None:
    with started(tmp_path) as (process, environment):
        assert "runs in" in refusal(tmp_path)
        process.kill()
        process.wait()
        assert Path(environment["KUBECONFIG"]).exists()  # nobody could remove it
    with started(tmp_path) as (_, environment):
        assert "embedded" in kubectl(environment, "get", "nodes", "--output=name")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_no_pod_outlives_the_cluster(tmp_path: Path, how: signal.Signals) -> None:
    with started(tmp_path) as (process, environment):
        script = f"trap '' TERM; setsid sleep {MARK} & sleep {MARK}; true"
        kubectl(
            environment, "run", "stubborn", "--image", environment["BASE_IMAGE"], "--command", "--", "sh", "-c", script
        )
        wait_for(lambda: len(sleepers(MARK)) == 2)
        process.send_signal(how)
        code = process.wait()
        assert code == (-how if how == signal.SIGKILL else 0)
    wait_for(lambda: not sleepers(MARK))
    assert Path(environment["KUBECONFIG"]).exists() == (how == signal.SIGKILL)


@pytest.mark.timeout(60)
def test_a_command_finds_the_cluster_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    script = "kubectl get nodes --output=name && test -n $REGISTRY && exit 7"
    command = [*LOCAL, "--folder", str(tmp_path), "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "node/embedded" in done.stdout
    assert done.returncode == 7


@pytest.mark.timeout(60)
def test_a_signal_ends_the_command_before_its_cluster(tmp_path: Path) -> None:
    script = "trap 'kubectl get nodes --output=name; exit 3' TERM; echo ready; while true; do sleep 0.1; done"
    command = [*LOCAL, "--folder", str(tmp_path), "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line == "ready\n" for line in process.stdout)
        process.terminate()
        assert "node/embedded\n" in process.stdout.read()
        assert process.wait() == 3


async def _pods(kubeconfig: Path) -> int:
    async with Client.from_kubeconfig(kubeconfig) as client:
        return len((await client.list(PODS)).items)


@pytest.mark.timeout(60)
def test_a_new_start_in_the_same_folder_is_a_clean_one(tmp_path: Path) -> None:
    async def story() -> tuple[int, int]:
        async with running(tmp_path) as cluster, Client.from_kubeconfig(cluster.kubeconfig) as client:
            container = {"name": "main", "image": cluster.environment["BASE_IMAGE"], "command": ["sleep", MARK]}
            pod = {"metadata": {"name": "one", "namespace": "default"}, "spec": {"containers": [container]}}
            while not await client.find(PODS, "one", "default"):
                with contextlib.suppress(Exception):  # the namespace gets its service account first
                    await client.create(PODS, pod)
                await asyncio.sleep(0.05)
            before = await _pods(cluster.kubeconfig)
        async with running(tmp_path) as cluster:
            return before, await _pods(cluster.kubeconfig)

    assert asyncio.run(story()) == (1, 0)
    wait_for(lambda: not sleepers(MARK))


@contextlib.contextmanager
def started(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """The command of the README, and the variables that it tells to export."""
    with subprocess.Popen([*LOCAL, "--folder", str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        told = next(line for line in process.stdout if line.startswith("export "))
        try:
            yield process, {**os.environ, **dict(word.split("=", 1) for word in shlex.split(told)[1:])}
        finally:
            process.terminate()


def kubectl(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(["kubectl", *words], env=environment, check=True, capture_output=True, text=True).stdout
