"""Find out which isolation this machine allows, and describe the rest to the user.

All of it is optional: pods run without, with the limits that the banner names.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect_cd_local.node import addresses, filesystem


@dataclass(frozen=True)
class Features:
    """What this machine allows.

    Attributes:
        mounts: a file system for each container.
        processes: process namespaces.
        addresses: an address for each pod.
    """

    mounts: bool = False
    processes: bool = False
    addresses: bool = False

    def banner(self) -> list[str]:
        """Sentences about the limits of this node, for the user."""
        sentences = [
            "pods are processes of this machine: FROM, USER and resources are not enforced, nothing is isolated"
        ]
        if not self.addresses:
            sentences.append(
                "pods cannot have addresses of their own on this kernel: servers must listen on $POD_IP, not 0.0.0.0"
            )
        if self.mounts:
            sentences.append("pods see the files of this machine read-only, with their image and volumes on top")
        else:
            sentences.append("no mount namespaces on this machine: pods with volumes are refused")
        if not self.processes:
            sentences.append("no process namespaces on this machine: pods see and signal each other's processes")
        return sentences


def probe() -> Features:
    """Try each feature once, in a child process each."""
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        mounts = _works(lambda: _try_mounts(Path(folder)))
    return Features(
        mounts=mounts,
        processes=_works(lambda: filesystem.isolate(processes=True, mounts=False)),
        addresses=addresses.supported() and _works(lambda: os.close(addresses.install())),
    )


def _try_mounts(folder: Path) -> None:
    filesystem.isolate(processes=False, mounts=True)
    filesystem.build(folder, [], [filesystem.Bind("/etc/passwd", "/etc/prefect-cd")], [])


def _works(attempt: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except BaseException:  # noqa: BLE001 - a forked child must never return
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
