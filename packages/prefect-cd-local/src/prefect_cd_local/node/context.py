"""What a node's pods share, and what a pod's containers share.

It decouples the modules of the node: a container knows its pod by these few fields.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect_cd_local.client import Client, Object
from prefect_cd_local.node.events import Recorder
from prefect_cd_local.node.processes import Processes
from prefect_cd_local.node.pull import Puller
from prefect_cd_local.node.volumes import Volumes


@dataclass(frozen=True)
class NodeContext:
    """What all pods of a node share.

    Attributes:
        services: all Services, for their environment variables.
        hosts_file: the /etc/hosts for pods of a namespace.
        allocatable: the node's resources.
    """

    client: Client
    address: str
    folder: Path
    processes: Processes
    puller: Puller
    recorder: Recorder
    services: Callable[[], list[Object]]
    hosts_file: Callable[[str], Path]
    allocatable: dict[str, str]


@dataclass
class PodContext:
    """What all containers of a pod share.

    Attributes:
        pod: the last known state of the object.
        address: the pod's own.
        loopback: the address that stands for 127.0.0.1 in it.
        folder: for all files of the pod on the node.
        grace: its grace period in seconds.
        changed: called when a container's status has changed.
    """

    node: NodeContext
    pod: Object
    address: str
    loopback: str
    folder: Path
    volumes: Volumes
    grace: float
    changed: Callable[[], None]

    def __str__(self) -> str:
        """The pod as messages name it."""
        meta = self.pod["metadata"]
        return f"{meta['name']}_{meta['namespace']}({meta['uid']})"
