"""What this machine allows a node to do, tried out; and what a person should know about it.

Nothing of it is needed: pods run without, with the limits that the banner names.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect_cd.local.node import addresses, root


@dataclass(frozen=True)
class Features:
    """What is possible.

    Attributes:
        mounts: a file system of its own for each container.
        processes: process namespaces.
        addresses: an address of its own for each pod.
    """

    mounts: bool = False
    processes: bool = False
    addresses: bool = False

    def banner(self) -> list[str]:
        """What a person should know about this node, in sentences."""
        said = ["pods are processes of this machine: FROM, USER and resources are not enforced, nothing is a wall"]
        if not self.addresses:
            said.append("the kernel does not let us give pods addresses: a server must listen on $POD_IP, not 0.0.0.0")
        if self.mounts:
            said.append("pods see the files of this machine read-only, their image and volumes over them")
        else:
            said.append("no mount namespaces here: pods with volumes are refused")
        if not self.processes:
            said.append("no process namespaces here: pods see and signal each other's processes")
        return said


def probe() -> Features:
    """Try everything once, in a child each."""
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        mounts = _works(lambda: _try_mounts(Path(folder)))
    return Features(
        mounts=mounts,
        processes=_works(lambda: root.isolate(processes=True, mounts=False)),
        addresses=addresses.supported() and _works(lambda: os.close(addresses.install())),
    )


def _try_mounts(folder: Path) -> None:
    root.isolate(processes=False, mounts=True)
    root.build(folder, [], [root.Bind("/etc/passwd", "/etc/prefect-cd")], [])


def _works(attempt: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except BaseException:  # noqa: BLE001 - a forked child must never return
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
