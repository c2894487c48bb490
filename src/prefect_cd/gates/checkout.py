"""Paths inside a checkout. The commit is untrusted: its symbolic links must not lead a gate out of its own tree."""

from pathlib import Path

from prefect_cd.errors import MissingSuite


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


__all__ = ["checkout_path"]
