import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2] / "packages/prefect-cd-local"
SOURCES = PROJECT / "src"
FILES = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py"))


@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith("__init__.py")])
def test_every_module_is_importable(file: str) -> None:
    importlib.import_module(file.removesuffix(".py").replace("/", "."))


@pytest.mark.timeout(120)
def test_the_wheel_holds_the_package_without_developer_tools_and_needs_no_prefect(tmp_path: Path) -> None:
    copy, dist = tmp_path / "project", tmp_path / "dist"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert list(dist.glob("*.tar.gz"))
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    data = {"prefect_cd_local/py.typed", "prefect_cd_local/apiserver/schemas.json"}
    assert {name for name in names if ".dist-info/" not in name} == {*FILES, *data}
    assert re.findall(r"Requires-Dist: (prefect\S*)", metadata) == []
