"""Containers as real processes of this machine."""

import asyncio
import os
import socket
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from prefect_cd_local.network import Network, reserve
from prefect_cd_local.node.filesystem import Bind
from prefect_cd_local.node.logs import Log
from prefect_cd_local.node.processes import Container, Processes, Spec, StartError

PYTHON = sys.executable
pytestmark = pytest.mark.timeout(120)
SERVE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.socket(family)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((sys.argv[1], 18123))
server.listen()
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(sys.argv[2].encode())
    connection.close()
"""
ASK = "import socket; print(socket.create_connection(('localhost', 18123)).recv(99).decode())"


_NUMBERS = count(1)
"""No address is used twice, because the processes of an earlier test may still be ending."""


class Machine:
    def __init__(self, processes: Processes, folder: Path, network: Network) -> None:
        self.processes, self.folder, self.network = processes, folder, network

    async def start(
        self,
        *argv: str,
        layers: tuple[str, ...] = (),
        binds: tuple[Bind, ...] = (),
        read_only: bool = False,
        cwd: str = "/",
    ) -> Container:
        number = next(_NUMBERS)
        self.address, loopback = self.network.pod(number)
        spec = Spec(
            argv=list(argv), env={"PATH": "/usr/bin:/bin"}, cwd=cwd, place=str(self.folder / f"p{number}"),
            pod_ip=self.address, loopback_ip=loopback, layers=list(layers), binds=list(binds),
            keep=[sys.prefix, sys.base_prefix], read_only=read_only,
        )  # fmt: skip
        return await self.processes.run(spec, Log(self.folder / f"log{number}"))

    async def output(self, *argv: str, **more: object) -> str:
        container = await self.start(*argv, **more)  # type: ignore[arg-type]
        await container.wait()
        return container.log.end(50)


def on_a_machine(folder: Path, scenario: Callable[[Machine], Awaitable[None]]) -> None:
    @asynccontextmanager
    async def machine() -> AsyncIterator[Machine]:
        processes = Processes()
        await processes.start()
        try:
            with reserve() as network:
                yield Machine(processes, folder, network)
        finally:
            processes.stop()

    async def run() -> None:
        async with machine() as made:
            await scenario(made)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_two_pods_serve_the_same_port_on_all_interfaces(tmp_path: Path, host: str) -> None:
    async def scenario(machine: Machine) -> None:
        if not machine.processes.features.addresses:
            pytest.skip("this kernel does not let us give addresses")
        names = ("first", "second")
        started = [(await machine.start(PYTHON, "-c", SERVE, host, name), machine.address) for name in names]
        for (pod, address), name in zip(started, names, strict=True):
            await until(lambda pod=pod: "listening" in pod.log.end(1))
            with socket.create_connection((address, 18123)) as connection:
                assert connection.recv(99) == name.encode()
            assert await pod.execute([PYTHON, "-c", ASK]) == (0, f"{name}\n")  # localhost is the pod itself
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 18123))
        for pod, _ in started:
            pod.close()

    on_a_machine(tmp_path, scenario)


def test_a_server_on_localhost_is_reached_by_its_own_pod_only(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        if not machine.processes.features.addresses:
            pytest.skip("this kernel does not let us give addresses")
        pod = await machine.start(PYTHON, "-c", SERVE, "127.0.0.1", "hidden")
        await until(lambda: "listening" in pod.log.end(1))
        assert await pod.execute([PYTHON, "-c", ASK]) == (0, "hidden\n")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((machine.address, 18123))
        pod.close()

    on_a_machine(tmp_path, scenario)


@pytest.fixture
def of_the_machine() -> Iterator[str]:
    """A file in the machine's /tmp; pods have their own."""
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="not-for-pods-") as file:
        yield file.name


