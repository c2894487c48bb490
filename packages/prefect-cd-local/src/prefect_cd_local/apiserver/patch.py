"""The three patches that are not server-side apply: JSON patch, JSON merge patch, strategic merge patch.

Sources: RFC 6902 (by the library jsonpatch), RFC 7386, and "Update API Objects in Place Using kubectl patch" with the
directives of the strategic merge patch in the community's API conventions: `$patch`, `$retainKeys`,
`$deleteFromPrimitiveList` and `$setElementOrder`.
"""

from collections.abc import Hashable
from typing import Any

import jsonpatch
from jsonpointer import JsonPointerException

from prefect_cd_local.apiserver.errors import Refusal, bad_request
from prefect_cd_local.apiserver.fieldset import interleaved
from prefect_cd_local.apiserver.schema import Field, Type

Value = Any
_ORDER, _DELETE, _RETAIN, _PATCH = "$setElementOrder/", "$deleteFromPrimitiveList/", "$retainKeys", "$patch"
_CANNOT = "the server rejected our request due to an error in our request"


def json_patch(document: Value, operations: Value) -> Value:
    """Apply a JSON patch (RFC 6902).

    Raises:
        Refusal: 422, an operation cannot be carried out; 400, the body is no list of operations.
    """
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise bad_request("error decoding patch: not a list of operations")
    try:
        patched = jsonpatch.apply_patch(document, operations)
    except (jsonpatch.JsonPatchException, JsonPointerException, TypeError) as error:
        raise Refusal(422, "Invalid", _CANNOT, {}) from error
    if not isinstance(patched, dict):
        raise Refusal(422, "Invalid", _CANNOT, {})
    return patched


def merge_patch(document: Value, patch: Value) -> Value:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    out = dict(document) if isinstance(document, dict) else {}
    merged = {key: merge_patch(out.get(key), value) for key, value in patch.items() if value is not None}
    return {key: value for key, value in {**out, **merged}.items() if key not in patch or patch[key] is not None}


def strategic_merge(type_: Type, document: Value, patch: dict[str, Value]) -> Value:  # noqa: C901  one line a rule
    """Merge by the schema: lists with a merge key element by element, lists of scalars as sets where it says so."""
    if patch.get(_PATCH) == "replace":
        return merge_patch({}, {key: value for key, value in patch.items() if key != _PATCH})
    if patch.get(_PATCH) == "delete":
        return {}
    out = dict(document) if isinstance(document, dict) else {}
    if _RETAIN in patch:
        out = {key: value for key, value in out.items() if key in patch[_RETAIN]}
    for directive in (key for key in patch if key.startswith(_DELETE)):
        name = directive.removeprefix(_DELETE)
        out[name] = [item for item in out.get(name) or [] if item not in patch[directive]]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        field = type_.fields.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict):
            out[key] = strategic_merge(type_.part(key), out.get(key), value)
        elif isinstance(value, list) and field and "merge" in field.strategies:
            out[key] = _merge_list(field, out.get(key) or [], value, patch.get(_ORDER + key))
        else:
            out[key] = value
    for directive in (key for key in patch if key.startswith(_ORDER)):
        name = directive.removeprefix(_ORDER)
        if name not in patch and out.get(name) and name in type_.fields:
            out[name] = _ordered(type_.fields[name], out[name], out[name], patch[directive])
    return out


def _merge_list(field: Field, old: list[Value], new: list[Value], order: list[Value] | None) -> list[Value]:
    key = field.merge_key
    if not key:
        return _ordered(field, old, old + [item for item in new if item not in old], order or new)
    if any(item.get(_PATCH) == "replace" for item in new):
        return [item for item in new if _PATCH not in item]
    out = list(old)
    for item in new:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        known = [at for at, other in enumerate(out) if other.get(key) == item[key]]
        if item.get(_PATCH) == "delete":
            out = [other for other in out if other.get(key) != item[key]]
        elif known:
            out[known[0]] = strategic_merge(field.type.part(""), out[known[0]], item)
        else:
            out.append(strategic_merge(field.type.part(""), {}, item))
    return _ordered(field, old, out, order or new)


def _ordered(field: Field, old: list[Value], items: list[Value], order: list[Value]) -> list[Value]:
    """Put the elements that the patch orders into its order; the others keep their place before one of those."""

    def name(item: Value) -> Hashable:
        merge_key: Hashable = item.get(field.merge_key) if isinstance(item, dict) else item
        return merge_key

    by_name = {name(item): item for item in items}
    before, wanted = ([key for key in map(name, part) if key in by_name] for part in (old, order))
    return [by_name[key] for key in interleaved(before, wanted, new_last=False)]
