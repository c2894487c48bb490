"""What `import prefect_cd` offers, and what it costs."""

import subprocess
import sys

import pytest

import prefect_cd

HEAVY = ("prefect", "kubernetes_asyncio", "aiohttp", "playwright", "pydantic")


def modules_after(program: str) -> set[str]:
    """The heavy modules that a new process has loaded after these lines."""
    show = f"import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    command = [sys.executable, "-c", f"{program}\n{show}"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_there_are_at_most_fifteen_names() -> None:
    assert len(prefect_cd.__all__) <= 15
    assert sorted(prefect_cd.__all__) == prefect_cd.__all__


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", prefect_cd.__all__)
def test_every_name_is_importable_and_documented(name: str) -> None:
    assert getattr(prefect_cd, name).__doc__


@pytest.mark.timeout(60)
def test_a_name_is_the_same_object_as_where_it_is_defined() -> None:
    from prefect_cd.pipeline.load import load  # noqa: PLC0415
    from prefect_cd.tasks.deployment import deploy  # noqa: PLC0415

    assert prefect_cd.load_pipeline is load
    assert prefect_cd.deploy is deploy


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'prefect_cd' has no attribute 'promote'"):
        _ = prefect_cd.promote


@pytest.mark.timeout(60)
def test_the_import_alone_loads_nothing_heavy() -> None:
    assert modules_after("import prefect_cd") == set()


@pytest.mark.timeout(60)
def test_reading_a_pipeline_file_and_catching_an_error_need_no_prefect() -> None:
    assert "prefect" not in modules_after("import prefect_cd; prefect_cd.load_pipeline, prefect_cd.DeliveryError")
