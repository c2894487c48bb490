"""What pods share with their node, and containers with their pod: handed on, never asked back.

Keeps the modules of the node from knowing each other: a container knows its pod by these few fields.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect_cd.local.client import Client, Object
from prefect_cd.local.node.events import Recorder
from prefect_cd.local.node.processes import Processes
from prefect_cd.local.node.pull import Puller
from prefect_cd.local.node.volumes import Volumes


@dataclass(frozen=True)
class NodeParts:
    """What all pods of a node share.

    Attributes:
        services: all Services, for the variables that name them.
        hosts_file: the /etc/hosts of pods of a namespace.
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
class PodParts:
    """What all containers of a pod share.

    Attributes:
        pod: the object as last heard of.
        address: the pod's own.
        loopback: what 127.0.0.1 is in it.
        folder: for all that the pod leaves on the node.
        grace: seconds that a container has to end.
        changed: to be called when a container's status is different.
    """

    node: NodeParts
    pod: Object
    address: str
    loopback: str
    folder: Path
    volumes: Volumes
    grace: float
    changed: Callable[[], None]

    def __str__(self) -> str:
        """As messages name a pod."""
        meta = self.pod["metadata"]
        return f"{meta['name']}_{meta['namespace']}({meta['uid']})"
