"""Who owns which field: managedFields, kept by every write, and server-side apply on top of them.

Source: "Server-Side Apply" in the Kubernetes documentation, and answers of a server of 1.36 (tests/conformance). Left
out: the real server puts the claims of the oldest updaters together where there are more than ten.
"""

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from prefect_cd.local.apiserver import fieldset, schema, values
from prefect_cd.local.apiserver.errors import Refusal
from prefect_cd.local.apiserver.fieldset import Difference, Fields, Path
from prefect_cd.local.apiserver.kinds import Kind

Object = dict[str, Any]
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_NOBODYS = frozenset(
    {("f:apiVersion",), ("f:kind",), ("f:metadata",)}
    | {
        ("f:metadata", f"f:{name}")
        for name in ("name", "namespace", "creationTimestamp", "uid", "generation", "managedFields", "resourceVersion")
    }
)


class Manager(NamedTuple):
    """Whose claim it is; an apply is one claim whatever the version."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        below = f' with subresource "{self.subresource}"' if self.subresource else ""
        using = f" using {self.api_version}" if self.operation == "Update" else ""
        return f"{json.dumps(self.name)}{below}{using}"


class Claim(NamedTuple):
    """What a manager owns, and since when."""

    fields: Fields = fieldset.NOTHING
    time: str = ""


Claims = dict[Manager, Claim]


def now() -> str:
    """The time as objects say it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def claims_of(item: Object) -> Claims:
    """The claims that an object carries."""
    found: Claims = {}
    for each in item["metadata"].get("managedFields") or ():
        if each.get("operation") in {"Apply", "Update"}:
            name, version, below = (each.get(key, "") for key in ("manager", "apiVersion", "subresource"))
            fields = fieldset.from_fields_v1(each.get("fieldsV1") or {})
            found[Manager(name, each["operation"], version, below)] = Claim(fields, each.get("time", ""))
    return found


def with_claims(item: Object, claims: Claims) -> Object:
    """The object with these claims, in the order in which the server lists them."""
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
            claims.items(), key=lambda each: (each[0].operation, each[1].time, each[0].name, each[0].subresource)
        )
    ]
    metadata = {key: each for key, each in item["metadata"].items() if key != "managedFields"}
    return {**item, "metadata": {**metadata, **({"managedFields": entries} if entries else {})}}


def record_update(
    kind: Kind, live: Object | None, item: Object, name: str, subresource: str = "", reset: Iterable[Path] = ()
) -> Object:
    """The new object with the claims that follow from who changed what.

    Args:
        kind: its kind.
        live: the object before; None on create.
        item: the object as the writer wants it, read by the schema. Its managedFields are an edit of them.
        name: the writer.
        subresource: through which it was written.
        reset: what cannot be written this way, and so is never owned by it.
    """
    before = live or _nothing(kind)
    edited = item["metadata"].get("managedFields") is not None
    claims = claims_of(item if live is None or edited else before)
    if live and not claims and (edited or not live["metadata"].get("managedFields")):
        return with_claims(item, {})  # an object whose claims were wiped is not followed until somebody applies it
    found = _difference(kind, before, item)
    me = Manager(name, "Update", kind.api_version, subresource)
    mine = claims.get(me, Claim())
    fields = _ownable((mine.fields - found.removed) | found.written, reset)
    result = _yielding(claims, me, found)
    if fields:
        same = fields == mine.fields and not found.written - _NOBODYS
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
    """Server-side apply: what the manager no longer applies and nobody else owns goes, what it applies comes.

    Raises:
        Refusal: 409, others own what would change; 500, the configuration does not fit the schema (as the real server).
    """
    type_ = schema.of(kind)
    before = live or _nothing(kind)
    claims = claims_of(before) if live is None else claims_of(live) or _of_nobody(kind, live)
    me = Manager(name, "Apply", kind.api_version, subresource)
    mine = claims.get(me, Claim())
    wanted = {key: each for key, each in with_claims(applied, {}).items() if (f"f:{key}",) not in reset}
    try:
        said = fieldset.owned(type_, wanted)
        merged = fieldset.merge(type_, with_claims(before, {}), wanted)
    except fieldset.Untypable as error:
        place = f"{applied['metadata'].get('namespace', '')}/{applied['metadata'].get('name', '')}"
        which = f"{place}; {kind.group}/{kind.version}, Kind={kind.kind}"
        raise Refusal(500, "", f"failed to create typed patch object ({which}): {error}") from error
    fields = _ownable(said, reset)
    claimed = [said, *(claim.fields for manager, claim in claims.items() if manager != me)]
    kept = fieldset.with_structs(type_, frozenset().union(*claimed))
    item = fieldset.remove(type_, merged, fieldset.with_structs(type_, mine.fields) - kept)
    found = _difference(kind, before, item)
    if not force:
        _refuse_conflicts({manager: claim for manager, claim in claims.items() if manager != me}, found.written)
    result = _yielding(claims, me, found)
    if fields:
        # where nothing changes but who owns it, the real server leaves the time as it was, or out
        result[me] = Claim(fields, now() if found.written or found.removed else mine.time)
    return with_claims(_remembering(item, applied) if name == "kubectl" else item, result)


def _remembering(item: Object, applied: Object) -> Object:
    """`kubectl apply --server-side` keeps the annotation of the client-side apply up to date where there is one."""
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
    return frozenset(path for path in fields - _NOBODYS if not any(path[: len(each)] == each for each in not_mine))


def _yielding(claims: Claims, me: Manager, found: Difference) -> Claims:
    """What the others still own."""
    left = {
        manager: Claim(claim.fields - found.written - found.removed, claim.time) for manager, claim in claims.items()
    }
    return {manager: claim for manager, claim in left.items() if claim.fields and manager != me}


def _of_nobody(kind: Kind, live: Object) -> Claims:
    """Claims of an object that nobody followed so far."""
    fields = frozenset(path for path in _difference(kind, _nothing(kind), live).written if path[0] != "f:status")
    return {Manager("before-first-apply", "Update", kind.api_version): Claim(fields - _NOBODYS, now())}


def _refuse_conflicts(others: Claims, changed: Fields) -> None:
    lines: list[str] = []
    causes: list[dict[str, str]] = []
    for manager, claim in sorted(others.items(), key=lambda each: str(each[0])):
        paths = [fieldset.spoken(path) for path in sorted(claim.fields & changed)]
        lines += [f"conflicts with {manager}:", *(f"- {path}" for path in paths)] if paths else []
        said = {"reason": "FieldManagerConflict", "message": f"conflict with {manager}"}
        causes += [{**said, "field": path} for path in paths]
    if not causes:
        return
    one = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    several = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    raise Refusal(409, "Conflict", one if len(causes) == 1 else several, {"causes": causes})
