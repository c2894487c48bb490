"""Selectors as queries, few queries for many objects, and which labels a selector selects."""

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.kube.selectors import (
    covering_queries,
    has_selector,
    name_queries,
    selector_matches,
    selector_query,
    service_selects,
)


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
def test_a_selector_is_written_in_the_syntax_of_queries(selector: Object, text: str) -> None:
    assert selector_query(selector) == text


def app(name: str, **more: str) -> Object:
    return {"matchLabels": {"app": name, **more}}


def test_a_few_selectors_are_a_query_each_and_equal_ones_one() -> None:
    assert covering_queries([app("a"), app("b"), app("a")]) == ("app=a", "app=b")
    assert covering_queries([]) == ()


def test_many_selectors_become_one_query_by_the_label_with_most_values() -> None:
    selectors = [app(f"a{n}", team="shop", tier=str(n % 2)) for n in range(200)]
    (query,) = covering_queries(selectors)
    assert query.startswith("app in (a0,a1,a10,")
    assert query.count(",") == 199


def test_many_selectors_without_a_common_label_become_a_query_for_everything() -> None:
    assert covering_queries([{"matchLabels": {f"key{n}": "x"}} for n in range(9)]) == ("",)
    assert covering_queries(
        [app(str(n)) for n in range(9)] + [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
    ) == ("",)


def test_a_few_names_are_a_query_each_and_many_a_query_for_everything() -> None:
    assert name_queries(["a", "b"]) == ("metadata.name=a", "metadata.name=b")
    assert name_queries([str(n) for n in range(200)]) == ("",)


LABELS = {"app": "shop", "tier": "web"}


def expression(operator: str, *values: str, key: str = "app") -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        (None, False),
        ({"matchLabels": {"app": "shop"}}, True),
        ({"matchLabels": {"app": "other"}}, False),
        (expression("In", "shop", "store"), True),
        (expression("In", "store"), False),
        (expression("NotIn", "store"), True),
        (expression("NotIn", "shop"), False),
        (expression("Exists"), True),
        (expression("Exists", key="zone"), False),
        (expression("DoesNotExist", key="zone"), True),
        (expression("DoesNotExist"), False),
        (expression("Like", "shop"), False),
        ({"matchLabels": {"app": "shop"}, **expression("In", "api", key="tier")}, False),
    ],
)
def test_a_label_selector_selects_by_labels_and_by_expressions(selector: Object | None, *, selected: bool) -> None:
    assert selector_matches(selector, LABELS) == selected


@pytest.mark.parametrize(
    ("spec", "selected"),
    [
        ({"selector": {"app": "shop"}}, True),
        ({"type": "ClusterIP", "selector": LABELS}, True),
        ({"selector": {"app": "shop", "zone": "a"}}, False),
        ({"selector": {"app": "other"}}, False),
        ({"selector": {}}, False),
        ({"selector": None}, False),
        ({}, False),
        (None, False),
        ({"type": "ExternalName", "selector": {"app": "shop"}}, False),
    ],
)
def test_a_service_selects_pods_by_all_labels_of_its_selector(spec: Object | None, *, selected: bool) -> None:
    assert service_selects({"kind": "Service", "spec": spec}, LABELS) == selected


def test_a_service_without_a_selector_or_with_an_external_name_selects_no_pods() -> None:
    assert has_selector({"spec": {"selector": {"app": "shop"}}})
    assert not has_selector({"spec": {"type": "ExternalName", "selector": {"app": "shop"}}})
    assert not has_selector({"spec": {"ports": []}})
    assert not has_selector({})
    assert not service_selects({"spec": {"selector": {"app": "shop"}}}, None)
