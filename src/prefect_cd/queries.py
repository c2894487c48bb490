"""How objects are asked for: label and field selectors in the words of a query, few enough to be watched.

Pure. The words: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api
"""

from collections.abc import Sequence

from prefect_cd.release import Object

_SEPARATE = 4
"""Queries of one kind that are asked side by side; what needs more is asked as one."""
_TERMS = {
    "In": "{key} in ({values})",
    "NotIn": "{key} notin ({values})",
    "Exists": "{key}",
    "DoesNotExist": "!{key}",
}


def query_of(selector: Object) -> str:
    """A LabelSelector object in the words of a query; empty selects everything."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    parts += [
        _TERMS[each["operator"]].format(key=each["key"], values=",".join(each.get("values") or []))
        for each in selector.get("matchExpressions") or []
    ]
    return ",".join(parts)


def covering(selectors: Sequence[Object]) -> tuple[str, ...]:
    """Few queries that together select all that any of `selectors` does, and little else.

    A few are asked one by one. Many become one: by the label that all of them want, with every value that one of
    them wants (`app in (a,b,c)`), else without labels.
    """
    queries = tuple(dict.fromkeys(map(query_of, selectors)))
    if len(queries) <= _SEPARATE:
        return queries
    wanted = [each.get("matchLabels") or {} for each in selectors]
    shared = sorted(set.intersection(*map(set, wanted)))
    if not shared:
        return ("",)
    # the key with most values tells most apart: `app`, and not `part-of`
    key = max(shared, key=lambda each: len({labels[each] for labels in wanted}))
    return (f"{key} in ({','.join(sorted({labels[key] for labels in wanted}))})",)


def by_name(names: Sequence[str]) -> tuple[str, ...]:
    """Field queries that select the objects called `names`: a few one by one, many as one that selects all."""
    return tuple(f"metadata.name={name}" for name in names) if len(names) <= _SEPARATE else ("",)


__all__ = ["by_name", "covering", "query_of"]
