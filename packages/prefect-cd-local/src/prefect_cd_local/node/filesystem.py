"""A container's file system: this machine, read-only, with the image and its volumes on top.

The builder `embedded` ignores FROM, so the base image is the machine. There are two ways, the better one where the
kernel allows it:

- mounts: a new mount namespace (and, without root, a user namespace). Folders of the machine are read-only; those
  that the image or a volume touches are overlays in memory, which end with the container; /tmp, /run and /dev are the
  container's own.
- no mounts: the image is in a folder, and WORKDIR is a folder in it. Absolute paths are those of the machine, so pods
  with volumes are refused.
"""

import os
import socket
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prefect_cd_local.archives import OutsideError, inside, unpack
from prefect_cd_local.node import kernel

_OWN = ("tmp", "run", "dev", "proc")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


@dataclass(frozen=True)
class Bind:
    """A folder or file of the node that appears in the container."""

    source: str
    target: str
    read_only: bool = False


def extract(layers: Iterable[str], into: Path) -> None:
    """Unpack the layers of an image made by the builder `embedded`: plain files, folders and links, no removals."""
    into.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        with tarfile.open(layer) as archive:
            unpack(archive, into)


def isolate(*, processes: bool, mounts: bool, hostname: str = "") -> None:
    """Enter new process and mount namespaces, as requested, with a host name of their own."""
    flags = (kernel.NEW_PIDS if processes else 0) | (kernel.NEW_MOUNTS if mounts else 0)
    if flags:
        kernel.unshare(flags | kernel.NEW_NAMES | (kernel.NEW_USER if os.geteuid() else 0))
        if hostname:
            socket.sethostname(hostname)
    if mounts:
        kernel.mount("", "/", flags=kernel.RECURSIVE | kernel.PRIVATE)


def build(
    place: Path, layers: list[str], binds: list[Bind], keep: list[str], *, cwd: str = "/", read_only: bool = False
) -> str:
    """Build the file system below `place`, in its own mount namespace; returns the folder that becomes the root.

    Args:
        place: an empty folder.
        layers: the image's.
        binds: volumes and other files of the node.
        keep: folders of the machine that must be visible even where the container has its own, as in /tmp.
        cwd: a folder to create, if it does not exist.
        read_only: as readOnlyRootFilesystem.
    """
    kernel.mount("tmpfs", str(place), "tmpfs", options="mode=755")
    root, image, work = (place / part for part in ("root", "image", "work"))
    root.mkdir()
    kernel.mount("tmpfs", str(root), "tmpfs", options="mode=755")
    extract(layers, image)
    # The container resolves links in targets, such as /var/run, and has the machine's links.
    targets = [Bind(bind.source, os.path.realpath(bind.target), bind.read_only) for bind in binds]
    touched = {bind.target.split("/")[1] for bind in targets} | {bind.name for bind in image.iterdir()}
    if not Path(cwd).is_dir():
        inside(image, cwd).mkdir(parents=True, exist_ok=True)
        touched.add(cwd.split("/")[1])
    for name in sorted({*(entry.name for entry in Path("/").iterdir()), *touched}):
        _build_top_level_entry(name, root, image, work, touched=name in touched)
    kept = [Bind(path, path, read_only=True) for path in keep if not (root / path.lstrip("/")).exists()]
    for bind in [*kept, *targets]:
        _make_mount_point(Path(bind.source), inside(root, bind.target))
    if read_only:
        kernel.make_read_only(str(root))
    for bind in [*kept, *targets]:
        target = str(root / bind.target.lstrip("/"))
        kernel.mount(bind.source, target, flags=kernel.BIND | kernel.RECURSIVE)
        if bind.read_only:
            kernel.make_read_only(target)
    return str(root)


def _build_top_level_entry(name: str, root: Path, image: Path, work: Path, *, touched: bool) -> None:
    """Build one entry of the root folder."""
    source, target, upper = Path("/", name), root / name, image / name
    if name in _OWN:
        _own(name, target, upper)
    elif source.is_symlink() and not upper.is_dir():
        target.symlink_to(source.readlink())
    elif upper.is_symlink():  # never followed here, where it would be a path of the machine
        if source.exists():
            raise OutsideError(f"the image has a link in place of /{name}")
        target.symlink_to(upper.readlink())
    elif source.is_dir() and touched:
        for folder in (target, upper, work / name):
            folder.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir=/{name},upperdir={upper},workdir={work / name}"
        kernel.mount("overlay", str(target), "overlay", options=options + (",userxattr" if os.geteuid() else ""))
    elif source.is_dir():
        target.mkdir()
        kernel.mount(str(source), str(target), flags=kernel.BIND | kernel.RECURSIVE)
        kernel.make_read_only(str(target))
    elif upper.exists():  # only in the image
        _make_mount_point(upper, target)
        kernel.mount(str(upper), str(target), flags=kernel.BIND)


def _own(name: str, target: Path, upper: Path) -> None:
    """Make a folder that belongs to the container alone."""
    target.mkdir()
    target.chmod(0o1777 if name == "tmp" else 0o755)
    if upper.is_dir() and not upper.is_symlink():
        kernel.mount(str(upper), str(target), flags=kernel.BIND)
    if name == "dev":
        _devices(target)
    elif name == "proc":
        kernel.mount("/proc", str(target), flags=kernel.BIND | kernel.RECURSIVE)


def _devices(folder: Path) -> None:
    for name in filter(lambda device: Path("/dev", device).exists(), _DEVICES):
        (folder / name).touch()
        kernel.mount(f"/dev/{name}", str(folder / name), flags=kernel.BIND)
    for name, to in _LINKS.items():
        (folder / name).symlink_to(to)
    (folder / "shm").mkdir()
    kernel.mount("tmpfs", str(folder / "shm"), "tmpfs", options="mode=1777")


def _make_mount_point(source: Path, target: Path) -> None:
    """Make a file or folder to mount on."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
