"""Field ownership: managedFields, updated by every write, and server-side apply based on them.

Source: "Server-Side Apply" in the Kubernetes documentation, and answers of a server of 1.36 (tests/conformance). Left
out: the real server merges the entries of the oldest updaters where there are more than ten.
"""

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from prefect_cd_local.apiserver import fieldset, schema, values
from prefect_cd_local.apiserver.errors import Refusal
from prefect_cd_local.apiserver.fieldset import Difference, Fields, Path
from prefect_cd_local.apiserver.kinds import Kind

Object = dict[str, Any]
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_UNOWNED = frozenset(
    {("f:apiVersion",), ("f:kind",), ("f:metadata",)}
    | {
        ("f:metadata", f"f:{name}")
        for name in ("name", "namespace", "creationTimestamp", "uid", "generation", "managedFields", "resourceVersion")
    }
)


class Manager(NamedTuple):
    """The identity of an entry in managedFields; all versions of an apply share one entry."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        below = f' with subresource "{self.subresource}"' if self.subresource else ""
        using = f" using {self.api_version}" if self.operation == "Update" else ""
        return f"{json.dumps(self.name)}{below}{using}"


class Claim(NamedTuple):
    """The fields that a manager owns, and since when."""

    fields: Fields = fieldset.NOTHING
    time: str = ""


Claims = dict[Manager, Claim]


def now() -> str:
    """Return the time in the API's format."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def claims_of(item: Object) -> Claims:
    """Read the claims from an object's managedFields."""
    claims: Claims = {}
    for entry in item["metadata"].get("managedFields") or ():
        if entry.get("operation") in {"Apply", "Update"}:
            name, version, below = (entry.get(key, "") for key in ("manager", "apiVersion", "subresource"))
            fields = fieldset.from_fields_v1(entry.get("fieldsV1") or {})
            claims[Manager(name, entry["operation"], version, below)] = Claim(fields, entry.get("time", ""))
    return claims


def with_claims(item: Object, claims: Claims) -> Object:
    """Return the object with these claims, in the order in which the server lists them."""
    entries = [
        {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            **({"time": claim.time} if claim.time else {}),
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldset.to_fields_v1(claim.fields),
            **({"subresource": manager.subresource} if manager.subresource else {}),
        }
        for manager, claim in sorted(
            claims.items(), key=lambda pair: (pair[0].operation, pair[1].time, pair[0].name, pair[0].subresource)
        )
    ]
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return {**item, "metadata": {**metadata, **({"managedFields": entries} if entries else {})}}


def record_update(
    kind: Kind, live: Object | None, item: Object, name: str, subresource: str = "", reset: Iterable[Path] = ()
) -> Object:
    """Return the new object with the claims that follow from its changes.

    Args:
        kind: its kind.
        live: the object before; None on create.
        item: the object as the writer wants it, read by the schema. Its managedFields are an edit of them.
        name: the writer.
        subresource: through which it was written.
        reset: fields that cannot be written this way, and so are never owned by it.
    """
    before = live or _nothing(kind)
    edited = item["metadata"].get("managedFields") is not None
    claims = claims_of(item if live is None or edited else before)
    if live and not claims and (edited or not live["metadata"].get("managedFields")):
        return with_claims(item, {})  # managedFields that were removed stay away until the next apply
    difference = _difference(kind, before, item)
    me = Manager(name, "Update", kind.api_version, subresource)
    mine = claims.get(me, Claim())
    fields = _ownable((mine.fields - difference.removed) | difference.written, reset)
    result = _remaining_claims(claims, me, difference)
    if fields:
        same = fields == mine.fields and not difference.written - _UNOWNED
        result[me] = Claim(fields, mine.time if mine.time and same else now())
    return with_claims(item, result)


