"""API server, controllers, node and registry: started together in one process, stopped without leftovers.

Decides the order of starting and stopping, and what stays in the folder: images stay, everything else belongs to one
run. Objects live in memory, so that every start begins with an empty cluster. The components know each other by the API
only: each gets a client made from a kubeconfig, which could be that of another cluster.

    async with running(Path("folder")) as cluster:
        subprocess.run(["kubectl", "get", "nodes"], env={**os.environ, **cluster.environment})
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefect_cd_local.apiserver import ApiServer, Hooks, Ranges
from prefect_cd_local.client import Client
from prefect_cd_local.controllers import run_controllers
from prefect_cd_local.images import CONFIG, MACHINE_LABEL, MANIFEST, Registry
from prefect_cd_local.network import Network, reserve
from prefect_cd_local.node.kubelet import Node

MACHINE = "machine"
"""An image without files: its containers run this machine's programs and this Python."""
_CONTEXT = "embedded"
_Layer = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
"""A component: runs until it is cancelled, and calls its argument when it is ready."""


class NotStarted(Exception):
    """The cluster cannot start; the text says why, and what to do."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        kubeconfig: the file with its address and an administrator's token.
        registry: HOST:PORT of the image registry, for pushes and in manifests alike.
        server: the API server's URL.
        banner: sentences about its limits, for the user.
        broken: done when a component has ended by itself; carries its error.
    """

    kubeconfig: Path
    registry: str
    server: str
    banner: tuple[str, ...]
    broken: "asyncio.Future[list[None]]"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead programs to this cluster and its images."""
        images = {"BUILDER": "embedded", "BASE_IMAGE": f"{self.registry}/{MACHINE}"}
        return {"KUBECONFIG": str(self.kubeconfig), "REGISTRY": self.registry, **images}


@contextlib.asynccontextmanager
async def running(
    folder: Path, *, kubeconfig: Path | None = None, port: int = 0, registry_port: int = 0
) -> AsyncIterator[Cluster]:
    """Run a cluster for as long as the block runs.

    Args:
        folder: where it keeps images, logs and volumes; one cluster at a time.
        kubeconfig: the file to write, removed at the end; default: in the folder.
        port: of the API server; 0 for any free one.
        registry_port: of the registry; 0 for any free one.

    Raises:
        NotStarted: a port or the folder is in use or not writable, or the kubeconfig belongs to another cluster.
    """
    folder, file = _absolute(folder), _absolute(kubeconfig or folder / "kubeconfig")
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_locked(folder))
        network = stack.enter_context(_reserved())
        server = ApiServer(port=port, service_ranges=Ranges(network.services, network.is_free))
        registry = Registry(folder / "registry")
        await _listen(server.start(), "the API server", port)
        stack.push_async_callback(server.stop)
        address = f"localhost:{await _listen(registry.start(port=registry_port), 'the registry', registry_port)}"
        stack.push_async_callback(registry.stop)
        _offer_machine(registry)
        stack.enter_context(_written(file, server.kubeconfig()))
        kubelet = await stack.enter_async_context(Client.from_kubeconfig(file, user_agent="kubelet"))
        manager = await stack.enter_async_context(Client.from_kubeconfig(file, user_agent="kube-controller-manager"))
        node = Node(kubelet, folder / "node", network)
        server.hooks = Hooks(logs=node.logs, connect=node.connect)
        broken = await stack.enter_async_context(
            _layers(node.run, lambda ready: run_controllers(manager, server.certificate, ready))
        )
        yield Cluster(file, address, server.url, tuple(node.banner), broken)


def _absolute(path: Path) -> Path:
    return path.absolute()  # programs that use it may run in another folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder; the kernel releases the lock of a process that was killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise NotStarted(f"the folder {folder} is not writable ({error.strerror}): choose another one") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotStarted(
                f"an embedded cluster is running in {folder}: stop it, or choose another folder"
            ) from error
        yield


@contextlib.contextmanager
def _reserved() -> Iterator[Network]:
    """Reserve addresses that no other cluster of this machine has."""
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(reserve())
        except OSError as error:
            raise NotStarted(f"no addresses for pods and Services: {error.strerror}") from error
        yield network


async def _listen(start: Awaitable["int | None"], what: str, port: int) -> int:
    try:
        return await start or 0
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise NotStarted(f"{what} cannot listen: {error}") from error
        raise NotStarted(
            f"{what} cannot listen: port {port} of 127.0.0.1 is in use; choose another one, or 0 for any free port"
        ) from error


@contextlib.contextmanager
def _written(file: Path, content: str) -> Iterator[None]:
    """Write the kubeconfig and remove it at the end; replaces that of an earlier embedded cluster, and no other."""
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
        if before is not None and [entry.get("name") for entry in before.get("clusters") or []] != [_CONTEXT]:
            raise NotStarted(f"{file} is not the kubeconfig of an embedded cluster: name another file")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
            output.write(content)
    except (OSError, AttributeError, yaml.YAMLError) as error:
        raise NotStarted(f"the kubeconfig {file} cannot be written: {error}") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _layers(*layers: _Layer) -> AsyncIterator["asyncio.Future[list[None]]"]:
    """Run components side by side; the block begins when all are ready. Yields what ends when the first one fails."""
    waits = [asyncio.Event() for _ in layers]
    tasks = [asyncio.ensure_future(layer(wait.set)) for layer, wait in zip(layers, waits, strict=True)]
    broken = asyncio.gather(*tasks)
    ready = asyncio.gather(*(wait.wait() for wait in waits))
    first: list[asyncio.Future[Any]] = [broken, ready]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            await broken
        yield broken
    finally:
        ready.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, broken, ready, return_exceptions=True)


def _offer_machine(registry: Registry) -> None:
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    labels = {MACHINE_LABEL: json.dumps(sorted({sys.prefix, sys.base_prefix}))}
    config = {"Env": [f"PATH={path}"], "Cmd": ["sh"], "Labels": labels}
    content = json.dumps({"config": config, "rootfs": {"type": "layers", "diff_ids": []}, "os": "linux"}).encode()
    layout = registry.layout(MACHINE)
    described = {"mediaType": CONFIG, "digest": layout.put(content), "size": len(content)}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": []}
    layout.tag(json.dumps(manifest).encode(), "latest")
