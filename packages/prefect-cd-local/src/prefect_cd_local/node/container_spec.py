"""Turn a container of the API into what a supervisor starts: program, environment, folder, file system, addresses.

Source: kubernetes.io/docs/tasks/inject-data-application. Missing objects raise ConfigError.
"""

from prefect_cd_local.client import Object
from prefect_cd_local.node import environment
from prefect_cd_local.node.context import PodContext
from prefect_cd_local.node.filesystem import Bind
from prefect_cd_local.node.processes import Spec
from prefect_cd_local.node.pull import Image

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path


async def specify(parts: PodContext, container: Object, image: Image) -> Spec:
    """Return what to start for a container.

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


async def _environment(parts: PodContext, container: Object, image: Image) -> dict[str, str]:
    node, meta = parts.node, parts.pod["metadata"]
    links = parts.pod["spec"].get("enableServiceLinks", True)
    base = {
        "PATH": _PATH,
        "HOME": "/root",
        "HOSTNAME": meta["name"],
        **environment.of_services(node.services(), meta["namespace"], links=links),
        **dict(variable.partition("=")[::2] for variable in image.config.get("Env") or []),
    }
    pod = {**parts.pod, "status": {"podIP": parts.address, "hostIP": node.address}}
    env = await environment.variables(pod, container, node.client.find, base=base, allocatable=node.allocatable)
    if not node.processes.features.addresses:
        env.setdefault("POD_IP", parts.address)
    return env


def _binds(parts: PodContext, container: Object) -> list[Bind]:
    volumes = parts.volumes.binds(container)
    if not parts.node.processes.features.mounts:
        # The token that is mounted by default is left out; other volumes are refused when the container starts.
        return [volume for volume in volumes if volume.target != _TOKEN]
    note = parts.folder / f"{container['name']}-termination"
    note.touch()
    note.chmod(0o666)
    hosts = str(parts.node.hosts_file(parts.pod["metadata"]["namespace"]))
    return [
        Bind(str(note), container.get("terminationMessagePath") or "/dev/termination-log"),
        Bind(hosts, "/etc/hosts", read_only=True),
        *volumes,
    ]
