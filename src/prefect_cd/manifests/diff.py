"""Compare two states of an object for people; values of Secrets stay hidden."""

import difflib
from typing import Any

import yaml

from prefect_cd.kube.objects import Object

HIDDEN = "(hidden)"
HIDDEN_CHANGED = "(hidden, changed)"
# libyaml where PyYAML was built with it, as its wheels are: a thousand objects feel it
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SERVER_METADATA = (
    "managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds",
)  # fmt: skip
_SERVER_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
)
_LAST_APPLIED = _SERVER_ANNOTATIONS[0]


def strip(item: Object) -> Object:
    """The object without what only the server writes: fit for comparing and for applying again."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in _SERVER_METADATA}
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in _SERVER_ANNOTATIONS}
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def diff(before: Object | None, after: Object | None) -> str:
    """What changes from `before` to `after`, as a unified diff of YAML; values of Secrets are hidden."""
    shown_before, shown_after = _hide(before, None), _hide(after, before)
    lines = difflib.unified_diff(_yaml(shown_before), _yaml(shown_after), "now", "then", lineterm="", n=2)
    return "\n".join(list(lines)[2:])


def _hide(item: Object | None, earlier: Object | None) -> Object | None:
    """The object without values of Secrets, wherever a Secret may keep them."""
    if item is None or item["kind"] != "Secret":
        return item
    hidden = dict(item)
    for key in ("data", "stringData"):
        if isinstance(item.get(key), dict):
            known = (earlier or {}).get(key)
            known = known if isinstance(known, dict) else {}
            hidden[key] = {
                name: HIDDEN if earlier is None or known.get(name) == value else HIDDEN_CHANGED
                for name, value in item[key].items()
            }
        elif item.get(key):
            hidden[key] = HIDDEN
    annotations = item["metadata"].get("annotations") or {}
    if _LAST_APPLIED in annotations:
        hidden["metadata"] = {**item["metadata"], "annotations": {**annotations, _LAST_APPLIED: HIDDEN}}
    return hidden


def _yaml(item: Object | None) -> list[str]:
    return [] if item is None else str(yaml.dump(item, Dumper=_DUMPER, sort_keys=True, width=120)).splitlines()
