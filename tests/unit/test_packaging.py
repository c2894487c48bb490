import importlib
import json
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


@pytest.mark.timeout(120)
def test_the_wheel_installs_exactly_one_top_level_package_with_everything_in_it(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    files = subprocess.run(["git", "ls-files"], cwd=TOP, check=True, capture_output=True, text=True).stdout.split()
    for file in files:
        if (TOP / file).is_file() and file.split("/")[0] not in {"tests", "examples", "benchmarks"}:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_bytes((TOP / file).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(copy)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"prefect_cd"}
    for module in FLOORS:
        assert f"prefect_cd/{module.replace('.', '/')}.py" in names
    assert {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py")} <= set(names)
    assert "prefect_cd/py.typed" in names
    assert list((tmp_path / "dist").glob("*.tar.gz"))


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
