"""Values are those that kubectl reads: recorded in files, and asked of kubectl itself where it is installed."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cd.errors import InvalidManifest
from prefect_cd.manifests.yaml_reader import read

CASES = Path(__file__).parent / "cases"
WITH_ANSWER = sorted(CASES.glob("*/*.expected"))
THING = "apiVersion: example.org/v1\nkind: Thing\nmetadata: {name: t}\n"


def as_go_reads_it(text: str) -> Any:  # noqa: ANN401
    """JSON, where an integer of more than 64 bits is a float64."""

    def number(digits: str) -> int | float:
        return int(digits) if -(2**63) <= int(digits) < 2**63 else float(digits)

    return json.loads(text, parse_int=number)


def canonical(value: object) -> str:
    """Text that differs for 1 and 1.0 and true, which are equal in Python."""
    return json.dumps(value, sort_keys=True, indent=1)


def values(text: str) -> list[Any]:
    return [document.value for document in read(text, "app.yaml")]


@pytest.mark.parametrize("expected", WITH_ANSWER, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_has_the_values_that_kubectl_reads(expected: Path) -> None:
    (source,) = (path for path in expected.parent.glob(f"{expected.stem}.*") if path != expected)
    assert canonical(values(source.read_text())) == canonical(as_go_reads_it(expected.read_text()))


def test_the_cases_are_there() -> None:
    assert len(WITH_ANSWER) == 10


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [("keys", 4, "key 1.5 is not a string"), ("merge-null", 4, "expected a mapping or list of mappings")],
)
def test_what_kubectl_refuses_is_refused_with_its_line(name: str, line: int, problem: str) -> None:
    with pytest.raises(InvalidManifest, match=problem) as caught:
        read((CASES / f"yaml/{name}.yaml").read_text(), "app.yaml")
    assert caught.value.where == f"app.yaml:{line}"


SCALARS = """
    y Y yes Yes YES yEs n N no nO on oN off True tRUE ~ null nULL = << . + _ _1 1_ 22:22 190:20:30.15
    0 -0 +0 00 08 09.5 0644 0o644 0O17 -0o17 0x 0x1f 0X1F -0x1f +0x1f 0b 0b11 -0b11 0b12 1_000 1__0 0_7 0x_f
    9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809 18446744073709551615
    18446744073709551616 0xffffffffffffffff 0xfffffffffffffffff 0777777777777777777777 07777777777777777777777
    1e3 1E5 1e+3 1e-7 1. 1.e2 .5 -.5 +.5 .5e3 .5_0 ._5 .5_ _.5 .5e_3
    .inf_ ._ .__ -._5 1_0.5 9223372036854775000.0 9.223372036854775e18 9.3e18 -9.3e18 9007199254740993.0
    .e3 e3 1e 1e400 -1e400 1e-400 685_230.15e+03 1.10 1.0 -0.0
    1e20 1e21 123456789012345678901234567890 0.1 100000000000000000000.0 1.5.2 1-2 1,5 0.0.0.0 10.0.0.0/8 1e3e3
    2024-01-01 2024-1-1 2024-13-01 2024-01-01T10:00:00Z 2001-12-14t21:59:43.10-05:00 12e03 0e0 0x1p-2 infinity NaN
""".split()  # noqa: SIM905  a line of words is easier to read than a column


@pytest.mark.timeout(30)
def test_scalars_are_what_kubectl_takes_them_for(tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    text = THING + "spec:\n" + "".join(f"  s{number}: {scalar}\n" for number, scalar in enumerate(SCALARS))
    (tmp_path / "app.yaml").write_text(text)
    command = ["kubectl", "annotate", "--local", "-f", str(tmp_path / "app.yaml"), "x=y", "-o", "json"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    theirs = as_go_reads_it(answer.stdout)["spec"]
    ours = values(text)[0]["spec"]
    differences = {
        scalar: (ours[f"s{number}"], theirs[f"s{number}"])
        for number, scalar in enumerate(SCALARS)
        if canonical(ours[f"s{number}"]) != canonical(theirs[f"s{number}"])
    }
    assert differences == {}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_the_one_that_its_text_says(number: float) -> None:
    (item,) = values(f"x: {number!r}")
    assert float(item["x"]) == number
    assert isinstance(item["x"], int) == (number == math.trunc(number) and abs(number) < 9.223372036854775e18)


@pytest.mark.parametrize("digits", [5000, 70, 69])
def test_a_number_with_many_digits_is_read_in_time(digits: int) -> None:
    number = "9" * digits
    assert values(f"x: {number}") == [{"x": float(number) if digits < 309 else number}]


def test_two_notations_of_one_number_are_one_key() -> None:
    with pytest.raises(InvalidManifest, match="duplicate key 8080, first in line 1") as caught:
        read("8080: a\n0x1f90: b\n", "app.yaml")
    assert caught.value.where == "app.yaml:2"


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"x": "\\ud83d\\ude80\\uD83D\\uDE80"}',
        r'{"x": "\\ud83d\\ude80 \\\ud83d\ude80"}',
        '{\n\t"x":\t"tab"}',
        '{"x":"y","z":[1,-2,1.0,1e3,true,null],"s":"\\/\\u00e9\\n"}',
        '{"x": "\x7f\x85\u2028\u2029\ufeff"}',
        '{"x": "a: b # c", "<<": "no merge", "=": "="}',
    ],
)
def test_json_has_the_values_of_json(text: str) -> None:
    assert canonical(values(text)) == canonical([json.loads(text, parse_float=lambda f: int(float(f)))])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_any_json_is_read_as_it_is(value: dict[str, Any], ascii_only: bool, indent: int | str | None) -> None:  # noqa: FBT001
    assert values(json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == [value]


def test_several_json_documents_each_have_their_line() -> None:
    text = '{"a": 1}\n\n{"b":\n 2} {"c": 3}\n---\n{"d": "\\ud83d\\ude80"}\n'
    documents = read(text, "app.json")
    assert [document.value for document in documents] == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": "🚀"}]
    assert [document.line for document in documents] == [1, 3, 4, 6]


def test_a_mistake_in_json_has_its_line() -> None:
    for text, problem in (
        ('{"a": 1}\n{"b": 2,\n "b": 3}', "duplicate key b, first in line 2"),
        ('{\n"a": ]}', "not YAML"),
    ):
        with pytest.raises(InvalidManifest, match=problem) as caught:
            read(text, "app.json")
        assert caught.value.where == f"app.json:{text.count(chr(10)) + 1}"


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_objects_of_a_typed_list_have_its_kind_and_their_own_line() -> None:
    text = (
        "apiVersion: v1\nkind: SecretList\nmetadata: {resourceVersion: ''}\nitems:\n- metadata: {name: a}\n- kind: B\n"
    )
    documents = read(text, "app.yaml")
    assert [document.value for document in documents] == [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}},
        {"kind": "B"},
    ]
    assert [document.line for document in documents] == [5, 6]


@pytest.mark.parametrize("items", ["", "[]", "null"])
@pytest.mark.parametrize("kind", ["List", "ConfigMapList"])
def test_an_empty_list_has_no_objects(kind: str, items: str) -> None:
    assert values(f"apiVersion: v1\nkind: {kind}\nitems: {items}\n") == []


@pytest.mark.parametrize(
    "text", ["kind: AllowList\nspec: {}\n", "kind: Menu\nitems: [a]\n", "kind: PriceList\nitems: {a: b}\n"]
)
def test_an_object_that_only_looks_like_a_list_is_an_object(text: str) -> None:
    assert len(values(text)) == 1
    assert "kind" in values(text)[0]
