import importlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import prefect_cd.tasks
from prefect_cd.pipeline.load import load, schema

TOP = Path(__file__).resolve().parents[2]
SOURCES = TOP / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCES / "prefect_cd").with_suffix("").parts).removesuffix(".__init__")
    for path in (SOURCES / "prefect_cd").rglob("*.py")
    if path.parent != SOURCES / "prefect_cd" or path.stem != "__init__"
)
FLOORS = sorted(
    f"{floor}.{path.stem}"
    for floor in ("tasks", "flows", "deployments")
    for path in (TOP / floor).glob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize("module", [*MODULES, *FLOORS])
@pytest.mark.timeout(60)
def test_every_module_is_importable_under_the_package(module: str) -> None:
    importlib.import_module(f"prefect_cd.{module}")


def build(project: Path, tmp_path: Path) -> tuple[list[str], str]:
    """The files and the metadata of a distribution's wheel, built from what git has of it."""
    copy, dist = tmp_path / "project", tmp_path / "dist"
    files = subprocess.run(["git", "ls-files"], cwd=project, check=True, capture_output=True, text=True).stdout.split()
    for file in files:
        if (project / file).is_file() and file.split("/")[0] not in {"tests", "examples", "benchmarks", "packages"}:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_bytes((project / file).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert list(dist.glob("*.tar.gz"))
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return names, archive.read(metadata).decode()


@pytest.mark.timeout(120)
def test_the_wheel_installs_exactly_one_top_level_package_with_everything_in_it(tmp_path: Path) -> None:
    names, metadata = build(TOP, tmp_path)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"prefect_cd"}
    for module in FLOORS:
        assert f"prefect_cd/{module.replace('.', '/')}.py" in names
    assert {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py")} <= set(names)
    assert "prefect_cd/py.typed" in names
    assert re.findall(r"Requires-Dist: (cryptography|jsonpatch|pathspec)\b", metadata) == []
    assert re.findall(r"Requires-Dist: (prefect-cd-local\b.*)", metadata) == [
        'prefect-cd-local<0.2,>=0.1; extra == "local"'
    ]


@pytest.mark.timeout(60)
def test_the_stages_are_exported_by_name() -> None:
    assert sorted(prefect_cd.tasks.__all__) == prefect_cd.tasks.__all__
    assert [name for name in prefect_cd.tasks.__all__ if not hasattr(prefect_cd.tasks, name)] == []


def test_the_published_schema_is_the_current_one() -> None:
    published = json.loads((TOP / "deployments/pipeline.schema.json").read_text())
    assert published == schema(), "run `make schema`"


def test_the_sample_pipeline_file_has_no_mistakes() -> None:
    assert load(TOP / "examples/shop/pipeline.yaml").application == "shop"


def test_constraints_name_no_registry() -> None:
    text = (TOP / "constraints.txt").read_text()
    assert "://" not in text
    assert " @ " not in text
