"""Paths inside a checkout, and what a program of the commit may write of it.

The commit is untrusted: its symbolic links must not lead a gate out of its own tree.
"""

from dataclasses import replace
from pathlib import Path

from prefect_cd.errors import MissingSuite
from prefect_cd.process import Isolation


def checkout_path(checkout: Path, path: str, gate: str) -> Path:
    """The absolute form of a path in the checkout, with symbolic links resolved.

    Args:
        checkout: the folder of the checkout.
        path: relative to it, from the pipeline file.
        gate: the gate or check that needs the path, for the message.

    Raises:
        MissingSuite: the path does not exist, or a link leads it out of the checkout.
    """
    resolved = (checkout / path).resolve()
    if not resolved.is_relative_to(checkout.resolve()) or not resolved.exists():
        raise MissingSuite(
            f"{gate}: the commit has no {path}",
            where=path,
            hint="correct the path in the pipeline file, or commit what is missing",
        )
    return resolved


def in_checkout(isolation: Isolation, checkout: Path, *writable: Path) -> Isolation:
    """The isolation of a program that may also write the checkout and the given folders.

    It may not write `.git`: later commands of git, which are not isolated, would execute what its settings name.
    """
    git = (checkout / ".git").absolute()
    return replace(
        isolation,
        writable=(*isolation.writable, checkout, *writable),
        read_only=(*isolation.read_only, *([] if git.is_symlink() else [git])),
    )


__all__ = ["checkout_path", "in_checkout"]
