"""The three patches that are not server-side apply: JSON patch, JSON merge patch, strategic merge patch.

Sources: RFC 6902 (by the library jsonpatch), RFC 7386, and "Update API Objects in Place Using kubectl patch" with the
directives of the strategic merge patch in the community's API conventions: `$patch`, `$retainKeys`,
`$deleteFromPrimitiveList` and `$setElementOrder`.
"""

from collections.abc import Hashable
from typing import Any

import jsonpatch
from jsonpointer import JsonPointerException

from prefect_cd.local.apiserver.errors import Refusal, bad_request
from prefect_cd.local.apiserver.fieldset import interleaved
from prefect_cd.local.apiserver.schema import Field, Type

Value = Any
_ORDER, _DELETE, _RETAIN, _PATCH = "$setElementOrder/", "$deleteFromPrimitiveList/", "$retainKeys", "$patch"
_CANNOT = "the server rejected our request due to an error in our request"


def json_patch(document: Value, operations: Value) -> Value:
    """RFC 6902.

    Raises:
        Refusal: 422 where an operation cannot be carried out, 400 where it is none.
    """
    if not isinstance(operations, list) or not all(isinstance(each, dict) for each in operations):
        raise bad_request("error decoding patch: not a list of operations")
    try:
        patched = jsonpatch.apply_patch(document, operations)
    except (jsonpatch.JsonPatchException, JsonPointerException, TypeError) as error:
        raise Refusal(422, "Invalid", _CANNOT, {}) from error
    if not isinstance(patched, dict):
        raise Refusal(422, "Invalid", _CANNOT, {})
    return patched


def merge_patch(document: Value, patch: Value) -> Value:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(document) if isinstance(document, dict) else {}
    merged = {key: merge_patch(out.get(key), each) for key, each in patch.items() if each is not None}
    return {key: each for key, each in {**out, **merged}.items() if key not in patch or patch[key] is not None}


def strategic_merge(type_: Type, document: Value, patch: dict[str, Value]) -> Value:  # noqa: C901  one line a rule
    """Merge by the schema: lists with a merge key element by element, lists of scalars as sets where it says so."""
    if patch.get(_PATCH) == "replace":
        return merge_patch({}, {key: each for key, each in patch.items() if key != _PATCH})
    if patch.get(_PATCH) == "delete":
        return {}
    out = dict(document) if isinstance(document, dict) else {}
    if _RETAIN in patch:
        out = {key: each for key, each in out.items() if key in patch[_RETAIN]}
    for directive in (each for each in patch if each.startswith(_DELETE)):
        name = directive.removeprefix(_DELETE)
        out[name] = [each for each in out.get(name) or [] if each not in patch[directive]]
    for key, each in patch.items():
        if key.startswith("$"):
            continue
        field = type_.fields.get(key)
        if each is None:
            out.pop(key, None)
        elif isinstance(each, dict):
            out[key] = strategic_merge(type_.part(key), out.get(key), each)
        elif isinstance(each, list) and field and "merge" in field.strategies:
            out[key] = _merge_list(field, out.get(key) or [], each, patch.get(_ORDER + key))
        else:
            out[key] = each
    for directive in (each for each in patch if each.startswith(_ORDER)):
        name = directive.removeprefix(_ORDER)
        if name not in patch and out.get(name) and name in type_.fields:
            out[name] = _ordered(type_.fields[name], out[name], out[name], patch[directive])
    return out


def _merge_list(field: Field, old: list[Value], new: list[Value], order: list[Value] | None) -> list[Value]:
    key = field.merge_key
    if not key:
        return _ordered(field, old, old + [each for each in new if each not in old], order or new)
    if any(each.get(_PATCH) == "replace" for each in new):
        return [each for each in new if _PATCH not in each]
    out = list(old)
    for each in new:
        if key not in each:
            raise bad_request(f"map: {each} does not contain declared merge key: {key}")
        known = [at for at, there in enumerate(out) if there.get(key) == each[key]]
        if each.get(_PATCH) == "delete":
            out = [there for there in out if there.get(key) != each[key]]
        elif known:
            out[known[0]] = strategic_merge(field.type.part(""), out[known[0]], each)
        else:
            out.append(strategic_merge(field.type.part(""), {}, each))
    return _ordered(field, old, out, order or new)


def _ordered(field: Field, old: list[Value], items: list[Value], order: list[Value]) -> list[Value]:
    """What the patch names in the patch's order; the rest stays where it stood before one of those."""

    def name(each: Value) -> Hashable:
        found: Hashable = each.get(field.merge_key) if isinstance(each, dict) else each
        return found

    there = {name(each): each for each in items}
    before, wanted = ([each for each in map(name, given) if each in there] for given in (old, order))
    return [there[each] for each in interleaved(before, wanted, new_last=False)]
