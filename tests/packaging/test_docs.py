"""The generated pages of docs/ are those that the code generates, and every text in them agrees with the code."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import prefect_cd.pipeline.models
import prefect_cd.rollout.diagnosis
from draw_imports import imports, packages
from generate_docs import SECTIONS, error_classes, generated_files, is_retried
from prefect_cd.errors import ClusterUnreachable, DeliveryError, GateErrored, GateFailed, LockLost
from prefect_cd.manifests.lint import RULE_TEXTS
from prefect_cd.manifests.lint import Rule as LintRule
from prefect_cd.rollout.diagnosis.cause import CATEGORY_TEXTS, Category, Rule

TOP = Path(__file__).resolve().parents[2]
GENERATED = [
    *("deployments/kubernetes/rbac/shop-cluster-wide.yaml", "deployments/kubernetes/rbac/shop.yaml"),
    *("docs/categories.md", "docs/errors.md", "docs/imports.svg", "docs/lint.md", "docs/pipeline.md"),
]
pytestmark = pytest.mark.timeout(60)  # importing Prefect takes seconds


@pytest.mark.parametrize("file", GENERATED)
def test_a_committed_page_is_the_generated_one(file: str) -> None:
    assert (TOP / file).read_text() == generated_files()[TOP / file], "run `make docs`"


def test_all_generated_files_are_checked() -> None:
    assert sorted(str(path.relative_to(TOP)) for path in generated_files()) == GENERATED


# --- the drawing -----------------------------------------------------------------------------------------------------


def drawn_imports() -> set[tuple[str, ...]]:
    return set(re.findall(r"<title>([\w.]+) imports ([\w.]+)</title>", (TOP / "docs/imports.svg").read_text()))


def test_the_arrows_in_the_drawing_are_the_imports_between_packages() -> None:
    assert drawn_imports() == imports(packages(TOP))
    assert ("flows", "tasks") in drawn_imports()


def test_every_arrow_in_the_drawing_runs_down() -> None:
    names = packages(TOP)
    assert [arrow for arrow in drawn_imports() if names.index(arrow[0]) >= names.index(arrow[1])] == []


def test_every_package_is_in_the_drawing() -> None:
    folders = {path.parent.name for path in (TOP / "src/prefect_cd").glob("*/__init__.py")}
    modules = {path.stem for path in (TOP / "src/prefect_cd").glob("*.py")} - {"__init__"}
    drawn = {name.split(".")[0] for name in packages(TOP)}
    assert drawn == folders | modules | {"deployments", "flows", "tasks"}


# --- the texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", list(error_classes(DeliveryError)))
def test_every_error_has_a_hint_of_its_own(error: type[DeliveryError]) -> None:
    assert "remedy" in error.__dict__
    assert inspect.getdoc(error) != inspect.getdoc(error.__bases__[0])


def test_retried_is_what_prefect_retries() -> None:
    assert is_retried(ClusterUnreachable)
    assert not any(is_retried(error) for error in (GateFailed, GateErrored, LockLost))


def test_every_category_and_lint_rule_has_a_text() -> None:
    assert list(CATEGORY_TEXTS) == list(Category)
    assert list(RULE_TEXTS) == list(LintRule)


def rules_of_diagnosis() -> list[Rule]:
    """All rules in the tables of the diagnosis package."""
    names = [module.name for module in pkgutil.iter_modules(prefect_cd.rollout.diagnosis.__path__)]
    modules = [importlib.import_module(f"prefect_cd.rollout.diagnosis.{name}") for name in names]
    values = [value for module in modules for value in vars(module).values()]
    rules = [value for value in values if isinstance(value, Rule)]
    return rules + [rule for table in values if type(table) is tuple for rule in table if isinstance(rule, Rule)]


def test_the_text_of_a_category_agrees_with_the_rules_that_use_it() -> None:
    rules = rules_of_diagnosis()
    assert len(rules) > 30
    for rule in rules:
        text = CATEGORY_TEXTS[rule.category]
        if rule.permanent:
            assert text.permanent is not None, rule
        else:
            assert (text.patience, text.counted) != (None, None), rule


# --- pages that are written by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (TOP / page).read_text()
    named = set(re.findall(r"`([\w./-]+(?:\.py|/))`", text))
    linked = {(TOP / page).parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)}
    assert named | {str(link) for link in linked}
    assert [
        name for name in sorted(named) if not any((base / name).exists() for base in (TOP, TOP / "src/prefect_cd"))
    ] == []
    assert [str(link) for link in sorted(linked) if not link.exists()] == []


def test_every_section_of_the_pipeline_file_is_on_its_page() -> None:
    names = re.findall(r"^class (\w+)\(Settings\)", inspect.getsource(prefect_cd.pipeline.models), re.MULTILINE)
    assert {model.__name__ for model in SECTIONS.values()} == set(names)