def apply(
    kind: Kind,
    live: Object | None,
    applied: Object,
    name: str,
    *,
    force: bool,
    subresource: str = "",
    reset: tuple[Path, ...] = (),
) -> Object:
    """Server-side apply: set what is applied, remove what this manager no longer applies and no other one owns.

    Raises:
        Refusal: 409, other managers own fields that would change; 500 (as in the real server), the configuration does
            not fit the schema.
    """
    type_ = schema.of(kind)
    before = live or _nothing(kind)
    claims = claims_of(before) if live is None else claims_of(live) or _claims_before_first_apply(kind, live)
    me = Manager(name, "Apply", kind.api_version, subresource)
    mine = claims.get(me, Claim())
    wanted = {key: value for key, value in with_claims(applied, {}).items() if (f"f:{key}",) not in reset}
    try:
        applied_fields = fieldset.owned(type_, wanted)
        merged = fieldset.merge(type_, with_claims(before, {}), wanted)
    except fieldset.SchemaMismatch as error:
        place = f"{applied['metadata'].get('namespace', '')}/{applied['metadata'].get('name', '')}"
        which = f"{place}; {kind.group}/{kind.version}, Kind={kind.kind}"
        raise Refusal(500, "", f"failed to create typed patch object ({which}): {error}") from error
    fields = _ownable(applied_fields, reset)
    claimed = [applied_fields, *(claim.fields for manager, claim in claims.items() if manager != me)]
    kept = fieldset.with_structs(type_, frozenset().union(*claimed))
    item = fieldset.remove(type_, merged, fieldset.with_structs(type_, mine.fields) - kept)
    difference = _difference(kind, before, item)
    if not force:
        _refuse_conflicts({manager: claim for manager, claim in claims.items() if manager != me}, difference.written)
    result = _remaining_claims(claims, me, difference)
    if fields:
        # where only owners change, the real server leaves the time as it was, or out
        result[me] = Claim(fields, now() if difference.written or difference.removed else mine.time)
    return with_claims(_with_last_applied(item, applied) if name == "kubectl" else item, result)


def _with_last_applied(item: Object, applied: Object) -> Object:
    """Update the annotation of client-side apply where it exists, as `kubectl apply --server-side` does."""
    annotations = item["metadata"].get("annotations") or {}
    if _LAST_APPLIED not in annotations:
        return item
    annotations = {**annotations, _LAST_APPLIED: schema.canonical(applied) + "\n"}
    return {**item, "metadata": {**item["metadata"], "annotations": annotations}}


def _nothing(kind: Kind) -> Object:
    return {**values.zero(schema.of(kind)), "apiVersion": kind.api_version, "kind": kind.kind}


def _difference(kind: Kind, before: Object, after: Object) -> Difference:
    return fieldset.compare(schema.of(kind), with_claims(before, {}), with_claims(after, {}))


def _ownable(fields: Fields, reset: Iterable[Path]) -> Fields:
    not_mine = tuple(reset)
    return frozenset(
        path for path in fields - _UNOWNED if not any(path[: len(prefix)] == prefix for prefix in not_mine)
    )


def _remaining_claims(claims: Claims, me: Manager, difference: Difference) -> Claims:
    """Return what the other managers still own."""
    left = {
        manager: Claim(claim.fields - difference.written - difference.removed, claim.time)
        for manager, claim in claims.items()
    }
    return {manager: claim for manager, claim in left.items() if claim.fields and manager != me}


def _claims_before_first_apply(kind: Kind, live: Object) -> Claims:
    """Return the claims of an object that had no managedFields."""
    fields = frozenset(path for path in _difference(kind, _nothing(kind), live).written if path[0] != "f:status")
    return {Manager("before-first-apply", "Update", kind.api_version): Claim(fields - _UNOWNED, now())}


def _refuse_conflicts(others: Claims, changed: Fields) -> None:
    lines: list[str] = []
    causes: list[dict[str, str]] = []
    for manager, claim in sorted(others.items(), key=lambda pair: str(pair[0])):
        paths = [fieldset.path_text(path) for path in sorted(claim.fields & changed)]
        lines += [f"conflicts with {manager}:", *(f"- {path}" for path in paths)] if paths else []
        entry = {"reason": "FieldManagerConflict", "message": f"conflict with {manager}"}
        causes += [{**entry, "field": path} for path in paths]
    if not causes:
        return
    one = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    several = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    raise Refusal(409, "Conflict", one if len(causes) == 1 else several, {"causes": causes})
