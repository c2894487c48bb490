"""Which fields of a live object we take over, so that the next apply removes those that the manifest has not. Pure.

Server-side apply removes a field only from its only manager. Three kinds of fields would therefore stay for ever: those
that `kubectl apply` wrote before us, keys of Secrets that an older version of prefect-cd applied as `stringData`, and
the default `rollingUpdate` of a strategy, which nobody owns and which makes another strategy invalid. They become ours
by a patch of `metadata.managedFields` alone, as kubectl migrates from client-side apply (k8s.io/client-go,
`util/csaupgrade`).
"""

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from prefect_cd.kube.objects import Object, dig, dig_mapping

Fields = dict[str, Any]
"""`fieldsV1`: `f:` is a key of a map, `k:` an item of a list by its keys, `v:` by its value, `.` the field itself."""

_CLIENT_SIDE_APPLY = "kubectl-client-side-apply"
_STRATEGIES = {"Deployment": "strategy", "StatefulSet": "updateStrategy", "DaemonSet": "updateStrategy"}


def fields_to_take(live: Object, item: Object, manager: str, *, client_side: bool) -> Fields:
    """The fields that we have to own, so that applying `item` removes them; empty when there are none.

    Args:
        live: with its managedFields.
        item: the object to apply.
        manager: our field manager.
        client_side: take over what `kubectl apply` owns.
    """
    entries = _entries(live)
    from_kubectl = [
        entry
        for entry in entries
        # in another version, the same fields may have other names
        if client_side and _is_client_side(entry) and entry.get("apiVersion") == item["apiVersion"]
    ]
    others = [entry["fieldsV1"] for entry in entries if entry not in from_kubectl and not _is_ours(entry, manager)]
    fields = _union([entry["fieldsV1"] for entry in from_kubectl])
    # what `item` has is ours with the apply; of another manager's fields we only share the ownership
    unowned = _without(_union([_default_strategy(live, item), _secret_keys(live, item)]), _union(others))
    return _union([fields, unowned])


def with_fields(live: Object, fields: Fields, manager: str) -> list[Object]:
    """The managedFields of a live object once these fields are ours, and no longer those of `kubectl apply`."""
    entries = [copy.deepcopy(entry) for entry in dig(live, "metadata", "managedFields") or []]
    kept = [entry for entry in entries if not _overlaps(entry, fields)]
    ours = next((entry for entry in kept if _is_ours(entry, manager)), None)
    if ours is None:
        ours = {"apiVersion": live["apiVersion"], "manager": manager, "operation": "Apply", "fieldsType": "FieldsV1"}
        kept.append(ours)
    ours["fieldsV1"] = _union([ours.get("fieldsV1") or {}, fields])
    return kept


def without_fields(item: Object, fields: Fields, manager: str) -> Object:
    """The result of a dry run as it would be if `fields` were ours: without those that no manager wants.

    Args:
        item: the dry run's result.
        fields: what `fields_to_take` returned for it.
        manager: our field manager.
    """
    if not fields:
        return item
    owned = [entry["fieldsV1"] for entry in _entries(item) if not _overlaps(entry, fields) or _is_ours(entry, manager)]
    result = copy.deepcopy(item)
    _remove(result, _without(fields, _union(owned)))
    return result


def _entries(live: Object) -> list[Object]:
    """The entries of managedFields, except those of subresources."""
    entries = dig(live, "metadata", "managedFields") or []
    return [entry for entry in entries if isinstance(entry.get("fieldsV1"), dict) and not entry.get("subresource")]


def _is_ours(entry: Object, manager: str) -> bool:
    is_apply = (entry.get("manager"), entry.get("operation")) == (manager, "Apply")
    return is_apply and not entry.get("subresource")


def _is_client_side(entry: Object) -> bool:
    return (entry.get("manager"), entry.get("operation")) == (_CLIENT_SIDE_APPLY, "Update")


def _overlaps(entry: Object, fields: Fields) -> bool:
    """Whether an entry of `kubectl apply` is taken over by `fields`: then it goes."""
    return _is_client_side(entry) and not entry.get("subresource") and not _without(entry["fieldsV1"], fields)


# --- fields that nobody owns -----------------------------------------------------------------------------------------


def _default_strategy(live: Object, item: Object) -> Fields:
    """The `rollingUpdate` that the server filled in, where the manifest has another strategy now."""
    strategy = _STRATEGIES.get(item["kind"], "")
    present = dig_mapping(live, "spec", strategy, "rollingUpdate")
    if not present or not replaces_strategy(item):
        return {}
    return {"f:spec": {f"f:{strategy}": {"f:rollingUpdate": {f"f:{key}": {} for key in present}}}}


def _secret_keys(live: Object, item: Object) -> Fields:
    """The keys of a Secret that the manifest does not have: the server copied them from `stringData`."""
    if item["kind"] != "Secret":
        return {}
    surplus = set(dig_mapping(live, "data")) - set(dig_mapping(item, "data")) - set(dig_mapping(item, "stringData"))
    return {"f:data": {f"f:{key}": {} for key in sorted(surplus)}} if surplus else {}


def replaces_strategy(item: Object) -> bool:
    """Whether a workload's strategy does not go with the `rollingUpdate` that the server fills in by default."""
    wanted = dig_mapping(item, "spec", _STRATEGIES.get(item["kind"], ""))
    return wanted.get("type", "RollingUpdate") != "RollingUpdate" and "rollingUpdate" not in wanted


def with_live_strategy(live: Object, item: Object) -> Object:
    """The object with the live strategy, where the server refuses its own until `rollingUpdate` is removed."""
    return _with_strategy(item, live) if _default_strategy(live, item) else item


def with_own_strategy(result: Object, item: Object) -> Object:
    """The result of such a dry run, with the strategy that the object will have."""
    return _with_strategy(result, item) if replaces_strategy(item) else result


def _with_strategy(item: Object, other: Object) -> Object:
    strategy = _STRATEGIES[item["kind"]]
    return {**item, "spec": {**item["spec"], strategy: other["spec"][strategy]}}


# --- sets of fields --------------------------------------------------------------------------------------------------


def _union(sets: Iterable[Fields]) -> Fields:
    result: Fields = {}
    for fields in sets:
        for key, below in fields.items():
            result[key] = _union([result.get(key, {}), below])
    return result


def _without(fields: Fields, others: Mapping[str, Any]) -> Fields:
    """The fields that are not among the others; a field below which others own something is theirs, too."""
    result: Fields = {}
    for key, below in fields.items():
        if key not in others:
            result[key] = below
        elif rest := _without(below, others[key]):
            result[key] = rest
    return result


def _remove(value: Any, fields: Fields) -> None:  # noqa: ANN401  JSON is anything
    """Remove the fields from a map or a list, in place; a map that becomes empty by that is removed as well."""
    for key, below in fields.items():
        name = key[2:]
        if key.startswith("f:") and isinstance(value, dict) and name in value:
            _remove(value[name], below)
            if not below or value[name] in ({}, []):
                value.pop(name)
        elif isinstance(value, list) and key.startswith("v:"):
            value[:] = [entry for entry in value if entry != json.loads(name)]
        elif isinstance(value, list) and key.startswith("k:"):
            keys = json.loads(name)
            matching = [entry for entry in value if isinstance(entry, dict) and keys.items() <= entry.items()]
            for entry in matching:
                _remove(entry, below)
            if "." in below:
                value[:] = [entry for entry in value if entry not in matching]


__all__ = [
    "Fields",
    "fields_to_take",
    "replaces_strategy",
    "with_fields",
    "with_live_strategy",
    "with_own_strategy",
    "without_fields",
]
