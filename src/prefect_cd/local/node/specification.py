"""From a container of the API to what a supervisor starts: program, environment, folder, file system, addresses.

Source: kubernetes.io/docs/tasks/inject-data-application for what comes from where; what is missing raises ConfigError.
"""

from prefect_cd.local.client import Object
from prefect_cd.local.node import environment
from prefect_cd.local.node.parts import PodParts
from prefect_cd.local.node.processes import Spec
from prefect_cd.local.node.pull import Image
from prefect_cd.local.node.root import Bind

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path


async def specify(parts: PodParts, container: Object, image: Image) -> Spec:
    """What to start for a container.

    Raises:
        ConfigError: something is missing.
    """
    env = await _environment(parts, container, image)
    security = container.get("securityContext") or {}
    return Spec(
        argv=environment.command(container, image.config, env),
        env=env,
        cwd=container.get("workingDir") or image.config.get("WorkingDir") or "/",
        place=str(parts.folder / "roots" / container["name"]),
        pod_ip=parts.address,
        loopback_ip=parts.loopback,
        layers=list(image.layers),
        binds=_binds(parts, container),
        keep=image.machine_folders,
        read_only=bool(security.get("readOnlyRootFilesystem")),
        hostname=(parts.pod["spec"].get("hostname") or parts.pod["metadata"]["name"])[:63].rstrip("-."),
    )


async def _environment(parts: PodParts, container: Object, image: Image) -> dict[str, str]:
    node, meta = parts.node, parts.pod["metadata"]
    links = parts.pod["spec"].get("enableServiceLinks", True)
    base = {
        "PATH": _PATH,
        "HOME": "/root",
        "HOSTNAME": meta["name"],
        **environment.of_services(node.services(), meta["namespace"], links=links),
        **dict(each.partition("=")[::2] for each in image.config.get("Env") or []),
    }
    pod = {**parts.pod, "status": {"podIP": parts.address, "hostIP": node.address}}
    env = await environment.variables(pod, container, node.client.find, base=base, allocatable=node.allocatable)
    if not node.processes.features.addresses:
        env.setdefault("POD_IP", parts.address)
    return env


def _binds(parts: PodParts, container: Object) -> list[Bind]:
    volumes = parts.volumes.binds(container)
    if not parts.node.processes.features.mounts:
        # A token nobody asked for is left out; other volumes are refused when the container starts.
        return [each for each in volumes if each.target != _TOKEN]
    note = parts.folder / f"{container['name']}-termination"
    note.touch()
    note.chmod(0o666)
    hosts = str(parts.node.hosts_file(parts.pod["metadata"]["namespace"]))
    return [
        Bind(str(note), container.get("terminationMessagePath") or "/dev/termination-log"),
        Bind(hosts, "/etc/hosts", read_only=True),
        *volumes,
    ]
