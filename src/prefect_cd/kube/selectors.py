"""How objects are asked for: label and field selectors in the words of a query, few enough to be watched.

Pure. The words: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api
"""

from collections.abc import Callable, Mapping, Sequence

from prefect_cd.kube.objects import Object, as_objects, as_text, dig_mapping

_SEPARATE = 4
"""Queries of one kind that are asked side by side; what needs more is asked as one."""
_TERMS = {
    "In": "{key} in ({values})",
    "NotIn": "{key} notin ({values})",
    "Exists": "{key}",
    "DoesNotExist": "!{key}",
}


def selector_query(selector: Object) -> str:
    """A LabelSelector object in the words of a query; empty selects everything."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    parts += [
        _TERMS[each["operator"]].format(key=each["key"], values=",".join(each.get("values") or []))
        for each in selector.get("matchExpressions") or []
    ]
    return ",".join(parts)


def covering_queries(selectors: Sequence[Object]) -> tuple[str, ...]:
    """Few queries that together select all that any of `selectors` does, and little else.

    A few are asked one by one. Many become one: by the label that all of them want, with every value that one of
    them wants (`app in (a,b,c)`), else without labels.
    """
    queries = tuple(dict.fromkeys(map(selector_query, selectors)))
    if len(queries) <= _SEPARATE:
        return queries
    wanted = [each.get("matchLabels") or {} for each in selectors]
    shared = sorted(set.intersection(*map(set, wanted)))
    if not shared:
        return ("",)
    # the key with most values tells most apart: `app`, and not `part-of`
    key = max(shared, key=lambda each: len({labels[each] for labels in wanted}))
    return (f"{key} in ({','.join(sorted({labels[key] for labels in wanted}))})",)


def name_queries(names: Sequence[str]) -> tuple[str, ...]:
    """Field queries that select the objects called `names`: a few one by one, many as one that selects all."""
    return tuple(f"metadata.name={name}" for name in names) if len(names) <= _SEPARATE else ("",)


def matches(selector: object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector means pods with these labels: an empty one means all, a missing one none."""
    if not isinstance(selector, dict):
        return False
    wanted = dig_mapping(selector, "matchLabels")
    return (not wanted or matches_labels(wanted, labels)) and all(
        _OPERATORS.get(as_text(each.get("operator")), _never)(
            labels.get(as_text(each.get("key"))), each.get("values") or ()
        )
        for each in as_objects(selector.get("matchExpressions"))
    )


def _never(_value: str | None, _values: Sequence[str]) -> bool:
    return False


_OPERATORS: dict[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def matches_labels(selector: object, labels: object) -> bool:
    """Whether the plain `selector` of a Service takes what bears `labels`; an empty one takes nothing."""
    if not isinstance(selector, dict) or not isinstance(labels, dict) or not selector:
        return False
    return all(labels.get(key) == value for key, value in selector.items())


__all__ = ["covering_queries", "matches", "name_queries", "selector_query"]
