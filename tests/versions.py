"""Which versions `make test-versions` tests with: `python tests/versions.py lowest|newest|installed|newer`.

`lowest` prints constraints for pip: each direct dependency at the lowest version that pyproject.toml allows. A floor
that conflicts with another one fails at once, because pip finds no solution. `newest` prints no constraint.
`installed` prints the versions that the environment has of the direct dependencies, and `newer` those that pip would
install instead: none where `make test` has tested with the newest already.
"""

import json
import subprocess
import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


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


def newer() -> list[str]:
    """The direct dependencies of which the package index has a newer version that pyproject.toml allows."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--ignore-installed", "--report=-", *map(str, direct())]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    found = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]}
    newest = [f"{one.name}=={found[canonicalize_name(one.name)]}" for one in direct()]
    return [line for line in newest if line not in installed()]


if __name__ == "__main__":
    lines = {"lowest": lowest, "newest": list, "installed": installed, "newer": newer}[sys.argv[1]]()
    sys.stdout.writelines(f"{line}\n" for line in lines)
