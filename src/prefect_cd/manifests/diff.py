"""Compare two states of an object, readable and without values of Secrets."""

from typing import Any

import yaml

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.labels import EPOCH
from prefect_cd.manifests.line_diff import unified

HIDDEN = "(hidden)"
HIDDEN_CHANGED = "(hidden, changed)"
# libyaml where PyYAML was built with it, as its wheels are: several times faster, which a thousand objects need
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
SERVER_METADATA = (
    "managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds",
)  # fmt: skip
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_LIVE_ANNOTATIONS = (_LAST_APPLIED, "deployment.kubernetes.io/revision", EPOCH)


def strip(item: Object) -> Object:
    """The object without fields that no manifest has, to compare it or to apply it again."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in SERVER_METADATA}
    live_annotations = metadata.get("annotations") or {}
    annotations = {key: value for key, value in live_annotations.items() if key not in _LIVE_ANNOTATIONS}
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def diff(before: Object | None, after: Object | None) -> str:
    """A unified diff of YAML from `before` to `after`; values of Secrets are hidden."""
    shown_before, shown_after = _hide(before, None), _hide(after, before)
    return "\n".join(unified(_yaml(shown_before), _yaml(shown_after)))


def changed_lines(unified: str) -> list[str]:
    """The removed and added lines of a unified diff, without its context."""
    return [line for line in unified.splitlines() if line.startswith(("+", "-"))]


def _hide(item: Object | None, earlier: Object | None) -> Object | None:
    """The object without values of Secrets; with `earlier`, changed ones are marked."""
    if item is None or item["kind"] != "Secret":
        return item
    hidden = dict(item)
    for key in ("data", "stringData"):
        if isinstance(item.get(key), dict):
            before = (earlier or {}).get(key)
            before = before if isinstance(before, dict) else {}
            hidden[key] = {
                name: HIDDEN if earlier is None or before.get(name) == value else HIDDEN_CHANGED
                for name, value in item[key].items()
            }
        elif item.get(key):  # of a wrong shape, which the server will refuse
            hidden[key] = HIDDEN
    annotations = item["metadata"].get("annotations") or {}
    if _LAST_APPLIED in annotations:  # `kubectl apply` copies the whole object into it
        hidden["metadata"] = {**item["metadata"], "annotations": {**annotations, _LAST_APPLIED: HIDDEN}}
    return hidden


def _yaml(item: Object | None) -> list[str]:
    return [] if item is None else str(yaml.dump(item, Dumper=_DUMPER, sort_keys=True, width=120)).splitlines()
