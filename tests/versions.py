"""Which versions `make test-versions` tests with: `python tests/versions.py lowest|newest|installed`.

`lowest` prints constraints for pip: each direct dependency at the lowest version that pyproject.toml allows. A floor
that conflicts with another one fails at once, because pip finds no solution. `newest` prints no constraint.
`installed` prints the versions that the environment has of the direct dependencies.
"""

import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement


def direct() -> list[Requirement]:
    """The direct dependencies on this version of Python, without extras."""
    requirements = [Requirement(line) for line in requires("prefect-cd") or ()]
    return [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]


def lowest() -> list[str]:
    """The floor of each direct dependency as a constraint; one that has only a ceiling is left to pip."""
    floors = {one.name: part.version for one in direct() for part in one.specifier if part.operator == ">="}
    return [f"{name}=={floor}" for name, floor in floors.items()]


def installed() -> list[str]:
    """The direct dependencies as they are installed here."""
    return [f"{one.name}=={version(one.name)}" for one in direct()]


if __name__ == "__main__":
    lines = {"lowest": lowest, "newest": list, "installed": installed}[sys.argv[1]]()
    sys.stdout.writelines(f"{line}\n" for line in lines)
