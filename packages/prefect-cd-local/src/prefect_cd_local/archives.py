"""Paths and archives that somebody else has written: nothing of them leads out of its folder, whatever links say.

A link of an image is kept as it is, because it means a path of the container. It is never followed while a layer is
unpacked, where it would mean a path of this machine.
"""

import shutil
import tarfile
from pathlib import Path


class OutsideError(OSError):
    """A path leads out of the folder that it belongs to."""


def inside(folder: Path, name: str | Path) -> Path:
    """The path of this name in a folder; an absolute name begins at the folder.

    Raises:
        OutsideError: it has `..`, or a link in it leads elsewhere.
    """
    relative = Path(str(name).lstrip("/"))
    path = folder / relative
    if ".." in relative.parts or "\0" in str(name) or not _really(path).is_relative_to(folder.resolve()):
        raise OutsideError(f"{str(name)!r} leads out of its folder")
    return path


def unpack(archive: tarfile.TarFile, into: Path) -> None:
    """Unpack a layer that the builder `embedded` has made: files, folders and links, owned by this user.

    `TarFile.extract` is not used: it follows links, and puts another member in the place of a link that it cannot make.

    Raises:
        OutsideError: a member would be written outside of the folder.
        OSError: a member is something else, such as a device.
    """
    for member in archive:
        if member.name.startswith("/") or ".." in Path(member.name).parts or "\0" in member.name + member.linkname:
            raise OutsideError(f"the image contains {member.name!r}, which does not belong there")
        path = into / member.name
        inside(into, Path(member.name).parent).mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()  # of an earlier layer; a file would be written to where it leads
        if member.isdir():
            path.mkdir(exist_ok=True)
        elif member.issym():
            path.unlink(missing_ok=True)
            path.symlink_to(member.linkname)
        elif content := archive.extractfile(member) if member.isreg() else None:
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
            path.chmod(member.mode & 0o777)
        else:
            raise OSError(f"the image contains {member.name!r}, which is no file, folder or symbolic link")


def _really(path: Path) -> Path:
    """The path with all links followed; one of links in a circle is nowhere."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return Path("/nowhere")
