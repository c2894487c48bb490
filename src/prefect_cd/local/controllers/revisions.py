"""Which ReplicaSet is which revision of a Deployment: equal templates, hashes, revision numbers, what history to drop.

Pure. Rules: the documentation of Deployments (pod-template-hash, revision history), annotations as the real controller
writes them. The hash need not equal upstream's: only its alphabet and its stability matter.
"""

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from prefect_cd.local.client import Object
from prefect_cd.local.controllers.objects import annotations, is_ending, reference_to

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
    """Give the label value that tells the pods of one template from those of another."""
    said = json.dumps(_said(template), sort_keys=True)
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in sha256(said.encode()).digest()[:_HASH_LENGTH])


def same_template(one: Object, other: Object) -> bool:
    """Tell whether two templates make the same pods, whatever their hash labels."""
    return bool(_said(one) == _said(other))


def _said(template: Object) -> Any:  # noqa: ANN401 - any JSON
    meta = template.get("metadata") or {}
    worn = {label: value for label, value in (meta.get("labels") or {}).items() if label != HASH}
    meta = {name: value for name, value in {**meta, "labels": worn}.items() if value}
    return _filled({**template, "metadata": meta})


def _filled(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Leave out nulls, which servers may or may not spell out."""
    if isinstance(value, dict):
        return {name: _filled(inner) for name, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def newest_of(deployment: Object, sets: Iterable[Object]) -> Object | None:
    """Give the ReplicaSet of the Deployment's present template: of several equal ones the oldest."""
    template = deployment["spec"]["template"]
    return min((rs for rs in sets if same_template(rs["spec"]["template"], template)), key=by_age, default=None)


def by_age(rs: Object) -> tuple[str, str]:
    """Sort key: older ones first (times as the API spells them sort like times)."""
    return str(rs["metadata"].get("creationTimestamp")), rs["metadata"]["name"]


def revision_of(obj: Object) -> int:
    """Give the revision in an object's annotation, 0 where there is none that can be read."""
    text = annotations(obj).get(REVISION, "")
    return int(text) if text.isdecimal() else 0


def new_set(deployment: Object) -> Object:
    """Make the ReplicaSet of the Deployment's present template, empty."""
    meta, spec = deployment["metadata"], deployment["spec"]
    template, selector = spec["template"], spec["selector"]
    digest = template_hash(template)
    worn = {**(template["metadata"].get("labels") or {}), HASH: digest}
    return {
        "metadata": {
            "name": f"{meta['name']}-{digest}",
            "namespace": meta["namespace"],
            "labels": worn,
            "ownerReferences": [reference_to(deployment)],
        },
        "spec": {
            "replicas": 0,
            "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH: digest}},
            "template": {**template, "metadata": {**template["metadata"], "labels": worn}},
        },
    }


def as_newest(deployment: Object, rs: Object, old: Iterable[Object]) -> Object:
    """Give the newest ReplicaSet with what it takes over from the Deployment, and a revision above all others'."""
    copied = {name: text for name, text in annotations(deployment).items() if name not in _OWN}
    worn, before = {**annotations(rs), **copied}, revision_of(rs)
    revision = max(map(revision_of, old), default=0) + 1
    if before < revision:
        worn[REVISION] = str(revision)
        if before:
            worn[HISTORY] = _longer(worn.get(HISTORY, ""), before)
    seconds = deployment["spec"].get("minReadySeconds", 0)
    ready = {"minReadySeconds": seconds} if seconds != rs["spec"].get("minReadySeconds", 0) else {}
    return {**rs, "metadata": {**rs["metadata"], "annotations": worn}, "spec": {**rs["spec"], **ready}}


def _longer(history: str, revision: int) -> str:
    entries = [*filter(None, history.split(",")), str(revision)]
    while len(",".join(entries)) > _HISTORY_LENGTH:
        del entries[0]
    return ",".join(entries)


def superfluous(deployment: Object, old: Sequence[Object]) -> list[Object]:
    """Give the old ReplicaSets beyond revisionHistoryLimit that stand empty."""
    alive = sorted((rs for rs in old if not is_ending(rs)), key=lambda rs: (revision_of(rs), by_age(rs)))
    limit = deployment["spec"].get("revisionHistoryLimit")
    return [] if limit is None else [rs for rs in alive[: max(0, len(alive) - limit)] if _stands_empty(rs)]


def _stands_empty(rs: Object) -> bool:
    status = rs.get("status") or {}
    seen = rs["metadata"].get("generation", 0) <= status.get("observedGeneration", 0)
    return not status.get("replicas") and not rs["spec"]["replicas"] and seen