def test_a_pod_sees_its_volumes_and_the_machine_read_only(tmp_path: Path, of_the_machine: str) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "key").write_text("value")
    volume = str(tmp_path / "volume")
    binds = (Bind(volume, "/etc/conf", read_only=True), Bind(volume, "/var/run/a/b"), Bind(volume, "/new/place"))
    script = (
        "cat /etc/conf/key /run/a/b/key /new/place/key; echo;"
        "touch /etc/conf/x || echo closed; touch /usr/x || echo closed;"
        f"touch /new/place/x && echo open; touch /etc/prefect-cd-test && echo own; ls {of_the_machine}; pwd"
    )

    async def scenario(machine: Machine) -> None:
        if not machine.processes.features.mounts:
            pytest.skip("this machine does not allow mounts")
        output = await machine.output("sh", "-c", f"exec 2>/dev/null; {script}", binds=binds, cwd="/not/there/yet")
        assert output.splitlines() == ["valuevaluevalue", "closed", "closed", "open", "own", "/not/there/yet"]
        assert "x" in os.listdir(volume)  # noqa: PTH208

    on_a_machine(tmp_path, scenario)
    assert not Path("/etc/prefect-cd-test").exists()


def test_a_read_only_root_is_read_only_but_for_volumes(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    script = "touch /tmp/x || touch /x || echo closed; touch /data/x && echo open; echo > /dev/null && echo device"

    async def scenario(machine: Machine) -> None:
        if not machine.processes.features.mounts:
            pytest.skip("this machine does not allow mounts")
        binds = (Bind(str(tmp_path / "volume"), "/data"),)
        output = await machine.output("sh", "-c", f"exec 2>/dev/null; {script}", binds=binds, read_only=True)
        assert output.splitlines() == ["closed", "open", "device"]

    on_a_machine(tmp_path, scenario)


@pytest.mark.parametrize("name", ["srv-of-the-image", "etc", "tmp"])
def test_a_link_of_an_image_leads_nowhere_on_the_machine(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "layer", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(member)
    (tmp_path / "volume").mkdir()
    volume = Bind(str(tmp_path / "volume"), f"/{name}/made")

    async def scenario(machine: Machine) -> None:
        for more in ({}, {"cwd": f"/{name}/made"}, {"binds": (volume,)}):
            with suppress(StartError):
                await machine.output("sh", "-c", f"touch /{name}/x", layers=(str(tmp_path / "layer"),), **more)
        assert list(outside.iterdir()) == []

    on_a_machine(tmp_path, scenario)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nosuchprogram"], 'exec: "nosuchprogram": executable file not found in $PATH'),
        (["/nosuch"], 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_a_program_that_cannot_start_says_so_as_runc_does(tmp_path: Path, argv: list[str], message: str) -> None:
    async def scenario(machine: Machine) -> None:
        with pytest.raises(StartError) as caught:
            await machine.start(*argv)
        assert str(caught.value) == message

    on_a_machine(tmp_path, scenario)


def test_exit_codes_signals_and_commands_are_reported(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        assert await (await machine.start("sh", "-c", "exit 7")).wait() == 7
        pod = await machine.start("sleep", "60")
        assert await pod.execute(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr\n")
        assert (await pod.execute(["nosuch"]))[0] == 128
        with pytest.raises(asyncio.TimeoutError):
            await pod.execute(["sleep", "60"], 0.1)
        pod.signal(9)
        assert await pod.wait() == 137

    on_a_machine(tmp_path, scenario)


def test_descendants_end_with_their_container(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        pod = await machine.start("sh", "-c", "(setsid sleep 8641 &); sleep 8642 & echo up; exec sleep 0.3")
        assert await pod.wait() == 0
        await until(lambda: not _running("864"))

    on_a_machine(tmp_path, scenario)


def test_the_banner_names_features_that_the_machine_lacks(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        assert any("not enforced" in line for line in machine.processes.features.banner())

    on_a_machine(tmp_path, scenario)


def _running(argument: str) -> list[str]:
    processes = []
    for name in filter(str.isdigit, (entry.name for entry in Path("/proc").iterdir())):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:1] == [b"sleep"] and words[1].startswith(argument.encode()):
            processes.append(name)
    return processes
