"""Revisions of a Deployment: equal templates, hashes, revision numbers, and the history limit.

Pure. Rules: the documentation of Deployments (pod-template-hash, revision history), annotations as the real controller
writes them. The hash need not equal upstream's: only its alphabet and its stability matter.
"""

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from prefect_cd_local.client import Object
from prefect_cd_local.controllers.objects import annotations, is_ending, reference_to

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_OWN = {REVISION, HISTORY, DESIRED, MAXIMUM, "kubectl.kubernetes.io/last-applied-configuration"}

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so no words
_HASH_LENGTH = 10
_HISTORY_LENGTH = 2000


def template_hash(template: Object) -> str:
    """Return the label value that distinguishes the pods of one template from those of another."""
    text = json.dumps(_content(template), sort_keys=True)
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in sha256(text.encode()).digest()[:_HASH_LENGTH])


def same_template(one: Object, other: Object) -> bool:
    """Return whether two templates make equal pods, apart from their hash labels."""
    return bool(_content(one) == _content(other))


def _content(template: Object) -> Any:  # noqa: ANN401 - any JSON
    meta = template.get("metadata") or {}
    kept_labels = {label: value for label, value in (meta.get("labels") or {}).items() if label != HASH}
    meta = {name: value for name, value in {**meta, "labels": kept_labels}.items() if value}
    return _without_nulls({**template, "metadata": meta})


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Remove nulls, which servers may or may not write."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def newest_of(deployment: Object, sets: Iterable[Object]) -> Object | None:
    """Return the ReplicaSet of the Deployment's present template; the oldest of several equal ones."""
    template = deployment["spec"]["template"]
    return min((rs for rs in sets if same_template(rs["spec"]["template"], template)), key=by_age, default=None)


def by_age(rs: Object) -> tuple[str, str]:
    """Sort key: older ones first (times in the API's format sort in order of time)."""
    return str(rs["metadata"].get("creationTimestamp")), rs["metadata"]["name"]


def revision_of(obj: Object) -> int:
    """Return the revision in an object's annotation; 0 where there is none, or no number."""
    text = annotations(obj).get(REVISION, "")
    return int(text) if text.isdecimal() else 0


def new_set(deployment: Object) -> Object:
    """Make the ReplicaSet of the Deployment's present template, with no pods."""
    meta, spec = deployment["metadata"], deployment["spec"]
    template, selector = spec["template"], spec["selector"]
    digest = template_hash(template)
    pod_labels = {**(template["metadata"].get("labels") or {}), HASH: digest}
    return {
        "metadata": {
            "name": f"{meta['name']}-{digest}",
            "namespace": meta["namespace"],
            "labels": pod_labels,
            "ownerReferences": [reference_to(deployment)],
        },
        "spec": {
            "replicas": 0,
            "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH: digest}},
            "template": {**template, "metadata": {**template["metadata"], "labels": pod_labels}},
        },
    }


def as_newest(deployment: Object, rs: Object, old: Iterable[Object]) -> Object:
    """Return the newest ReplicaSet with the Deployment's annotations and settings, and the highest revision."""
    copied = {name: text for name, text in annotations(deployment).items() if name not in _OWN}
    new_annotations, before = {**annotations(rs), **copied}, revision_of(rs)
    revision = max(map(revision_of, old), default=0) + 1
    if before < revision:
        new_annotations[REVISION] = str(revision)
        if before:
            new_annotations[HISTORY] = _longer(new_annotations.get(HISTORY, ""), before)
    seconds = deployment["spec"].get("minReadySeconds", 0)
    ready = {"minReadySeconds": seconds} if seconds != rs["spec"].get("minReadySeconds", 0) else {}
    return {**rs, "metadata": {**rs["metadata"], "annotations": new_annotations}, "spec": {**rs["spec"], **ready}}


def _longer(history: str, revision: int) -> str:
    entries = [*filter(None, history.split(",")), str(revision)]
    while len(",".join(entries)) > _HISTORY_LENGTH:
        del entries[0]
    return ",".join(entries)


def beyond_history_limit(deployment: Object, old: Sequence[Object]) -> list[Object]:
    """Return the empty old ReplicaSets beyond revisionHistoryLimit."""
    alive = sorted((rs for rs in old if not is_ending(rs)), key=lambda rs: (revision_of(rs), by_age(rs)))
    limit = deployment["spec"].get("revisionHistoryLimit")
    return [] if limit is None else [rs for rs in alive[: max(0, len(alive) - limit)] if _stands_empty(rs)]


def _stands_empty(rs: Object) -> bool:
    status = rs.get("status") or {}
    seen = rs["metadata"].get("generation", 0) <= status.get("observedGeneration", 0)
    return not status.get("replicas") and not rs["spec"]["replicas"] and seen
