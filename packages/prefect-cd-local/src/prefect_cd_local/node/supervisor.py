"""Supervisors: the parents of the pods' processes, in a program beside the node, so that no process outlives the node.

`python -m prefect_cd_local.node.supervisor FD` is started once. For each container it forks one supervisor, which
starts the container's process and guarantees: when the node ends, for whatever reason, even SIGKILL, the process and
all its descendants are killed. Three mechanisms, each sufficient: the supervisor sees the node's end of its socket
close; the kernel kills the process when the supervisor dies (PR_SET_PDEATHSIG); where the machine allows process
namespaces, the kernel kills all descendants with the process. Without these, descendants are found by their parents.

Lines of JSON in: the specification first (`Spec`), then {"signal": N}, {"exec": ID, "argv": […]}, {"kill": ID}.
Lines of JSON out: {"started": PID} or {"failed": TEXT}, {"exec": ID, "code": N, "output": TEXT}, {"exited": N}.
"""

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from prefect_cd_local.archives import inside
from prefect_cd_local.node import addresses, features, filesystem, kernel

_OUTPUT_KEPT = 10 * 1024  # bytes of a probe's output, as in the kubelet
_COULD_NOT_START = 128


class NotStarted(Exception):
    """A program could not be started."""


class Supervisor:
    """One container: its process, the commands executed in it, and their addresses."""

    def __init__(self, control: socket.socket, log: int) -> None:
        self._control, self._log = control, log
        self._lines = control.makefile("rb")
        self._rest = b""
        self._spec: dict[str, Any] = {}
        self._children: dict[int, tuple[int, int | None, int]] = {}  # pidfd -> (pid, exec id or None, output)
        self._listeners: list[int] = []
        self._proc = os.open("/proc", os.O_RDONLY)

    def run(self) -> None:
        """Start the container and stay until its process has ended."""
        self._spec = json.loads(self._lines.readline() or b"null")
        if not self._spec:
            return
        self._control.setblocking(False)
        try:
            self._prepare()
            started = self._start(self._spec["argv"], None, self._log)
        except (NotStarted, OSError) as error:
            self._say({"failed": str(error)})
            return
        os.close(self._log)
        self._say({"started": started})
        while any(child is None for _, child, _ in self._children.values()):
            self._turn()

    def _prepare(self) -> None:
        spec, features = self._spec, self._spec["features"]
        kernel.adopt_orphans()
        filesystem.isolate(processes=features["processes"], mounts=features["mounts"], hostname=spec["hostname"])
        place = Path(spec["place"])
        if not features["mounts"]:
            filesystem.extract(spec["layers"], place)
            spec["cwd"] = str(inside(place, spec["cwd"]))
            Path(spec["cwd"]).mkdir(parents=True, exist_ok=True)
        else:
            binds = [filesystem.Bind(**bind) for bind in spec["binds"]]
            view = filesystem.build(
                place, spec["layers"], binds, spec["keep"], cwd=spec["cwd"], read_only=spec["read_only"]
            )
            os.chroot(view)

    def _start(self, argv: list[str], identity: int | None, output: int) -> int:
        ours, theirs = socket.socketpair()
        process = os.fork()
        if process == 0:
            self._become(argv, identity, output, theirs)
        theirs.close()
        with ours:
            problem = b""
            while True:
                message, descriptors, _, _ = socket.recv_fds(ours, 65536, 1)
                self._listeners += descriptors
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                if not message:
                    break
                problem += message
        if problem := problem.lstrip(b"+"):
            os.waitpid(process, 0)
            raise NotStarted(problem.decode(errors="replace"))
        self._children[os.pidfd_open(process)] = process, identity, output
        return process

    def _become(self, argv: list[str], identity: int | None, output: int, parent: socket.socket) -> NoReturn:
        try:
            os.setsid()
            kernel.die_with_parent()
            features = self._spec["features"]
            if identity is None and features["mounts"] and features["processes"]:
                with suppress(OSError):  # without the right to mount /proc, the machine's own stays
                    kernel.mount("proc", "/proc", "proc")
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.umask(0o022)
            os.chdir(self._spec["cwd"])
            if features["addresses"]:
                socket.send_fds(parent, [b"+"], [addresses.install()])
            os.execvpe(argv[0], argv, self._spec["env"])  # noqa: S606 - no shell, on purpose
        except OSError as error:
            parent.sendall(_start_error_text(argv[0], error).encode())
        except BaseException as error:  # noqa: BLE001 - a forked child must never return
            parent.sendall(f"{type(error).__name__}: {error}".encode())
        os._exit(_COULD_NOT_START)

    def _turn(self) -> None:
        watched = [self._control.fileno(), *self._listeners, *self._children]
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        for descriptor, event in poll.poll():
            if descriptor in self._children:
                self._ended(descriptor)
            elif descriptor == self._control.fileno():
                self._hear()
            elif event & select.POLLIN:
                addresses.handle_call(descriptor, self._proc, self._spec["pod_ip"], self._spec["loopback_ip"])
            else:  # all processes with this filter have ended
                self._listeners.remove(descriptor)
                os.close(descriptor)

    def _hear(self) -> None:
        try:
            data = self._control.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._kill_everything()
            os._exit(1)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        for process, identity, _ in self._children.values():
            with suppress(ProcessLookupError):
                if "signal" in order and identity is None:
                    os.kill(process, order["signal"])
                elif "kill" in order and identity == order["kill"]:
                    os.killpg(process, signal.SIGKILL)
        if "argv" in order:
            output = os.memfd_create("output")
            try:
                self._start(order["argv"], order["exec"], output)
            except (NotStarted, OSError) as error:
                os.close(output)
                self._say({"exec": order["exec"], "code": _COULD_NOT_START, "output": str(error)})

    def _ended(self, descriptor: int) -> None:
        process, identity, output = self._children.pop(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        code = 128 - code if code < 0 else code
        if identity is not None:
            text = os.pread(output, _OUTPUT_KEPT, 0).decode(errors="replace")
            os.close(output)
            self._say({"exec": identity, "code": code, "output": text})
        else:
            self._kill_everything()
            self._say({"exited": code})

    def _kill_everything(self) -> None:
        """Kill what is left; orphans become our children, so the search ends when there are none."""
        while True:
            for process in _children_of(os.getpid(), self._proc):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _say(self, message: dict[str, Any]) -> None:
        with suppress(OSError):
            self._control.setblocking(True)
            self._control.sendall(json.dumps(message).encode() + b"\n")
            self._control.setblocking(False)


def _start_error_text(program: str, error: OSError) -> str:
    """Return an error as runc would describe it; people search for these messages."""
    words = "exec" if "/" in program else ""
    text = {
        2: "stat {0}: no such file or directory" if words else "executable file not found in $PATH",
        13: "permission denied",
        8: "exec format error",
    }.get(error.errno or 0, (error.strerror or str(error)).lower())
    return f'exec: "{program}": {text.format(program)}'


def _children_of(parent: int, proc: int) -> list[int]:
    pids = []
    for name in filter(str.isdigit, os.listdir(proc)):
        try:
            file = os.open(f"{name}/stat", os.O_RDONLY, dir_fd=proc)
        except OSError:
            continue
        with suppress(OSError), os.fdopen(file, encoding="utf-8", errors="replace") as text:
            fields = text.read().rpartition(")")[2].split()  # a program's name may contain anything
            if fields[1] == str(parent) and fields[0] != "Z":
                pids.append(int(name))
    return pids


def main() -> None:
    """Serve the node until it is gone: fork once for each pair of descriptors that it sends."""
    node = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the node decides; its socket closes when it ends
    node.sendall(json.dumps(asdict(features.probe())).encode() + b"\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors
    while True:
        message, descriptors, _, _ = socket.recv_fds(node, 1, 2)
        if not message:
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            node.close()
            try:
                Supervisor(socket.socket(fileno=descriptors[0]), descriptors[1]).run()
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
