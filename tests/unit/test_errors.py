"""The tree of errors: the drawing matches the classes, and every class has a code of its own."""

import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

from prefect_cd import errors
from prefect_cd.errors import DeliveryError, Errored, Failed, GateFailed, Invalid


def subclasses_of(kind: type[DeliveryError]) -> Iterator[type[DeliveryError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses_of(child)


TREE = list(subclasses_of(DeliveryError))
LEAVES = [kind for kind in TREE if kind not in (Invalid, Failed, Errored)]


def drawn_tree() -> dict[str, str]:
    """Class -> parent, as the docstring draws it."""
    parents, level_one = {}, ""
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    (│   |    )?[├└]── (\w+)", line)
        if match:
            deeper, name = match.groups()
            parents[name] = level_one if deeper else "DeliveryError"
            level_one = level_one if deeper else name
    return parents


def test_the_drawing_in_the_docstring_is_the_tree_of_classes() -> None:
    assert drawn_tree() == {kind.__name__: kind.__bases__[0].__name__ for kind in TREE}


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in [DeliveryError, *TREE]]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_a_code_of_its_own_that_is_its_name(kind: type[DeliveryError]) -> None:
    assert kind.__dict__["code"] == re.sub(r"(?<!^)([A-Z])", r"-\1", kind.__name__).lower()


@pytest.mark.parametrize("kind", LEAVES)
def test_every_leaf_is_exactly_one_of_invalid_failed_and_errored(kind: type[DeliveryError]) -> None:
    assert sum(issubclass(kind, word) for word in (Invalid, Failed, Errored)) == 1


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_documented(kind: type[DeliveryError]) -> None:
    assert inspect.getdoc(kind) != inspect.getdoc(kind.__bases__[0])


@pytest.mark.parametrize("kind", [DeliveryError, *TREE])
def test_pickling_keeps_everything(kind: type[DeliveryError]) -> None:
    error = kind("why", hint="do this", where="file:3", detail="a\nb")
    error.release = "abc"  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is kind
    assert (again.__dict__, again.args, str(again)) == (error.__dict__, error.args, str(error))


def test_the_text_says_code_place_reason_detail_and_hint() -> None:
    error = GateFailed("2 failed", where="e2e", detail="test_a\ntest_b\n", hint="look there")
    assert str(error) == "[gate-failed] e2e: 2 failed\n\ntest_a\ntest_b\n\nhint: look there"


def test_the_text_of_a_bare_error_is_one_line() -> None:
    assert str(Errored("no answer")) == "[errored] no answer"
