"""Selectors in the words of a query, and few queries for many objects."""

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.kube.selectors import covering_queries, name_queries, selector_query


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({}, ""),
        ({"matchLabels": None, "matchExpressions": None}, ""),
        ({"matchLabels": {"app": "shop", "tier": "web"}}, "app=shop,tier=web"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}, "a in (x,y)"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x"]}]}, "a notin (x)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "a"),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, "!a"),
        ({"matchLabels": {"b": "c"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}, "b=c,a"),
    ],
)
def test_a_selector_is_written_as_the_query_wants_it(selector: Object, text: str) -> None:
    assert selector_query(selector) == text


def app(name: str, **more: str) -> Object:
    return {"matchLabels": {"app": name, **more}}


def test_a_few_selectors_are_asked_one_by_one_and_equal_ones_once() -> None:
    assert covering_queries([app("a"), app("b"), app("a")]) == ("app=a", "app=b")
    assert covering_queries([]) == ()


def test_many_selectors_become_one_by_the_label_that_tells_most_apart() -> None:
    selectors = [app(f"a{n}", team="shop", tier=str(n % 2)) for n in range(200)]
    (query,) = covering_queries(selectors)
    assert query.startswith("app in (a0,a1,a10,")
    assert query.count(",") == 199


def test_many_selectors_without_a_common_label_are_asked_as_all() -> None:
    assert covering_queries([{"matchLabels": {f"key{n}": "x"}} for n in range(9)]) == ("",)
    assert covering_queries(
        [app(str(n)) for n in range(9)] + [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
    ) == ("",)


def test_a_few_names_are_asked_one_by_one_and_many_as_all() -> None:
    assert name_queries(["a", "b"]) == ("metadata.name=a", "metadata.name=b")
    assert name_queries([str(n) for n in range(200)]) == ("",)
