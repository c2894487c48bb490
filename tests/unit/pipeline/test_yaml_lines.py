"""What the loaders of the pipeline file and of manifests have in common: every mistake has a line."""

import pytest
import yaml

from prefect_cd.pipeline.yaml_lines import PositionedLoader, Unreadable, line_of


def mistake(text: str) -> yaml.YAMLError:
    with pytest.raises(yaml.YAMLError) as caught:
        PositionedLoader(text).get_single_data()
    return caught.value


@pytest.mark.parametrize("value", ["2026-13-01", "!!int x", "!!float x", "!!timestamp x", "!!bool x", "!!int ''"])
def test_a_value_that_pyyaml_cannot_construct_has_a_line(value: str) -> None:
    text = f"a: 1\nb:\n  - {value}\n"
    error = mistake(text)
    assert isinstance(error, Unreadable)
    assert error.problem is not None
    assert error.problem.startswith("cannot read this value: ")
    assert line_of(error, text) == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [\n", 2), ("a: 1\nb: ]\n", 2), ("a: *unknown\n", 1), ("a: 1\n---\nb: 2\n", 2), ("a: 1\nb: '\x00'\n", 2)],
)
def test_what_is_not_yaml_has_a_line(text: str, line: int) -> None:
    assert line_of(mistake(text), text) == line


def test_an_error_without_a_position_is_in_the_first_line() -> None:
    assert line_of(yaml.MarkedYAMLError(), "a: 1\nb: 2\n") == 1
    assert line_of(yaml.YAMLError(), "a: 1\nb: 2\n") == 1


def test_what_can_be_read_is_read_as_pyyaml_reads_it() -> None:
    text = "a: &x {b: 0644, c: yes}\nd: {<<: *x, e: 2026-01-01}\n"
    assert PositionedLoader(text).get_single_data() == yaml.safe_load(text)
