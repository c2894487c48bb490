"""Selectors of labels and names: as queries of the API server, and as tests of an object's labels.

Pure. The syntax of queries: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api
"""

from collections.abc import Callable, Mapping, Sequence

from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping

_MAX_QUERIES = 4
"""Queries of one kind that run side by side, a watch each; more than these become one query."""
_TERMS = {
    "In": "{key} in ({values})",
    "NotIn": "{key} notin ({values})",
    "Exists": "{key}",
    "DoesNotExist": "!{key}",
}


# --- queries ---------------------------------------------------------------------------------------------------------


def selector_query(selector: Object) -> str:
    """A LabelSelector object as a query; an empty query selects everything."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or []:
        term = _TERMS[expression["operator"]]
        parts.append(term.format(key=expression["key"], values=",".join(expression.get("values") or [])))
    return ",".join(parts)


def covering_queries(selectors: Sequence[Object]) -> tuple[str, ...]:
    """Few queries that together select all that any of `selectors` does, and little else.

    A few selectors keep a query each. Many become one query: by a label that all of them require, with every value
    that one of them requires (`app in (a,b,c)`); without a common label, the query selects everything.
    """
    queries = tuple(dict.fromkeys(map(selector_query, selectors)))
    if len(queries) <= _MAX_QUERIES:
        return queries
    required: list[dict[str, str]] = [selector.get("matchLabels") or {} for selector in selectors]
    values = {key: sorted({labels[key] for labels in required}) for key in set.intersection(*map(set, required))}
    if not values:
        return ("",)
    # the key with the most values selects the fewest other objects: `app`, and not `part-of`
    key = max(sorted(values), key=lambda key: len(values[key]))
    return (f"{key} in ({','.join(values[key])})",)


def name_queries(names: Sequence[str]) -> tuple[str, ...]:
    """Field queries that select the objects called `names`: for a few names one each, for many one for everything."""
    return tuple(f"metadata.name={name}" for name in names) if len(names) <= _MAX_QUERIES else ("",)


# --- tests of labels -------------------------------------------------------------------------------------------------


def selector_matches(selector: object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector object selects pods with these labels; an empty one selects all, a missing one none."""
    if not isinstance(selector, dict):
        return False
    return _has_labels(labels, dig_mapping(selector, "matchLabels")) and all(
        _expression_holds(expression, labels) for expression in as_objects(selector.get("matchExpressions"))
    )


def has_selector(service: Object) -> bool:
    """Whether Kubernetes finds the endpoints of a Service by labels.

    It does not for an ExternalName, which is a DNS alias, and without a selector, where another controller or a user
    writes the endpoints (https://kubernetes.io/docs/concepts/services-networking/service/#services-without-selectors).
    """
    return dig(service, "spec", "type") != "ExternalName" and bool(dig_mapping(service, "spec", "selector"))


def service_selects(service: Object, labels: object) -> bool:
    """Whether a Service sends requests to pods with these labels."""
    if not has_selector(service) or not isinstance(labels, Mapping):
        return False
    return _has_labels(labels, dig_mapping(service, "spec", "selector"))


def _has_labels(labels: Mapping[str, str], required: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in required.items())


def _expression_holds(expression: Object, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy one of `matchExpressions`; an operator that does not exist is never satisfied."""
    operator = _OPERATORS.get(as_text(expression.get("operator")))
    value = labels.get(as_text(expression.get("key")))
    return operator is not None and operator(value, expression.get("values") or ())


_OPERATORS: dict[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


__all__ = ["covering_queries", "has_selector", "name_queries", "selector_matches", "selector_query", "service_selects"]
